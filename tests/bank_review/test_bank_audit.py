"""`ra-hmd bank audit`: doubtful labels, opposed copies, rows without effect, thin classes, and the report."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from lab import Lab
from PIL import Image
from small_banks import bank_of
from typer.testing import CliRunner

from ra_hmd.bank.versions import BankRows
from ra_hmd.bank_review.audit import audit_bank, score_by_the_others, thin_classes
from ra_hmd.bank_review.duplicates import opposed_duplicates
from ra_hmd.bank_review.reviewed_bank import ReviewedBank
from ra_hmd.bank_review.settings import AuditSettings
from ra_hmd.cli.app import app
from ra_hmd.core.manifests import BankAuditManifest, read_manifest
from ra_hmd.core.problem import BINARY, Problem
from ra_hmd.data.meme_files import iter_memes
from ra_hmd.retrieval.embeddings import Embeddings
from ra_hmd.retrieval.kernel_ridge.settings import KernelSettings
from ra_hmd.scoring.bank_kernel import kernel_classifier_of


def reviewed(vectors: np.ndarray, labels: np.ndarray, problem: Problem = BINARY, **columns: object) -> ReviewedBank:
    ids, labels = [f"m{row}" for row in range(len(labels))], np.asarray(labels, np.int64)
    rows = Embeddings(ids, labels, np.asarray(vectors, np.float32))
    return ReviewedBank(rows, BankRows(ids, labels, **columns), problem, {"place": "bank"}, {}, {}, {})


def audited(bank: ReviewedBank, **settings: int) -> BankAuditManifest:
    return audit_bank(bank, "head", AuditSettings(**settings))


def run(*words: str | Path, fails: str = "") -> str:
    done = CliRunner().invoke(app, ["bank", "audit", *map(str, words)])
    assert done.exit_code == (2 if fails else 0), done.output
    assert fails in " ".join(done.output.split())
    return done.stdout


def test_a_flipped_label_is_reported_with_the_rows_that_contradict_it(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    features = lab.features(200, 0, "m", noise=0.3)
    features.labels[:10] ^= 1
    store, head = lab.store("train", features), lab.head("head")
    out = json.loads(run(store, "--checkpoint", head, "--output", tmp_path / "out", "--json"))
    found = out["contradicted"]
    assert {row["id"] for row in found} == {f"m{row}" for row in range(10)}
    for row in found:
        assert row["suggested"] == 1 - row["label"]
        assert row["probability"] < 0.5
        assert len(row["rows"]) == 5
        assert (row["score"] > 0) == row["suggested"]
    assert len(read_manifest(tmp_path / "out" / "audit.json", BankAuditManifest).contradicted) == 10
    assert "m7" in (tmp_path / "out" / "audit.md").read_text()
    assert "There are no pictures" in (tmp_path / "out" / "index.html").read_text()
    assert "hash of image and caption" in run(store, "--checkpoint", head, "--output", tmp_path / "out") + "\n".join(
        out["notes"]
    )


def test_a_folder_with_something_else_is_not_written_to(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    run("bank", "--checkpoint", "head", "--output", tmp_path / "out", fails="is no audit")


@pytest.mark.parametrize("exact_rows", [5000, 10])
def test_rows_are_scored_by_the_others_alone(exact_rows: int) -> None:
    rng = np.random.default_rng(0)
    bank = reviewed(rng.normal(size=(40, 5)), np.arange(40) % 2)
    classifier = kernel_classifier_of(bank.rows, BINARY, KernelSettings(exact_rows=exact_rows))
    scored = score_by_the_others(classifier)
    np.testing.assert_allclose(scored.scores, classifier.leave_one_out(), atol=1e-9)
    assert all(row not in line for row, line in enumerate(scored.rows))


def test_a_row_far_from_all_others_has_no_effect() -> None:
    vectors = np.random.default_rng(0).normal(size=(80, 6)) + 10
    vectors[11] = -vectors[11]
    assert audited(reviewed(vectors, np.arange(80) % 2)).unused == ["m11"]


@pytest.mark.parametrize("count", [0, 1, 2, 30])
def test_small_banks_of_one_class_are_audited(count: int) -> None:
    found = audited(reviewed(np.random.default_rng(0).normal(size=(count, 4)), np.ones(count)))
    assert (found.rows, found.contradicted, found.duplicates) == (count, [], [])
    assert len(found.unused) == (1 if count == 1 else 0 if count < 22 else len(found.unused))


def test_equal_vectors_accuse_nobody() -> None:
    found = audited(reviewed(np.ones((40, 4)), np.arange(40) % 2))
    assert found.contradicted == []
    assert "do not predict" in found.notes[0]


@pytest.mark.parametrize("problem", [Problem("single_label", 3), Problem("multi_label", 2)])
def test_other_kinds_of_label_are_audited(problem: Problem) -> None:
    rng = np.random.default_rng(0)
    group = np.arange(300) % 3
    vectors = np.eye(3)[group] + 0.3 * rng.normal(size=(300, 3))
    labels = group.copy() if problem.kind == "single_label" else np.stack([group == 0, group != 2], 1).astype(int)
    right = labels.copy()
    labels[:15] = (labels[:15] + 1) % 3 if problem.kind == "single_label" else 1 - labels[:15]
    found = audited(reviewed(vectors, labels, problem)).contradicted
    flipped = [row for row in found if int(row.id[1:]) < 15]
    assert len(flipped) >= 9
    assert len(found) <= 18
    assert sum(row.suggested == right[int(row.id[1:])].tolist() for row in flipped) >= 8
    assert np.shape(found[0].score) == (problem.outputs,)


def test_copies_with_different_labels_are_groups() -> None:
    near = f"{(1 << 20) - 1:064x}"
    table = BankRows(
        [f"m{row}" for row in range(9)],
        np.array([0, 1, 1, 0, 1, 0, 1, 0, 0]),
        contents=["x", "x", "y", "y2", "z", "u", "v", "w", "w"],  # the last two agree
        pdqs=["f" * 64, "f" * 64, "0" * 64, near, near, near, near, "", ""],
        caption_digests=["e", "e", "c", "c", "other", "", "", "d", "d"],
        image_hashes=np.array([0, 0, 1, 2**63, 1, 1, 1, 5, 5], np.uint64),
    )
    found = opposed_duplicates(table, 31)
    assert [(group.kind, group.rows, group.distance) for group in found] == [("same", [0, 1], 0), ("near", [2, 3], 20)]
    assert [group.kind for group in opposed_duplicates(table, 19)] == ["same"]


def test_rows_without_pdq_are_compared_by_the_shorter_hash() -> None:
    hashes = np.array([1, 3, 2**40 - 1], np.uint64)
    table = BankRows(["a", "b", "c"], np.array([0, 1, 1]), caption_digests=["c"] * 3, image_hashes=hashes)
    (group,) = opposed_duplicates(table, 31)
    assert (group.rows, group.distance) == ([0, 1], 4)


def test_label_sets_that_differ_in_one_class_are_opposed() -> None:
    labels = np.array([[1, 0], [1, 1], [1, 0]])
    (group,) = opposed_duplicates(BankRows(["a", "b", "c"], labels, contents=["x", "x", ""]), 31)
    assert group.rows == [0, 1]


def test_a_bank_without_hashes_says_what_was_not_found(tmp_path: Path) -> None:
    with bank_of(tmp_path / "bank", 30) as bank:
        table = replace(bank.state_at().rows, image_hashes=np.zeros(30, np.uint64))
        found = audited(ReviewedBank(bank, table, BINARY, {"place": "b", "version": 1}, {}, {}, {}))
    assert found.duplicates == []
    assert sum("30 of 30 rows have no" in note for note in found.notes) == 2


def test_sources_with_few_rows_of_a_class_are_thin() -> None:
    labels = np.array([0] * 5 + [1] * 2 + [1] * 3)
    table = BankRows([f"m{row}" for row in range(10)], labels, sources=["a"] * 7 + ["b"] * 3)
    found = thin_classes(table, BINARY, 3)
    assert [(entry.source, entry.label, entry.rows) for entry in found] == [("b", 0, 0), ("a", 1, 2)]
    sets = BankRows(["x", "y"], np.array([[1, 0], [1, 0]]), sources=["a", "a"])
    assert [(entry.label, entry.rows) for entry in thin_classes(sets, Problem("multi_label", 2), 2)] == [(1, 0)]


@pytest.mark.slow
def test_pictures_are_blurred_and_those_that_changed_are_left_out(
    served_clip: Path, memes: Path, tmp_path: Path
) -> None:
    from ra_hmd.bank_review import audit
    from ra_hmd.scoring.label_audit import Contradictions

    rows = [meme for _, meme in iter_memes(memes / "a" / "train.jsonl")]
    place = tmp_path / "memes"
    place.mkdir()
    lines = [{"id": meme.id, "text": meme.text, "img": str(meme.path), "label": 0} for meme in rows[:40]]
    Image.new("RGB", (40, 40), "red").save(place / "other.png")
    lines[1]["img"] = str(place / "other.png")
    (place / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    def first_two(scores: np.ndarray, labels: np.ndarray, problem: Problem) -> Contradictions:
        doubtful = np.arange(len(labels)) < 2
        return Contradictions(np.full(len(labels), 0.1), np.where(doubtful, 1 - labels, labels), doubtful)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(audit, "find_contradictions", first_two)
        out = tmp_path / "out"
        for _ in range(2):  # the second time the pictures of the first are replaced
            run(served_clip / "bank", "--checkpoint", served_clip / "head", "--memes", place, "--output", out)
    page = (out / "index.html").read_text()
    assert f'alt="Picture of {rows[0].id}"' in page
    assert f'alt="Picture of {rows[1].id}"' not in page
    assert ".pane img { display: block; max-width: 100%; filter: blur(18px)" in page
    for part in page.split("<img")[1:]:
        assert part.startswith(' src="pictures/')
    outside = "".join(part.split("</main>")[0] for part in page.split('<div class="pane">')[:1])
    assert "<img" not in outside
    shown = {part.split('"')[0] for part in page.split('src="pictures/')[1:]}
    assert {path.name for path in (out / "pictures").iterdir()} == shown
    with Image.open(out / "pictures" / sorted(shown)[0]) as picture:
        assert max(picture.size) <= 200
