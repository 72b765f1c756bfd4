"""Everything behind the page, without the page: what each button does, and what is shown then."""

import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ra_hmd.console.labels import ClassNames
from ra_hmd.console.moderation import Moderation, Subject, content_id
from ra_hmd.console.review_queue import ReviewQueue
from ra_hmd.console.reviews import Reviews
from ra_hmd.console.users import Authenticator
from ra_hmd.console.views import Views
from ra_hmd.core.errors import UserError
from ra_hmd.data.meme import Meme
from ra_hmd.inference.meme_lookup import MemeLookup
from ra_hmd.serve.auth import KeyRing
from ra_hmd.serve.bank_service import BankService
from ra_hmd.serve.batching import BatchingService, wait_for_all
from ra_hmd.serve.limits import RequestLimits
from ra_hmd.serve.uploads import pixels

if TYPE_CHECKING:
    from ra_hmd.inference.explainer import Explainer


@dataclass(frozen=True)
class ConsoleSettings:
    """What a moderator's page is given.

    Attributes:
        author: Who makes changes where there are no keys.
        queue: Memes to review: file or folder.
        media_dir: Of the queue: where relative image paths start.
        reviews: File of decisions; default: beside the bank, or beside the run where the bank is no folder.
        class_names: What the classes are called.
    """

    author: str = "moderator"
    queue: Path | None = None
    media_dir: Path | None = None
    reviews: Path | None = None
    class_names: list[str] = field(default_factory=list)


class Console:
    """A service as moderators use it.

    Args:
        service: Judges.
        desk: Where the bank is changed; None: nothing can be corrected.
        explainer: Writes rationales; None: none.
        keys: Who may come in; None: who reaches the address.
        settings: Limits of uploads.
        gallery: Pictures and captions of the bank's memes.
        options: What else there is.

    Raises:
        UserError: a file that is missing or of another kind, class names that do not fit.
    """

    def __init__(
        self,
        service: BatchingService,
        bank_service: BankService | None = None,
        explainer: "Explainer | None" = None,
        keys: KeyRing | None = None,
        settings: RequestLimits | None = None,
        gallery: MemeLookup | None = None,
        options: ConsoleSettings | None = None,
    ) -> None:
        options = options or ConsoleSettings()
        self.service, self.explainer, self.settings = service, explainer, settings or RequestLimits()
        self.authenticator = Authenticator(options.author, keys)
        self.names = ClassNames(service.detector.problem, options.class_names)
        self.views = Views(service, self.names, gallery or MemeLookup())
        self.reviews = Reviews(options.reviews or _beside(service))
        self.moderation = Moderation(bank_service, self.reviews)
        self.queue = ReviewQueue(service, self.reviews, options.queue, options.media_dir)

    def check(self, picture: bytes | None, caption: str) -> Subject:
        """Judge an upload. An empty caption is read from the picture.

        Raises:
            UserError: no picture, or none that can be used; too long a caption.
        """
        if picture is None:
            raise UserError("Give a picture first: drop it, paste it, or choose it.")
        # An id of its own: a row that somebody made of this very meme shall vote on it.
        query = Meme("check-" + uuid.uuid4().hex, picture, caption.strip() or None)
        pixels(query, self.settings)
        answer = wait_for_all(self.service.submit([query]), self.settings.time_limit)[0]
        return Subject(content_id(picture, answer.detection.text), query, answer)

    def next(self, who: str) -> Subject | None:
        """The next meme of the review queue, judged now; None: none is left, or none is judged yet."""
        while (query := self.queue.next(who)) is not None:
            try:
                return Subject(query.id, query, self.queue.judge(query))
            except UserError as error:
                self.queue.set_aside(query.id, str(error))
        return None

    def explain(self, subject: Subject) -> str:
        """A rationale of a meme's verdict, generated now.

        Raises:
            UserError: there is no language model, or the question does not fit it.
            Busy: the model is used by others.
        """
        if self.explainer is None:
            raise UserError("This model has no words of its own: it stands on an encoder, not on a language model.")
        picture = subject.query.load_image()
        with self.service.exclusive(self.settings.time_limit):
            (found,) = self.explainer([subject.answer.detection], [picture])
        return found.rationale


def _beside(service: BatchingService) -> Path:
    """Where decisions are kept unless said otherwise."""
    bank = service.detector.scorer.bank
    place = None if bank is None or "://" in str(bank.location) else Path(bank.location)
    place = place or Path(service.detector.scorer.checkpoint)
    return place.with_name(place.name + ".reviews.jsonl")
