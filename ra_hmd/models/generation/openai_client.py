"""Client of an OpenAI-compatible endpoint, with a cache of answers on disk."""

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import openai
from pydantic import BaseModel, Field

from ra_hmd.core.artifacts import sha256_bytes, write_json
from ra_hmd.core.config import first_problem
from ra_hmd.core.errors import UserError
from ra_hmd.data.text import well_formed
from ra_hmd.models.generation.endpoint import EndpointSettings

_REJECTED = (openai.BadRequestError, openai.UnprocessableEntityError)
_HOPELESS = (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError)
REFUSED = "refused"
"""Kind of failure that concerns the texts and not the endpoint."""
FIRST_TRIES = 3
"""Number of first questions that may fail before the endpoint counts as one that does not answer."""
_FILTERED = "content_filter"
_NO_KEY = "no-key"  # the client requires one, local servers do not
_ASK_AGAIN = ("malformed", "unparseable", "cut off")

T = TypeVar("T")
Q = TypeVar("Q")


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
class Answer(Generic[T]):
    """Outcome of one question.

    Attributes:
        value: What the model answered, or None.
        failure: Kind of failure; empty where there is a value.
        message: Details of the failure.
        served: Model name that the server reports.
        tokens_in: Input tokens of all requests for this answer; None where the server does not count them.
        tokens_out: Output tokens of all requests for this answer.
        asked: Number of questions sent to the server.
        retries: Number of requests that the client repeated and that led to an answer.
        cached: Whether the answer was on disk.
    """

    value: T | None = None
    failure: str = ""
    message: str = ""
    served: str = ""
    tokens_in: int | None = 0
    tokens_out: int | None = 0
    asked: int = 0
    retries: int = 0
    cached: bool = False


_KEPT = ("served", "tokens_in", "tokens_out", "asked", "retries")


class RefusedInWords(ValueError):
    """An answer that says that the model does not answer."""


class AnswerFormat(Protocol[T]):
    """How answers are requested, read and stored.

    Attributes:
        noun: What an answer is, for messages.
        forms: Names of the ways to request the format, each with arguments of the request; best first. The next one is
            used if the server rejects the one before.
    """

    noun: str
    forms: Sequence[tuple[str, dict[str, Any]]]

    def parse(self, text: str, *, cut: bool) -> T:
        """Read an answer; `cut` says that it reached the length limit.

        Raises:
            RefusedInWords: it is a refusal.
            ValueError: it is not usable.
        """

    def to_json(self, value: T) -> dict[str, Any]:
        """The value as a cache file holds it."""

    def from_json(self, kept: dict[str, Any]) -> T:
        """The value in a cache file. Raises `ValueError`, `KeyError` or `TypeError` where it holds none."""


