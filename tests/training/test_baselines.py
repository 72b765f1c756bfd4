"""Zero-shot heads against the models' own comparison of pictures with sentences; linear probes against scikit-learn."""

import csv
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
import yaml
from json_files import read_json
from meme_files import imported, jsonl, picture
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler
from torch import Tensor
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer
from typer.testing import CliRunner

from ra_hmd.cli.app import app
from ra_hmd.core.artifacts import write_json
from ra_hmd.core.errors import UserError
from ra_hmd.data.k_shot import read_shot_list, write_k_shot
from ra_hmd.features.compatibility import head_fingerprint
from ra_hmd.features.store import Features, read_features, write_features
from ra_hmd.models.clip_encoder import Encoder, EncoderSettings
from ra_hmd.models.head import load_head
from ra_hmd.models.tiny_clip import EncoderFamily, make_tiny_encoder
from ra_hmd.retrieval.embeddings import hidden_tensor, run_head
from ra_hmd.training.linear_probe import GRID, ShotSelection, linear_probe
from ra_hmd.training.zero_shot import zero_shot
from ra_hmd.training.zero_shot_prompts import NEGATIVE, POSITIVE, Prompts

FAMILIES = get_args(EncoderFamily)
CAPTIONS = ("the cat is here", "a red apple", "look at the robot", "the boat knows best", "fish", "a green kitten")
SENTENCES = ("a hateful meme", "a harmless meme", "the cat", "a red boat on a table")
CPU = torch.device("cpu")


def command(*words: Any) -> str:
    """Standard output of `ra-hmd …`, which must succeed."""
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 0, result.output + result.stderr
    return result.stdout


