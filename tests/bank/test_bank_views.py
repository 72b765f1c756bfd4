"""Banks that keep further views of their memes: every version has them, and what has none is refused."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from json_files import read_json
from small_banks import SAID, bank_of, labels_of, make_rows, points
from test_bank_commands import EMBED, HIDDEN, MADE_BY, Lab

from ra_hmd.bank.backends.parquet import VERSIONS
from ra_hmd.bank.bank import Bank
from ra_hmd.bank.log_checkpoint import EVERY
from ra_hmd.core.artifacts import MANIFEST_NAME
from ra_hmd.core.errors import UserError
from ra_hmd.core.manifests import ViewDescription
from ra_hmd.core.problem import BINARY
from ra_hmd.features.store import Features, read_features, write_features

ORIGINS = {"untuned": ViewDescription(fingerprint={"model": "m", "adapter": None})}


def views_of(count: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=(count, width)).astype(np.float32) for name, width in (("untuned", 5), ("clip", 3))}


def viewed_bank(place: Path, count: int = 60) -> Bank:
    return bank_of(place, count, views=views_of(count), view_origins=ORIGINS)


def assert_views(bank: Bank, expected: dict[str, dict[str, np.ndarray]], version: int | None = None) -> None:
    """The rows of a version have the vectors of their ids."""
    held = bank.to_embeddings(version)
    assert set(held.views) == {"untuned", "clip"}
    for name, view in held.views.items():
        assert np.array_equal(view, np.stack([expected[row][name] for row in held.ids])), name


def by_id(names: list[str], views: dict[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    return {row: {name: view[place] for name, view in views.items()} for place, row in enumerate(names)}


def test_all_versions_have_the_views_of_their_rows(tmp_path: Path) -> None:
    bank = viewed_bank(tmp_path / "bank")
    expected = by_id([f"m{i}" for i in range(60)], views_of(60))
    new, names = views_of(20, seed=1), [f"n{i}" for i in range(20)]
    bank.add(make_rows(names, labels_of(BINARY, 20)), points(60, seed=7)[:20], views=new, **SAID)
    expected |= by_id(names, new)
    bank.remove(["m1", "m2", "m12", "n3"], **SAID)
    bank.relabel({"m4": 1 - bank.labels[bank.ids.index("m4")]}, **SAID)
    bank.rollback(2, **SAID)
    assert len(bank) == 80
    bank.remove(["m7", "m8"], **SAID)
    for opened in (bank, Bank.open(tmp_path / "bank")):
        for version in (1, 2, 3, 4, 5, None):
            assert_views(opened, expected, version)
    assert bank.to_embeddings(views=("clip",)).views.keys() == {"clip"}
    assert bank.info()["views"] == {"untuned": 5, "clip": 3}
    manifest = read_json(tmp_path / "bank" / MANIFEST_NAME)
    assert manifest.views.untuned == {"fingerprint": {"model": "m", "adapter": None}, "encoder": None, "width": 5}
    assert manifest.format == 2


def test_a_long_history_has_its_views_from_the_checkpoint_of_the_log_on(tmp_path: Path) -> None:
    bank = viewed_bank(tmp_path / "bank", count=4)
    expected = by_id([f"m{i}" for i in range(4)], views_of(4))
    for turn in range(EVERY):
        new = views_of(1, seed=turn + 1)
        bank.add(make_rows([f"n{turn}"], np.zeros(1, int)), points(1), views=new, **SAID)
        expected |= by_id([f"n{turn}"], new)
    assert (tmp_path / "bank" / "cache" / "log.parquet").is_file()
    assert_views(Bank.open(tmp_path / "bank"), expected)


def test_new_rows_without_a_view_are_refused_and_nothing_is_written(tmp_path: Path) -> None:
    bank = viewed_bank(tmp_path / "bank")
    rows, vectors = make_rows(["n"], np.zeros(1, int)), points(1)
    views = views_of(1)
    with pytest.raises(UserError, match="have no untuned, clip.*--views untuned --views clip"):
        bank.add(rows, vectors, **SAID)
    with pytest.raises(UserError, match="have no clip"):
        bank.add(rows, vectors, views={"untuned": views["untuned"]}, **SAID)
    with pytest.raises(UserError, match="'clip' has 4 dimensions, not 3"):
        bank.add(rows, vectors, views=views | {"clip": np.zeros((1, 4), np.float32)}, **SAID)
    with pytest.raises(UserError, match="not finite"):
        bank.add(rows, vectors, views=views | {"clip": np.full((1, 3), np.nan, np.float32)}, **SAID)
    assert len(list((tmp_path / "bank" / VERSIONS).iterdir())) == 1
    bank.add(rows, vectors, views=views | {"other": np.zeros((1, 9), np.float32)}, **SAID)
    assert set(bank.to_embeddings().views) == {"untuned", "clip"}


def test_a_bank_without_views_has_the_files_that_it_had(tmp_path: Path) -> None:
    bank = bank_of(tmp_path / "bank")
    bank.add(make_rows(["n"], np.zeros(1, int)), points(1), views=views_of(1), **SAID)
    for path in (tmp_path / "bank" / VERSIONS).iterdir():
        assert not [name for name in pq.read_schema(path).names if name.startswith("view")]
    manifest = read_json(tmp_path / "bank" / MANIFEST_NAME)
    assert "views" not in manifest
    assert manifest.format == 1
    assert "views" not in bank.info()
    with pytest.raises(UserError, match=r"\(it keeps none\); name them when it is created.*\s.*'untuned'"):
        bank.to_embeddings(views=("untuned",))


@pytest.mark.parametrize("place", ["bank.db", "memory"])
def test_a_backend_that_keeps_no_views_says_so(tmp_path: Path, place: str) -> None:
    where = f"memory://{tmp_path}" if place == "memory" else tmp_path / place
    with pytest.raises(UserError, match=r"keeps no views \(untuned, clip\); give a folder"):
        bank_of(where, views=views_of(60))
    assert not (tmp_path / place).exists()


# -- commands ---------------------------------------------------------------------------------------------------------


def viewed_store(folder: Path, name: str, source: str, **fingerprint: str) -> Features:
    """A copy of a store with a view `untuned`."""
    features = read_features(folder / source)
    view = np.random.default_rng(len(features)).normal(size=(len(features), 7)).astype(np.float32)
    made = Features(features.ids, features.labels, features.hidden, views={"untuned": view})
    stated = {"untuned": {"fingerprint": {"model": "m" * 64, "adapter": None} | fingerprint}}
    write_features(folder / name, made, MADE_BY | {"data": name}, views=stated)
    return made


def test_commands_keep_the_views_that_are_named(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    first, new = viewed_store(tmp_path, "viewed", "bank"), viewed_store(tmp_path, "viewed_new", "new", dtype="float16")
    viewed_store(tmp_path, "other", "new", model="n" * 64)
    names = ("--views", "hidden", "--views", "untuned", "--views", "embedding")
    lab("create", "@b", *EMBED, "--features", "@viewed", *names)
    assert json.loads(lab("info", "@b", "--json"))["views"] == {"hidden": HIDDEN, "untuned": 7}
    assert "untuned" in lab("info", "@b")
    said = ("--reason", "news")
    lab(
        "add",
        "@b",
        *EMBED,
        "--features",
        "@new",
        *said,
        fails="have no untuned. Make their features by `ra-hmd extract",
    )
    lab("add", "@b", *EMBED, "--features", "@other", *said, fails="View 'untuned': model: 'mmm")
    lab("add", "@b", *EMBED, "--features", "@viewed_new", *said)
    with Bank.open(tmp_path / "b") as bank:
        held = bank.to_embeddings()
    for name, parts in (("untuned", [one.views["untuned"] for one in (first, new)]),
                        ("hidden", [one.hidden for one in (first, new)])):  # fmt: skip
        assert np.array_equal(held.views[name], np.concatenate(parts)), name


def test_a_view_that_the_store_does_not_have_is_refused(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    lab("create", "@b", *EMBED, "--features", "@bank", "--views", "untuned", fails="View 'untuned' is not among those")
    assert not (tmp_path / "b").exists()
