"""Settings of the engine that work units run on."""

from collections.abc import Iterator
from typing import ClassVar, Literal

from pydantic import Field

from ra_hmd.core.config import Settings

Engine = Literal["local", "ray"]
"""Where units of work run: in processes of this machine, or on the actors of a Ray cluster."""


class WorkerSettings(Settings):
    """Options of the commands whose units of work may run on a cluster."""

    TITLE: ClassVar[str] = "engine"

    engine: Engine = Field(default="local", description="local (this machine) or ray (a Ray cluster, docs/cluster.md).")
    ray_address: str | None = Field(
        default=None,
        description="With --engine ray: HOST:PORT of a cluster, or auto for the one that runs here; default: a Ray of "
        "this machine, for this command.",
    )
    ray_workers: int | None = Field(
        default=None, ge=1, description="With --engine ray: most workers; default: as many as the cluster has room for."
    )
    ray_cpus: float = Field(default=1, gt=0, description="With --engine ray: CPUs of each worker.")
    ray_gpus: float | None = Field(
        default=None,
        ge=0,
        description="With --engine ray: GPUs of each worker; default: one, of a cluster that has any.",
    )

    def _problems(self) -> Iterator[str]:
        given = [name for name in type(self).model_fields if name != "engine" and name in self.model_fields_set]
        changed = [name for name in given if getattr(self, name) != type(self).model_fields[name].default]
        if self.engine == "local" and changed:
            options = " and ".join(f"--{name.replace('_', '-')}" for name in changed)
            yield f"{options}: these belong to --engine ray; give it, or leave them out."
