"""Settings of `ra-hmd retention`."""

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from ra_hmd.core.config import Settings

if TYPE_CHECKING:
    from ra_hmd.experiments.retention.gate import Margins

DIVERGENCE, VERDICTS, ANSWERS, LIKELIHOOD, WORDS = (
    "divergence",
    "verdict answers",
    "right answers",
    "caption likelihood",
    "caption words",
)
"""The measures, which are the tasks of the gate."""


class RetentionSettings(Settings):
    """Settings of pictures, questions and gate."""

    TITLE: ClassVar[str] = "retention"

    pictures: int = Field(default=200, ge=1, description="Pictures; five general questions are asked about each.")
    memes: int = Field(default=200, ge=1, description="Memes whose description is scored.")
    max_new_tokens: int = Field(default=32, ge=1, description="Length limit of an answer, in tokens.")
    batch_size: int = Field(default=8, ge=1, description="Questions per forward pass.")
    divergence_margin: float = Field(default=0.1, gt=0, description="Margin of the divergence, in nats per token.")
    share_margin: float = Field(default=0.03, gt=0, description="Margin of the shares of answers and of words.")
    likelihood_margin: float = Field(
        default=0.1, gt=0, description="Margin of the log-likelihood of descriptions, in nats per token."
    )
    bootstrap_samples: int = Field(default=2000, ge=100, description="Resamples behind each interval.")
    seed: int = Field(default=0, description="Seed of pictures, memes and resamples.")

    @property
    def margins(self) -> "Margins":
        """The margin of each measure; measures have different units and are not pooled."""
        from ra_hmd.experiments.retention.gate import Margins

        tasks = {DIVERGENCE: self.divergence_margin, LIKELIHOOD: self.likelihood_margin}
        return Margins(each=self.share_margin, pooled=None, tasks=tasks)


class PolicySettings(Settings):
    """Settings of the comparison of two evaluations."""

    TITLE: ClassVar[str] = "policy retention"

    margin: float = Field(default=0.03, gt=0, description="Accuracy that each head may lose.")
    bootstrap_samples: int = Field(default=2000, ge=100, description="Resamples behind each interval.")
    seed: int = Field(default=0, description="Seed of the resampling.")


class BenchmarkSettings(Settings):
    """Settings of the gate of benchmarks."""

    TITLE: ClassVar[str] = "retention"

    margin: float = Field(default=0.03, gt=0, description="Margin of each benchmark; 0.01 is a point.")
    pooled_margin: float = Field(default=0.01, gt=0, description="Margin of the questions of all benchmarks together.")
    bootstrap_samples: int = Field(default=2000, ge=100, description="Resamples behind each interval.")
    seed: int = Field(default=0, description="Seed of the resamples.")
