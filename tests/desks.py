"""A desk over a real socket, with the API, on a bank that may be changed and a case database of its own."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx
import pytest
from servers import in_thread, queries

from ra_hmd.cases.database import Database
from ra_hmd.cases.pictures import CasePictures
from ra_hmd.cases.policy import CasePolicy, PolicyDraw
from ra_hmd.cases.store import CaseStore
from ra_hmd.desk.class_names import ClassNames
from ra_hmd.desk.desk import Desk
from ra_hmd.desk.mount import mount
from ra_hmd.desk.sessions import Sessions
from ra_hmd.inference.detector import Detector
from ra_hmd.inference.meme_lookup import MemeLookup
from ra_hmd.serve.app import create_app
from ra_hmd.serve.auth import KeyRing
from ra_hmd.serve.bank_service import BankService
from ra_hmd.serve.batching import BatchingService, ServedVerdict, wait_for_all
from ra_hmd.serve.case_service import CaseService, Intake


@dataclass
class ServedDesk:
    """A desk that is being served.

    Attributes:
        client: Client of API and desk, nobody logged in; without keys whoever asks is the moderator `ana`.
        desk: The desk; `cases` is its case service, and `cases.store` its store.
        bank: Folder of the bank, or where there is none None.
        memes: Folder of the synthetic memes.
    """

    client: httpx.Client
    desk: Desk
    bank: Path | None
    memes: Path
    _added: int = field(default=0, repr=False)

    @property
    def address(self) -> str:
        """Address of the pages, for a browser."""
        return f"{str(self.client.base_url).rstrip('/')}/console"

    @property
    def cases(self) -> CaseService:
        """The case service."""
        return self.desk.cases

    @cached_property
    def _judged(self) -> list[ServedVerdict]:
        return wait_for_all(self.cases.service.submit(queries(self.memes)), 120)

    def add(self, count: int = 1, **intake: Any) -> list[str]:
        """Make cases of the synthetic memes, and return their ids. Memes that come again have another caption.

        Args:
            count: Number of cases.
            intake: Fields of `Intake`, for all of them.
        """
        chosen = []
        for number in range(self._added, self._added + count):
            again, place = divmod(number, len(self._judged))
            served = self._judged[place]
            if again:
                meme = replace(served.meme, id=f"{served.meme.id}-{again}", text=f"{served.meme.text} ({again})")
                served = replace(served, meme=meme)
            chosen.append(served)
        self._added += count
        return [name for name, _ in self.cases.add(chosen, [Intake(**intake)] * count, "tests")]

    @contextmanager
    def logged_in(self, name: str, key: str) -> Iterator[httpx.Client]:
        """Another client, logged in as a person."""
        with httpx.Client(base_url=self.client.base_url, timeout=60) as client:
            answer = client.post("/console/login", data={"name": name, "key": key})
            assert answer.status_code == 303, answer.text
            yield client


MakeDesk = Callable[..., AbstractContextManager[ServedDesk]]


@pytest.fixture
def desk(served_clip: Path, clip_bank: Path, memes: Path, tmp_path: Path) -> MakeDesk:
    """`with desk(keys=…, cases=12, policy=…, detector options…) as served`: see `ServedDesk`."""

    @contextmanager
    def serve(
        keys: KeyRing | None = None,
        cases: int = 0,
        policy: CasePolicy | None = None,
        run: Path = served_clip / "head",
        bank: Path | None = clip_bank,
        root_path: str = "",
        class_names: tuple[str, ...] = (),
        database: Path = tmp_path / "cases.sqlite",
        **detector: Any,
    ) -> Iterator[ServedDesk]:
        service = BatchingService(Detector.from_run(run, bank, **detector))
        bank_service = None if bank is None else BankService.open(service, run.parent / "features" / "dev")
        store = CaseStore(Database(database))
        draw = None if policy is None else PolicyDraw(policy)
        waiting = CaseService(service, store, CasePictures(tmp_path / "pictures"), bank_service, draw)
        sessions = Sessions(store.database, keys, "ana")
        page = Desk(
            waiting, ClassNames(service.detector.problem, class_names), sessions, MemeLookup.open([memes / "a"])
        )
        app = create_app(service, bank_service, keys=keys, root_path=root_path, cases=waiting)
        with in_thread(mount(app, page)) as client:
            served = ServedDesk(client, page, bank, memes)
            served.add(cases)
            yield served

    return serve