def refusal(*words: Any) -> str:
    """What `ra-hmd …` says when it must not succeed."""
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 2, result.output
    return " ".join(result.stderr.split())


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An imported folder: 12 memes of train, 8 of dev, half of each of class 1; K-shot lists of train."""
    root = tmp_path_factory.mktemp("data")
    for split, rows in (("train", 12), ("dev", 8)):
        memes = [
            {
                "id": f"{split}{row}",
                "image": f"{split}{row}.png",
                "text": CAPTIONS[row % len(CAPTIONS)],
                "label": row % 2,
            }
            for row in range(rows)
        ]
        for meme in memes:
            picture(root / "raw" / meme["image"])
        jsonl(root / "raw" / f"{split}.jsonl", memes)
    imported("generic", root / "raw", root / "data")
    write_k_shot(root / "data", [2, 4], seeds=3)
    return root / "data"


@pytest.fixture(scope="module")
def encoded(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str, str], Path]:
    """Feature store of a family, a kind of features and a split; made once. The encoder lies two folders above it."""
    root = tmp_path_factory.mktemp("encoded")

    def store(family: str, features: str = "projected", split: str = "dev") -> Path:
        encoder, output = root / family / "encoder", root / family / features / split
        if not encoder.exists():
            make_tiny_encoder(family, encoder)
        if not output.exists():
            options = {"encoder": encoder, "data": data, "split": split, "output": output, "features": features}
            command("encode", *[word for name, value in options.items() for word in (f"--{name}", value)],
                    "--workers", 0, "--batch-size", 5)  # fmt: skip
        return output

    return store


def encoder_of(store: Path) -> Encoder:
    return Encoder(EncoderSettings(path=str(store.parents[1] / "encoder"), features="projected"))


def logits_of(head: Path, store: Path) -> Tensor:
    return run_head(load_head(head), hidden_tensor(read_features(store)))[1]


@torch.inference_mode()
def own_logits(store: Path, family: str, sentences: tuple[str, ...], data: Path) -> Tensor:
    """`logits_per_image` [memes, sentences] of the transformers model, called as its documentation has it."""
    folder = store.parents[1] / "encoder"
    model = AutoModel.from_pretrained(folder).eval()
    siglip = family.startswith("siglip")
    padding = {"padding": "max_length", "max_length": 64} if siglip else {"padding": True}
    text = AutoTokenizer.from_pretrained(folder)(list(sentences), return_tensors="pt", **padding)
    processor = AutoImageProcessor.from_pretrained(folder)
    images = {row["id"]: row["image"] for row in map(yaml.safe_load, (data / "dev.jsonl").read_text().splitlines())}
    rows = []
    for name in read_features(store).ids:
        pixels = processor(images=Image.open(images[name]).convert("RGB"), return_tensors="pt")
        mask = None if siglip else text["attention_mask"]
        rows.append(model(input_ids=text["input_ids"], attention_mask=mask, **pixels).logits_per_image)
    return torch.cat(rows)


# --- zero-shot --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_zero_shot_is_the_models_own_comparison(
    family: str, encoded: Callable[..., Path], data: Path, tmp_path: Path
) -> None:
    store = encoded(family)
    own = own_logits(store, family, SENTENCES, data)
    assert own.std(dim=0).min() > 1e-3, "pictures differ"

    binary = zero_shot(encoder_of(store), Prompts.binary(SENTENCES[:1], SENTENCES[1:2]), tmp_path / "binary")
    probability = logits_of(binary, store).sigmoid()[:, 0]
    assert torch.allclose(probability, own[:, :2].softmax(dim=1)[:, 0], atol=1e-5)
    assert torch.allclose(logits_of(binary, store)[:, 0], own[:, 0] - own[:, 1], atol=2e-4)

    classes = Prompts.parse({"classes": {text: text for text in SENTENCES}}, "test")
    single = zero_shot(encoder_of(store), classes, tmp_path / "single")
    assert torch.allclose(logits_of(single, store).softmax(dim=1), own.softmax(dim=1), atol=1e-5)

    pairs = {"first": (0, 1), "second": (2, 3), "third": (3, 0)}
    several = {name: {"positive": SENTENCES[yes], "negative": SENTENCES[no]} for name, (yes, no) in pairs.items()}
    labels = zero_shot(encoder_of(store), Prompts.parse({"labels": several}, "test"), tmp_path / "labels")
    for column, pair in enumerate(pairs.values()):
        expected = own[:, list(pair)].softmax(dim=1)[:, 0]
        assert torch.allclose(logits_of(labels, store).sigmoid()[:, column], expected, atol=1e-5)


def test_sentences_of_a_class_are_averaged_and_modalities_joined(encoded: Callable[..., Path], tmp_path: Path) -> None:
    store = encoded("clip")
    encoder = encoder_of(store)
    sides = (SENTENCES[:3], SENTENCES[2:])
    for modality in ("image", "text", "both"):
        zero_shot(encoder, Prompts.binary(*sides), tmp_path / modality, modality=modality)
    scale, _ = encoder.similarity_scale
    features = read_features(store)
    parts = np.split(features.hidden.astype(np.float64), [features.modalities[0]], axis=1)
    image, text = (part / np.linalg.norm(part, axis=1, keepdims=True) for part in parts)
    directions = []
    for side in sides:
        vectors = encoder.text_features(side).double().numpy()
        mean = np.mean([vector / np.linalg.norm(vector) for vector in vectors], axis=0)
        directions.append(mean / np.linalg.norm(mean))
    of_image, of_text = (scale * part @ (directions[0] - directions[1]) for part in (image, text))
    for modality, expected in (("image", of_image), ("text", of_text), ("both", (of_image + of_text) / 2)):
        found = logits_of(tmp_path / modality, store)[:, 0].numpy()
        assert found == pytest.approx(expected, abs=1e-4)
        assert np.std(expected) > 1e-3


def test_a_zero_shot_head_is_evaluated_like_any_other(encoded: Callable[..., Path], data: Path, tmp_path: Path) -> None:
    store, bank, pooled = encoded("clip"), encoded("clip", split="train"), encoded("clip", "pooled")
    encoder, head = store.parents[1] / "encoder", tmp_path / "head"
    assert command("zero-shot", "--encoder", encoder, "--output", head).strip() == str(head)
    manifest = read_json(head / "ra_hmd.json")
    assert manifest.kind == "zero_shot"
    assert manifest.prompts == {"positive": list(POSITIVE), "negative": list(NEGATIVE)}
    assert manifest.encoder == {"path": str(encoder), "revision": None, "features": "projected",
                                "long_text": "truncate", "dtype": "auto"}  # fmt: skip

    evaluate = ("evaluate", "--checkpoint", head, "--bootstrap-samples", 100)
    command(*evaluate, "--bank", bank, "--queries", store, "--output", tmp_path / "report")
    metrics = read_json(tmp_path / "report/metrics.json")
    scores = logits_of(head, store)[:, 0].numpy()
    labels = read_features(store).labels
    assert metrics["dev"]["lrc"]["auroc"]["value"] == pytest.approx(roc_auc_score(labels, scores))
    wrong = refusal(*evaluate, "--bank", pooled, "--queries", pooled, "--output", tmp_path / "no")
    widths = "{} image and {} text features".format(*read_features(store).modalities)
    assert f"takes {widths}" in wrong
    assert "has {} and {}".format(*read_features(pooled).modalities) in wrong
    other = encoded("altclip")  # of the same width
    said = refusal(*evaluate, "--bank", other, "--queries", other, "--output", tmp_path / "no")
    assert "not made alike" in said
    assert "model: " in said

    command("predict", "--checkpoint", head, "--queries", store, "--head", "lrc", "--format", "hateclipper-csv",
            "--output", tmp_path / "out.csv")  # fmt: skip
    with (tmp_path / "out.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["prob_hate"]) for row in rows] == pytest.approx(1 / (1 + np.exp(-scores)), abs=1e-6)


def test_features_of_the_same_width_but_another_kind_are_refused(encoded: Callable[..., Path], tmp_path: Path) -> None:
    store = encoded("clip")
    zero_shot(encoder_of(store), Prompts.binary(), tmp_path / "head")
    stated = head_fingerprint(tmp_path / "head")
    of_store = read_features(store).manifest.fingerprint
    same = set(stated) & set(of_store)
    assert same == set(of_store) - {"data", "encoder.long_text"}
    assert {key: stated[key] for key in same} == {key: of_store[key] for key in same}
    features = read_features(store)
    for key, value in (("encoder.features", "pooled"), ("model", "other"), ("encoder.tokenizer", "other")):
        write_features(tmp_path / key, features, of_store | {key: value}, split="dev")
        said = refusal("evaluate", "--checkpoint", tmp_path / "head", "--bank", tmp_path / key, "--queries",
                       tmp_path / key, "--output", tmp_path / "out")  # fmt: skip
        assert key in said
        assert "not made alike" in said


def test_prompts_are_read_from_yaml(tmp_path: Path) -> None:
    shapes: list[tuple[dict[str, Any], str, int]] = [
        ({"positive": "one", "negative": ["two", "three"]}, "binary", 1),
        ({"classes": {"a": "one", 5: ["two", "three"]}}, "single_label", 2),
        ({"labels": {"a": {"positive": "one", "negative": "two"}}}, "multi_label", 1),
    ]
    for values, kind, outputs in shapes:
        (tmp_path / "p.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
        prompts = Prompts.read(tmp_path / "p.yaml")
        assert (prompts.problem.kind, prompts.problem.outputs) == (kind, outputs)
        assert Prompts.parse(prompts.to_dict(), "again") == prompts
        assert set(prompts.sentences()) <= {"one", "two", "three"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- a", "is no mapping"),
        ("positive: a", "has positive"),
        ("{positive: a, negative: b, classes: {}}", "has positive, negative, classes"),
        ("{positive: a, negative: []}", r"`negative` is \[\]; a sentence"),
        ("{positive: [a, ' '], negative: b}", r"`positive` is \['a', ' '\]"),
        ("classes: {}", r"`classes` is \{\}"),
        ("classes: {a: one}", "`classes` has one class; .*`positive` and `negative`"),
        ("classes: {a: one, b: 7}", r"`classes.b` is 7"),
        ("labels: {a: one}", "`labels.a` needs `positive` and `negative`"),
        ("labels: {a: {positive: 1, negative: x}}", r"`labels.a.positive` is 1"),
        ("a: [", "is not valid YAML"),
    ],
)
def test_prompts_of_another_shape_are_refused(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(UserError, match=said):
        Prompts.read(tmp_path / "p.yaml")


def test_zero_shot_refuses_before_the_weights_are_loaded(encoded: Callable[..., Path], tmp_path: Path) -> None:
    encoder = encoder_of(encoded("clip"))
    with pytest.raises(UserError, match=r"more than 77 tokens; shorten them \(1\):\s+- 'x x.* has 92 tokens"):
        zero_shot(encoder, Prompts.binary(["x " * 90], ["y"]), tmp_path / "head")
    with pytest.raises(UserError, match="--modality 'sound' is unknown; choose one of image, text, both"):
        zero_shot(encoder, Prompts.binary(), tmp_path / "head", modality="sound")
    with pytest.raises(UserError, match="the encoder gives pooled features"):
        zero_shot(Encoder(encoder.settings.replace(features="pooled")), Prompts.binary(), tmp_path / "head")
    with pytest.raises(UserError, match="does not exist"):
        Prompts.read(tmp_path / "none.yaml")
    write_json(tmp_path / "ra_hmd.json", {"kind": "stage2"})
    with pytest.raises(UserError, match="holds a 'stage2' run"):
        zero_shot(encoder, Prompts.binary(), tmp_path)
    assert encoder.model is None
    assert "leave out --positive" in refusal("zero-shot", "--encoder", encoder.settings.path, "--output", tmp_path,
                                             "--prompts", tmp_path / "p.yaml", "--positive", "a")  # fmt: skip


# --- linear probe -----------------------------------------------------------------------------------------------------

WIDTHS = (6, 4)


def labels_of(kind: str, signal: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    noisy = signal @ rng.normal(size=(10, 3)) + 2 * rng.normal(size=(len(signal), 3))
    if kind == "multi_label":
        return (noisy > 0.5).astype(np.int64)
    return (noisy[:, 0] > 0).astype(np.int64) if kind == "binary" else noisy.argmax(axis=1)


def stored(folder: Path, kind: str = "binary", rows: int = 120, **changes: Any) -> tuple[Path, Path]:
    """Stores of train and dev with a weak signal in both modalities, of very different scale in each column."""
    rng = np.random.default_rng(3)
    signal = rng.normal(size=(rows + 60, 10))
    hidden, labels = signal * np.logspace(-1, 1, 10) + 1, labels_of(kind, signal, rng)
    ids = [f"m{row}" for row in range(len(hidden))]
    whole = Features(ids, labels, hidden.astype(np.float32), modalities=WIDTHS)
    content = {"encoder": {"path": "somewhere", "features": "pooled"}} | changes
    for name, part in (("train", np.arange(rows)), ("dev", np.arange(rows, rows + 60))):
        write_features(folder / name, whole.select(part), {"model": "m", "data": name}, split=name, **content)
    return folder / "train", folder / "dev"


def by_hand(train: Features, c: float, modality: str, standardise: bool) -> Callable[[Features], np.ndarray]:
    """Logits of scikit-learn's own pipeline."""

    def unit(features: Features) -> np.ndarray:
        image, text = np.split(features.hidden.astype(np.float64), [WIDTHS[0]], axis=1)
        parts = {"image": [image], "text": [text], "both": [image, text]}[modality]
        return np.concatenate([Normalizer().transform(part) for part in parts], axis=1)

    def fit(labels: np.ndarray) -> Any:
        model = LogisticRegression(C=c, max_iter=1000)
        return (make_pipeline(StandardScaler(), model) if standardise else model).fit(unit(train), labels)

    if train.labels.ndim == 1:
        model = fit(train.labels)
        return lambda features: model.decision_function(unit(features)).reshape(len(features), -1)
    models = [fit(column) for column in train.labels.T]
    return lambda features: np.stack([model.decision_function(unit(features)) for model in models], axis=1)


