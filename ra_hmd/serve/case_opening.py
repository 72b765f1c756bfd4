"""Opens the cases of a service: database, pictures, policy and webhooks."""

from ra_hmd.cases.alerts import Alerts
from ra_hmd.cases.database import Database
from ra_hmd.cases.pictures import CasePictures
from ra_hmd.cases.policy import CasePolicy, PolicyDraw
from ra_hmd.cases.store import CaseStore
from ra_hmd.cases.webhooks import WebhookSender
from ra_hmd.serve.background import Periodic
from ra_hmd.serve.bank_service import BankService
from ra_hmd.serve.batching import BatchingService
from ra_hmd.serve.case_service import CaseService
from ra_hmd.serve.case_settings import CaseSettings

ALERT_SECONDS = 60.0
"""Pause between two checks of the rules of alerts."""


def open_cases(
    settings: CaseSettings, policy: CasePolicy, service: BatchingService, bank_service: BankService | None
) -> CaseService | None:
    """Open the cases; None where no database is named.

    Args:
        settings: Where the cases are, and who is told of decisions.
        policy: Verdicts that a person is asked about.
        service: Batching service that scores memes.
        bank_service: Changes the bank; None: decisions are recorded, and teach nothing.

    Raises:
        UserError: The database cannot be opened, or the file of the webhooks' secret holds something else.
    """
    if settings.cases is None:
        return None
    secret = settings.secret() if settings.sends else None
    store = CaseStore(Database(settings.cases))
    cases = CaseService(service, store, CasePictures(settings.pictures), bank_service, PolicyDraw(policy), settings)
    if settings.limits:
        alerts = Alerts(store.database, settings, settings.alert_url)
        cases.background.append(Periodic("checking alerts", ALERT_SECONDS, lambda _: alerts.check()))
    if secret is not None:
        cases.background.append(WebhookSender(store.database, secret))
    return cases
