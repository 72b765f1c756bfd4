"""Further views in a running service: live memes have those that the bank keeps, and new rows keep them."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from served import ra_hmd

from ra_hmd.bank.bank import Bank
from ra_hmd.core.errors import UserError
from ra_hmd.data.meme import Meme
from ra_hmd.data.meme_files import read_memes
from ra_hmd.features.store import read_features
from ra_hmd.inference.detector import Detector
from ra_hmd.models.meme_model import MemeModel
from ra_hmd.serve.bank_service import BankService
from ra_hmd.serve.batching import BatchingService

SAID = {"author": "ana", "reason": "test"}
VIEWS = ("--views", "untuned", "--views", "hidden", "--views", "clip")


@pytest.fixture(scope="module")
def viewed(served_lmm: Path, served_clip: Path, memes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with stores `train` and `test` that have the views `untuned` and `clip`, and a bank that keeps both."""
    folder = tmp_path_factory.mktemp("viewed")
    for split in ("train", "test"):
        ra_hmd("extract", "--checkpoint", served_lmm / "run", "--data", memes / "a", "--split", split, "--limit", "12",
               "--workers", "0", "--output", folder / split, "--views", "untuned",
               "--views", f"clip={served_clip / 'clip'}")  # fmt: skip
    ra_hmd("bank", "create", folder / "bank", "--checkpoint", served_lmm / "run", "--features", folder / "train",
           *VIEWS, "--author", "tests")  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def detector(viewed: Path, served_lmm: Path) -> Detector:
    return Detector.from_run(served_lmm / "run", viewed / "bank", device="cpu", batch_size=5)


@pytest.fixture(scope="module")
def asked(memes: Path) -> list[Meme]:
    return read_memes(memes / "a" / "test.jsonl")[:12]


@pytest.fixture
def service(detector: Detector) -> Iterator[BankService]:
    with BatchingService(detector) as batching:
        yield BankService(batching)


def test_live_memes_have_the_views_of_the_store(detector: Detector, viewed: Path, asked: list[Meme]) -> None:
    store = read_features(viewed / "test")
    live = detector.score([detector.prepare(meme) for meme in asked]).queries
    assert live.ids == store.ids
    assert set(live.views) == {"hidden", "untuned", "clip"}
    for name, expected in {"hidden": store.hidden, **store.views}.items():
        assert np.abs(live.view(name) - expected).max() <= 1e-4, name
    assert isinstance(detector.model, MemeModel), "explanations and prompts are of the LMM itself"


def test_memes_that_a_service_adds_keep_their_views(service: BankService, viewed: Path, asked: list[Meme]) -> None:
    before = service.bank.to_embeddings()
    service.add(asked[:2], [0, 1], source="api", **SAID)
    with Bank.open(viewed / "bank") as bank:
        held = bank.to_embeddings()
        store = read_features(viewed / "test")
        for name, expected in {"hidden": store.hidden, **store.views}.items():
            assert np.array_equal(held.views[name][:-2], before.views[name]), name
            assert np.abs(held.views[name][-2:] - expected[:2]).max() <= 1e-4, name
    service.rollback(1, **SAID)
    assert np.array_equal(service.bank.to_embeddings().views["untuned"], before.views["untuned"])


def test_memes_scored_last_have_their_views(service: BankService, viewed: Path, asked: list[Meme]) -> None:
    for future in service.service.submit(asked[:3]):
        future.result(60)
    recent = service.service.recent
    assert recent is not None
    store = read_features(viewed / "test")
    rows = [store.ids.index(name) for name in recent.ids]
    assert sorted(rows) == [0, 1, 2], "in the order in which they were prepared"
    for name, expected in {"hidden": store.hidden, **store.views}.items():
        assert np.abs(recent.view(name) - expected[rows]).max() <= 1e-4, name
    assert store.contents is not None
    assert list(recent.contents) == [store.contents[row] for row in rows]


def test_views_that_no_one_asks_for_are_not_made(
    viewed: Path, served_lmm: Path, asked: list[Meme], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a bank without views, and of a feature store, until the views are named."""
    passes: list[int] = []
    own = MemeModel.untuned
    monkeypatch.setattr(MemeModel, "untuned", lambda self, batch: passes.append(1) or own(self, batch))
    for bank in (served_lmm / "bank", viewed / "train"):
        one = Detector.from_run(served_lmm / "run", bank, device="cpu")
        assert set(one.score([one.prepare(asked[0])]).queries.views) == {"hidden"}
    assert not passes
    one = Detector.from_run(served_lmm / "run", viewed / "train", device="cpu", views=["embedding", "untuned"])
    assert set(one.score([one.prepare(asked[0])]).queries.views) == {"hidden", "untuned"}
    assert passes


def test_views_that_cannot_be_made_are_refused_before_a_model_is_loaded(
    viewed: Path, served_lmm: Path, served_clip: Path, tmp_path: Path
) -> None:
    run, bank = served_lmm / "run", viewed / "bank"
    with pytest.raises(UserError, match="'other' is not among those of the bank"):
        Detector.from_run(run, bank, views=["other"])
    with pytest.raises(UserError, match="View 'clip' of .*bank cannot be made: .*nowhere/clip"):
        Detector.from_run(run, bank, views=["clip=nowhere/clip"])
    ra_hmd("tiny-encoder", "--family", "clip", "--seed", "5", "--output", tmp_path / "clip")
    with pytest.raises(UserError, match="View 'clip': model:"):
        Detector.from_run(run, bank, views=[f"clip={tmp_path / 'clip'}"])
    moved = Detector.from_run(run, bank, views=[f"clip={served_clip / 'clip'}/."], device="cpu")
    assert moved.scorer.bank is not None
