"""Every command that reads feature stores, on every kind of store that there is or was."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from json_files import read_json
from served import ra_hmd

from ra_hmd.core.artifacts import write_json
from ra_hmd.core.manifests import StoreManifest, parse_manifest
from ra_hmd.evaluation.provenance import describe_head, describe_store
from ra_hmd.features.store import Features, read_features, write_features
from ra_hmd.features.test_lock import split_name
from ra_hmd.training.inputs import take_shots

SOURCE = {"dataset": "harmeme", "split": "train", "task": "harmful", "place": "data/imported/harmeme"}
LMM = {"model": "m" * 64, "adapter": "a" * 64, "inputs.prompt_template": "<image> {text}?", "dtype": "auto"}
ENCODER = {"model": "e" * 64, "features": "pooled", "dtype": "float32"}
WIDTH = 12


def rows_of(split: str) -> Features:
    """Separable rows, labels and ids of a split."""
    rng = np.random.default_rng(len(split))
    labels = rng.permutation(np.arange(60) % 2)
    hidden = rng.normal(size=(60, WIDTH)).astype(np.float32)
    hidden[:, 0] += 2 * (2 * labels - 1)
    return Features([f"{split}{row}" for row in range(60)], labels, hidden)


def change(store: Path, **values: Any) -> None:
    """Change a store's manifest to what an earlier version wrote."""
    write_json(store / "manifest.json", {**read_json(store / "manifest.json"), **values})


def imported(folder: Path, split: str, features: Features) -> None:
    file = folder / f"{split}.pt"
    file.parent.mkdir(parents=True, exist_ok=True)
    content = {"ids": features.ids, "feats": torch.tensor(features.hidden), "labels": torch.tensor(features.labels)}
    torch.save(content, file)
    ra_hmd("features", "import", file, "--output", folder / split)


def imported_before(folder: Path, split: str, features: Features) -> None:
    """As earlier versions wrote it: `source` is the path of the file."""
    write_features(folder / split, features, {"data": {"official_pt_sha256": "0" * 64}})
    change(folder / split, source=f"old/{split}.pt")


def extracted(folder: Path, split: str, features: Features) -> None:
    scores = np.clip(features.labels[:, None] * 0.4 + 0.3, 0, 1).astype(np.float32)
    columns = {"lmh_score": scores, "texts": ["words"] * 60, "extras": [{"time": "2024-01-01"}] * 60}
    write_features(folder / split, Features(features.ids, features.labels, features.hidden, **columns),
                   LMM | {"data": split}, split=split, source=SOURCE | {"split": split})  # fmt: skip


def encoded(folder: Path, split: str, features: Features) -> None:
    both = Features(features.ids, features.labels, features.hidden, modalities=(8, 4))
    write_features(folder / split, both, ENCODER | {"data": split}, split=split, source=SOURCE | {"split": split},
                   encoder={"path": "encoders/some", "features": "pooled"})  # fmt: skip


def from_python(folder: Path, split: str, features: Features) -> None:
    write_features(folder / split, features, {})


def with_other_fields(folder: Path, split: str, features: Features) -> None:
    write_features(folder / split, features, {"model": "mine"})
    change(folder / split, source=["a", "list"], encoder="none", split=None)


def first_format(folder: Path, split: str, features: Features) -> None:
    write_features(folder / split, features, LMM, split=split)
    change(folder / split, format=1)


KINDS: dict[str, Callable[[Path, str, Features], None]] = {
    kind.__name__: kind
    for kind in (imported, imported_before, extracted, encoded, from_python, with_other_fields, first_format)
}


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the kind's name with stores `train`, `dev`, `test`, and a head of `stage2` on them."""
    folder = tmp_path_factory.mktemp("kind") / request.param
    for split in ("train", "dev", "test"):
        KINDS[request.param](folder, split, rows_of(split))
    shape = "fusion: align\nmap_dim: 8\nembedding: linear\n" if request.param == "encoded" else ""
    (folder / "head.yaml").write_text(f"{shape}proj_dim: 8\nnum_layers: 2\nepochs: 1\nbatch_size: 32\n")
    ra_hmd("stage2", folder / "head.yaml", f"train={folder / 'train'}", f"dev={folder / 'dev'}",
           f"output_dir={folder / 'stage2'}", "init_head=null")  # fmt: skip
    return folder


def commands(folder: Path, out: Path) -> dict[str, list[Any]]:
    head, train, dev, test = (folder / name for name in ("stage2", "train", "dev", "test"))
    study = {
        "systems": {"mine": {"head": str(head), "features": f"{out}/{{target}}/{{split}}", "trained_on": "x"}},
        "targets": {"x": {"split": "dev"}},
        "output_dir": str(out / "cross"), "heads": ["lrc", "rkc"], "banks": ["train"],
        "bootstrap_samples": 100,
    }  # fmt: skip
    (out / "x").symlink_to(folder)
    (out / "cross.yaml").write_text(yaml.safe_dump(study))
    common, bank = ["--checkpoint", head], out / "bank"
    few = ["--bootstrap-samples", "100"]
    create = ["bank", "create", bank, *common, "--features", train, "--reason", "start", "--author", "x"]
    return {
        "train-head": ["train-head", folder / "head.yaml", f"train={train}", f"dev={dev}", f"output_dir={out / 'h'}",
                       *(["embedding=null"] if folder.name == "encoded" else [])],
        "linear-probe": ["linear-probe", "--train", train, "--dev", dev, "--output", out / "probe"],
        "evaluate": ["evaluate", *common, "--bank", train, "--dev", dev, "--queries", test, "--final", *few,
                     "--output", out / "report"],
        "predict": ["predict", *common, "--queries", test, "--output", out / "lrc.jsonl"],
        "predict-rkc": ["predict", *common, "--queries", test, "--head", "rkc", "--bank", train,
                        "--output", out / "rkc.jsonl"],
        "bank create": create,
        "cross-eval": ["cross-eval", out / "cross.yaml"],
        "staleness": ["staleness", *common, "--bank", train, "--bank", dev, "--output", out / "stale", *few],
        "export": ["features", "export", test, "--output", out / "test.pt"],
        "card": ["card", head, "--output", out / "card"],
    }  # fmt: skip


