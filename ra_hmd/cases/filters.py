"""Which cases a list or a queue shows, and in what order."""

from typing import Any, Literal

from pydantic import Field
from sqlalchemy import Select, Text, cast, or_

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
        if self.states:
            statement = statement.where(Case.state.in_(self.states))
        if self.words:
            columns = (Case.caption, Case.context, Case.meme_id)
            statement = statement.where(or_(*(one.icontains(self.words, autoescape=True) for one in columns)))
        if self.label is not None:
            of_people, of_model = (cast(one, Text) == str(self.label) for one in (Case.label, Case.verdict["verdict"]))
            statement = statement.where(or_(of_people, Case.label.is_(None) & of_model))
        return statement.order_by(*_ORDERS[self.order]) if ordered else statement


_ORDERS: dict[str, tuple[Any, ...]] = {
    "urgent": (Case.priority.desc(), Case.order, Case.id),
    "oldest": (Case.id,),
    "newest": (Case.id.desc(),),
    "least-similar": (Case.similarity, Case.id),
}
