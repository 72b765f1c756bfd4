"""Settings of a server. The fields of these models are options of `ra-hmd serve` and `ra-hmd console`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator

from ra_hmd.core.config import Settings
from ra_hmd.core.errors import UserError
from ra_hmd.inference.options import Flag, RationaleOptions, ServedDetectorOptions
from ra_hmd.serve.hosts import is_loopback, normalize_host, normalize_root_path
from ra_hmd.serve.jobs_settings import JobSettings
from ra_hmd.serve.limits import BatchingSettings, FollowSettings, RequestLimits


class AddressOptions(Settings):
    """Address of a service, and who may use it.

    Raises:
        UserError: an address that others can reach, without keys; an invalid host or root path.
    """

    TITLE = "address"

    host: str = Field(default="127.0.0.1", description="Address to listen on; another than loopback needs --keys.")
    port: int = Field(default=8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    keys: Path | None = Field(default=None, description="File of API keys, made by `ra-hmd serve-key`.")
    allowed_hosts: Annotated[list[str], Flag("--allowed-host")] = Field(
        default_factory=list, description="Host name of the service, as in a proxy in front of it; several times."
    )
    root_path: str = Field(default="", description="Path prefix of a reverse proxy, as /memes.")

    @field_validator("root_path")
    @classmethod
    def _normalized(cls, value: str) -> str:
        return normalize_root_path(value)

    def _problems(self) -> Iterator[str]:
        if self.keys is None and not is_loopback(self.host):
            yield (
                f"--host {self.host} lets others in, and there are no keys: make one with `ra-hmd serve-key NAME "
                "--role moderator --keys FILE` and give --keys FILE, or leave --host out."
            )
        try:
            _ = self.host_names
        except UserError as error:
            yield str(error)

    @property
    def host_names(self) -> list[str]:
        """Allowed Host headers, beside the loopback addresses.

        Without `allowed_hosts` all are allowed, unless the service listens on a loopback address, where a page in a
        browser could reach it under a name of its own (DNS rebinding).
        """
        if not self.allowed_hosts and not is_loopback(self.host):
            return ["*"]
        return [normalize_host(name) for name in (*self.allowed_hosts, self.host, "localhost")]


class ServerSettings(Settings):
    """Settings of a server: its detector, its address, and its limits."""

    TITLE = "server"

    run: Path = Field(description="Folder with the head whose verdicts are served.")
    detector: ServedDetectorOptions
    address: AddressOptions
    batching: BatchingSettings
    limits: RequestLimits
    rationale: RationaleOptions
    follow: FollowSettings = FollowSettings()
    reference: Path | None = Field(
        default=None, description="Feature store, no test split, to measure the effects of changes on."
    )
    jobs: JobSettings = JobSettings()
