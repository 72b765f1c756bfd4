"""The console without its page: what each button does."""

import getpass
import uuid
from dataclasses import replace
from pathlib import Path

from ra_hmd.bank_review.suggestion_files import read_suggestions
from ra_hmd.console.labels import ClassNames
from ra_hmd.console.moderation import Moderation, content_id
from ra_hmd.console.review_queue import ReviewQueue
from ra_hmd.console.reviews import Reviews
from ra_hmd.console.settings import ConsoleSettings
from ra_hmd.console.users import Authenticator
from ra_hmd.console.views import Views
from ra_hmd.core.errors import UserError
from ra_hmd.data.meme import Meme
from ra_hmd.inference.meme_lookup import MemeLookup
from ra_hmd.inference.types import Explain
from ra_hmd.serve.auth import KeyRing
from ra_hmd.serve.bank_service import BankService
from ra_hmd.serve.batching import BatchingService, ServedVerdict, wait_for_all
from ra_hmd.serve.limits import RequestLimits
from ra_hmd.serve.uploads import count_pixels


class Console:
    """A service as moderators use it.

    Args:
        service: Batching service that scores memes.
        bank_service: Changes the bank; without it nothing can be corrected.
        explainer: Generates rationales; None: no rationales are offered.
        keys: API keys of the users; None: everyone who reaches the address is a moderator.
        limits: Limits of uploads.
        lookup: Images and captions of the bank's memes.
        settings: Settings of the page.

    Raises:
        UserError: a file is missing or of another kind; the class names do not fit.
    """

    def __init__(
        self,
        service: BatchingService,
        bank_service: BankService | None = None,
        explainer: Explain | None = None,
        keys: KeyRing | None = None,
        limits: RequestLimits | None = None,
        lookup: MemeLookup | None = None,
        settings: ConsoleSettings | None = None,
    ) -> None:
        settings = settings or ConsoleSettings()
        self.service, self.explainer, self.limits = service, explainer, limits or RequestLimits()
        self.authenticator = Authenticator(settings.author or getpass.getuser(), keys)
        self.names = ClassNames(service.detector.problem, settings.class_names)
        self.views = Views(service, self.names, lookup or MemeLookup())
        self.reviews = Reviews(settings.reviews or _default_reviews(service))
        self.moderation = Moderation(bank_service, self.reviews)
        order = read_suggestions(settings.suggestions) if settings.suggestions is not None else None
        self.queue = ReviewQueue(service, self.reviews, settings.queue, settings.media_dir, order, settings.database)

    def check(self, image: bytes | None, caption: str) -> ServedVerdict:
        """Score an upload. An empty caption is read from the image.

        Raises:
            UserError: there is no image, or it cannot be used; the caption is too long.
        """
        if image is None:
            raise UserError("Give a picture first: drop it, paste it, or choose it.")
        # A random id, so that a row of the bank made of this very meme votes on it.
        meme = Meme("check-" + uuid.uuid4().hex, image, caption.strip() or None)
        count_pixels(meme, self.limits)
        (served,) = wait_for_all(self.service.submit([meme]), self.limits.time_limit)
        return replace(served, meme=replace(served.meme, id=content_id(image, served.verdict.text)))

    def next(self, session: str) -> ServedVerdict | None:
        """Score and return the next meme of the review queue; None where none is left, or none is scored yet."""
        while (meme := self.queue.next(session)) is not None:
            try:
                return self.queue.judge(meme)
            except UserError as error:
                self.queue.set_aside(meme.id, str(error))
        return None

    def explain(self, served: ServedVerdict) -> str:
        """Generate a rationale of a verdict.

        Raises:
            UserError: there is no language model, or the question does not fit it.
            ServiceBusy: the model is in use.
        """
        if self.explainer is None:
            raise UserError("No rationales are available: the head is on an encoder, which generates no text.")
        image = served.meme.load_image()
        with self.service.exclusive(self.limits.time_limit):
            (explanation,) = self.explainer([served.verdict], [image])
        return explanation.rationale


def _default_reviews(service: BatchingService) -> Path:
    """File of decisions beside the bank, or beside the run of a bank that is no folder."""
    bank = service.detector.scorer.bank
    place = None if bank is None or "://" in str(bank.location) else Path(bank.location)
    place = place or Path(service.detector.scorer.checkpoint)
    return place.with_name(place.name + ".reviews.jsonl")
