"""The check of a single meme that somebody uploads, without its HTML. Nothing of the meme is kept unless it becomes a
case.
"""

import hashlib
import re
import uuid
from dataclasses import dataclass, replace
from typing import Any

from ra_hmd.cases.steps import CaseConflict
from ra_hmd.cases.tables import Case
from ra_hmd.core.errors import UserError
from ra_hmd.data.meme import Meme
from ra_hmd.desk.desk import Desk
from ra_hmd.desk.people import User
from ra_hmd.serve.batching import QueueFull, ServedVerdict, ServiceBusy, wait_for_all
from ra_hmd.serve.case_service import Intake
from ra_hmd.serve.uploads import count_pixels

QUEUE = "check"
"""Queue and source of the cases that checked memes become."""
_TOKEN = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class Upload:
    """A meme that somebody uploaded.

    Attributes:
        picture: Bytes of the file.
        caption: Caption; None: it is read from the picture.
        token: Names this check, so that a correction that is sent twice is made once.
    """

    picture: bytes
    caption: str | None
    token: str

    @classmethod
    def of(cls, picture: bytes | None, caption: str | None, token: str = "") -> "Upload":
        """An upload; without a token of an earlier answer a new check begins. Raises `UserError` without a picture."""
        if not picture:
            raise UserError("Give a picture first: drop it, paste it, or choose it.")
        return cls(picture, caption, token if _TOKEN.fullmatch(token) else uuid.uuid4().hex)


def judge(desk: Desk, upload: Upload) -> ServedVerdict:
    """Judge an upload.

    Raises:
        UserError: The picture or the caption cannot be used, or the model has no time.
    """
    # A random id, so that a row of the bank made of this very meme votes on it.
    meme = Meme(f"check-{upload.token}", upload.picture, upload.caption)
    try:
        count_pixels(meme, desk.limits)
        (served,) = wait_for_all(desk.cases.service.submit([meme]), desk.limits.time_limit)
    except UserError as error:
        why = str(error).removeprefix(f"meme {meme.id!r}: ")
        raise UserError(f"This meme cannot be judged: {why}") from error
    except (QueueFull, ServiceBusy) as error:
        raise UserError("The model has no time now; try again in a moment.") from error
    text = served.verdict.text
    digest = hashlib.sha256(hashlib.sha256(upload.picture).digest() + text.encode("utf-8", "surrogatepass"))
    return replace(served, meme=replace(served.meme, id=f"meme-{digest.hexdigest()[:20]}"))


def rationale(desk: Desk, served: ServedVerdict) -> str:
    """Let the language model put a verdict into words.

    Raises:
        UserError: There is no language model, the question does not fit it, or it has no time.
    """
    if desk.explain is None:
        raise UserError("No rationales are available: the head is on an encoder, which generates no text.")
    image = served.meme.load_image()
    try:
        with desk.cases.service.exclusive(desk.limits.time_limit):
            (explanation,) = desk.explain([served.verdict], [image])
    except ServiceBusy as error:
        raise UserError("The model has no time now; try again in a moment.") from error
    return explanation.rationale


def correct(desk: Desk, user: User, upload: Upload, label: Any, reason: str) -> Case:
    """Make a case of an upload, and decide on it.

    A correction that is sent a second time finds the case of the first.

    Raises:
        UserError: The label contradicts the verdict and there is no reason; see `Desk.decide`. Before the reason is
            given nothing is kept.
    """
    desk.require_moderator(user)
    served = judge(desk, upload)
    if label != served.verdict.verdict and not reason.strip():
        raise UserError("Say why: choose a reason, or write one. The log keeps it.")
    intake = Intake(queue=QUEUE, source=QUEUE, request_key=f"{QUEUE}:{user.name}:{upload.token}")
    ((case_id, new),) = desk.cases.add([served], [intake], user.name)
    try:
        return desk.decide(user, case_id, label, reason)
    except CaseConflict:
        case = desk.cases.store.get(case_id)
        if new or case.label != label:
            raise
        return case
