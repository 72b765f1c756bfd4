"""The results page: its numbers are those of the evaluations, and published ones cannot be taken for measured ones."""

import csv
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from lab import FINGERPRINT
from typer.testing import CliRunner

from ra_hmd.cli.app import app
from ra_hmd.core.artifacts import write_json
from ra_hmd.core.errors import UserError
from ra_hmd.core.heads import THRESHOLDS
from ra_hmd.data.readers import READERS
from ra_hmd.evaluation.report.sections import format_estimate
from ra_hmd.evaluation.request import OperatingPointSettings
from ra_hmd.experiments.cross_eval.config import CrossEvalArguments
from ra_hmd.experiments.cross_eval.run import cross_eval
from ra_hmd.experiments.leaderboard.page import TITLES
from ra_hmd.experiments.leaderboard.run import CSV_COLUMNS, write_results
from ra_hmd.experiments.leaderboard.sources import Column, published_results
from ra_hmd.features.store import read_features, write_features

SHOWN = ("auroc", "accuracy", "macro_f1")


def cells(page: str) -> dict[tuple[str, str, str], dict[str, str]]:
    """(origin, system, head) → column title → cell, of the page's first table; Markdown's escapes removed."""
    plain = [re.sub(r"\\(.)", r"\1", line) for line in page.splitlines()]
    start = next(number for number, line in enumerate(plain) if line.startswith("| origin | system | head |"))
    table = []
    for line in plain[start:]:
        if not line.startswith("|"):
            break
        table.append([cell.strip() for cell in line.strip("|").split(" | ")])
    header, _, *rows = table
    return {tuple(row[:3]): dict(zip(header[3:], row[3:], strict=True)) for row in rows}


@pytest.fixture
def runs(lab):
    """A folder with stores that say what they are, two heads with manifests, and how to evaluate them."""

    def store(dataset: str, split: str, rows: int, seed: int, *, domain: float = 0.0) -> Path:
        place = lab.folder / dataset / split
        source = {"dataset": dataset, "split": split, "task": READERS[dataset].tasks[0].name, "place": "x"}
        features = lab.features(rows, seed, f"{dataset}-{split}-", domain=domain, lmh=False)
        write_features(place, features, FINGERPRINT, split=split, source=source)
        return place

    for number, dataset in enumerate(("hateful_memes", "harm_c")):
        for split, rows in (("train", 60), ("dev_seen", 40), ("test_seen", 50), ("test", 45)):
            store(dataset, split, rows, 10 * number + rows, domain=0.3 * number)

    def head(name: str, dataset: str = "hateful_memes", **content: Any) -> Path:
        folder, place = lab.head(name), lab.folder / dataset / "train"
        train = {
            "path": str(place),
            "fingerprint": FINGERPRINT,
            "source": read_features(place).manifest.source.to_json(),
        }
        values = {"features": {"train": train}, "encoder": {"path": "org/clip-large"}} | content
        write_json(folder / "ra_hmd.json", {"kind": "head", **values})
        return folder

    def evaluate(checkpoint, dataset: str, split: str, output: str, **changes: Any) -> Path:
        bank = lab.folder / changes.pop("bank", "hateful_memes/train")
        lab.evaluate(checkpoint=checkpoint, bank=bank, queries=[lab.folder / dataset / split],
                     output=lab.folder / "out" / output, **changes)  # fmt: skip
        return lab.folder / "out" / output

    lab.named, lab.judge = head, evaluate
    return lab


def page_of(lab, *folders: str, **words: Any) -> tuple[dict[str, Any], str]:
    given = folders or (str(lab.folder / "out"),)
    done = write_results(given, lab.folder / "page.md", **words)
    return done, (lab.folder / "page.md").read_text(encoding="utf-8")


