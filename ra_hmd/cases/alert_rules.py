"""When a team is told that its queue or its memes are not as they should be."""

from collections.abc import Iterator

from pydantic import Field

from ra_hmd.core.config import Settings


class AlertRules(Settings):
    """Rules of alerts. By default there are none."""

    TITLE = "alerts"

    alert_waiting: int | None = Field(default=None, ge=0, description="Alert when more cases than this wait.")
    alert_minutes: float | None = Field(
        default=None, gt=0, description="Alert when a case has waited longer than so many minutes."
    )
    alert_unlike: float | None = Field(
        default=None,
        ge=0,
        lt=1,
        description="Alert when more than this share of the memes of the last 24 hours is less similar to the bank "
        "than --alert-similarity.",
    )
    alert_similarity: float | None = Field(
        default=None, ge=-1, le=1, description="Similarity below which a meme counts for --alert-unlike."
    )

    def _problems(self) -> Iterator[str]:
        if (self.alert_unlike is None) != (self.alert_similarity is None):
            yield "--alert-unlike and --alert-similarity belong together: give both, or neither."

    @property
    def limits(self) -> dict[str, float]:
        """Name of each rule that is set (`waiting`, `minutes` or `unlike`) to its limit."""
        found = {"waiting": self.alert_waiting, "minutes": self.alert_minutes, "unlike": self.alert_unlike}
        return {name: limit for name, limit in found.items() if limit is not None}