@pytest.mark.parametrize("kind", ["binary", "single_label", "multi_label"])
@pytest.mark.parametrize("modality", ["image", "text", "both"])
@pytest.mark.parametrize("standardise", [False, True])
def test_a_probe_is_scikit_learns(kind: str, modality: str, standardise: bool, tmp_path: Path) -> None:
    train, dev = stored(tmp_path, kind)
    linear_probe(train, tmp_path / "head", c=3.0, modality=modality, standardise=standardise)
    head = load_head(tmp_path / "head")
    assert head.config.problem_type == kind
    expected = by_hand(read_features(train), 3.0, modality, standardise)(read_features(dev))
    assert logits_of(tmp_path / "head", dev).numpy() == pytest.approx(expected, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("kind", ["binary", "multi_label"])
def test_dev_chooses_c_by_auroc(kind: str, tmp_path: Path) -> None:
    train, dev = stored(tmp_path, kind)
    manifest = linear_probe(train, tmp_path / "head", dev=dev)
    features, judged = read_features(train), read_features(dev)
    areas = []
    for c in GRID:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            scores = by_hand(features, c, "both", False)(judged)
        areas.append(roc_auc_score(judged.labels, scores if kind == "multi_label" else scores[:, 0]))
    assert len(set(areas)) > 3, "C matters here"
    # The head scores in float32: rows that are all but equal may change places.
    found = [one["auroc"] for one in manifest.dev]
    assert found == pytest.approx(areas, abs=1e-3)
    assert [one["c"] for one in manifest.dev] == list(GRID)
    assert manifest.c == GRID[int(np.argmax(found))]
    chosen = by_hand(features, manifest.c, "both", False)(judged)
    assert logits_of(tmp_path / "head", dev).numpy() == pytest.approx(chosen, rel=1e-3, abs=1e-3)


def test_the_manifest_says_what_the_head_is_of(tmp_path: Path) -> None:
    train, dev = stored(tmp_path, source={"dataset": "mine", "split": "train"})
    linear_probe(train, tmp_path / "head", dev=dev, modality="text", command="ra-hmd linear-probe")
    manifest = read_json(tmp_path / "head/ra_hmd.json")
    assert (manifest.kind, manifest.command, manifest.arguments.modality) == (
        "linear_probe", "ra-hmd linear-probe", "text")  # fmt: skip
    assert manifest.encoder == {"path": "somewhere", "features": "pooled"}
    assert manifest.features.train.fingerprint == {"model": "m", "data": "train"} == head_fingerprint(tmp_path / "head")
    assert manifest.features.train.source.dataset == "mine"
    assert (manifest.features.train.rows, manifest.features.dev.rows) == (120, 60)


def test_a_k_shot_probe_is_that_of_its_rows(encoded: Callable[..., Path], data: Path, tmp_path: Path) -> None:
    train, dev, lists = encoded("clip", "pooled", "train"), encoded("clip", "pooled"), data / "k_shot/train.json"
    said = command("linear-probe", "--train", train, "--k-shot", lists, "--shots", 2, "--shot-seed", 1,
                   "--c", 10, "--modality", "image", "--output", tmp_path / "few")  # fmt: skip
    assert said.strip() == str(tmp_path / "few")
    features, ids = read_features(train), read_shot_list(lists, 2, 1)
    rows = np.array([features.ids.index(name) for name in reversed(ids)])
    write_features(tmp_path / "four", features.select(rows), features.manifest.fingerprint, split="train")
    linear_probe(tmp_path / "four", tmp_path / "same", c=10, modality="image")
    assert torch.allclose(logits_of(tmp_path / "few", dev), logits_of(tmp_path / "same", dev), atol=1e-4)
    manifest = read_json(tmp_path / "few/ra_hmd.json")
    assert manifest.features.train.rows == 4
    assert (manifest.arguments.shots, manifest.arguments.shot_seed) == (2, 1)
    linear_probe(train, tmp_path / "other", c=10, shot_list=ShotSelection(lists, 2, 0))
    assert read_json(tmp_path / "other/ra_hmd.json").features.train.k_shot != manifest.features.train.k_shot

    command("evaluate", "--checkpoint", tmp_path / "few", "--bank", train, "--queries", dev, "--bootstrap-samples", 100,
            "--output", tmp_path / "report")  # fmt: skip
    metrics = read_json(tmp_path / "report/metrics.json").dev.lrc
    scores = logits_of(tmp_path / "few", dev)[:, 0].numpy()
    assert metrics.auroc.value == pytest.approx(roc_auc_score(read_features(dev).labels, scores))


def test_classes_of_label_sets_that_do_not_vary_get_the_odds_of_their_rate(tmp_path: Path) -> None:
    train, dev = stored(tmp_path, "multi_label")
    features = read_features(train)
    labels = features.labels.copy()
    labels[:, 1], labels[:, 2] = 0, 1
    write_features(tmp_path / "rare", replace(features, labels=labels), {"model": "m"}, split="train")
    manifest = linear_probe(tmp_path / "rare", tmp_path / "head")
    assert "Classes [1, 2] do not vary" in manifest.notes[0]
    logits = logits_of(tmp_path / "head", dev)
    assert logits[:, 1].tolist() == pytest.approx([np.log(0.5 / 120.5)] * 60, abs=1e-5)
    assert logits[:, 2].tolist() == pytest.approx([np.log(120.5 / 0.5)] * 60, abs=1e-5)
    assert logits[:, 0].std() > 0.1


def test_a_probe_refuses_what_does_not_fit(tmp_path: Path) -> None:
    train, dev = stored(tmp_path)
    features, stated = read_features(train), {"model": "m"}

    def store(name: str, split: str = "train", fingerprint: dict[str, Any] = stated, **changes: Any) -> Path:
        write_features(tmp_path / name, replace(features, **changes), fingerprint, split=split)
        return tmp_path / name

    ones, several = np.ones(120, np.int64), features.labels.copy()
    several[several == 1] = 2
    for asked, said in (
        ({"train": store("flat", modalities=None)}, "flat has one vector per meme.*`ra-hmd encode`"),
        ({"dev": store("turned", "dev", modalities=(4, 6))}, r"has \(6, 4\) image and text.*turned has \(4, 6\)"),
        ({"dev": store("other", "dev", {"model": "n"})}, "not made alike"),
        ({"dev": store("test", "test")}, "Nothing is chosen by test data"),
        ({"dev": store("sure", "dev", labels=ones)}, "class 1 only"),
        ({"train": store("sure_train", labels=ones)}, r"do not vary in classes \[1\] of 2"),
        ({"train": store("gap", labels=several)}, r"do not vary in classes \[1\] of 3"),
        ({"train": store("unknown", labels=-ones)}, "120 of 120 rows have no label"),
        ({"modality": "sound"}, "--modality 'sound' is unknown"),
        ({"c": 0.0}, "--c 0.0 must be a number above 0"),
        ({"c": 1.0, "dev": dev}, "--dev chooses C"),
        ({"output": train}, "holds a feature store"),
        ({"shot_list": ShotSelection(tmp_path / "none.json", 2)}, "none.json does not exist"),
    ):
        with pytest.raises(UserError, match=said):
            linear_probe(**{"train": train, "output": tmp_path / "head"} | asked)
    assert not (tmp_path / "head").exists()
    assert "--shots K belong together" in refusal("linear-probe", "--train", train, "--output", tmp_path / "head",
                                                  "--shots", 3)  # fmt: skip


def test_notes_tell_of_a_weak_choice(tmp_path: Path) -> None:
    train, _ = stored(tmp_path)
    assert linear_probe(train, tmp_path / "one").notes == ["No dev store was given: C is 1."]
    features = read_features(train)
    write_features(tmp_path / "same", features, {"model": "m"}, split="dev")
    notes = " ".join(linear_probe(train, tmp_path / "two", dev=tmp_path / "same").notes)
    assert "120 ids of the dev store are also in the train store" in notes
