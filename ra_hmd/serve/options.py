"""Settings of a server. The fields of these models are options of `ra-hmd serve` and `ra-hmd console`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator

from ra_hmd.cases.policy import CasePolicy
from ra_hmd.core.config import Settings
from ra_hmd.core.errors import UserError
from ra_hmd.inference.options import Flag, RationaleOptions, ServedDetectorOptions
from ra_hmd.serve.case_settings import CaseSettings
from ra_hmd.serve.hosts import is_loopback, normalize_host, normalize_origin, normalize_root_path
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
    allowed_origins: Annotated[list[str], Flag("--allowed-origin")] = Field(
        default_factory=list,
        description="Origin whose pages may ask with a key and read answers (CORS), as https://desk.example.org; "
        "several times; default: none.",
    )
    root_path: str = Field(default="", description="Path prefix of a reverse proxy, as /memes.")
    uds: Path | None = Field(
        default=None, description="Unix socket to listen on instead of host and port, as for a proxy on this machine."
    )
    ssl_certfile: Path | None = Field(default=None, description="Certificate in PEM: the service then speaks HTTPS.")
    ssl_keyfile: Path | None = Field(default=None, description="Its private key, if --ssl-certfile does not hold it.")

    @field_validator("root_path")
    @classmethod
    def _normalized(cls, value: str) -> str:
        return normalize_root_path(value)

    @field_validator("allowed_origins")
    @classmethod
    def _origins(cls, values: list[str]) -> list[str]:
        return [normalize_origin(value) for value in values]

    def _problems(self) -> Iterator[str]:
        if self.ssl_keyfile is not None and self.ssl_certfile is None:
            yield "--ssl-keyfile goes with --ssl-certfile FILE; give it."
        if "*" in self.allowed_origins and self.keys is None:
            yield (
                "--allowed-origin '*' lets any page in a browser on this machine ask a service without keys; name the "
                "origins, or give --keys FILE."
            )
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
        browser could reach it under a name of its own (DNS rebinding). No browser reaches a Unix socket.
        """
        if not self.allowed_hosts and (self.uds is not None or not is_loopback(self.host)):
            return ["*"]
        return [normalize_host(name) for name in (*self.allowed_hosts, self.host, "localhost")]


class ClassOptions(Settings):
    """Names of the classes, and those that flag a meme."""

    TITLE = "classes"

    class_names: Annotated[list[str], Flag("--class-name")] = Field(
        default_factory=list, description="Name of each class, in the order of the labels; several times."
    )
    flag_classes: Annotated[list[int], Flag("--flag-class")] = Field(
        default_factory=list,
        description="Class that flags a meme in /v1/moderations; several times; default: class 1 of two, all of those "
        "of which a meme may have several, else all but class 0.",
    )


class ReplicaOptions(Settings):
    """How many processes serve, and where."""

    TITLE = "replicas"

    replicas: int = Field(default=1, ge=1, description="Replicas behind the address; more than one by Ray Serve.")
    ray_address: str | None = Field(
        default=None,
        description="With --replicas: HOST:PORT of a Ray cluster, or auto for the one that runs here; default: a Ray "
        "of this machine, for this command.",
    )

    def _problems(self) -> Iterator[str]:
        if self.ray_address is not None and self.replicas == 1:
            yield "--ray-address: one replica needs no Ray; give --replicas 2 or more, or leave it out."


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
    replicas: ReplicaOptions = ReplicaOptions()
    reference: Path | None = Field(
        default=None, description="Feature store, no test split, to measure the effects of changes on."
    )
    jobs: JobSettings = JobSettings()
    classes: ClassOptions = ClassOptions()
    cases: CaseSettings = CaseSettings()
    policy: CasePolicy = CasePolicy()

    def _problems(self) -> Iterator[str]:
        if self.cases.cases is None and (self.cases, self.policy) != (CaseSettings(), CasePolicy()):
            yield "What is said of cases, or of verdicts at which a person looks, needs --cases FILE; give it."
        if self.cases.is_file and self.replicas.ray_address is not None:
            yield (
                f"--cases {self.cases.cases}: replicas on several machines cannot share a SQLite file; give the URL of "
                "a database, or leave --ray-address out."
            )
