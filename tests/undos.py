"""Taking opinions back where no bank has learnt from them."""

from ra_hmd.cases.store import CaseStore
from ra_hmd.cases.tables import Case
from ra_hmd.cases.undoing import begin_undo, finish_undo


def undo(store: CaseStore, opinion_id: int, person: str, why: str) -> Case:
    """Begin to take an opinion back, and finish it."""
    begin_undo(store.database, [opinion_id], person, why)
    return finish_undo(store.database, opinion_id)