@pytest.mark.renders
def test_every_number_is_that_of_the_evaluation(runs):
    head = runs.named("a")
    folder = runs.judge(head, "hateful_memes", "test_seen", "one")
    metrics = json.loads((folder / "metrics.json").read_text())["test_seen"]
    done, page = page_of(runs, command="ra-hmd results out")
    table = cells(page)
    assert set(metrics) == {"lrc", "rkc", "krr"}
    for name, values in metrics.items():
        cell = table["measured", "MLP head, clip-large", name.upper()]["hateful_memes · test_seen"]
        *lines, origin = cell.split("<br>")
        assert lines == [f"{TITLES[metric]} {format_estimate(values[metric])}" for metric in SHOWN]
        assert origin == "measured, 1 seed, 50 memes, C1"
        (line,) = [one for one in done.results if one["origin"] == "measured" and one["head"] == name.upper()]
        assert line["metrics"] == values
    assert json.loads((runs.folder / "page.json").read_text()) == done.to_json()
    with (runs.folder / "page.csv").open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert tuple(lines[0]) == CSV_COLUMNS
    found = {(one["head"], one["metric"]): one for one in lines if one["origin"] == "measured"}
    for name, values in metrics.items():
        for metric, value in values.items():
            line = found[name.upper(), metric]
            assert [float(line[key]) for key in ("value", "low", "high")] == [
                value[key] for key in ("value", "low", "high")
            ]
    command = json.loads((folder / "ra_hmd.json").read_text())["commands"][0]
    assert f"**C1**\n\n```sh\n{command}\n```" in page
    assert "## How this page was made\n\n```sh\nra-hmd results out\n```" in page
    assert (runs.folder / "page.png").read_bytes().startswith(b"\x89PNG")


def test_seeds_have_mean_spread_and_their_number_and_are_not_rows_of_their_own(runs):
    heads = [runs.named("s1"), runs.named("s2", seed=2)]
    folder = runs.judge(heads, "hateful_memes", "test_seen", "several")
    metrics = json.loads((folder / "metrics.json").read_text())["test_seen"]["lrc"]
    assert metrics["auroc"]["std"] is not None
    done, page = page_of(runs)
    cell = cells(page)["measured", "MLP head, clip-large", "LRC"]["hateful_memes · test_seen"]
    assert cell.split("<br>")[0] == f"AUROC {format_estimate(metrics['auroc'])}"
    assert " ± " in cell
    assert cell.endswith("measured, 2 seeds, 50 memes, C1")
    assert len([one for one in done.results if one["origin"] == "measured"]) == 3
    assert done.results[0]["metrics"]["auroc"]["runs"] == metrics["auroc"]["runs"]


def test_published_and_measured_cannot_be_confused(runs):
    runs.judge(runs.named("a"), "hateful_memes", "test_seen", "one")
    done, page = page_of(runs)
    table = cells(page)
    assert {origin for origin, _, _ in table} == {"measured", "*published*"}
    for (origin, *_), row in table.items():
        for cell in row.values():
            if cell != "–":
                assert ("measured" in cell) == (origin == "measured")
                assert ("published" in cell) == (origin != "measured")
                numbers = cell.split("<br>")[:-1]
                assert all(line.startswith("*") and line.endswith("*") for line in numbers) == (origin != "measured")
    measured = {one["system"] for one in done.results if one["origin"] == "measured"}
    published = {one["system"] for one in done.results if one["origin"] == "published"}
    assert measured.isdisjoint(published)
    ours = table["*published*", "RA-HMD, Qwen2-VL-7B", "–"]["hateful_memes · test_seen"]
    assert ours.startswith("*AUROC 0.911*<br>*accuracy 0.821*<br>*published*, P")
    assert "*second-hand*" in table["*published*", "RGCL", "–"]["hateful_memes · test_seen"]
    assert table["*published*", "Hate-CLIPper align-3", "–"]["hateful_memes · test_seen"].startswith("*AUROC 0.8580*")
    for one in done.results:
        assert (one["evidence"] == "") == (one["origin"] == "measured")
    assert "2025\\.emnlp" in page.split("## Sources of the published numbers")[1]


