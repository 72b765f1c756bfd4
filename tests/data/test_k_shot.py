"""K-shot lists: exact counts, the same ones wherever and in whatever order they are drawn, and refusals."""

import json
import random
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from data_copies import COPIES
from engines import BIN, run
from json_files import read_json
from meme_files import imported, jsonl, picture
from typer.testing import CliRunner

from ra_hmd.cli.app import app
from ra_hmd.core.artifacts import write_json
from ra_hmd.core.errors import UserError
from ra_hmd.data.k_shot import read_shot_list, read_shot_lists, shot_rows, write_k_shot

# From the digests that `printf "$seed\0$id" | sha256sum` prints, lowest first; per class, and of all memes.
PINNED = {
    (4, 0): ["m14", "m24", "m32", "m20", "m17", "m39", "m37", "m13"],
    (4, 1): ["m34", "m2", "m32", "m0", "m29", "m35", "m25", "m23"],
}
ALL = ["m17", "m39", "m37", "m13", "m14"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Forty memes m0 … m39, odd ones of class 1, four more without a label, and a test split of two."""
    picture(tmp_path / "data" / "a.png")
    rows = [{"id": f"m{n}", "image": "a.png", "text": f"cup of tea {n}", "label": n % 2} for n in range(40)]
    rows += [{"id": f"u{n}", "image": "a.png", "text": "no label", "label": None} for n in range(4)]
    jsonl(tmp_path / "data" / "train.jsonl", rows)
    jsonl(tmp_path / "data" / "test.jsonl", [{**row, "id": f"t{row['id']}"} for row in rows[:2]])
    imported("generic", tmp_path / "data", tmp_path / "out")
    return tmp_path / "out"


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def lists(path: Path) -> dict[tuple[int, int], list[str]]:
    """(shots, seed) → ids."""
    return {(entry["shots"], entry["seed"]): entry["ids"] for entry in read(path)["lists"]}


def classes(ids: list[str]) -> list[int]:
    return [int(name.removeprefix("m")) % 2 for name in ids]


def test_exact_counts_of_each_class(data: Path) -> None:
    drawn = lists(write_k_shot(data, [8, 4, 16, 20, 4], seeds=3))
    assert [*drawn] == [(shots, seed) for shots in (4, 8, 16, 20) for seed in (0, 1, 2)]
    for (shots, _), ids in drawn.items():
        assert len(set(ids)) == len(ids)
        assert classes(ids) == [0] * shots + [1] * shots


def test_the_lists_themselves(data: Path) -> None:
    drawn = lists(write_k_shot(data, [4], seeds=2))
    assert drawn == PINNED


def test_lists_do_not_depend_on_the_order_of_rows_or_on_what_else_is_drawn(data: Path) -> None:
    before = read(write_k_shot(data, [4, 8], seeds=2))
    lines = (data / "train.jsonl").read_text().splitlines(keepends=True)
    random.Random(1).shuffle(lines)
    (data / "train.jsonl").write_text("".join(lines))
    after = read(write_k_shot(data, [4, 8], seeds=2))
    assert {**after, "created": None} == {**before, "created": None}
    alone = lists(write_k_shot(data, [8], seeds=5))
    assert [alone[8, seed] for seed in (0, 1)] == [entry["ids"] for entry in before["lists"] if entry["shots"] == 8]


def test_lists_do_not_depend_on_the_process(data: Path) -> None:
    here = lists(write_k_shot(data, [4, 8, 16], output=data / "here.json"))
    for value in ("1", "77"):
        words = ["data", "k-shot", "out", "--shots", "4", "8", "16", "--seeds", "5", "--per-class"]
        done = run([str(BIN / "ra-hmd"), *words], data.parent, PYTHONHASHSEED=value)
        assert done.returncode == 0, done.stdout
        assert done.stdout == "out/k_shot/train.json\n"
        assert lists(data / "k_shot/train.json") == here


def test_a_list_does_not_change_when_memes_of_another_class_come(data: Path) -> None:
    before = lists(write_k_shot(data, [4]))
    with (data / "train.jsonl").open("a") as file:
        row = {"id": "m101", "image": str(data.parent / "data/a.png"), "text": "later", "label": 1}
        file.write(json.dumps(row) + "\n")
    with pytest.raises(UserError, match="was drawn from other memes or otherwise"):
        write_k_shot(data, [4])
    after = lists(write_k_shot(data, [4], output=data / "new.json"))
    assert {key: ids[:4] for key, ids in after.items()} == {key: ids[:4] for key, ids in before.items()}


def test_smaller_lists_are_in_larger_ones_and_seeds_differ(data: Path) -> None:
    drawn = lists(write_k_shot(data, [4, 8, 16], seeds=5))
    for seed in range(5):
        for smaller, larger in ((4, 8), (8, 16)):
            for label in (0, 1):
                small, large = (
                    [name for name in drawn[shots, seed] if classes([name]) == [label]] for shots in (smaller, larger)
                )
                assert large[:smaller] == small
    assert all(set(drawn[8, one]) != set(drawn[8, other]) for one, other in combinations(range(5), 2))


def test_without_classes_memes_come_as_they_are_drawn(data: Path) -> None:
    path = write_k_shot(data, [5, 40], seeds=3, per_class=False)
    drawn = lists(path)
    assert drawn[5, 0] == ALL
    assert [len(ids) for ids in drawn.values()] == [5] * 3 + [40] * 3
    assert all(drawn[40, seed][:5] == drawn[5, seed] for seed in range(3))
    assert sorted(drawn[40, 0]) == sorted(f"m{n}" for n in range(40))
    assert (read(path)["classes"], read(path)["pool"], read(path)["per_class"]) == (["all"], {"all": 40}, False)
    with pytest.raises(UserError, match="all: 40 memes, 41 wanted"):
        write_k_shot(data, [41], per_class=False)


def test_the_manifest(data: Path) -> None:
    path = write_k_shot(data, [2], seeds=1)
    assert path == data / "k_shot" / "train.json"
    manifest = read(path)
    assert {key: manifest[key] for key in ("kind", "dataset", "split", "task", "per_class", "classes", "pool")} == {
        "kind": "k_shot",
        "dataset": "generic",
        "split": "train",
        "task": "hate",
        "per_class": True,
        "classes": ["not hateful", "hateful"],
        "pool": {"not hateful": 20, "hateful": 20},
    }
    assert [{**entry, "ids": len(entry["ids"])} for entry in manifest["lists"]] == [{"shots": 2, "seed": 0, "ids": 4}]
    assert len(manifest["fingerprint"]) == 64
    assert {"created", "versions"} <= manifest.keys()


def test_the_fingerprint_is_of_the_pool(data: Path) -> None:
    before = read(write_k_shot(data, [2], seeds=1))["fingerprint"]
    assert read(write_k_shot(data, [3], seeds=4))["fingerprint"] == before
    text = (data / "train.jsonl").read_text()
    (data / "train.jsonl").write_text(text.replace('"m39"', '"m41"'))
    assert read(write_k_shot(data, [2], seeds=1, output=data / "new.json"))["fingerprint"] != before


def test_more_shots_join_the_lists_that_are_there(data: Path) -> None:
    before = lists(write_k_shot(data, [2, 4], seeds=2))
    after = lists(write_k_shot(data, [8], seeds=2))
    assert list(after) == [(2, 0), (2, 1), (4, 0), (4, 1), (8, 0), (8, 1)]
    assert {key: after[key] for key in before} == before


def test_another_split_and_file(data: Path) -> None:
    path = write_k_shot(data, [1], seeds=1, split="test", output=data.parent / "deep" / "few.json")
    assert path == data.parent / "deep" / "few.json"
    assert lists(path) == {(1, 0): ["tm0", "tm1"]}
    assert write_k_shot(data, [1], split="test") == data / "k_shot" / "test.json"


def test_another_task(tmp_path: Path) -> None:
    imported("pridemm", COPIES["pridemm"](tmp_path / "data"), tmp_path / "out")
    path = write_k_shot(tmp_path / "out", [1], seeds=4, task="stance")
    assert path == tmp_path / "out" / "k_shot" / "train_stance.json"
    assert read(path)["pool"] == {"neutral": 1, "support": 2, "oppose": 1}
    for ids in lists(path).values():
        assert (ids[0], ids[2]) == ("img_3", "img_2")
        assert ids[1] in ("img_1", "img_4")
    with pytest.raises(UserError, match=r"has no task 'mood'; it has hate, target, stance, humour\."):
        write_k_shot(tmp_path / "out", [1], task="mood")


def test_too_few_memes_of_a_class_are_named(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="too few memes") as caught:
        write_k_shot(data, [4, 21])
    assert "not hateful: 20 memes, 21 wanted" in str(caught.value)
    imported("pridemm", COPIES["pridemm"](tmp_path / "pride"), tmp_path / "pride_out")
    with pytest.raises(UserError) as caught:
        write_k_shot(tmp_path / "pride_out", [2], task="stance")
    assert str(caught.value).splitlines()[1:] == ["  - neutral: 1 memes, 2 wanted", "  - oppose: 1 memes, 2 wanted"]
    assert not (tmp_path / "pride_out" / "k_shot").exists()


def test_several_labels_a_meme_have_no_classes_to_draw_from(tmp_path: Path) -> None:
    imported("propaganda", COPIES["propaganda"](tmp_path / "data"), tmp_path / "out")
    with pytest.raises(UserError, match="Task 'techniques' gives a meme several classes: draw with --no-per-class"):
        write_k_shot(tmp_path / "out", [1])
    assert lists(write_k_shot(tmp_path / "out", [4], seeds=1, per_class=False))[4, 0] != []
    drawn = lists(write_k_shot(tmp_path / "out", [2], seeds=1, task="smears"))[2, 0]
    assert [{*drawn[:2]}, {*drawn[2:]}] == [{"2_batch_2", "4_batch_2"}, {"1_batch_2", "3_batch_2"}]


def test_a_class_that_the_task_does_not_have(tmp_path: Path) -> None:
    picture(tmp_path / "data" / "a.png")
    rows = [{"id": f"m{n}", "image": "a.png", "text": "tea", "label": n} for n in range(3)]
    jsonl(tmp_path / "data" / "train.jsonl", rows)
    imported("generic", tmp_path / "data", tmp_path / "out")
    with pytest.raises(UserError, match="Meme 'm2' is of class 2, but task 'hate' has 2 classes"):
        write_k_shot(tmp_path / "out", [1])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"shots": [0, 4]}, r"--shots \[0, 4\] and --seeds 5 must be 1 or more"),
        ({"shots": []}, "must be 1 or more"),
        ({"shots": [4], "seeds": 0}, "--seeds 0 must be 1 or more"),
        ({"shots": [4], "split": "dev"}, "has no split 'dev'; it has test, train"),
    ],
)
def test_refusals(data: Path, arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        write_k_shot(data, **arguments)
    assert not (data / "k_shot").exists()


@pytest.mark.parametrize(
    ("words", "shape"),
    [
        (("--shots", "4", "8", "16", "--seeds", "5", "--per-class"), [(4, 8), (8, 16), (16, 32)]),
        (("--shots", "4", "--shots", "8", "--no-per-class"), [(4, 4), (8, 8)]),
        (("--seeds", "5", "--shots", "2", "3"), [(2, 4), (3, 6)]),
    ],
)
def test_forms_of_the_command(data: Path, words: tuple[str, ...], shape: list[tuple[int, int]]) -> None:
    told = CliRunner().invoke(app, ["data", "k-shot", str(data), *words])
    assert told.exit_code == 0, told.output
    assert told.output.replace("\n", "") == str(data / "k_shot" / "train.json")
    drawn = lists(data / "k_shot" / "train.json")
    assert [(key, len(ids)) for key, ids in drawn.items()] == [
        ((shots, seed), count) for shots, count in shape for seed in range(5)
    ]


def test_the_command_says_what_is_wrong(data: Path) -> None:
    told = CliRunner().invoke(app, ["data", "k-shot", str(data), "--shots", "30"])
    assert told.exit_code == 2
    assert "hateful: 20 memes, 30 wanted" in told.output


@pytest.fixture
def drawn(tmp_path: Path) -> Path:
    """Lists of 2 and 4 shots with three seeds, from twenty memes of two classes."""
    picture(tmp_path / "data" / "a.png")
    rows = [{"id": f"m{n}", "image": "a.png", "text": f"cup {n}", "label": n % 2} for n in range(20)]
    jsonl(tmp_path / "data" / "train.jsonl", rows)
    imported("generic", tmp_path / "data", tmp_path / "out")
    return write_k_shot(tmp_path / "out", [4, 2], seeds=3)


def test_what_was_drawn_is_read(drawn: Path) -> None:
    lists = read_shot_lists(drawn)
    assert list(lists) == [2, 4]
    for shots, of_seeds in lists.items():
        assert list(of_seeds) == [0, 1, 2]
        for seed, ids in of_seeds.items():
            (ids_of,) = [one.ids for one in read_json(drawn).lists if (one.shots, one.seed) == (shots, seed)]
            assert ids == ids_of == read_shot_list(drawn, shots, seed, "train")
            assert len(ids) == 2 * shots
    assert list(read_shot_lists(drawn, "train", [4])) == [4]


def test_what_is_not_there_is_refused(drawn: Path) -> None:
    with pytest.raises(UserError, match=r"has lists of \[2, 4\] shots, not of \[3\]"):
        read_shot_list(drawn, 3, 0)
    with pytest.raises(UserError, match=r"2-shot lists of seeds \[0, 1, 2\], not of 7.*--seeds 8"):
        read_shot_list(drawn, 2, 7)
    with pytest.raises(UserError, match=r"from split 'train', examples come from 'dev'.*--split dev"):
        read_shot_list(drawn, 2, 0, "dev")
    write_json(drawn.with_name("other.json"), {"kind": "features"})
    with pytest.raises(UserError, match=r"other\.json is of kind .features.*ra-hmd data k-shot"):
        read_shot_lists(drawn.with_name("other.json"))
    with pytest.raises(UserError, match="does not exist"):
        read_shot_lists(drawn.with_name("none.json"))


def test_rows_are_in_the_order_of_the_store() -> None:
    assert shot_rows(["d", "a"], ["a", "b", "c", "d"], "list", "store") == [0, 3]
    with pytest.raises(UserError, match=r"list names 2 memes that store lacks, for example \['x', 'y'\]"):
        shot_rows(["y", "a", "x"], ["a", "b"], "list", "store")
