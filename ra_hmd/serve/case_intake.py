"""Intake of cases by HTTP: parsing, idempotency keys, and the verdict at the intake."""

import hashlib
import uuid
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from fastapi import Request
from pydantic import ValidationError

from ra_hmd.cases.history import cases_of_ids, cases_of_keys
from ra_hmd.cases.tables import Case
from ra_hmd.cases.webhooks import check_url
from ra_hmd.core.errors import UserError
from ra_hmd.data.meme import Meme
from ra_hmd.serve.batching import ServedVerdict
from ra_hmd.serve.case_schemas import CaseFields, CaseIn, CasesRequest, TakenCase, taken_case
from ra_hmd.serve.case_service import CaseService, Intake
from ra_hmd.serve.context import AppContext
from ra_hmd.serve.errors import APIError
from ra_hmd.serve.routes import named_error
from ra_hmd.serve.schemas import NotJudged
from ra_hmd.serve.uploads import check_meme_count, content_type, read_form, read_json_body
from ra_hmd.serve.validation import RequestProblem, body_problem, validation_problems

KEY_HEADER = "Idempotency-Key"
OF_EACH = {"texts": "text", "ids": "id", "keys": "key"}
"""Fields of the form with a value for each image, to the fields of a case."""
OF_ALL = ("queue", "source", "context", "callback", "priority", "opinions_needed")
_WRITERS = 4
_LONGEST_KEY = 200


class CaseIntake:
    """Takes cases in.

    Args:
        context: Context of the app.
        cases: Its cases.
    """

    def __init__(self, context: AppContext, cases: CaseService) -> None:
        self.context, self.cases = context, cases
        self._writers = CapacityLimiter(_WRITERS)  # writers take turns anyway; others keep the threads of the loop

    async def __call__(self, request: Request) -> list[TakenCase | NotJudged]:
        """Make cases of the memes of a request; those whose idempotency key is known are left as they are.

        Raises:
            APIError: 413, 415, 422 for a body that does not fit; 422 for a key that came with another meme before, for
                a callback to a host that is not allowed, and for a single meme that cannot be judged.
        """
        sent = await read_cases(request, self.context)
        self._check_callbacks(sent)
        keys = _request_keys(request, sent)
        known = await self._known(sent, keys)
        answers: dict[int, TakenCase | NotJudged] = {
            place: taken_case(known[key], new=False) for place, key in enumerate(keys) if key in known
        }
        fresh = [place for place in range(len(sent)) if place not in answers]
        made = await self._make(request, [sent[place] for place in fresh], [keys[place] for place in fresh])
        answers |= dict(zip(fresh, made, strict=True))
        return [answers[place] for place in range(len(sent))]

    async def _make(
        self, request: Request, sent: Sequence[CaseIn], keys: Sequence[str | None]
    ) -> list[TakenCase | NotJudged]:
        """Judge memes, and make cases of those that can be judged."""
        memes = [Meme(case.id or uuid.uuid4().hex, case.image, case.text) for case in sent]
        results = await self.context.classify(request, memes)
        if len(results) == 1 and isinstance(results[0], UserError):
            raise APIError(422, named_error(memes[0], results[0]), code="unusable_meme")
        served = [one for one in results if isinstance(one, ServedVerdict)]
        intakes = [
            _intake(case, key)
            for case, key, one in zip(sent, keys, results, strict=True)
            if isinstance(one, ServedVerdict)
        ]
        add = partial(self._add, served, intakes, sender(request))
        added = iter(await run_sync(add, limiter=self._writers))
        return [
            next(added) if isinstance(one, ServedVerdict) else NotJudged(id=meme.id, error=named_error(meme, one))
            for meme, one in zip(memes, results, strict=True)
        ]

    def _add(self, served: Sequence[ServedVerdict], intakes: Sequence[Intake], person: str) -> list[TakenCase]:
        added = self.cases.add(served, intakes, person)
        found = cases_of_ids(self.cases.store.database, [name for name, _ in added])
        return [taken_case(found[name], new=new) for name, new in added]

    def _check_callbacks(self, sent: Sequence[CaseIn]) -> None:
        hosts, problems = tuple(self.cases.settings.webhook_hosts), []
        for place, case in enumerate(sent):
            try:
                if case.callback:
                    check_url(case.callback, hosts)
            except UserError as error:
                problems.append(_problem(place, "callback", str(error)))
        if problems:
            raise APIError(422, "Decisions cannot be posted there.", problems, code="callback_not_allowed")

    async def _known(self, sent: Sequence[CaseIn], keys: Sequence[str | None]) -> dict[str | None, Case]:
        """The cases of the keys that are known. Raises `APIError` (422) where a key came with another meme before."""
        given = [key for key in keys if key is not None]
        if not given:
            return {}
        found = await run_sync(cases_of_keys, self.cases.store.database, given)
        known: dict[str | None, Case] = dict(found.items())
        problems = [
            _problem(place, "key", "came with another picture or caption before; take a new key for a new meme")
            for place, (case, key) in enumerate(zip(sent, keys, strict=True))
            if key in known and not _is_same(case, known[key])
        ]
        if problems:
            raise APIError(422, "An idempotency key stands for one meme.", problems, code="key_reused")
        return known


