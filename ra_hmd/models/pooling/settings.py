"""Settings of the backend that runs an LMM's forward pass."""

from collections.abc import Iterator
from typing import ClassVar, Literal

from pydantic import Field

from ra_hmd.core.config import Settings
from ra_hmd.models.generation.endpoint import check_url


class BackendSettings(Settings):
    """Backend of an LMM's forward pass: transformers in this process, or vLLM (docs/cluster.md)."""

    TITLE: ClassVar[str] = "backend"

    backend: Literal["transformers", "vllm"] = Field(
        default="transformers", description="Runs the LMM's forward pass: transformers or vllm (docs/cluster.md)."
    )
    engine_url: str | None = Field(
        default=None,
        description="With --backend vllm: base URL of a running vLLM server, or several with commas between; default: "
        "vLLM is started here.",
    )
    engine_model: str | None = Field(
        default=None,
        description="With --engine-url: name of the adapter, or model, at the servers; default: the only one.",
    )
    engine_concurrency: int = Field(
        default=16, ge=1, description="With --engine-url: most requests at a time for each server."
    )
    engine_timeout: float = Field(
        default=120.0, gt=0, description="With --engine-url: seconds until a request counts as failed."
    )
    engine_gpus: int = Field(
        default=1, ge=1, description="With --backend vllm and without --engine-url: GPUs that share the model."
    )

    def _problems(self) -> Iterator[str]:
        yield from super()._problems()
        fields = BackendSettings.model_fields
        remote = ("engine_model", "engine_concurrency", "engine_timeout")
        for name in ("engine_url", "engine_gpus", *remote):
            option, given = f"--{name.replace('_', '-')}", getattr(self, name) != fields[name].default
            if given and self.backend != "vllm":
                yield f"{option} goes with --backend vllm; give both, or leave it out."
            elif given and name in remote and self.engine_url is None:
                yield f"{option} goes with --engine-url; give the servers' URL, or leave it out."
        if self.engine_url is not None:
            if self.engine_gpus != fields["engine_gpus"].default:
                yield "--engine-gpus is for vLLM that is started here, not for --engine-url; leave one of them out."
            if not self.urls:
                yield "--engine-url is empty; give a URL, such as http://127.0.0.1:8000."
            for url in self.urls:
                try:
                    check_url(url)
                except ValueError as error:
                    yield f"--engine-url: {error}"

    @property
    def urls(self) -> list[str]:
        """Base URLs of the servers, without a slash or `/v1` at their end; empty without `engine_url`."""
        given = (self.engine_url or "").split(",")
        return list(dict.fromkeys(url.strip().rstrip("/").removesuffix("/v1") for url in given if url.strip()))

    @property
    def backend_settings(self) -> "BackendSettings":
        """These settings alone, of options that hold more."""
        return BackendSettings(**{name: getattr(self, name) for name in BackendSettings.model_fields})


TRANSFORMERS = BackendSettings()
"""The default: transformers, in this process."""
