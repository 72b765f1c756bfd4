"""Client of an OpenAI-compatible endpoint, with a cache of answers on disk."""

import json
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

import openai
from pydantic import BaseModel, Field, field_validator

from ra_hmd.core.artifacts import sha256_bytes, write_json
from ra_hmd.core.config import Settings
from ra_hmd.core.errors import UserError
from ra_hmd.data.text import well_formed
from ra_hmd.experiments.judge.rubric import Grade, first_problem, parse_grade, response_format

_FORMATS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("json_schema", {"response_format": response_format()}),
    ("json_object", {"response_format": {"type": "json_object"}}),
    ("none", {}),
)
"""Ways to request the answer's format, best first; the next one is used if the server rejects the one before."""

_REFUSED = (openai.BadRequestError, openai.UnprocessableEntityError)
_HOPELESS = (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError)
REFUSED = "refused"
"""Kind of failure that concerns the texts and not the endpoint."""
_FILTERED = "content_filter"
_NO_KEY = "no-key"  # the client requires one, local servers do not


class JudgeSettings(Settings):
    """Judge model and its endpoint."""

    TITLE: ClassVar[str] = "judge"

    endpoint: str = Field(description="Base URL of the API, such as http://127.0.0.1:8000/v1.")
    model: str = Field(description="Name of the model at the endpoint.")
    temperature: float = Field(default=0.0, ge=0, description="Sampling temperature.")
    max_tokens: int = Field(default=500, ge=1, description="Most tokens of an answer.")
    retries: int = Field(
        default=3, ge=0, description="Repetitions of a request that failed, or whose answer was not a grade."
    )
    timeout: float = Field(default=60.0, gt=0, description="Seconds until a request counts as failed.")

    @field_validator("endpoint")
    @classmethod
    def _check_endpoint(cls, endpoint: str) -> str:
        try:
            parts = urlsplit(endpoint)
            whole = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:  # malformed brackets or port
            whole = False
        if not whole:
            raise ValueError(f"{endpoint!r} is no URL of an API, such as http://127.0.0.1:8000/v1")
        if parts.username or parts.password:
            raise ValueError("it holds a user name or password, which would be recorded; leave it out")
        if parts.query or parts.fragment:
            raise ValueError("it holds a query (?…), which would be recorded; give the base URL alone")
        return endpoint

    @property
    def host(self) -> str:
        """Host and port of the endpoint."""
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
    """The fields of a chat completion that are used. The client does not validate what servers answer."""

    choices: list[_Choice] = Field(min_length=1)
    model: str | None = None
    usage: _Usage | None = None


@dataclass(frozen=True)
class JudgeAnswer:
    """Outcome of one question.

    Attributes:
        score: Score of the judge, or None.
        reason: Reason of the judge.
        failure: Kind of failure; empty where there is a score.
        message: Details of the failure.
        served: Model name that the server reports.
        tokens_in: Input tokens of all requests for this answer; None where the server does not count them.
        tokens_out: Output tokens of all requests for this answer.
        asked: Number of questions sent to the server.
        retries: Number of requests that the client repeated and that led to an answer.
        cached: Whether the answer was on disk.
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
    """Thread-safe client of a judge model behind an endpoint.

    Args:
        settings: Judge model and endpoint.
        key: API key; sent only to the endpoint.
        cache: Folder of the answers, one file each, written atomically.
    """

    def __init__(self, settings: JudgeSettings, key: str | None, cache: Path) -> None:
        self.settings, self.cache = settings, cache
        self._key = key
        self._form = 0  # index into _FORMATS
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
        """Requested format of answers: `json_schema`, `json_object`, or `none` where the server supports neither."""
        return _FORMATS[self._form][0]

    def ask(self, messages: Sequence[dict[str, str]]) -> JudgeAnswer:
        """Return the grade for these messages, from disk if it is there. Failures are not stored.

        Raises:
            UserError: the endpoint refuses every question: wrong key or unknown model.
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
        settings = self.settings
        parts = [settings.endpoint, settings.model, settings.temperature, settings.max_tokens, list(messages)]
        name = sha256_bytes(json.dumps(parts, ensure_ascii=False).encode())
        return self.cache / name[:2] / f"{name}.json"

    def _once(self, messages: Sequence[dict[str, str]], before: JudgeAnswer) -> JudgeAnswer:
        """Send one question; counts continue those of `before`."""
        answer = replace(before, score=None, failure="", message="", asked=before.asked + 1)
        try:
            completion, retries = self._complete(messages)
        except _HOPELESS as error:
            raise UserError(f"{self.settings.host} refuses: {self._describe(error)}") from error
        except openai.OpenAIError as error:
            return replace(answer, failure=_kind(error), message=self._describe(error))
        except ValueError as error:
            return replace(answer, failure="malformed", message=f"no chat completion: {first_problem(error)}")
        choice, usage = completion.choices[0], completion.usage or _Usage()
        answer = replace(
            answer,
            retries=answer.retries + retries,
            served=completion.model or "",
            tokens_in=_sum(answer.tokens_in, usage.prompt_tokens),
            tokens_out=_sum(answer.tokens_out, usage.completion_tokens),
        )
        if choice.message.refusal or choice.finish_reason == _FILTERED:
            reason = choice.message.refusal or "held back by the server's content filter"
            return replace(answer, failure=REFUSED, message=reason)
        try:
            grade: Grade = parse_grade(choice.message.content or "")
        except ValueError as error:
            if choice.finish_reason == "length":
                limit = self.settings.max_tokens
                return replace(answer, failure="cut off", message=f"no grade within {limit} tokens; raise --max-tokens")
            return replace(answer, failure="unparseable", message=str(error))
        return replace(answer, score=grade.score, reason=grade.reason)

    def _complete(self, messages: Sequence[dict[str, str]]) -> tuple[_Completion, int]:
        """Request a completion; return it with the number of repeated requests.

        If the server rejects the format of answers, the next format is tried and kept if it works.

        Raises:
            ValueError: a body that is no chat completion.
        """
        number = self._form
        while True:
            limit = self._limit
            try:
                raw = self._client.chat.completions.with_raw_response.create(  # type: ignore[call-overload]  # kwargs
                    model=self.settings.model,
                    messages=list(messages),
                    temperature=self.settings.temperature,
                    **{limit: self.settings.max_tokens},
                    **_FORMATS[number][1],
                )
            except _REFUSED as error:
                if error.code == "unsupported_parameter" and error.param == limit == "max_tokens":
                    self._limit = "max_completion_tokens"  # as OpenAI's reasoning models call it
                    continue
                number += 1
                if error.code == _FILTERED or number == len(_FORMATS):
                    raise
                continue
            with self._lock:
                self._form = max(self._form, number)
            return _Completion.model_validate_json(raw.content), raw.retries_taken

    def _describe(self, error: Exception) -> str:
        """Message of the server or the connection, without the API key."""
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
    """Answer in a file; None where there is none or it is damaged, so that the question is sent again."""
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))["answer"]
        Grade(score=kept["score"], reason=kept["reason"])
        return replace(JudgeAnswer(**kept), cached=True)
    except (OSError, ValueError, KeyError, TypeError):
        return None
