"""Context that the routes of an app share: its services, its limits, and the two ways of processing a request.

Memes are scored by the batching service. Everything else (searches, bank changes, rationales) runs in a few threads of
its own, within a concurrency limit.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from anyio.to_thread import run_sync
from fastapi import Request

from ra_hmd.bank.identical import LabelConflictError
from ra_hmd.core.errors import UserError
from ra_hmd.data.meme import Meme
from ra_hmd.inference.types import Explain
from ra_hmd.serve.auth import APIKey, KeyRing
from ra_hmd.serve.bank_service import AlreadyApplied, BankService
from ra_hmd.serve.batching import BatchingService, ServedVerdict, ServiceBusy, ServiceClosed
from ra_hmd.serve.case_service import CaseService
from ra_hmd.serve.errors import APIError
from ra_hmd.serve.follower import BankFollower
from ra_hmd.serve.limits import RequestLimits
from ra_hmd.serve.middleware import Budget
from ra_hmd.serve.uploads import Model, check_meme_count, count_pixels, read_json_body

T = TypeVar("T")
_THREADS = 2


class ConcurrencyLimit:
    """Runs blocking calls in a small thread pool, with a limit on the calls that run or wait at the same time.

    Args:
        limit: Most calls that run or wait.
        name: Prefix of the threads' names.
    """

    def __init__(self, limit: int, name: str) -> None:
        self.limit, self.active = limit, 0
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix=name)

    async def run(self, call: Callable[[], T], deadline: float, *, finish: bool = False) -> T:
        """Run a call in one of the threads and return its result.

        Args:
            call: Function to run; skipped where the deadline has passed before its turn.
            deadline: Time of the event loop's clock.
            finish: Wait for a call that has started even past the deadline: a change must not be reported as failed
                when it was made.

        Raises:
            APIError: 429 where too many calls wait, 504 past the deadline.
            ServiceClosed: the app is shutting down.
        """
        if self.active >= self.limit:
            sentence = f"{self.active} requests of this kind are at work or waiting; ask again later."
            raise APIError(429, sentence, code="busy")
        loop = asyncio.get_running_loop()

        def run_in_time() -> T:
            if time.monotonic() > deadline:  # the loop's clock is the monotonic one, but only updated at each turn
                raise ServiceBusy
            return call()

        try:
            future = self._threads.submit(run_in_time)
        except RuntimeError as error:  # the pool was shut down
            raise ServiceClosed from error
        self.active += 1
        future.add_done_callback(lambda _: loop.call_soon_threadsafe(self._count_down))
        left = None if finish else max(deadline - loop.time(), 0)
        result = asyncio.wrap_future(future)
        done, _ = await asyncio.wait([result], timeout=left)
        if not done:
            result.cancel()
            raise APIError(504, "It took longer than a request may; ask for less, or again later.")
        return result.result()

    def _count_down(self) -> None:
        self.active -= 1

    def close(self) -> None:
        """Shut the threads down after their current calls."""
        self._threads.shutdown(wait=True, cancel_futures=True)


@dataclass
class AppContext:
    """The parts of an app that its routes share.

    Attributes:
        service: Batching service that scores memes.
        bank_service: Searches and changes the example bank; None without one.
        explainer: Generates rationales; None where the model cannot.
        keys: API keys; None: read requests are anonymous, and changes are refused.
        limits: Limits of requests.
        follower: Keeps the service at the newest version of its example bank; None without one.
        cases: Cases that wait for people; None without a case database.
    """

    service: BatchingService
    bank_service: BankService | None
    explainer: Explain | None
    keys: KeyRing | None
    limits: RequestLimits
    follower: BankFollower | None = None
    cases: CaseService | None = None
    pixel_budget: Budget = field(init=False)
    bank_limit: ConcurrencyLimit = field(init=False)
    explain_limit: ConcurrencyLimit = field(init=False)

    def __post_init__(self) -> None:
        if self.bank_service is not None and self.bank_service.timeout is None:
            self.bank_service.timeout = self.limits.time_limit
        self.pixel_budget = Budget(self.limits.max_pixels * self.limits.memory_factor, "pixels")
        self.bank_limit = ConcurrencyLimit(self.limits.max_concurrent, "bank")
        self.explain_limit = ConcurrencyLimit(self.limits.max_concurrent, "explain")

    def close(self, timeout: float | None = None) -> None:
        """Answer what was accepted, and end all threads."""
        if self.follower is not None:
            self.follower.close()
        if self.cases is not None:
            self.cases.close()
        self.bank_limit.close()
        self.explain_limit.close()
        self.service.close(timeout)

    # ---------------------------------------------------------------------------------------------- memes

    async def classify(self, request: Request, memes: Sequence[Meme]) -> list[ServedVerdict | UserError]:
        """Score memes, all at one version of the bank; the result of a meme that cannot be used is its error.

        Raises:
            APIError: 413 or 429 where they are too much, 504 past the request's deadline; then none of them is scored.
            QueueFull, ServiceClosed: see `BatchingService.submit`.
        """
        request.state.memes = len(memes)
        sizes = await self._pixels(memes)
        valid = [meme for meme, size in zip(memes, sizes, strict=True) if isinstance(size, int)]
        total = sum(size for size in sizes if isinstance(size, int))
        if len(valid) > (most := self.service.settings.max_queue):
            raise APIError(413, f"{len(valid)} memes are sent, and at most {most} may wait here at a time; send fewer.")
        self.pixel_budget.acquire(total)
        try:
            results = iter(await self._at_one_version(request, valid, await self._results(request, valid)))
        finally:
            self.pixel_budget.release(total)
        return [next(results) if isinstance(size, int) else size for size in sizes]

    def watch(self, request: Request, results: Sequence[ServedVerdict | UserError]) -> None:
        """Let the policy choose among verdicts those that become cases; the answer does not wait for these."""
        if self.cases is not None:
            key: APIKey | None = getattr(request.state, "key", None)
            served = [one for one in results if isinstance(one, ServedVerdict)]
            self.cases.offer(served, "api" if key is None else key.name)

    async def _pixels(self, memes: Sequence[Meme]) -> list[int | UserError]:
        """Number of pixels of each image, or why a meme cannot be used; read in a thread."""

        def pixels(meme: Meme) -> int | UserError:
            try:
                return count_pixels(meme, self.limits)
            except UserError as error:
                return error

        return await run_sync(lambda: [pixels(meme) for meme in memes])

    async def _at_one_version(
        self, request: Request, memes: Sequence[Meme], results: list[ServedVerdict | UserError]
    ) -> list[ServedVerdict | UserError]:
        """The results; scored again in one turn where the bank changed between the batches that their memes were in."""
        judged = [meme for meme, one in zip(memes, results, strict=True) if isinstance(one, ServedVerdict)]
        if len({one.version["bank"].get("version") for one in results if isinstance(one, ServedVerdict)}) <= 1:
            return results
        left = max(request.state.deadline - asyncio.get_running_loop().time(), 0)
        again = iter(await run_sync(self.service.judge_together, judged, left))
        return [next(again) if isinstance(one, ServedVerdict) else one for one in results]

    async def _results(self, request: Request, memes: Sequence[Meme]) -> list[ServedVerdict | UserError]:
        futures: list[Future[ServedVerdict]] = self.service.submit(memes)
        if not futures:
            return []
        results = [asyncio.wrap_future(future) for future in futures]
        left = max(request.state.deadline - asyncio.get_running_loop().time(), 0)
        try:
            _, late = await asyncio.wait(results, timeout=left)
        except asyncio.CancelledError:
            _cancel(results)
            raise
        if late:
            _cancel(results)
            raise APIError(504, f"{len(late)} of {len(results)} memes were not judged in time; send fewer, or later.")
        errors = [one.exception() for one in results]
        failure = next((error for error in errors if error is not None and not isinstance(error, UserError)), None)
        if failure is not None:
            raise failure
        return [
            error if isinstance(error, UserError) else one.result() for one, error in zip(results, errors, strict=True)
        ]

    @asynccontextmanager
    async def reserve_pixels(self, request: Request, memes: Sequence[Meme]) -> AsyncIterator[None]:
        """Count the images of memes that are not scored by `classify` against the memory budget.

        Raises:
            APIError: 422 for a meme that cannot be used, 413 or 429 where they are too much.
        """
        check_meme_count(memes, self.limits)
        request.state.memes = len(memes) or None
        total = 0
        for meme, size in zip(memes, await self._pixels(memes), strict=True):
            if isinstance(size, UserError):
                raise APIError(422, f"meme {meme.id!r}: {size}", code="unusable_meme")
            total += size
        self.pixel_budget.acquire(total)
        try:
            yield
        finally:
            self.pixel_budget.release(total)

    # ---------------------------------------------------------------------------------------------- the bank

    @property
    def require_bank(self) -> BankService:
        """The bank service. Raises `APIError` (404) where no example bank is open."""
        if self.bank_service is None:
            sentence = "There is no example bank here; start the service with `--bank` and one of those."
            raise APIError(404, sentence, code="no_bank")
        return self.bank_service

    async def query_bank(self, request: Request, call: Callable[[BankService], T], memes: Sequence[Meme] = ()) -> T:
        """Run a read-only call on the bank service; `memes` are those that it works on."""
        bank_service = self.require_bank
        async with self.reserve_pixels(request, memes):
            return await self.bank_limit.run(partial(call, bank_service), request.state.deadline)

    async def read_change(self, request: Request, kind: type[Model]) -> Model:
        """Parse the body of a change, after the checks of its key (403) and of the bank (404)."""
        require_moderator(request, self.keys)
        _ = self.require_bank
        return await read_json_body(request, kind)

    async def change_bank(self, request: Request, call: Callable[..., T], memes: Sequence[Meme] = ()) -> T:
        """Run `call(bank_service, author=…)` with the name of the request's key as the author.

        Raises:
            APIError: 403 without a moderator's key, 409 with the bank's version where the change was made before.
        """
        author, bank_service = require_moderator(request, self.keys).name, self.require_bank
        change = partial(call, bank_service, author=author)
        try:
            async with self.reserve_pixels(request, memes):
                return await self.bank_limit.run(change, request.state.deadline, finish=True)
        except (AlreadyApplied, LabelConflictError) as error:
            code = "label_conflict" if isinstance(error, LabelConflictError) else "already_applied"
            raise APIError(409, str(error), bank_version=bank_service.bank.version, code=code) from None


def require_moderator(request: Request, keys: KeyRing | None) -> APIKey:
    """Return the key of the request if its role is moderator.

    Raises:
        APIError: 403.
    """
    if keys is None:
        raise APIError(
            403,
            "This service has no keys, so nobody may change its bank: make one with `ra-hmd serve-key NAME "
            "--role moderator --keys FILE`, and start the service with `--keys FILE`.",
            code="no_keys",
        )
    key: Any = getattr(request.state, "key", None)
    if key is None or key.role != "moderator":
        sentence = "The role of this key is reader; changes need the key of a moderator."
        raise APIError(403, sentence, code="role_not_allowed")
    return key


def _cancel(results: Sequence["asyncio.Future[ServedVerdict]"]) -> None:
    for one in results:
        if not one.cancel() and not one.cancelled():
            with contextlib.suppress(Exception):
                one.exception()  # retrieved, so that asyncio does not log it
