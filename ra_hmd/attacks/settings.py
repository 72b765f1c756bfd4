"""Settings of `ra-hmd attack`."""

from typing import ClassVar

from pydantic import Field

from ra_hmd.attacks.base import SUITES, Variant
from ra_hmd.core.config import Settings


class AttackSettings(Settings):
    """Which attacks are made, and their seed."""

    TITLE: ClassVar[str] = "attack"

    suite: str = Field(default="standard", description=f"Suite of attacks: {', '.join(SUITES)}.")
    families: list[str] = Field(default=[], description="Only these families of the suite.")
    attacks: list[str] = Field(default=[], description="Only these attacks of the suite.")
    severities: list[int] = Field(default=[], description="In place of the severities of the suite: 1 2 3.")
    channels: list[str] = Field(default=[], description="In place of the channels of the suite: field picture …")
    seed: int = Field(default=0, ge=0, description="Seed of all random choices.")

    def variants(self) -> list[Variant]:
        """The variants that are asked for.

        Raises:
            UserError: See `suite_variants`.
        """
        from ra_hmd.attacks.suites import suite_variants

        return suite_variants(
            self.suite,
            families=self.families,
            attacks=self.attacks,
            severities=self.severities,
            channels=self.channels,
        )
