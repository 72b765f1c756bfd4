"""Banks against a naive model of them; the tests with `new_bank` are the contract of every backend."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_banks import SAID, bank_of, labels_of, make_rows, points, queries_of

from ra_hmd.bank.backends import parquet
from ra_hmd.bank.backends.base import BackendSpec, backend_of, is_bank, register_backend
from ra_hmd.bank.bank import Bank
from ra_hmd.bank.versions import Change
from ra_hmd.core.errors import UserError
from ra_hmd.core.problem import Problem
from ra_hmd.retrieval import index as index_module
from ra_hmd.retrieval.embeddings import Embeddings
from ra_hmd.retrieval.knn import ABSENT

PROBLEMS = [Problem(), Problem("single_label", 3), Problem("multi_label", 4)]


def change_much(bank):
    """A bank with every kind of change in its history."""
    bank.add(make_rows([f"n{i}" for i in range(20)], labels_of(bank.problem, 20, 5)), points(60, seed=7)[:20], **SAID)
    bank.remove(["m1", "m2", "m12", "n3"], **SAID)
    other = bank.labels[bank.ids.index("m5")]
    new = 1 - other if bank.problem.kind != "single_label" else (other + 1) % 3
    bank.relabel({"m4": new, "m5": new, "n4": new}, **SAID)
    bank.rollback(2, **SAID)
    bank.remove(["m7", "m8"], **SAID)
    bank.add(make_rows(["m7"], labels_of(bank.problem, 1, 9)), points(60, seed=3)[:1], **SAID)
    return bank


def contents(bank, version=None):
    """Everything that a version holds, in order."""
    held = bank.to_embeddings(version)
    return list(held.ids), held.labels.tolist(), held.embedding.tolist()


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.kind)
def test_both_backends_give_the_same_to_the_last_bit(tmp_path, problem):
    """Also where twenty rows are equal, a row is zero, rows were removed, and queries are in the bank."""
    folder, file = (change_much(bank_of(tmp_path / name, problem=problem)) for name in ("bank", "bank.db"))
    with folder, file:
        asked = queries_of()
        for k in (1, 5, 20, 100):
            one, other = folder.nearest(asked, k), file.nearest(asked, k)
            assert np.array_equal(one.rows, other.rows)
            assert np.array_equal(one.similarity, other.similarity)
            reference = folder.to_embeddings().nearest(asked, k)
            assert np.array_equal(one.rows, reference.rows)
            assert np.array_equal(one.similarity, reference.similarity)
            for line in range(0, len(asked), 7):  # alone as in the batch
                alone = folder.nearest(asked.select(np.array([line])), k)
                assert np.array_equal(alone.rows[0], one.rows[line])
                assert np.array_equal(alone.similarity[0], one.similarity[line])
        assert folder.row(5) == file.row(5)
        for version in range(1, 8):
            assert contents(folder, version) == contents(file, version)
        plain = [[{**entry.to_dict(), "time": ""} for entry in bank.log] for bank in (folder, file)]
        assert plain[0] == plain[1]


@pytest.mark.parametrize("k", [1, 7, 25, 90])
def test_neighbours_equal_a_naive_loop(new_bank, k):
    bank = change_much(new_bank())
    asked, near = queries_of(), None
    near = bank.nearest(asked, k)
    held = bank.to_embeddings()
    for line, query in enumerate(asked.embedding.astype(np.float64)):
        pairs = []
        for place, row in enumerate(held.embedding.astype(np.float64)):
            if held.ids[place] != asked.ids[line]:
                length = np.linalg.norm(row) * np.linalg.norm(query)
                pairs.append((-(row @ query) / length if length else 0.0, place))
        pairs.sort()
        count = min(k, len(pairs))
        assert near.present[line].sum() == count
        assert np.allclose(near.similarity[line, :count], [-value for value, _ in pairs[:count]], atol=1e-6)
        assert (np.diff(near.similarity[line, :count]) <= 0).all()
        equal = np.diff(near.similarity[line, :count]) == 0
        assert (np.diff(near.rows[line, :count])[equal] > 0).all()  # ties by place
        assert asked.ids[line] not in [bank.ids[place] for place in near.rows[line, :count]]
    assert (near.rows[~near.present] == ABSENT).all()
    for line, rows in enumerate(bank.search(asked, k)):
        assert [row["id"] for row in rows] == [bank.ids[place] for place in near.rows[line, near.present[line]]]
        assert [row["similarity"] for row in rows] == near.similarity[line, near.present[line]].tolist()


def test_a_life(new_bank):
    bank = new_bank()
    place = bank.location
    before = contents(bank)
    change_much(bank)
    assert [entry.action for entry in bank.log] == ["create", "add", "remove", "relabel", "rollback", "remove", "add"]
    assert [entry.counts["rows"] for entry in bank.log] == [60, 80, 76, 76, 80, 78, 79]
    assert bank.log[4].restores == 2
    assert bank.log[2].counts["removed"] == 4
    assert {entry.author for entry in bank.log} == {"ana"}
    assert all(entry.time.endswith("+00:00") for entry in bank.log)
    assert contents(bank, 1) == before
    assert contents(bank, 5) == contents(bank, 2)
    assert contents(bank, 3)[0] == [name for name in contents(bank, 2)[0] if name not in ("m1", "m2", "m12", "n3")]
    assert bank.ids[-1] == "m7"
    assert bank.row(78)["source"] == "source of m7"
    whole = contents(bank), bank.row(11), bank.info()
    bank.close()
    with Bank.open(place) as again:
        assert contents(again) == whole[0]
        assert again.row(11) == whole[1]
        assert again.row(11)["note"] == f"note “{again.ids[11]}” \u202e"
        assert int(again.row(0)["image_hash"], 16) == 2**63
        info = again.info()
        assert {**info, "bytes": 0} == {**whole[2], "bytes": 0}
        assert sum(info["rows_per_class"]) == info["rows"] == 79
        assert is_bank(place)


def test_a_reader_sees_its_version_until_it_refreshes(tmp_path):
    writer = bank_of(tmp_path / "bank")
    reader = Bank.open(tmp_path / "bank")
    asked = queries_of()
    before = reader.nearest(asked, 5)
    change_much(writer)
    assert reader.version == 1
    assert len(reader) == 60
    assert np.array_equal(reader.nearest(asked, 5).rows, before.rows)
    assert reader.refresh() == 7
    assert np.array_equal(reader.nearest(asked, 5).rows, writer.nearest(asked, 5).rows)
    writer.rollback(1, **SAID)
    reader.refresh()
    assert np.array_equal(reader.nearest(asked, 5).rows, before.rows)


def test_a_writer_decides_on_the_newest_version(tmp_path):
    """Two open banks: what one planned on an old version is checked against what the other did."""
    one, other = bank_of(tmp_path / "bank"), Bank.open(tmp_path / "bank")
    one.remove(["m3"], **SAID)
    with pytest.raises(UserError, match="'m3'"):
        other.remove(["m3"], **SAID)
    other.relabel({"m4": 1 - int(other.labels[other.ids.index("m4")])}, **SAID)
    assert [entry.version for entry in other.log] == [1, 2, 3]
    assert "m3" not in other.ids


operations = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=4, unique=True)),
        st.tuples(st.just("remove"), st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=3, unique=True)),
        st.tuples(st.just("relabel"), st.dictionaries(st.sampled_from("abcdefgh"), st.integers(0, 1), min_size=1)),
        st.tuples(st.just("rollback"), st.integers(1, 6)),
    ),
    max_size=9,
)


@settings(max_examples=40, deadline=None)
@given(operations=operations)
def test_any_history_equals_a_dictionary(tmp_path_factory, operations):
    place = tmp_path_factory.mktemp("history") / "bank"
    bank = Bank.create(place, make_rows(["a"], [0]), points(1), fingerprint={}, **SAID)
    models = [{}, {"a": (0, points(1)[0].tolist())}]
    for number, (kind, what) in enumerate(operations):
        model = dict(models[-1])
        vectors = points(4, seed=number)
        try:
            if kind == "add":
                possible = not set(what) & set(model)
                new = {name: (number % 2, vectors[i].tolist()) for i, name in enumerate(what)}
                bank.add(make_rows(what, [number % 2] * len(what)), vectors[: len(what)], **SAID)
                model |= new
            elif kind == "remove":
                possible = set(what) <= set(model)
                bank.remove(what, **SAID)
                model = {name: value for name, value in model.items() if name not in what}
            elif kind == "relabel":
                possible = set(what) <= set(model) and any(model[name][0] != label for name, label in what.items())
                bank.relabel(what, **SAID)
                model |= {name: (label, model[name][1]) for name, label in what.items()}
            else:
                possible = what < len(models) and models[what] != model
                bank.rollback(what, **SAID)
                model = dict(models[what])
        except UserError:
            # A row that was removed and added again is another row, though it may look the same: then it may differ.
            assert not possible
            continue
        assert possible or kind == "rollback"
        models.append(model)
    for opened in (bank, Bank.open(place)):
        assert opened.version == len(models) - 1
        for version in range(1, len(models)):
            held = opened.to_embeddings(version)
            found = dict(zip(held.ids, zip(held.labels.tolist(), held.embedding.tolist(), strict=True), strict=True))
            assert found == models[version]


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_an_approximate_bank_follows_its_changes(tmp_path, kind):
    rng = np.random.default_rng(0)
    embedding = np.repeat(rng.normal(size=(40, 16)), 75, axis=0) + 0.4 * rng.normal(size=(3000, 16))
    bank = bank_of(tmp_path / "bank", 3000, embedding=embedding.astype(np.float32), index=kind)
    new = embedding[::30] + 0.4 * rng.normal(size=(100, 16))
    asked = Embeddings([f"q{i}" for i in range(100)], np.zeros(100, int), new.astype(np.float32))

    def shared(opened, asked=asked) -> float:
        exact, near = opened.to_embeddings().nearest(asked, 20), opened.nearest(asked, 20)
        assert near.present.all()
        return np.mean([len(set(a) & set(b)) / 20 for a, b in zip(exact.rows, near.rows, strict=True)])

    assert shared(bank) >= 0.97
    about = bank.info()
    assert about["index"] == kind
    assert about["recall_at_20"] >= 0.99
    files = sorted(path.name for path in (tmp_path / "bank" / "cache").glob("*.faiss"))
    assert len(files) == 1
    bank.add(make_rows([f"n{i}" for i in range(400)], [1] * 400), embedding[:400].astype(np.float32) + 0.05, **SAID)
    bank.remove([f"m{i}" for i in range(0, 1200)], **SAID)
    assert shared(bank) >= 0.97
    again = Bank.open(tmp_path / "bank")  # from the cache, and what came later added to it
    assert shared(again) >= 0.97
    assert again.info()["indexed_rows"] == 3400
    assert sorted(path.name for path in (tmp_path / "bank" / "cache").glob("*.faiss")) == files
    again.remove([f"m{i}" for i in range(1200, 2400)], **SAID)  # more than half of it gone: built again
    assert shared(again, asked.select(np.arange(80, 100))) >= 0.97  # queries like the rows that are left
    assert again.info()["indexed_rows"] == 1000
    assert sorted(path.name for path in (tmp_path / "bank" / "cache").glob("*.faiss")) != files
    bank.rollback(1, **SAID)
    assert shared(bank) >= 0.97


def test_a_damaged_or_lost_cache_is_built_again(tmp_path):
    bank = bank_of(tmp_path / "bank", 500, embedding=points(500), index="ivf")
    asked = queries_of()
    near = bank.nearest(asked, 20)
    cache = tmp_path / "bank" / "cache"
    for damage in ("faiss", "npz", "json"):
        for path in cache.glob(f"*.{damage}"):
            path.write_bytes(b"damaged")
        assert np.array_equal(Bank.open(tmp_path / "bank").nearest(asked, 20).rows, near.rows)
        next(iter(cache.glob("*.faiss"))).unlink()
        assert np.array_equal(Bank.open(tmp_path / "bank").nearest(asked, 20).rows, near.rows)


def test_a_bank_becomes_approximate_when_it_grows(tmp_path, monkeypatch):
    monkeypatch.setattr(index_module, "EXACT_ROWS", 100)
    bank = bank_of(tmp_path / "bank", 90, embedding=points(90))
    assert bank.info()["index"] == "flat"
    bank.add(make_rows([f"n{i}" for i in range(50)], [1] * 50), points(50, seed=4), **SAID)
    assert bank.info()["index"] == "ivf"
    bank.remove([f"n{i}" for i in range(50)], **SAID)
    assert bank.info()["index"] == "flat"
    assert bank.info()["indexed_rows"] == 90


def test_a_relabel_writes_no_embedding(tmp_path):
    bank = bank_of(tmp_path / "bank", 2000, embedding=points(2000, 256))
    bank.relabel({"m1": 1 - int(bank.labels[1])}, **SAID)
    first, second = sorted((tmp_path / "bank" / "versions").iterdir())
    assert first.stat().st_size > 2000 * 256
    assert second.stat().st_size < 10_000


def test_leftovers_of_a_dead_writer_are_not_read_and_go(tmp_path):
    bank = bank_of(tmp_path / "bank")
    left = [tmp_path / "bank" / "versions" / ".00000002.parquet.xyz.tmp"]
    left[0].write_bytes(b"half")
    assert Bank.open(tmp_path / "bank").version == 1
    bank.remove(["m1"], **SAID)
    assert not left[0].exists()
    assert bank.version == 2


def test_leftovers_of_a_dead_writer_in_milvus_are_not_read_and_go(tmp_path):
    bank = bank_of(tmp_path / "bank.db")
    store = bank._backend
    rows = make_rows(["half"], [1])
    store._insert_rows(2, Change.of(bank.labels, added=rows), points(60)[9:10], 60)
    store._insert_text("changes", 2 << 20, "half")
    asked = queries_of()
    assert (bank.nearest(asked, 20).rows < 60).all()
    bank.close()
    with Bank.open(tmp_path / "bank.db") as again:
        assert again.version == 1
        again.add(make_rows(["whole"], [0]), points(60)[5:6], **SAID)
        assert again.ids[60] == "whole"
        assert np.array_equal(again.to_embeddings().embedding[60], points(60)[5])


def test_a_creation_that_was_broken_off_can_be_made_again(tmp_path):
    bank_of(tmp_path / "bank.db").close()
    with Bank.open(tmp_path / "bank.db") as bank:
        bank._backend._client.delete("bank_log", filter="key == 1")
    with pytest.raises(UserError, match="create it again"):
        Bank.open(tmp_path / "bank.db")
    with bank_of(tmp_path / "bank.db", 30, embedding=points(30)) as bank:
        assert len(bank) == 30
        assert len(bank.nearest(queries_of(), 50).rows) == 40
        with pytest.raises(UserError, match="'hnsw' needs a cluster"):
            bank_of(tmp_path / "other.db", index="hnsw")


def test_an_empty_bank_and_an_emptied_one(new_bank):
    bank = new_bank(count=0, embedding=np.zeros((0, 8), np.float32))
    asked = queries_of(5)
    assert (bank.nearest(asked, 3).rows == ABSENT).all()
    bank.add(make_rows(["a", "b"], [0, 1]), points(2), **SAID)
    bank.remove(["a", "b"], **SAID)
    assert (bank.nearest(asked, 3).rows == ABSENT).all()
    assert bank.to_embeddings().embedding.shape == (0, 8)
    bank.rollback(2, **SAID)
    assert bank.ids == ["a", "b"]


def test_errors_say_what_to_do(new_bank):
    bank = new_bank()
    place = bank.location
    with pytest.raises(UserError, match="has these already"):
        bank.add(make_rows(["m1"], [0]), points(1), **SAID)
    with pytest.raises(UserError, match="more than once"):
        bank.add(make_rows(["x", "x"], [0, 1]), points(2), **SAID)
    with pytest.raises(UserError, match="3 dimensions, the bank has 8"):
        bank.add(make_rows(["x"], [0]), points(1, 3), **SAID)
    with pytest.raises(UserError, match="not finite"):
        bank.add(make_rows(["x"], [0]), np.full((1, 8), np.nan), **SAID)
    with pytest.raises(UserError, match=r"labels \[2\]"):
        bank.add(make_rows(["x"], [2]), points(1), **SAID)
    with pytest.raises(UserError, match="does not have these, at version 1"):
        bank.remove(["m1", "nobody"], **SAID)
    with pytest.raises(UserError, match=r"labels \[5\]"):
        bank.relabel({"m1": 5}, **SAID)
    with pytest.raises(UserError, match="nothing was changed"):
        bank.relabel({"m1": int(bank.labels[1])}, **SAID)
    with pytest.raises(UserError, match="nothing was changed"):
        bank.remove([], **SAID)
    with pytest.raises(UserError, match="versions 1 to 1, not 4"):
        bank.rollback(4, **SAID)
    with pytest.raises(UserError, match="nothing was changed"):
        bank.rollback(1, **SAID)
    with pytest.raises(UserError, match="--reason is empty"):
        bank.remove(["m1"], author="ana", reason=" ")
    with pytest.raises(UserError, match="--author is empty"):
        bank.remove(["m1"], author="", reason="x")
    with pytest.raises(UserError, match="K is 0"):
        bank.nearest(queries_of(), 0)
    with pytest.raises(UserError, match="have 3 dimensions"):
        bank.nearest(Embeddings(["q"], np.zeros(1, int), points(1, 3)), 2)
    assert bank.version == 1
    bank.close()
    with pytest.raises(UserError, match="exists and is not an empty|holds a bank already"):
        bank_of(place)


def test_errors_of_places(tmp_path):
    for place in (tmp_path / "no", tmp_path / "no.db", tmp_path):
        with pytest.raises(UserError, match="not an example bank"):
            Bank.open(place)
        assert not is_bank(place)
    (tmp_path / "run" / "versions").mkdir(parents=True)
    (tmp_path / "run" / "ra_hmd.json").write_text('{"kind": "stage2"}')
    assert not is_bank(tmp_path / "run")
    with pytest.raises(UserError, match="'stage2'.*bank create"):
        Bank.open(tmp_path / "run")
    bank_of(tmp_path / "bank")
    manifest = json.loads((tmp_path / "bank" / "ra_hmd.json").read_text())
    (tmp_path / "bank" / "ra_hmd.json").write_text(json.dumps(manifest | {"format": 9}))
    with pytest.raises(UserError, match="format 9"):
        Bank.open(tmp_path / "bank")
    assert is_bank("http://localhost:19530#memes")
    with pytest.raises(UserError, match="names no bank"):
        Bank.open("http://localhost:19530")
    with pytest.raises(UserError, match=r"must be in \(0, 1\]"):
        bank_of(tmp_path / "other", recall_target=0)
    with pytest.raises(UserError, match="auto, flat, ivf, hnsw"):
        bank_of(tmp_path / "other", index="tree")


@pytest.mark.parametrize("name", ["bank", "bank.db"])
def test_who_waits_too_long_is_told(tmp_path, name):
    bank = bank_of(tmp_path / name)
    with bank._backend.writing(), pytest.raises(UserError, match=r"in use by another process for 0.2 s"):
        Bank.open(tmp_path / name, wait=0.2).remove(["m1"], **SAID)
    bank.close()


def test_a_long_history_is_opened_from_its_checkpoint(tmp_path, monkeypatch):
    """Which holds what the versions hold; lost, damaged or of another bank, it is done without."""
    place = tmp_path / "bank"
    bank = bank_of(place)
    for number in range(70):
        if number % 7 == 3:
            bank.remove([f"n{number - 1}"], **SAID)
        elif number % 7 == 5:
            bank.rollback(bank.version - 3, **SAID)
        else:
            bank.add(make_rows([f"n{number}"], [number % 2]), points(70, seed=3)[number : number + 1], **SAID)
    whole = contents(bank), [entry.to_dict() for entry in bank.log], contents(bank, 33)
    checkpoint = place / "cache" / "log.parquet"
    opened = []
    real = parquet.pq.ParquetFile
    monkeypatch.setattr(parquet.pq, "ParquetFile", lambda path: opened.append(Path(path).stem) or real(path))

    def same() -> int:
        opened.clear()
        again = Bank.open(place)
        files = len(opened)
        assert (contents(again), [entry.to_dict() for entry in again.log], contents(again, 33)) == whole
        return files

    assert same() == 71 - 64, "the versions after the checkpoint"
    good = checkpoint.read_bytes()
    for bad in (b"damaged", good[: len(good) // 2]):
        checkpoint.write_bytes(bad)
        assert same() == 71
    other = bank_of(tmp_path / "other")
    for number in range(63):
        other.relabel({"m1": number % 2 if other.labels[1] != number % 2 else 1 - number % 2}, **SAID)
    checkpoint.write_bytes((tmp_path / "other" / "cache" / "log.parquet").read_bytes())
    assert same() == 71
    checkpoint.unlink()
    assert same() == 71
    checkpoint.write_bytes(good)
    assert same() == 7


def test_a_backend_is_registered_once():
    with pytest.raises(ValueError, match="memory"):
        register_backend(BackendSpec("memory", str.isascii, str.isascii, lambda: None))
    assert backend_of("memory://any") == "memory"
    assert not is_bank("memory://nobody")
    assert [backend_of(place) for place in ("bank", "bank.db", "http://localhost:19530#memes")] == [
        "faiss",
        "milvus",
        "milvus",
    ]


def test_the_documented_example_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    bank_of(Path("banks/memes")).close()
    page = Path(__file__).parents[2].joinpath("docs/bank.md").read_text(encoding="utf-8")
    exec(page.split("```python\n")[1].split("```")[0], {})
    assert len(capsys.readouterr().out.splitlines()) == 20
    assert [entry.action for entry in Bank.open("banks/memes").log] == ["create", "add", "relabel", "rollback"]