def test_a_name_cannot_make_a_measured_row_a_published_one(runs):
    folder = runs.judge(runs.named("a"), "hateful_memes", "test_seen", "one")
    _, page = page_of(runs, f"RA-HMD, Qwen2-VL-7B={folder}")
    table = cells(page)
    assert "measured" in table["measured", "RA-HMD, Qwen2-VL-7B", "LRC"]["hateful_memes · test_seen"]
    assert "0.911" in table["*published*", "RA-HMD, Qwen2-VL-7B", "–"]["hateful_memes · test_seen"]


def test_splits_are_never_mixed_and_dev_says_so(runs):
    head = runs.named("a")
    for split in ("dev_seen", "test_seen", "test"):
        runs.judge(head, "hateful_memes", split, split)
    done, page = page_of(runs)
    titles = list(next(iter(cells(page).values())))
    assert titles == ["hateful_memes · test", "hateful_memes · test_seen", "hateful_memes · dev_seen (dev)"]
    roles = {one["column"]["split"]: one["column"]["role"] for one in done.results if one["origin"] == "measured"}
    assert roles == {"dev_seen": "dev", "test_seen": "test", "test": "test"}
    table = cells(page)
    row = table["*published*", "Hate-CLIPper align-3", "–"]
    assert "0.8155" in row["hateful_memes · dev_seen (dev)"]
    assert row["hateful_memes · test"] == "–"
    assert ("*published*", "Flamingo-80B, fine-tuned", "–") not in table
    other = page.split("## Published on other splits")[1]
    assert "Flamingo" in other
    assert "which one is not stated" in other


def test_a_system_on_its_own_data_is_one_row_and_transfer_says_what_it_was_trained_on(runs):
    first, second = runs.named("a"), runs.named("b", dataset="harm_c")
    runs.judge(first, "hateful_memes", "test_seen", "home")
    runs.judge(second, "harm_c", "test", "home_c", bank="harm_c/train")
    runs.judge(first, "harm_c", "test", "away")
    runs.judge(first, "harm_c", "test", "away_bank", bank="harm_c/train")
    _, page = page_of(runs)
    table = cells(page)
    home = table["measured", "MLP head, clip-large", "LRC"]
    assert all("measured" in home[title] for title in ("hateful_memes · test_seen", "harm_c · test"))
    system = "MLP head, clip-large, trained on hateful_memes"
    assert ("measured", system, "RKC, target's train split") in table
    assert ("measured", system, "RKC") in table
    # The LRC was measured twice on the same memes: both are shown, each with its place.
    twice = [name for _, name, head in table if head == "LRC" and name.startswith(system)]
    assert len(twice) == 2
    assert all(name.endswith("(test)") for name in twice)


def test_kinds_of_systems_are_told_from_their_manifests(runs):
    from ra_hmd.evaluation.provenance import describe_head
    from ra_hmd.models.fusion import FusionConfig
    from ra_hmd.models.head import HeadConfig, MemeHead, save_head

    def described(kind: str, fusion: FusionConfig | None = None, layers: int = 4, **content: Any) -> dict[str, Any]:
        folder = runs.named("k", **content)
        manifest = json.loads((folder / "ra_hmd.json").read_text()) | {"kind": kind}
        write_json(folder / "ra_hmd.json", manifest)
        config = HeadConfig(input_dim=12, num_layers=layers, proj_dim=6, fusion=fusion)
        save_head(folder, config, MemeHead(config).state_dict())
        return describe_head(folder)

    align, text = (
        FusionConfig(image_dim=8, text_dim=4, kind="align", map_dim=6),
        FusionConfig(image_dim=8, text_dim=4, kind="text", map_dim=6, mapping_layers=0),
    )
    assert described("head", align) == {"name": "Hate-CLIPper align-3, clip-large", "kind": "head",
                                        "trained_on": "hateful_memes"}  # fmt: skip
    assert described("stage2", align)["name"] == "RGCL align-3, clip-large"
    assert described("linear_probe", text, 1)["name"] == "linear probe (text), clip-large"
    zero = described("zero_shot", FusionConfig(image_dim=8, text_dim=4, kind="concat", map_dim=6, mapping_layers=0), 1)
    assert zero == {"name": "zero-shot (image + text), clip-large", "kind": "zero_shot"}
    lmm = {"encoder": None, "base_model": {"path": "models/Qwen2-VL-7B"}, "init_head": {"path": "x"}}
    assert described("stage2", **lmm)["name"] == "RA-HMD Stage 2, Qwen2-VL-7B"
    assert described("stage2", **lmm | {"init_head": None})["name"] == "Stage 2 on frozen features, Qwen2-VL-7B"
    few = {"arguments": {"k_shot": "lists.json", "shots": 8}}
    assert described("head", align, **few)["name"] == "Hate-CLIPper align-3, clip-large, 8-shot"
    stage1 = {"features": None, "arguments": {"data": {"dataset": ["hatefulmemes"]}}, **lmm}
    assert described("stage1", **stage1) == {"name": "RA-HMD Stage 1, Qwen2-VL-7B", "kind": "stage1",
                                             "trained_on": "hateful_memes"}  # fmt: skip


