"""Where the curves of a training are reported beside its folder: `report_to` of Stage 2 and `train-head`.

The names are those of `report_to` in Stage 1, whose trainer is the host's; the packages' own environment variables
(`WANDB_MODE`, `MLFLOW_TRACKING_URI`, `SWANLAB_MODE`, …) hold here as they do there.
"""

import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal

from ra_hmd.core.errors import UserError

ReportTo = Literal["tensorboard", "wandb", "mlflow", "swanlab"]
Report = Callable[[Mapping[str, Any], int], None]
"""Takes the values of an epoch and its number."""

LOGS = "runs"
"""Folder of TensorBoard's files in a run's folder."""

_PROJECTS = {"wandb": "WANDB_PROJECT", "mlflow": "MLFLOW_EXPERIMENT_NAME", "swanlab": "SWANLAB_PROJECT"}


def check_trackers(report_to: tuple[ReportTo, ...]) -> None:
    """Raise `UserError` if a package that `report_to` names is not installed."""
    missing = [name for name in report_to if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"`report_to` is {', '.join(report_to)}: {' and '.join(missing)} is not installed. "
            f"Use `pip install {' '.join(missing)}`, or leave it out."
        )


@contextmanager
def reported(report_to: tuple[ReportTo, ...], folder: Path, config: Mapping[str, Any]) -> Iterator[Report]:
    """Open a run in each tracker, and close it at the end.

    Args:
        report_to: The trackers.
        folder: Folder of the training: the run's name, and the place of TensorBoard's files.
        config: Settings of the training.
    """
    with ExitStack() as stack:
        trackers = [_start(name, folder, config) for name in report_to]
        for tracker in trackers:
            stack.callback(tracker.finish)

        def report(values: Mapping[str, Any], epoch: int) -> None:
            numbers = {name: value for name, value in values.items() if isinstance(value, int | float)}
            for tracker in trackers:
                tracker.log(numbers, step=epoch)

        yield report


def _start(name: ReportTo, folder: Path, config: Mapping[str, Any]) -> Any:
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    options: dict[ReportTo, dict[str, Any]] = {
        "tensorboard": {"logging_dir": folder},
        "wandb": {"name": str(folder)},
        "mlflow": {"run_name": str(folder)},
        "swanlab": {"experiment_name": str(folder)},
    }
    project = LOGS if name == "tensorboard" else os.environ.get(_PROJECTS[name], "ra-hmd")
    tracker = LOGGER_TYPE_TO_CLASS[name](project, **options[name])
    tracker.start()
    if name != "tensorboard":  # the settings stand in the folder's manifest already
        tracker.store_init_configuration({key: str(value) for key, value in config.items() if value is not None})
    return tracker
