"""Settings of the review of a bank. The fields are options of `ra-hmd bank audit` and `ra-hmd bank suggest`."""

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from ra_hmd.core.config import Settings

if TYPE_CHECKING:
    from ra_hmd.retrieval.kernel_ridge.settings import KernelSettings


class ReviewSettings(Settings):
    """Settings that audit and suggestions share."""

    views: list[str] = Field(
        default_factory=list,
        description="What memes are compared by: embedding (the default), hidden, untuned, or a view's NAME "
        "(docs/bank.md); several times.",
    )

    @property
    def kernel(self) -> "KernelSettings":
        """The settings of the kernel head."""
        from ra_hmd.retrieval.kernel_ridge.settings import kernel_settings

        return kernel_settings(self.views)


class AuditSettings(ReviewSettings):
    """Settings of `ra-hmd bank audit`."""

    TITLE: ClassVar[str] = "audit"

    thin: int = Field(20, ge=1, description="A source has few rows of a class below this number.")
    near: int = Field(31, ge=0, le=64, description="Largest distance of near copies, of PDQ's 256 bits.")


class SuggestSettings(ReviewSettings):
    """Settings of `ra-hmd bank suggest`."""

    TITLE: ClassVar[str] = "suggestions"

    budget: int = Field(32, ge=1, description="Number of memes that are suggested.")
    sample: int = Field(
        1000, ge=1, description="Number of memes of the pool, drawn at random, whose uncertainty is to be reduced."
    )
    candidates: int = Field(
        8000, ge=1, description="Number of memes, drawn at random from a larger pool, that can be suggested."
    )
    seed: int = Field(0, ge=0, description="Seed of both draws.")