class OpenAIClient(Generic[T]):
    """Thread-safe client of a model behind an OpenAI-compatible endpoint.

    Args:
        settings: Model and endpoint.
        key: API key; sent only to the endpoint.
        cache: Folder of the answers, one file each, written atomically.
        answers: How answers are requested, read and stored.
    """

    def __init__(self, settings: EndpointSettings, key: str | None, cache: Path, answers: AnswerFormat[T]) -> None:
        self.settings, self.cache, self.answers = settings, cache, answers
        self._key = key
        self._form = 0  # index into the forms
        self._limit = "max_tokens"
        self._lock = threading.Lock()
        self._client = openai.OpenAI(
            api_key=key or _NO_KEY, base_url=settings.endpoint, timeout=settings.timeout, max_retries=settings.retries
        )

    def __enter__(self) -> "OpenAIClient[T]":
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    @property
    def form(self) -> str:
        """Name of the way in which the format of answers is requested."""
        return self.answers.forms[self._form][0]

    def ask(self, messages: Sequence[dict[str, Any]], key: Sequence[Any] | None = None) -> Answer[T]:
        """Return the answer to these messages, from disk if it is there. Failures are not stored.

        Args:
            messages: Messages of OpenAI's protocol.
            key: What the answer depends on beside model, temperature and length, where it is not the messages.

        Raises:
            UserError: the endpoint refuses every question: wrong key or unknown model.
        """
        path = self._place(messages if key is None else key)
        known = self._stored(path)
        if known is not None:
            return known
        answer: Answer[T] = Answer()
        for _ in range(1 + self.settings.retries):
            answer = self._once(messages, answer)
            if answer.value is not None:
                kept = self.answers.to_json(answer.value) | {name: getattr(answer, name) for name in _KEPT}
                write_json(path, {"endpoint": self.settings.endpoint, "model": self.settings.model, "answer": kept})
            if answer.failure not in _ASK_AGAIN:
                break
        return answer

    def _place(self, key: Sequence[Any]) -> Path:
        settings = self.settings
        parts = [settings.endpoint, settings.model, settings.temperature, settings.max_tokens, list(key)]
        name = sha256_bytes(json.dumps(parts, ensure_ascii=False).encode())
        return self.cache / name[:2] / f"{name}.json"

    def _stored(self, path: Path) -> Answer[T] | None:
        """Answer in a file; None where there is none or it is damaged, so that the question is sent again."""
        try:
            kept = json.loads(path.read_text(encoding="utf-8"))["answer"]
            return Answer(
                self.answers.from_json(kept), **{name: kept[name] for name in _KEPT if name in kept}, cached=True
            )
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _once(self, messages: Sequence[dict[str, Any]], before: Answer[T]) -> Answer[T]:
        """Send one question; counts continue those of `before`."""
        answer = replace(before, value=None, failure="", message="", asked=before.asked + 1)
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
        cut = choice.finish_reason == "length"
        try:
            return replace(answer, value=self.answers.parse(choice.message.content or "", cut=cut))
        except RefusedInWords as error:
            return replace(answer, failure=REFUSED, message=str(error))
        except ValueError as error:
            if cut:
                noun, limit = self.answers.noun, self.settings.max_tokens
                message = f"no {noun} within {limit} tokens; raise --max-tokens"
                return replace(answer, failure="cut off", message=message)
            return replace(answer, failure="unparseable", message=str(error))

    def _complete(self, messages: Sequence[dict[str, Any]]) -> tuple[_Completion, int]:
        """Request a completion; return it with the number of repeated requests.

        If the server rejects the format of answers, the next format is tried and kept if it works.

        Raises:
            ValueError: a body that is no chat completion.
        """
        forms, number = self.answers.forms, self._form
        while True:
            limit = self._limit
            try:
                raw = self._client.chat.completions.with_raw_response.create(  # type: ignore[call-overload]  # kwargs
                    model=self.settings.model,
                    messages=list(messages),
                    temperature=self.settings.temperature,
                    **{limit: self.settings.max_tokens},
                    **forms[number][1],
                )
            except _REJECTED as error:
                if error.code == "unsupported_parameter" and error.param == limit == "max_tokens":
                    self._limit = "max_completion_tokens"  # as OpenAI's reasoning models call it
                    continue
                number += 1
                if error.code == _FILTERED or number == len(forms):
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


def ask_all(questions: Sequence[Q], ask: Callable[[Q], Answer[T]], concurrency: int) -> Iterator[tuple[int, Answer[T]]]:
    """Yield number and answer of each question, as they come.

    The first questions are sent one at a time until one has an answer. Refusals do not count as failures of the
    endpoint, because they concern the texts.

    Args:
        questions: The questions.
        ask: Sends one; called from several threads.
        concurrency: Number of concurrent questions.

    Raises:
        SilentEndpoint: none of the first questions has an answer.
    """
    rest, failed = iter(range(len(questions))), 0
    for number in rest:
        answer = ask(questions[number])
        yield number, answer
        if answer.value is not None:
            break
        failed += answer.failure != REFUSED
        if failed == FIRST_TRIES or number + 1 == len(questions):
            raise SilentEndpoint
    with ThreadPoolExecutor(concurrency) as pool:
        pending = {pool.submit(ask, questions[number]): number for number in rest}
        try:
            for future in as_completed(pending):
                yield pending[future], future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # on errors and Ctrl-C the rest is not sent


class SilentEndpoint(Exception):
    """The endpoint answers none of the first questions."""


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
