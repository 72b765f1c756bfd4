"""Every command that reads labels asks the one gate: a test split, or one whose name says nothing, is not read in
passing. Commands that look at no label are open.
"""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from json_files import read_json
from typer.testing import CliRunner

from ra_hmd.cli.app import app
from ra_hmd.core.artifacts import write_json
from ra_hmd.features.store import STORE_MANIFEST, read_features
from ra_hmd.features.test_lock import FINAL_RECORD, final_records

pytestmark = pytest.mark.slow

NAMES = ["test_seen", "holdout"]
"""A test split, and one whose name says nothing."""

SCORED = {
    "evaluate": "evaluate --checkpoint {head} --bank {train} --queries {store} --output {out}",
    "staleness": "staleness --checkpoint {head} --bank {dev} --bank {train} --queries {store} --queries {dev} "
    "--output {out}",
    "bank search": "bank search {bank} --checkpoint {head} --queries {store} --output {out}",
    "bank effect": "bank effect {bank} --checkpoint {head} --queries {store} --remove {id}",
    "cross-eval": "cross-eval {cross}",
}
"""Opened with `--final`, and recorded."""
CHOSEN = {
    "evaluate --dev": "evaluate --checkpoint {head} --bank {train} --queries {dev} --dev {store} --output {out}",
    "linear-probe --dev": "linear-probe --train {train} --dev {store} --output {out}",
    "train-head dev=": "train-head {folder}/head.yaml train={train} dev={store} output_dir={out}",
    "stage2 dev=": "stage2 {folder}/stage2.yaml train={train} dev={store} output_dir={out}",
    "serve --reference": "serve {head} --bank {bank} --reference {store} --port 0",
    "console --reference": "console {head} --bank {bank} --reference {store} --port 0",
}
"""Refused, with `--final` too."""
OPEN = {"predict": "predict --checkpoint {head} --head rkc --bank {train} --queries {store} --output {out}"}


@pytest.fixture
def places(served_clip: Path, tmp_path: Path) -> dict[str, str]:
    """Head, stores, bank and settings of the commands, in copies that may be changed."""
    shutil.copytree(served_clip / "head", tmp_path / "head")
    shutil.copytree(served_clip / "bank", tmp_path / "bank")
    features = tmp_path / "features"
    shutil.copytree(served_clip / "features", features)
    (tmp_path / "head.yaml").write_text(
        "fusion: align\nmap_dim: 16\nproj_dim: 16\nnum_layers: 2\nepochs: 1\nlr: 1.0e-2\n"
    )
    (tmp_path / "stage2.yaml").write_text(yaml.safe_dump({"init_head": f"{tmp_path}/head", "epochs": 1}))
    return {
        "folder": str(tmp_path),
        "head": f"{tmp_path}/head",
        "bank": f"{tmp_path}/bank",
        "train": f"{features}/train",
        "dev": f"{features}/dev",
        "out": f"{tmp_path}/out",
        "id": read_features(features / "train").ids[0],
    }


def store_of(places: dict[str, str], name: str) -> str:
    """The dev store under another name of its split."""
    store = Path(places["folder"]) / "features" / name
    shutil.copytree(places["dev"], store)
    manifest = read_json(store / STORE_MANIFEST)
    write_json(store / STORE_MANIFEST, manifest | {"split": name})
    return str(store)


def run(command: str, places: dict[str, str], store: str, *more: str) -> tuple[int, str]:
    """A command; exit code, and what it said on one line."""
    settings = {
        "systems": {"features": {"head": places["head"], "features": f"{places['folder']}/{{target}}/{{split}}"}},
        "targets": {"features": {"data": "data/memes", "split": Path(store).name}},
        "banks": ["train"],
        "output_dir": places["out"],
    }
    cross = Path(places["folder"]) / "cross.yaml"
    cross.write_text(yaml.safe_dump(settings))
    words = [word.format(**places, store=store, cross=cross) for word in command.split()]
    done = CliRunner().invoke(app, [*words, *more])
    return done.exit_code, " ".join(done.output.split())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("command", SCORED)
def test_what_is_scored_needs_final_and_is_recorded(places: dict[str, str], command: str, name: str) -> None:
    store = store_of(places, name)
    code, said = run(SCORED[command], places, store)
    assert (code, f"(split '{name}')" in said, "--final" in said) == (2, True, True), said
    assert not (Path(places["head"]) / FINAL_RECORD).exists()
    assert not Path(places["out"]).exists()
    code, said = run(SCORED[command], places, store, "--final")
    assert code == 0, said
    (record,) = final_records(places["head"])
    assert [(Path(one["store"]).name, one["split"], one["rows"]) for one in record["test_sets"]] == [
        (name, name, len(read_features(store)))
    ]


@pytest.mark.parametrize("command", SCORED)
def test_dev_is_scored_as_ever(places: dict[str, str], command: str) -> None:
    code, said = run(SCORED[command], places, store_of(places, "dev_2"))
    assert code == 0, said
    assert not (Path(places["head"]) / FINAL_RECORD).exists()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("command", CHOSEN)
def test_nothing_is_chosen_by_it(places: dict[str, str], command: str, name: str) -> None:
    store = store_of(places, name)
    for more in ((), ("--final",)) if command == "evaluate --dev" else ((),):
        code, said = run(CHOSEN[command], places, store, *more)
        assert (code, "Nothing is chosen by test data" in said, f"(split '{name}')" in said) == (2, True, True), said
    assert not Path(places["out"]).exists()
    assert not (Path(places["head"]) / "decision.json").exists()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("command", OPEN)
def test_what_reads_no_label_is_open(places: dict[str, str], command: str, name: str) -> None:
    code, said = run(OPEN[command], places, store_of(places, name))
    assert code == 0, said
    assert all("label" not in json.loads(line) for line in Path(places["out"]).read_text().splitlines())