def test_a_store_that_does_not_say_what_it_is_is_called_by_its_folder(runs):
    runs.store("plain/test", runs.features(30, 3, "t", lmh=False))
    runs.evaluate(checkpoint=runs.head("bare"), bank=runs.folder / "hateful_memes/train",
                  queries=[runs.folder / "plain/test"], output=runs.folder / "out/plain")  # fmt: skip
    done, page = page_of(runs)
    assert [one["dataset"] for one in done.columns] == [str(runs.folder / "plain")]
    assert not any(one["origin"] == "published" for one in done.results)
    assert "trained on data that is not stated" in page
    assert "## Sources" not in page


def test_cross_evaluations_join_the_table(runs):
    runs.named("a")
    for dataset in ("hateful_memes", "harm_c"):
        ids = read_features(runs.folder / dataset / "train")
        lists = []
        for seed in range(3):
            rows = [next(r for r in range(seed, 60) if ids.labels[r] == label) for label in (0, 1)]
            lists.append({"shots": 1, "seed": seed, "ids": [ids.ids[row] for row in rows]})
        write_json(runs.folder / f"{dataset}.json", {"kind": "k_shot", "split": "train", "lists": lists})
    targets = {name: {"split": "dev_seen", "k_shot": str(runs.folder / f"{name}.json")}
               for name in ("hateful_memes", "harm_c")}  # fmt: skip
    systems = {"mine": {"head": str(runs.folder / "a"), "features": str(runs.folder / "{target}/{split}"),
                        "trained_on": "hateful_memes"}}  # fmt: skip
    args = CrossEvalArguments(
        systems=systems,
        targets=targets,
        output_dir=runs.folder / "out/cross",
        heads=("lrc", "rkc"),
        bootstrap_samples=20,
    )
    result = cross_eval(args, command="ra-hmd cross-eval cross.yaml")
    done, page = page_of(runs)
    assert len([one for one in done.results if one["origin"] == "measured"]) == len(result["cells"]) == 8
    table = cells(page)
    away = "MLP head, clip-large, trained on hateful_memes"
    for cell in result["cells"]:
        system = "MLP head, clip-large" if cell["target"] == "hateful_memes" else away
        head = {(None): "LRC", "train": "RKC", "k_shot": "RKC, 1-shot bank of the target",
                "target": "RKC, target's train split"}[cell["bank"]]  # fmt: skip
        shown = table["measured", system, head][f"{cell['target']} · dev_seen (dev)"]
        assert shown.split("<br>")[:2] == [f"{TITLES[name]} {format_estimate(cell[name])}" for name in SHOWN[:2]]
        assert shown.endswith(f"{'3 lists' if cell['bank'] == 'k_shot' else '1 seed'}, 40 memes, C1")


