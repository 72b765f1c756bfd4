"""Asking an OpenAI-compatible endpoint, with answers kept on disk."""

import json
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import openai
from pydantic import BaseModel, Field

from ra_hmd.core.artifacts import sha256_bytes, write_json
from ra_hmd.core.errors import UserError
from ra_hmd.data.text import well_formed
from ra_hmd.experiments.judge.rubric import Grade, first_problem, parse_grade, response_format

_FORMATS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("json_schema", {"response_format": response_format()}),
    ("json_object", {"response_format": {"type": "json_object"}}),
    ("none", {}),
)
"""How the answer's form is asked of the server, best first; each next one is for servers that refuse the one before."""

_REFUSED = (openai.BadRequestError, openai.UnprocessableEntityError)
_HOPELESS = (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError)
REFUSED = "refused"
"""Kind of failure that is about the texts, and says nothing of the endpoint."""
_FILTERED = "content_filter"
_NO_KEY = "no-key"  # the client wants one, local servers do not


@dataclass(frozen=True)
class JudgeSettings:
    """Who is asked, and how.

    Attributes:
        endpoint: Base URL of the API, such as http://127.0.0.1:8000/v1.
        model: Name of the model there.
        temperature: Of the sampling.
        max_tokens: Most tokens of an answer.
        retries: How often a request is repeated that failed (by the client, with waiting), or whose answer was no
            grade.
        timeout: Seconds until a request counts as failed.
    """

    endpoint: str
    model: str
    temperature: float = 0.0
    max_tokens: int = 500
    retries: int = 3
    timeout: float = 60.0

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.endpoint)
            whole = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:  # of brackets or ports that are none
            whole = False
        if not whole:
            raise UserError(f"--endpoint {self.endpoint!r} is no URL of an API, such as http://127.0.0.1:8000/v1.")
        if parts.username or parts.password:
            raise UserError("--endpoint holds a user name or password, which would be recorded; leave it out.")
        if parts.query or parts.fragment:
            raise UserError("--endpoint holds a query (?…), which would be recorded; give the base URL alone.")

    @property
    def host(self) -> str:
        """Of the endpoint, with its port."""
        return urlsplit(self.endpoint).netloc


class _Message(BaseModel):
    content: str | None = None
    refusal: str | None = None


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None = None


class _Usage(BaseModel):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class _Completion(BaseModel):
    """What is read of a chat completion; the client itself checks nothing of what servers answer."""

    choices: list[_Choice] = Field(min_length=1)
    model: str | None = None
    usage: _Usage | None = None


@dataclass(frozen=True)
class JudgeAnswer:
    """What came of one question.

    Attributes:
        score: Of the judge, None where there is none.
        reason: The judge's.
        failure: Kind of failure, empty where there is a score.
        message: What is known of the failure.
        served: The model that the server says it asked.
        tokens_in: Of all that was asked for this answer, None where the server does not count.
        tokens_out: Of all that was answered.
        asked: Questions put to the server for it.
        retries: Requests that the client repeated, as far as they led to an answer.
        cached: It was on disk.
    """

    score: int | None
    reason: str = ""
    failure: str = ""
    message: str = ""
    served: str = ""
    tokens_in: int | None = 0
    tokens_out: int | None = 0
    asked: int = 0
    retries: int = 0
    cached: bool = False


