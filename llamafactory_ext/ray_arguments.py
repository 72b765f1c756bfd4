"""YAML keys of stage `sft-classifier` for training on a Ray cluster."""

from dataclasses import dataclass, field

from pydantic import PositiveFloat


@dataclass
class RayTrainingArguments:
    """Keys beside the host's `ray_num_workers`, `ray_init_kwargs`, `master_addr` and `master_port`."""

    ray_cpus_per_worker: PositiveFloat | None = field(
        default=None,
        metadata={
            "help": "sft-classifier, USE_RAY=1: CPUs that each worker asks of the cluster; unset: one, and one for "
            "each of `dataloader_num_workers`."
        },
    )
    ray_environment: list[str] | None = field(
        default=None,
        metadata={
            "help": "sft-classifier, USE_RAY=1: environment variables that workers get from the driver, beside those "
            "that training reads; secrets are sent only if they are named here."
        },
    )