@pytest.mark.parametrize(
    "command",
    ["train-head", "linear-probe", "evaluate", "predict", "predict-rkc", "bank create", "cross-eval", "staleness",
     "export", "card"],
)  # fmt: skip
def test_every_command(kind: Path, command: str, tmp_path: Path) -> None:
    if command == "linear-probe" and kind.name != "encoded":
        pytest.skip("a linear probe is for stores with two modalities")
    words = commands(kind, tmp_path)[command]
    ra_hmd(*words)
    if command == "bank create":
        bank, head, dev = tmp_path / "bank", kind / "stage2", kind / "dev"
        ra_hmd("bank", "search", bank, "--checkpoint", head, "--queries", dev, "--output", tmp_path / "s.json")
        assert len(read_json(tmp_path / "s.json")["queries"]) == 60
        ra_hmd("bank", "effect", bank, "--checkpoint", head, "--queries", dev, "--add", kind / "test", "--final")
        ra_hmd("bank", "add", bank, "--checkpoint", head, "--features", dev, "--reason", "more", "--author", "x")
    if command == "evaluate":
        ra_hmd("results", tmp_path / "report", "--output", tmp_path / "results.md")
        judged = read_json(tmp_path / "report" / "ra_hmd.json").sets.test
        stated = kind.name in ("extracted", "encoded")
        assert judged.stated == stated
        assert judged.dataset == ("harmeme" if stated else str(kind))
        assert judged.split == "test"
        assert read_json(tmp_path / "report" / "metrics.json").test.lrc.accuracy.value is not None
    if command == "predict":
        assert len((tmp_path / "lrc.jsonl").read_text().splitlines()) == 60


def test_the_head_says_what_it_was_trained_on(kind: Path) -> None:
    stated = kind.name in ("extracted", "encoded")
    assert describe_head(kind / "stage2")["trained_on"] == ("harmeme" if stated else str(kind))


def test_a_head_of_an_earlier_version_that_states_a_path(kind: Path, tmp_path: Path) -> None:
    if kind.name != "imported_before":
        pytest.skip("of that kind alone")
    (tmp_path / "head").mkdir()
    for file in ("head.safetensors", "head.json"):
        (tmp_path / "head" / file).write_bytes((kind / "stage2" / file).read_bytes())
    manifest = read_json(kind / "stage2" / "ra_hmd.json")
    manifest.features.train.source = "old/train.pt"
    del manifest.features.train["content_sha256"]
    write_json(tmp_path / "head" / "ra_hmd.json", manifest)
    assert describe_head(tmp_path / "head")["trained_on"] == str(kind)


def test_shots_are_taken_of_every_kind(kind: Path, tmp_path: Path) -> None:
    train = read_features(kind / "train")
    lists = [{"shots": 2, "seed": 0, "ids": train.ids[:4]}]
    write_json(tmp_path / "k.json", {"kind": "k_shot", "split": "train", "dataset": "harmeme", "lists": lists})
    assert take_shots(train, kind / "train", tmp_path / "k.json", 2, 0).ids == train.ids[:4]


@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        ({}, {}),
        ({"source": "old.pt", "fingerprint": {"data": 1}}, {"fingerprint": {"data": 1}, "imported_from": "old.pt"}),
        ({"imported_from": "new.pt"}, {"imported_from": "new.pt"}),
        ({"source": 3, "split": 4, "encoder": "x", "fingerprint": "y"}, {}),
        ({"source": {}, "split": None}, {}),
        ({"source": {"dataset": 5, "split": "train", "more": 1}}, {"split_name": "train", "dataset_split": "train"}),
        ({"source": {"dataset": "d", "split": "train"}, "split": "dev_seen"},
         {"dataset": "d", "split": "dev_seen", "split_name": "dev_seen", "dataset_split": "train"}),
        ({"source": {"dataset": "d", "split": "test"}},
         {"dataset": "d", "split_name": "test", "dataset_split": "test"}),
        ({"split": "dev"}, {"split": "dev", "split_name": "dev", "dataset_split": "dev"}),
    ],
)  # fmt: skip
def test_origin_of_every_form(stated: dict[str, Any], expected: dict[str, Any]) -> None:
    manifest = parse_manifest({"kind": "features", **stated}, StoreManifest, "manifest.json")
    nothing = dict.fromkeys(("dataset", "task", "split", "split_name", "dataset_split", "encoder"))
    for name, value in ({"fingerprint": {}, "imported_from": None} | nothing | expected).items():
        assert getattr(manifest, name) == value, name
    assert json.dumps(describe_store("folder/test", manifest))
    features = Features(["a"], np.zeros(1, int), np.zeros((1, 1)), manifest=manifest)
    assert split_name(features, "folder/test") == (manifest.split_name or "test")
