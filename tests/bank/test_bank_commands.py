"""`ra-hmd bank`, from feature stores and heads to versions, evidence and refusals."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from ra_hmd.bank.bank import Bank
from ra_hmd.cli.app import app
from ra_hmd.core.artifacts import sha256_file
from ra_hmd.features.store import Features, read_features, write_features
from ra_hmd.models.head import HeadConfig, MemeHead, load_head, save_head
from ra_hmd.retrieval.embeddings import Embeddings
from ra_hmd.retrieval.voting import Voting

MADE_BY = {"model": "m" * 64, "adapter": "a" * 64, "inputs.prompt_template": "<image> {text}?", "dtype": "auto"}
HIDDEN = 6


class Lab:
    """Stores and heads in a folder, and the command line there."""

    def __init__(self, folder) -> None:
        self.folder = folder
        self.head("head", 0)
        self.store("bank", 40, 0)
        self.store("new", 10, 1)
        self.store("dev_queries", 12, 2)

    def head(self, name: str, seed: int, **config: Any) -> None:
        torch.manual_seed(seed)
        config = HeadConfig(**{"input_dim": HIDDEN, "proj_dim": 8} | config)
        save_head(self.folder / name, config, MemeHead(config).state_dict())

    def store(self, name: str, rows: int, seed: int, *, labels: np.ndarray | None = None, **made_by: Any) -> None:
        rng = np.random.default_rng(seed)
        features = Features(
            [f"{name}{row}" for row in range(rows)],
            np.arange(rows) % 2 if labels is None else labels,
            rng.normal(size=(rows, HIDDEN)).astype(np.float32),
            image_hashes=np.arange(rows, dtype=np.uint64) if name == "bank" else None,
            extras=[{"time": f"2025-01-{1 + row % 28:02d}"} for row in range(rows)] if name == "bank" else None,
        )
        write_features(self.folder / name, features, MADE_BY | {"data": name} | made_by)

    def __call__(self, command: str, *arguments: str, fails: str | None = None) -> str:
        """Run `ra-hmd bank …`; names of things in the folder are given as @name."""
        words = [word.replace("@", f"{self.folder}/", 1) if word.startswith("@") else word for word in arguments]
        done = CliRunner().invoke(app, ["bank", command, *words])
        if fails is None:
            assert done.exit_code == 0, done.output
        else:
            assert done.exit_code == 2, done.output
            assert fails in " ".join(done.stderr.split()), done.stderr
        return done.stdout


@pytest.fixture
def lab(tmp_path):
    return Lab(tmp_path)


EMBED = ("--checkpoint", "@head")
ASK = (*EMBED, "--queries", "@dev_queries")


def test_milvus_by_commands(lab):
    lab("create", "@b.db", *EMBED, "--features", "@bank", "--backend", "milvus")
    lab("add", "@b.db", *EMBED, "--features", "@new", "--reason", "news")
    assert json.loads(lab("info", "@b.db", "--json"))["rows"] == 50
    lab("create", "@b.db", *EMBED, "--features", "@bank", fails="holds a bank already")


@pytest.mark.parametrize("target", ["@copy", "@copy.db"])
def test_a_copy_has_the_present_rows_and_starts_its_own_history(target, lab):
    lab("create", "@bank_of_rows", *EMBED, "--features", "@bank")
    lab("relabel", "@bank_of_rows", "bank1=0", "--reason", "a joke")
    lab("remove", "@bank_of_rows", "bank2", "--reason", "cut off")
    assert "version 1, 39 added" in lab("copy", "@bank_of_rows", target, "--author", "ana")
    found = [json.loads(lab("search", place, *ASK, "--json")) for place in ("@bank_of_rows", target)]
    assert found[0]["queries"] == found[1]["queries"]
    (entry,) = json.loads(lab("log", target, "--json"))
    assert (entry["author"], entry["reason"]) == ("ana", "version 3 of the bank")
    lab("copy", "@bank_of_rows", target, fails="Error: ")


@pytest.mark.parametrize("name", ["my bank.db", "b\u00e4nk.db", f"{'b' * 34}.db", "(1).db", "a\n.db"])
def test_a_file_name_that_milvus_lite_does_not_take_is_refused_before_anything_is_written(lab, name):
    (lab.folder / "banks").mkdir()
    lab("create", f"@banks/{name}", *EMBED, "--features", "@bank", "--backend", "milvus", fails="takes no file of the")
    lab("info", f"@banks/{name}", fails="takes no file of the")
    assert list((lab.folder / "banks").iterdir()) == []


def test_a_file_of_milvus_lite_may_lie_in_any_folder(lab):
    place, name = "@my b\u00e4nks", f"{'b' * 33}.db"
    lab("create", f"{place}/{name}", *EMBED, "--features", "@bank", "--backend", "milvus")
    (lab.folder / "link.db").symlink_to(lab.folder / place[1:] / name)
    assert json.loads(lab("info", "@link.db", "--json"))["rows"] == 40


def test_an_id_with_a_line_separator_is_one_line_of_an_ids_file(lab):
    lab.store("odd\u2028id", 10, 3)
    lab("create", "@b", *EMBED, "--features", "@odd\u2028id")
    (lab.folder / "ids").write_bytes("\ufeffodd\u2028id0\nodd\u2028id3".encode())
    assert "2 removed; 8 rows" in lab("remove", "@b", "--ids-file", "@ids", "--reason", "double")
    lab("remove", "@b", "--ids-file", "@gone", "--reason", "double", fails="does not exist")


def test_a_life_by_commands(lab):
    place = "@b"
    said = lab("create", place, *EMBED, "--features", "@bank", "--source", "round 1", "--author", "ana")
    assert "version 1, 40 added; 40 rows" in said
    assert "10 added; 50 rows" in lab(
        "add", place, *EMBED, "--features", "@new", "--reason", "news", "--note", "checked"
    )
    lab("effect", place, *ASK, "--add", "@bank", "--remove", "bank0", fails="already")
    effect = json.loads(
        lab("effect", place, *ASK, "--remove", "bank0", "--relabel", "bank1=0", "--topk", "3", "--json")
    )
    assert effect["version"] == 2
    assert effect["paired"]["labelled"] == effect["krr"]["paired"]["labelled"] == 12
    assert "verdicts would flip" in lab("effect", place, *ASK, "--relabel", "bank1=0", "--topk", "3")
    assert "1 removed; 49 rows" in lab("remove", place, "bank0", "--reason", "wrong picture")
    (lab.folder / "ids").write_bytes(b"\xef\xbb\xbfbank2\r\n\r\nbank4\t\r\n")  # as a Windows editor saves it
    lab("remove", place, "--ids-file", "@ids", "--reason", "double")
    assert "2 relabelled" in lab("relabel", place, "bank1=0", "bank3=0", "--reason", "second look")
    assert "version 6" in lab("rollback", place, "--to", "2", "--reason", "not agreed")
    log = json.loads(lab("log", place, "--json"))
    assert [entry["action"] for entry in log] == ["create", "add", "remove", "remove", "relabel", "rollback"]
    assert log[0]["author"] == "ana"
    assert log[1]["author"]  # the login name
    assert log[5]["restores"] == 2
    assert "not agreed" in lab("log", place)
    info = json.loads(lab("info", place, "--json"))
    assert (info["version"], info["rows"], info["rows_per_class"]) == (6, 50, [25, 25])
    assert info["fingerprint"]["embedding_head"] == sha256_file(lab.folder / "head" / "head.safetensors")
    assert "data" not in info["fingerprint"]
    assert "rows_per_class" in lab("info", place)
    with Bank.open(place.replace("@", f"{lab.folder}/")) as bank:
        first, last = bank.row(0), bank.row(49)
    assert first["source"] == "round 1"
    assert first["time"] == "2025-01-01"
    assert last["source"] == str(lab.folder / "new")
    assert last["note"] == "checked"
    assert last["time"].startswith("20")


def test_search_tells_the_evidence(lab):
    lab("create", "@b", *EMBED, "--features", "@bank")
    lab("search", "@b", *ASK, "--topk", "5", "--weights", "similarity", "--output", "@evidence.json")
    evidence = json.loads((lab.folder / "evidence.json").read_text())
    assert evidence["kind"] == "bank_search"
    assert evidence["bank_version"] == 1
    assert evidence["arguments"]["voting"]["weights"] == "similarity"
    head = load_head(lab.folder / "head")
    held, asked = (Embeddings.of(read_features(lab.folder / name), head) for name in ("bank", "dev_queries"))
    near = held.nearest(asked, 5)
    votes = Voting(5, "similarity").vote(near, held.labels)
    for line, query in enumerate(evidence["queries"]):
        assert query["id"] == asked.ids[line]
        assert query["label"] == line % 2
        assert query["verdict"] == int(votes.scores[line, 0] >= 0)
        assert query["score"] == pytest.approx(votes.scores[line].tolist(), abs=1e-6)
        assert [row["id"] for row in query["neighbours"]] == [held.ids[row] for row in near.rows[line]]
        assert sum(row["vote"][0] for row in query["neighbours"]) == pytest.approx(query["score"][0])
        assert [row["label"] for row in query["neighbours"]] == held.labels[near.rows[line]].tolist()
    shown = lab("search", "@b", *ASK, "--show", "3")
    assert "and 9 more" in shown
    strict = json.loads(lab("search", "@b", *ASK, "--min-similarity", "1", "--json"))
    assert {query["verdict"] for query in strict["queries"]} == {"abstained"}


def test_queries_need_no_label_and_rows_do(lab):
    lab("create", "@b", *EMBED, "--features", "@bank")
    lab.store("open", 4, 5, labels=np.full(4, -1))
    found = json.loads(lab("search", "@b", *EMBED, "--queries", "@open", "--json"))
    assert [query["label"] for query in found["queries"]] == [None] * 4
    assert (
        json.loads(lab("effect", "@b", *EMBED, "--queries", "@open", "--remove", "bank1", "--json"))["paired"] is None
    )
    lab("add", "@b", *EMBED, "--features", "@open", "--reason", "x", fails="4 of 4 rows have no label")


def test_strangers_are_refused(lab):
    """Another head, model, adapter or prompt, another width, other labels."""
    lab("create", "@b", *EMBED, "--features", "@bank")
    lab.head("other", 1)
    lab.head("classes", 0, output_dim=3, problem_type="single_label")
    for name, made_by in (
        ("model", {"model": "x"}),
        ("adapter", {"adapter": "x"}),
        ("prompt", {"inputs.prompt_template": "x"}),
    ):
        lab.store(name, 4, 3, **made_by)
        place = ("--features", f"@{name}", "--reason", "x")
        lab("add", "@b", *EMBED, *place, fails="These were not made alike")
        lab("search", "@b", *EMBED, "--queries", f"@{name}", fails="These were not made alike")
        lab("effect", "@b", *ASK, "--add", f"@{name}", fails="These were not made alike")
    for head in ("@other", "@classes"):
        stranger = ("--checkpoint", head)
        lab("add", "@b", *stranger, "--features", "@new", "--reason", "x", fails="is not the one that embedded")
        lab("search", "@b", *stranger, "--queries", "@dev_queries", fails="is not the one that embedded")
        lab(
            "effect",
            "@b",
            *stranger,
            "--queries",
            "@dev_queries",
            "--remove",
            "bank1",
            fails="is not the one that embedded",
        )
    lab.store("half", 4, 3, dtype="bfloat16")  # another rounding is not another model
    lab("add", "@b", *EMBED, "--features", "@half", "--reason", "x")
    with Bank.open(lab.folder / "b") as bank:
        assert bank.version == 2


def test_several_classes_by_commands(lab):
    lab.head("multi", 0, output_dim=3, problem_type="multi_label")
    rng = np.random.default_rng(0)
    lab.store("dev_many", 20, 3, labels=rng.integers(0, 2, (20, 3)))
    embed = ("--checkpoint", "@multi")
    lab("create", "@b", *embed, "--features", "@dev_many")
    lab("relabel", "@b", "dev_many1=1,1,1", "dev_many2=0,0,0", "--reason", "x")
    lab("relabel", "@b", "dev_many1=1,1", "--reason", "x", fails="needs a 0/1 vector of 3")
    found = json.loads(lab("search", "@b", *embed, "--queries", "@dev_many", "--json"))
    assert all(len(query["verdict"]) == len(query["score"]) == 3 for query in found["queries"])
    told = json.loads(
        lab("effect", "@b", *embed, "--queries", "@dev_many", "--relabel", "dev_many3=1,1,1", "--topk", "1", "--json")
    )
    assert told["paired"]["labelled"] == 20
    assert "verdicts would flip" in lab("effect", "@b", *embed, "--queries", "@dev_many", "--remove", "dev_many1")


def test_errors_of_the_command_line(lab):
    lab("create", "@b", *EMBED, "--features", "@bank", "--backend", "milvus", fails="of backend 'faiss'")
    lab("create", "@b", *EMBED, "--features", "@bank", "--lock", "@x", fails="only a Milvus cluster needs one")
    lab("create", "@b", *EMBED, "--features", "@bank")
    lab("create", "@b", *EMBED, "--features", "@bank", fails="is not an empty folder")
    lab("info", "@nowhere", fails="not an example bank")
    lab("relabel", "@b", "bank1", "--reason", "x", fails="write id=label")
    lab("relabel", "@b", "bank1=yes", "--reason", "x", fails="write id=label")
    lab("relabel", "@b", "bank1=0,1", "--reason", "x", fails="one class per meme")
    lab("relabel", "@b", "bank1=0", "bank1=1", "--reason", "x", fails="given twice")
    lab("remove", "@b", "bank1", "--reason", " ", fails="--reason is empty")
    lab("remove", "@b", "bank1", fails="Missing option '--reason'")
    lab("effect", "@b", *ASK, fails="No change is given")
    lab("search", "@b", *ASK, "--weights", "loud", fails="'loud' is not one of")
    assert json.loads(lab("info", "@b", "--json"))["version"] == 1


def test_a_labelled_test_split_is_asked_on_purpose_only(lab):
    lab("create", "@b", *EMBED, "--features", "@bank")
    lab.store("memes_test", 12, 3)
    ask = (*EMBED, "--queries", "@memes_test", "--remove", "bank1")
    lab("effect", "@b", *ask, fails="is scored only with `--final`")
    assert not (lab.folder / "head" / "final_evaluations.jsonl").exists()
    lab("effect", "@b", *ask, "--final")
    assert len((lab.folder / "head" / "final_evaluations.jsonl").read_text().splitlines()) == 1
    lab.store("open_test", 12, 4, labels=np.full(12, -1))
    lab("effect", "@b", *EMBED, "--queries", "@open_test", "--remove", "bank1")
