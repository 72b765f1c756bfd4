"""Which cases a list or a queue shows, and in what order."""

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field
from sqlalchemy import Select, Text, cast, or_

from ra_hmd.cases.outcome import OPEN
from ra_hmd.cases.tables import Case
from ra_hmd.core.config import Settings

Order = Literal["urgent", "oldest", "newest", "least-similar"]


class CaseFilter(Settings):
    """Filters of cases, all of which must hold, and an order."""

    TITLE = "filter"

    queue: str | None = Field(default=None, description="Name of the queue; none: all.")
    source: str | None = Field(default=None, description="Where the memes come from.")
    states: tuple[str, ...] = Field(default=(), description="States; none: all.")
    why: str | None = Field(default=None, description="Why a person looks at them.")
    assigned: str | None = Field(default=None, description="Who is to decide; empty: cases of nobody in particular.")
    words: str | None = Field(default=None, description="Words in caption, context or id.")
    label: int | None = Field(default=None, description="Decided label, or where none is decided that of the verdict.")
    order: Order = Field(default="urgent", description="`urgent`: by priority, then by how unsure the verdict is.")

    def apply(self, statement: Select[Any], *, ordered: bool = True) -> Select[Any]:
        """A statement on cases with these filters and this order."""
        for column, value in (
            (Case.queue, self.queue),
            (Case.source, self.source),
            (Case.why, self.why),
            (Case.assigned, self.assigned),
        ):
            statement = statement if value is None else statement.where(column == value)
        statement = statement.where(*self._of_states())
        if self.words:
            columns = (Case.caption, Case.context, Case.meme_id)
            statement = statement.where(or_(*(one.icontains(self.words, autoescape=True) for one in columns)))
        if self.label is not None:
            of_people, of_model = cast(Case.label, Text) == str(self.label), Case.judged == str(self.label)
            statement = statement.where(or_(of_people, Case.label.is_(None) & of_model))
        return statement.order_by(*self.columns) if ordered else statement

    @property
    def keys(self) -> list[Any]:
        """Columns of the order."""
        return [column for column, _ in _ORDERS[self.order]]

    @property
    def downwards(self) -> list[bool]:
        """For each column of the order whether the largest comes first."""
        return [down for _, down in _ORDERS[self.order]]

    @property
    def columns(self) -> list[Any]:
        """What the order goes by."""
        return [one.desc() if down else one for one, down in _ORDERS[self.order]]

    @property
    def halves(self) -> tuple[bool, ...]:
        """Values of `Case.open` that cases of these states have."""
        return tuple(sorted({one in OPEN for one in self.states or (*OPEN, "decided")}))

    def _of_states(self) -> Iterator[Any]:
        """Conditions on the state. That of being open begins the indexes of all orders."""
        if len(self.halves) == 1:
            yield Case.open if self.halves[0] else ~Case.open
        if self.states and set(self.states) not in ({"decided"}, set(OPEN)):
            yield Case.state.in_(self.states)


_ORDERS: dict[str, tuple[tuple[Any, bool], ...]] = {
    "urgent": ((Case.priority, True), (Case.order, False), (Case.id, False)),
    "oldest": ((Case.id, False),),
    "newest": ((Case.id, True),),
    "least-similar": ((Case.similarity, False), (Case.id, False)),
}
"""Order to its columns, each with whether the largest comes first."""
