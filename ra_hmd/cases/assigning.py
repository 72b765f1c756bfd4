"""Assignment of open cases to people. Nobody else gets an assigned case by `CaseStore.next`."""

from collections.abc import Sequence

from sqlalchemy import delete, select

from ra_hmd.cases.audit import log
from ra_hmd.cases.database import Database
from ra_hmd.cases.tables import Case, Claim, Skip


def assign(database: Database, case_ids: Sequence[str], colleague: str, person: str) -> int:
    """Assign open cases to a colleague, and return how many there were; decided ones are left as they are.

    Whoever has such a case on the screen loses it, unless that is the colleague; a colleague who skipped it gets it
    again.

    Args:
        database: The database.
        case_ids: The cases.
        colleague: Who is to decide; empty: whoever comes first.
        person: Who assigns.
    """
    with database.write() as session:
        found = select(Case).where(Case.id.in_(case_ids), Case.open, Case.assigned != colleague).with_for_update()
        cases = session.scalars(found).all()
        names = [case.id for case in cases]
        for case in cases:
            case.assigned = colleague
            log(session, person, "assigned", case.id, colleague=colleague)
        if colleague:
            session.execute(delete(Claim).where(Claim.case_id.in_(names), Claim.person != colleague))
            session.execute(delete(Skip).where(Skip.case_id.in_(names), Skip.person == colleague))
        return len(names)