@pytest.mark.renders
def test_names_given_by_the_user_and_folders_that_overlap(runs):
    folder = runs.judge(runs.named("a"), "hateful_memes", "test_seen", "one")
    done, _ = page_of(runs, str(runs.folder / "out"), f"mine={folder}", str(folder))
    assert [one["system"] for one in done.results if one["origin"] == "measured"] == ["mine"] * 3


def test_the_nearest_name_counts_and_two_names_of_one_folder_are_refused(runs):
    folder = runs.judge(runs.named("a"), "hateful_memes", "test_seen", "one")
    runs.judge(runs.named("b"), "hateful_memes", "dev_seen", "two")
    around, near = f"all={runs.folder / 'out'}", f"mine={folder}"
    for given in ((around, near), (near, around)):
        done, _ = page_of(runs, *given)
        names = {one["column"]["split"]: one["system"] for one in done.results if one["origin"] == "measured"}
        assert names == {"test_seen": "mine", "dev_seen": "all"}
    with pytest.raises(UserError, match=r"one is called 'mine' and 'yours'; give it one name"):
        page_of(runs, near, f"yours={folder}")


@pytest.mark.parametrize("text", ["", "mine="])
def test_a_name_without_folder_does_not_search_this_one(runs, text):
    with pytest.raises(UserError, match="names no folder; give FOLDER or NAME=FOLDER"):
        page_of(runs, text)


def test_a_cell_says_how_the_bank_voted_and_where_its_threshold_is_from(runs):
    heads = [runs.named("a"), runs.named("b", seed=2)]
    dev = OperatingPointSettings(dev=runs.folder / "hateful_memes/dev_seen", criterion="macro_f1")
    for output, checkpoint in (("one", heads[0]), ("two", heads)):
        runs.judge(checkpoint, "hateful_memes", "test_seen", output, topk=5, operating_point=dev, min_similarity=0.1)
    done, page = page_of(runs)
    measured = [one for one in done.results if one["origin"] == "measured"]
    assert {one["head"] for one in measured} == {
        "LRC",
        "RKC, K = 5, arithmetic weights, cosine, abstains below similarity 0.1",
        "KRR",
    }
    decisions = json.loads((runs.folder / "out/one/ra_hmd.json").read_text())["decisions"]["test_seen"]
    told = {}
    for one in measured:
        if "/one (" in one["place"]:
            told[one["head"][:3].lower()] = one["rule"]
    moved = {head: rule["thresholds"] != [THRESHOLDS[head]] for head, rule in decisions.items()}
    assert True in moved.values()
    assert told == {head: "threshold from dev" if own else "" for head, own in moved.items()}
    assert page.count(" memes, threshold from dev") == len([one for one in measured if one["rule"]])


def test_a_bank_that_is_not_the_training_data_says_so(runs):
    runs.judge(runs.named("a"), "hateful_memes", "test_seen", "dev_bank", bank="hateful_memes/dev_seen")
    few = {"arguments": {"k_shot": "lists.json", "shots": 8}}
    runs.judge(runs.named("b", **few), "hateful_memes", "test_seen", "few")
    table = cells(page_of(runs)[1])
    assert ("measured", "MLP head, clip-large", "RKC, bank of hateful_memes (dev_seen)") in table
    row = table["measured", "MLP head, clip-large, 8-shot", "RKC, whole training split"]
    assert "measured, 1 list, 50 memes" in row["hateful_memes · test_seen"]
    assert not any(head == "RKC" for _, _, head in table)


def test_order_of_folders_does_not_matter(runs):
    one = runs.judge(runs.named("a"), "hateful_memes", "test_seen", "one")
    two = runs.judge(runs.named("b", dataset="harm_c"), "harm_c", "test", "two", bank="harm_c/train")
    assert page_of(runs, str(one), str(two))[1] == page_of(runs, str(two), str(one))[1]


