"""What the routes of an app share, and how they ask: memes through the queue, all else in a few threads."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from anyio.to_thread import run_sync
from fastapi import Request

from ra_hmd.bank.identical import LabelConflictError
from ra_hmd.core.errors import UserError
from ra_hmd.data.meme import Meme
from ra_hmd.serve.auth import APIKey, KeyRing
from ra_hmd.serve.bank_service import AlreadyApplied, BankService
from ra_hmd.serve.batching import BatchingService, ServedVerdict, ServiceBusy, ServiceClosed
from ra_hmd.serve.errors import APIError
from ra_hmd.serve.limits import RequestLimits
from ra_hmd.serve.middleware import Budget
from ra_hmd.serve.uploads import Model, check_meme_count, pixels, read_json

if TYPE_CHECKING:
    from ra_hmd.inference.explainer import Explainer

T = TypeVar("T")
_THREADS = 2


class ConcurrencyLimit:
    """A few threads for work that is no meme to judge; only so many requests are at work or waiting.

    Args:
        most: How many.
        name: Of the threads.
    """

    def __init__(self, most: int, name: str) -> None:
        self.most, self.inside = most, 0
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix=name)

    async def run(self, call: Callable[[], T], deadline: float, *, finish: bool = False) -> T:
        """The result of a call in one of the threads.

        Args:
            call: Made only if there is time left.
            deadline: Of the event loop's clock.
            finish: Whether a call that was begun is waited for past the deadline: a change must not be reported as
                failed when it was made.

        Raises:
            Refusal: 429 where too many wait, 504 past the deadline.
            Closed: the app ends.
        """
        if self.inside >= self.most:
            raise APIError(429, f"{self.inside} requests of this kind are at work or waiting; ask again later.")
        loop = asyncio.get_running_loop()

        def in_time() -> T:
            if time.monotonic() > deadline:  # the loop's own is only set anew when it turns
                raise ServiceBusy
            return call()

        try:
            future = self._threads.submit(in_time)
        except RuntimeError as error:  # the threads have ended
            raise ServiceClosed from error
        self.inside += 1
        future.add_done_callback(lambda _: loop.call_soon_threadsafe(self._leave))
        left = None if finish else max(deadline - loop.time(), 0)
        waiting = asyncio.wrap_future(future)
        done, _ = await asyncio.wait([waiting], timeout=left)
        if not done:
            waiting.cancel()
            raise APIError(504, "It took longer than a request may; ask for less, or again later.")
        return waiting.result()

    def _leave(self) -> None:
        self.inside -= 1

    def close(self) -> None:
        """Ends the threads, when what they do is done."""
        self._threads.shutdown(wait=True, cancel_futures=True)


@dataclass
class AppContext:
    """What the routes of an app share.

    Attributes:
        service: Judges.
        desk: Where the bank is changed, if there is one.
        explainer: Puts verdicts into words, if the model can.
        keys: Who may ask what; None: everyone may ask, and nobody may change anything.
        settings: Limits.
    """

    service: BatchingService
    bank_service: BankService | None
    explainer: "Explainer | None"
    keys: KeyRing | None
    settings: RequestLimits
    pictures: Budget = field(init=False)
    bank_limit: ConcurrencyLimit = field(init=False)
    explain_limit: ConcurrencyLimit = field(init=False)

    def __post_init__(self) -> None:
        self.pictures = Budget(self.settings.max_pixels * self.settings.memory_factor, "pixels")
        self.bank_limit = ConcurrencyLimit(self.settings.max_concurrent, "bank")
        self.explain_limit = ConcurrencyLimit(self.settings.max_concurrent, "words")

    def close(self, timeout: float | None = None) -> None:
        """Answers what was accepted, and ends the threads."""
        self.bank_limit.close()
        self.explain_limit.close()
        self.service.close(timeout)

    # ---------------------------------------------------------------------------------------------- memes

    async def judge(self, request: Request, queries: Sequence[Meme]) -> list[ServedVerdict | UserError]:
        """For each meme its answer, or why there is none.

        Raises:
            Refusal: 429 where too much waits, 504 past the request's deadline; then none of them is judged.
            QueueFull, Closed: see `BatchingService.submit`.
        """
        request.state.memes = len(queries)
        sizes = await run_sync(lambda: [self._pixels(query) for query in queries])
        good = [query for query, size in zip(queries, sizes, strict=True) if isinstance(size, int)]
        total = sum(size for size in sizes if isinstance(size, int))
        if len(good) > (most := self.service.limits.max_queue):
            raise APIError(413, f"{len(good)} memes are sent, and at most {most} may wait here at a time; send fewer.")
        self.pictures.take(total)
        try:
            found = iter(await self._answers(request, good))
        finally:
            self.pictures.give_back(total)
        return [next(found) if isinstance(size, int) else size for size in sizes]

    def _pixels(self, query: Meme) -> int | UserError:
        try:
            return pixels(query, self.settings)
        except UserError as error:
            return error

    async def _answers(self, request: Request, queries: Sequence[Meme]) -> list[ServedVerdict | UserError]:
        futures: list[Future[ServedVerdict]] = self.service.submit(queries)
        if not futures:
            return []
        waiting = [asyncio.wrap_future(future) for future in futures]
        left = max(request.state.deadline - asyncio.get_running_loop().time(), 0)
        try:
            _, late = await asyncio.wait(waiting, timeout=left)
        except asyncio.CancelledError:
            _drop(waiting)
            raise
        if late:
            _drop(waiting)
            raise APIError(504, f"{len(late)} of {len(waiting)} memes were not judged in time; send fewer, or later.")
        errors = [one.exception() for one in waiting]
        fault = next((error for error in errors if error is not None and not isinstance(error, UserError)), None)
        if fault is not None:
            raise fault
        return [
            error if isinstance(error, UserError) else one.result() for one, error in zip(waiting, errors, strict=True)
        ]

    @asynccontextmanager
    async def weighed(self, request: Request, queries: Sequence[Meme]) -> AsyncIterator[None]:
        """While memes are worked on by other ways than `judge`: their pictures count as held.

        Raises:
            Refusal: 422 for a meme that cannot be used, 413 or 429 for too much.
        """
        check_meme_count(queries, self.settings)
        request.state.memes = len(queries) or None
        total = 0
        for query, size in zip(queries, await run_sync(lambda: [self._pixels(one) for one in queries]), strict=True):
            if isinstance(size, UserError):
                raise APIError(422, f"meme {query.id!r}: {size}")
            total += size
        self.pictures.take(total)
        try:
            yield
        finally:
            self.pictures.give_back(total)

    # ---------------------------------------------------------------------------------------------- the bank

    @property
    def require_bank_service(self) -> BankService:
        """The desk. Raises `APIError` where there is none."""
        if self.bank_service is None:
            raise APIError(404, "There is no example bank here; start the service with `--bank` and one of those.")
        return self.bank_service

    async def look(self, request: Request, call: Callable[[BankService], T], queries: Sequence[Meme] = ()) -> T:
        """What a call finds in the bank; `queries` are the memes that it is about."""
        bank_service = self.require_bank_service
        async with self.weighed(request, queries):
            return await self.bank_limit.run(partial(call, bank_service), request.state.deadline)

    async def read(self, request: Request, kind: type[Model]) -> Model:
        """The body of a change. Who may not make it is told first: 403, or 404 where there is no bank."""
        moderator(request, self.keys)
        _ = self.require_bank_service
        return await read_json(request, kind)

    async def change(self, request: Request, call: Callable[..., T], queries: Sequence[Meme] = ()) -> T:
        """The result of `call(desk, author=…)`, made in the name of the request's key.

        Raises:
            Refusal: 403 without a moderator's key, 409 with the bank's version where it was made before.
        """
        author, bank_service = moderator(request, self.keys).name, self.require_bank_service
        try:
            async with self.weighed(request, queries):
                return await self.bank_limit.run(
                    partial(call, bank_service, author=author), request.state.deadline, finish=True
                )
        except (AlreadyApplied, LabelConflictError) as error:
            raise APIError(409, str(error), bank_version=bank_service.bank.version) from None


def moderator(request: Request, keys: KeyRing | None) -> APIKey:
    """The key of the request, if it is one that may change the bank.

    Raises:
        Refusal: 403.
    """
    if keys is None:
        raise APIError(
            403,
            "This service has no keys, so nobody may change its bank: make one with `ra-hmd serve-key NAME "
            "--role moderator --keys FILE`, and start the service with `--keys FILE`.",
        )
    key: Any = getattr(request.state, "key", None)
    if key is None or key.role != "moderator":
        raise APIError(403, "The role of this key is reader; changes need the key of a moderator.")
    return key


def _drop(waiting: Sequence["asyncio.Future[ServedVerdict]"]) -> None:
    for one in waiting:
        if not one.cancel() and not one.cancelled():
            with contextlib.suppress(Exception):
                one.exception()  # looked at, or asyncio would log it
