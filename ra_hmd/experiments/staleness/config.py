"""Settings of `ra-hmd staleness`."""

from collections.abc import Iterator
from typing import ClassVar

from pydantic import Field

from ra_hmd.core.config import Settings
from ra_hmd.experiments.staleness.periods import DatePart
from ra_hmd.retrieval.embeddings import EMBEDDING
from ra_hmd.retrieval.kernel_ridge.settings import KernelSettings
from ra_hmd.retrieval.voting import VoteWeights, Voting


class StalenessSettings(Settings):
    """Settings of periods, banks and vote."""

    TITLE: ClassVar[str] = "staleness"

    key: str | None = Field(
        default=None, description="Field of the memes' `extras` that holds the period; null: each store is a period."
    )
    order: tuple[str, ...] = Field(
        default=(), description="Names of the periods in order; without a key, names of the stores' periods."
    )
    date_part: DatePart = Field(default="day", description="Part of a date that makes a period.")
    bins: int | None = Field(
        default=None, ge=2, description="Number of periods of about equally many memes; null: one per value."
    )
    window: int | None = Field(
        default=None, ge=1, description="A bank holds the memes of so many last periods; null: of all since the first."
    )
    bank_size: int | None = Field(
        default=None, ge=2, description="Class-balanced sample for each bank, so that banks differ only in age."
    )
    min_memes: int = Field(default=20, ge=1, description="Periods with fewer queries are not evaluated.")
    views: tuple[str, ...] = Field(
        default=(EMBEDDING,),
        min_length=1,
        description="Views that the KRR compares: embedding, hidden, untuned, or the name of an encoder's view.",
    )
    topk: int = Field(default=20, ge=1, description="K of the KNN vote.")
    weights: VoteWeights = Field(default="arithmetic", description="Vote weights.")
    bootstrap_samples: int = Field(default=1000, ge=1, description="Resamples of each interval.")
    seed: int = Field(default=0, description="Seed of resamples and samples.")

    def _problems(self) -> Iterator[str]:
        if self.key is None and self.bins:
            yield "`bins` needs a period key; without one each store is a period, in the given order."
        if self.order and self.bins:
            yield "`order` names the periods and `bins` creates them; give one of them."

    @property
    def voting(self) -> Voting:
        """Settings of the KNN vote."""
        return Voting(self.topk, self.weights)

    @property
    def kernel(self) -> KernelSettings:
        """Settings of the KRR."""
        return KernelSettings(views=self.views)