class JudgeClient:
    """A model behind an endpoint that grades. Several threads may ask at once.

    Args:
        settings: Who is asked, and how.
        key: Secret of the API; goes nowhere but to the endpoint.
        cache: Folder of the answers; one file each, written whole or not at all.
    """

    def __init__(self, settings: JudgeSettings, key: str | None, cache: Path) -> None:
        self.settings, self.cache = settings, cache
        self._key = key
        self._form = 0  # place in _FORMATS
        self._limit = "max_tokens"
        self._lock = threading.Lock()
        self._client = openai.OpenAI(
            api_key=key or _NO_KEY, base_url=settings.endpoint, timeout=settings.timeout, max_retries=settings.retries
        )

    def __enter__(self) -> "JudgeClient":
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    @property
    def form(self) -> str:
        """How the answer's form is asked: `json_schema`, `json_object`, or `none` where the server takes neither."""
        return _FORMATS[self._form][0]

    def ask(self, messages: Sequence[dict[str, str]]) -> JudgeAnswer:
        """The grade for these messages, from disk if it is there; a failure is not kept.

        Raises:
            UserError: the endpoint refuses every question: wrong key, no such model.
        """
        path = self._place(messages)
        known = _stored(path)
        if known is not None:
            return known
        answer = JudgeAnswer(None)
        for _ in range(1 + self.settings.retries):
            answer = self._once(messages, answer)
            if answer.score is not None:
                kept = {name: value for name, value in asdict(answer).items() if name not in _NOT_KEPT}
                write_json(path, {"endpoint": self.settings.endpoint, "model": self.settings.model, "answer": kept})
            if answer.failure not in _ASK_AGAIN:
                break
        return answer

    def _place(self, messages: Sequence[dict[str, str]]) -> Path:
        asked = self.settings
        parts = [asked.endpoint, asked.model, asked.temperature, asked.max_tokens, list(messages)]
        name = sha256_bytes(json.dumps(parts, ensure_ascii=False).encode())
        return self.cache / name[:2] / f"{name}.json"

    def _once(self, messages: Sequence[dict[str, str]], before: JudgeAnswer) -> JudgeAnswer:
        """Ask once; counts go on from `before`."""
        asked = replace(before, score=None, failure="", message="", asked=before.asked + 1)
        try:
            completion, retries = self._complete(messages)
        except _HOPELESS as error:
            raise UserError(f"{self.settings.host} refuses: {self._told(error)}") from error
        except openai.OpenAIError as error:
            return replace(asked, failure=_kind(error), message=self._told(error))
        except ValueError as error:
            return replace(asked, failure="malformed", message=f"no chat completion: {first_problem(error)}")
        choice, usage = completion.choices[0], completion.usage or _Usage()
        asked = replace(
            asked,
            retries=asked.retries + retries,
            served=completion.model or "",
            tokens_in=_sum(asked.tokens_in, usage.prompt_tokens),
            tokens_out=_sum(asked.tokens_out, usage.completion_tokens),
        )
        if choice.message.refusal or choice.finish_reason == _FILTERED:
            told = choice.message.refusal or "held back by the server's content filter"
            return replace(asked, failure=REFUSED, message=told)
        try:
            grade: Grade = parse_grade(choice.message.content or "")
        except ValueError as error:
            if choice.finish_reason == "length":
                limit = self.settings.max_tokens
                return replace(asked, failure="cut off", message=f"no grade within {limit} tokens; raise --max-tokens")
            return replace(asked, failure="unparseable", message=str(error))
        return replace(asked, score=grade.score, reason=grade.reason)

    def _complete(self, messages: Sequence[dict[str, str]]) -> tuple[_Completion, int]:
        """The server's answer, and how often the client had to repeat the request.

        A server that refuses the wanted form of answers is asked in the next one; if that works, it stays so.

        Raises:
            ValueError: a body that is no chat completion.
        """
        number = self._form
        while True:
            limit = self._limit
            try:
                raw = self._client.chat.completions.with_raw_response.create(
                    model=self.settings.model,
                    messages=list(messages),  # type: ignore[arg-type]
                    temperature=self.settings.temperature,
                    **{limit: self.settings.max_tokens},
                    **_FORMATS[number][1],
                )
            except _REFUSED as error:
                if error.code == "unsupported_parameter" and error.param == limit == "max_tokens":
                    self._limit = "max_completion_tokens"  # as OpenAI's models that think first have it
                    continue
                number += 1
                if error.code == _FILTERED or number == len(_FORMATS):
                    raise
                continue
            with self._lock:
                self._form = max(self._form, number)
            return _Completion.model_validate_json(raw.content), raw.retries_taken

    def _told(self, error: Exception) -> str:
        """What the server says, or why there is no connection, without our secret."""
        cause = f" {error.__cause__}" if type(error) is openai.APIConnectionError and error.__cause__ else ""
        text = " ".join(well_formed(f"{error}{cause}").split())
        return (text.replace(self._key, "…") if self._key else text)[:400]


_NOT_KEPT = ("cached", "failure", "message")
_ASK_AGAIN = ("malformed", "unparseable", "cut off")


def _kind(error: openai.OpenAIError) -> str:
    if isinstance(error, openai.APITimeoutError):
        return "timeout"
    if isinstance(error, openai.APIConnectionError):
        return "connection"
    if isinstance(error, openai.APIStatusError):
        if error.code == _FILTERED:
            return REFUSED
        return f"HTTP {error.status_code}"
    return "malformed"


def _sum(before: int | None, more: int | None) -> int | None:
    return None if before is None or more is None else before + more


def _stored(path: Path) -> JudgeAnswer | None:
    """The answer in a file; None where there is none, or one that is damaged: it is asked again."""
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))["answer"]
        Grade(score=kept["score"], reason=kept["reason"])
        return replace(JudgeAnswer(**kept), cached=True)
    except (OSError, ValueError, KeyError, TypeError):
        return None