async def read_cases(request: Request, context: AppContext) -> list[CaseIn]:
    """Parse cases from JSON, or from a form with `images` and the fields of `OF_EACH` and `OF_ALL`."""
    if content_type(request) == "multipart/form-data":
        images, values = await read_form(request, context.limits, tuple(OF_EACH), OF_ALL)
        cases = [_of_form(image, place, values) for place, image in enumerate(images)]
    elif content_type(request) == "application/json":
        cases = (await read_json_body(request, CasesRequest)).cases
    else:
        raise APIError(415, "The body must be application/json or multipart/form-data.")
    check_meme_count(cases, context.limits)
    return cases


def sender(request: Request) -> str:
    """Name of the request's key, for the audit log."""
    key: Any = getattr(request.state, "key", None)
    return "anonymous" if key is None else key.name


def _of_form(image: bytes, place: int, values: Mapping[str, Sequence[str]]) -> CaseIn:
    given = {name: values[field][place] for field, name in OF_EACH.items() if values[field]}
    given |= {name: values[name][0] for name in OF_ALL if values[name]}
    try:
        fields = CaseFields.model_validate(given)
    except ValidationError as error:
        forms = {name: field for field, name in OF_EACH.items()}
        problems = [
            body_problem(forms.get(one.where, one.where), one.what) for one in validation_problems(error, given)
        ]
        raise APIError(422, "The form does not fit.", problems, code="invalid_request") from None
    return CaseIn.model_construct(image=image, **dict(fields))


def _request_keys(request: Request, sent: Sequence[CaseIn]) -> list[str | None]:
    """The key of each case in the store; those of different senders differ."""
    whole = request.headers.get(KEY_HEADER, "")
    if len(whole) > _LONGEST_KEY:
        raise APIError(422, f"The header {KEY_HEADER} has {len(whole)} characters, {_LONGEST_KEY} are allowed.")
    keys = []
    for place, case in enumerate(sent):
        key = case.key or (f"{whole}#{place}" if whole else None)
        keys.append(None if key is None else f"api {sender(request)}: {key}")
    return keys


def _is_same(sent: CaseIn, known: Case) -> bool:
    same = hashlib.sha256(sent.image).hexdigest() == known.picture_digest
    return same and (sent.text is None or sent.text == known.caption)


def _intake(sent: CaseIn, key: str | None) -> Intake:
    own = {name: getattr(sent, name) for name in OF_ALL}
    return Intake(request_key=key, **own)


def _problem(place: int, field: str, what: str) -> RequestProblem:
    return RequestProblem(where=f"cases.{place}.{field}", what=what, pointer=f"/cases/{place}/{field}")
