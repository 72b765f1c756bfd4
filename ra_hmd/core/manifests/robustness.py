"""Manifest of a robustness study."""

from typing import Any, ClassVar

from pydantic import Field

from ra_hmd.core.manifests.base import Manifest
from ra_hmd.core.manifests.reports import SystemDescription, TestRecord


class RobustnessManifest(Manifest):
    """Manifest of a robustness study (`ra-hmd robustness`).

    Attributes:
        command: The command line.
        arguments: Settings.
        seed: Seed of resampling and samples.
        final: Whether `--final` was given.
        test: System to the test splits that were opened.
        systems: System to the description of its head.
        attacked: Suite and seed of the attacked folder, and the digest of its manifest.
        stores: System to the folder of its feature stores.
        seconds: Step to the seconds that it took in this run.
        summary: One line on the results.
    """

    KINDS: ClassVar[tuple[str, ...]] = ("robustness",)

    command: str = ""
    arguments: dict[str, Any] = Field(default_factory=dict)
    seed: int | None = None
    final: bool | None = None
    test: dict[str, TestRecord] = Field(default_factory=dict)
    systems: dict[str, SystemDescription] = Field(default_factory=dict)
    attacked: dict[str, Any] = Field(default_factory=dict)
    stores: dict[str, str] = Field(default_factory=dict)
    seconds: dict[str, float] = Field(default_factory=dict)
    summary: str = ""
