"""Settings of `ra-hmd attack`."""

from collections.abc import Iterator
from typing import ClassVar

from pydantic import Field

from ra_hmd.attacks.base import SUITES, Variant
from ra_hmd.core.config import Settings
from ra_hmd.models.generation.endpoint import EndpointSettings


class AttackSettings(Settings):
    """Which attacks are made, and their seed."""

    TITLE: ClassVar[str] = "attack"

    suite: str = Field(default="standard", description=f"Suite of attacks: {', '.join(SUITES)}.")
    families: list[str] = Field(default=[], description="Only these families of the suite.")
    attacks: list[str] = Field(default=[], description="Only these attacks of the suite.")
    severities: list[int] = Field(default=[], description="In place of the severities of the suite: 1 2 3.")
    channels: list[str] = Field(default=[], description="In place of the channels of the suite: field picture …")
    seed: int = Field(default=0, ge=0, description="Seed of all random choices.")

    def variants(self, *, taught: bool = False) -> list[Variant]:
        """The variants that are asked for.

        Args:
            taught: Whether there is a teacher for the attacks that need one.

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
            taught=taught,
        )


class RephraseSettings(EndpointSettings):
    """The model that rephrases captions, and its endpoint."""

    TITLE: ClassVar[str] = "teacher"

    temperature: float = Field(default=0.7, ge=0, description="With --endpoint: temperature of the sampling.")
    max_tokens: int = Field(default=300, ge=1, description="With --endpoint: most tokens of an answer.")
    retries: int = Field(default=3, ge=0, description="With --endpoint: repetitions of a request that failed.")
    timeout: float = Field(default=60.0, gt=0, description="With --endpoint: seconds until a request failed.")


class RephraseOptions(RephraseSettings):
    """The teacher as options of a command that works without one, too."""

    endpoint: str | None = Field(  # type: ignore[assignment]
        default=None,
        description="Base URL of an OpenAI-compatible API that rephrases captions. CAPTIONS ARE SENT THERE.",
    )
    model: str | None = Field(default=None, description="Name of the model there.")  # type: ignore[assignment]

    def _problems(self) -> Iterator[str]:
        if (self.endpoint is None) != (self.model is None):
            yield "give both --endpoint and --model, or neither."