def test_what_is_missing_is_said(runs, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty has no finished evaluation; `ra-hmd evaluate`"):
        page_of(runs, str(tmp_path / "empty"))
    with pytest.raises(UserError, match="nowhere is not a folder"):
        page_of(runs, str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="No folder is given"):
        write_results([], tmp_path / "page.md")
    folder = runs.judge(runs.named("a"), "hateful_memes", "test_seen", "one")
    with pytest.raises(UserError, match="is not a Markdown file"):
        write_results([str(folder)], tmp_path / "page.html")
    manifest = json.loads((folder / "ra_hmd.json").read_text())
    del manifest["system"]
    write_json(folder / "ra_hmd.json", manifest)
    with pytest.raises(UserError, match="does not say what was evaluated on what"):
        page_of(runs, str(folder))
    (folder / "metrics.json").unlink()
    with pytest.raises(UserError, match="has no finished evaluation"):
        page_of(runs, str(folder))
    assert not (tmp_path / "page.html").exists()


def test_the_command(runs):
    folder = runs.judge(runs.named("a"), "hateful_memes", "test_seen", "one")
    done = CliRunner().invoke(app, ["results", f"mine={folder}", "--output", str(runs.folder / "r.md")])
    assert done.exit_code == 0, done.output
    assert all((runs.folder / f"r.{suffix}").is_file() for suffix in ("md", "json", "csv", "png"))
    (runs.folder / "no").mkdir()
    failed = CliRunner().invoke(app, ["results", str(runs.folder / "no")])
    assert failed.exit_code == 2
    assert "has no finished evaluation" in failed.output


def test_the_published_numbers_are_well_formed():
    results = published_results()
    places = [(one.system, one.column) for one in results]
    assert len(places) == len(set(places))
    for one in results:
        for name, values in one.metrics.items():
            assert name in TITLES
            for number in (values["value"], values["low"], values["high"]):
                assert number is None or 0.5 < number < 1
    known = {(one.system, one.column.dataset, one.column.split): one for one in results}
    align = known["Hate-CLIPper align-3", "hateful_memes", "test_seen"]
    assert align.metrics["auroc"] == {"value": 0.858, "low": None, "high": None, "std": None, "printed": "85.80",
                                      "shown": "0.8580"}  # fmt: skip
    both = known["Hate-CLIPper align, layers not stated", "propaganda", "test"].metrics["micro_f1_doubtful"]
    assert (both["value"], both["low"], both["high"], both["shown"]) == (None, None, None, "0.8834 to 0.8866")
    # RA-HMD's own row is the one of docs/results.md.
    page = (Path(__file__).parents[2] / "docs" / "results.md").read_text(encoding="utf-8")
    table = (("hateful_memes", "91.1 / 82.1"), ("harm_c", "93.2 / 88.1"), ("mami", "90.4 / 79.9"),
             ("harm_p", "91.6 / 91.1"), ("multioff", "71.1 / 64.8"), ("pridemm", "78.1 / 78.4"))  # fmt: skip
    for dataset, told in table:
        (one,) = [one for (system, name, _), one in known.items() if (system, name) == ("RA-HMD, Qwen2-VL-7B", dataset)]
        assert " / ".join(values["printed"] for values in one.metrics.values()) == told
        assert told in page


def test_a_published_row_without_source_is_refused(tmp_path):
    for change, said in (({"source": ""}, "system, source and evidence"), ({"evidence": "sure"}, "checked, readme"),
                         ({"cells": {"memes": {"test": {"auroc": "1"}}}}, "no data set 'memes'")):  # fmt: skip
        row = {"system": "s", "source": "p", "evidence": "paper", "cells": {"mami": {"test": {"auroc": "90"}}}} | change
        (tmp_path / "p.yaml").write_text(yaml.safe_dump([row]))
        with pytest.raises(UserError, match=said):
            published_results(tmp_path / "p.yaml")


def test_titles_name_the_task_where_it_is_not_the_first():
    first = READERS["mami"].tasks[0].name
    assert Column("mami", first, "test").title == "mami · test"
    assert Column("mami", "", "test").title == "mami · task not stated · test"  # no column of the public task
    assert Column("mami", "kind", "val").title == "mami · kind · val (dev)"
    assert replace(Column("x", "", "train"), task="3 classes").title == "x · 3 classes · train (train)"
