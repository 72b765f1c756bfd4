"""The contract of an LMM family: train, resume, extract, Stage 2, evaluate, predict, explain, on a tiny model of each.

A test records the step that it shows, and the sentence where the step is refused: `scripts/make_families_table.py`
makes the table of docs/families.md from what these tests record.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from family_walk import EXPERTS, LIMIT, STEPS, Walk, largest_difference, likeliest_tokens, recorded_generation, rows_of
from llamafactory.train import tuner
from once import SharedFolders
from safetensors.torch import load_file
from served import ra_hmd
from small_clusters import drawn_clusters

from ra_hmd.core.artifacts import read_json
from ra_hmd.core.errors import UserError
from ra_hmd.data.images import load_image
from ra_hmd.models.caption_budget import excess_tokens
from ra_hmd.models.families import FAMILIES
from ra_hmd.models.generation.chat import Chat, ChatModel

pytestmark = pytest.mark.slow

Record = Callable[..., None]
WEIGHTS = ("adapter_model.safetensors", "head.safetensors")


@pytest.fixture(scope="module", params=FAMILIES)
def walk(
    request: pytest.FixtureRequest,
    stage1_config: Callable[..., dict[str, Any]],
    memes: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Walk:
    return Walk(tmp_path_factory.mktemp(request.param), request.param, stage1_config, memes)


@pytest.fixture
def record(walk: Walk, record_property: Callable[[str, object], None]) -> Record:
    """Names the step that a test shows, and the sentence by which it is refused, if it is."""

    def note(step: str, refusal: str | None = None) -> None:
        record_property("family", walk.family)
        record_property("step", step)
        record_property("refusal", refusal)

    return note


def test_the_data_check_counts_the_tokens_of_training(walk: Walk, record: Record) -> None:
    record("data check")
    config = walk.folder / "train.yaml"
    config.write_text(yaml.safe_dump(walk.settings("run") | {"cutoff_len": 400}))
    excess, encoder = excess_tokens(config), walk.model(walk.run).encoder
    for meme, repeated in zip(walk.memes, (1, 3, 0), strict=False):
        image, caption = load_image(meme.image), (meme.text or "") * repeated
        assert excess(caption, *image.size) == encoder.count(caption, image) + encoder.answer_budget - 400


def test_training_moves_adapter_and_head(walk: Walk, record: Record) -> None:
    record("train")
    for name in WEIGHTS:
        assert largest_difference(walk.run, walk.run / f"checkpoint-{STEPS // 2}", name) > 0
    predicted = rows_of(walk.run / "predictions.jsonl")
    assert len({row["lrc_score"] for row in predicted}) == len(predicted)


def test_resumed_weights_equal_uninterrupted_ones(walk: Walk, record: Record) -> None:
    record("resume")
    assert largest_difference(walk.run, walk.resumed, *WEIGHTS) == 0


def test_extraction_equals_the_trainers_prediction(walk: Walk, record: Record) -> None:
    record("extract")
    assert_extraction_equals_prediction(walk, walk.run)


def assert_extraction_equals_prediction(walk: Walk, run: Path, tolerance: float = 1e-5) -> None:
    found = walk.extract(run, "dev")
    predicted = rows_of(run / "predictions.jsonl")[:LIMIT]
    assert [row["id"] for row in predicted] == list(found.ids)
    scores = torch.from_numpy(found.lrc_logit[:, 0]).double().sigmoid().tolist()
    assert [row["lrc_score"] for row in predicted] == pytest.approx(scores, abs=tolerance)
    assert [row["lmh_score"] for row in predicted] == pytest.approx(found.lmh_score[:, 0].tolist(), abs=tolerance)


def test_a_score_depends_on_neither_batch_mates_nor_padding(walk: Walk, record: Record) -> None:
    record("extract")
    some = walk.memes[:3]
    texts = [some[0].text, some[1].text + " cake" * 30, "a"]
    images = [load_image(meme.image) for meme in some]
    images[1] = images[1].resize((images[1].width * 2, images[1].height))
    alone, together = [], []
    for side in ("left", "right"):
        model = walk.model(walk.run, side)
        rows = [model.encode(text, image) for text, image in zip(texts, images, strict=True)]
        together.append(model.columns(model.collate(rows)))
        alone.append([model.columns(model.collate([row])) for row in rows])
    for name in ("hidden", "embedding", "lrc_logit", "lmh_score"):
        wanted = torch.cat([columns[name] for columns in alone[0]])
        assert torch.cat([columns[name] for columns in alone[1]]) == pytest.approx(wanted, abs=1e-5)
        for columns in together:
            assert columns[name] == pytest.approx(wanted, abs=1e-4), name
    assert (wanted[0] - wanted[1]).abs() > 1e-4  # other memes do have other scores


def test_the_image_is_seen(walk: Walk, record: Record) -> None:
    record("extract")
    model = walk.model(walk.run)
    images = [load_image(meme.image) for meme in walk.memes[:2]]
    one, other = (model.columns(model.collate([model.encode("the same words", image)])) for image in images)
    assert (one["hidden"] - other["hidden"]).abs().max() > 1e-3


def test_stage_2_starts_from_the_head_and_lowers_its_loss(walk: Walk, record: Record) -> None:
    record("stage 2")
    assert largest_difference(walk.run, walk.refined / "initial_head", WEIGHTS[1]) == 0
    first, *_, last = read_json(walk.refined / "history.json")["epochs"][1:]
    assert 0 < last["loss"] < first["loss"]


def test_evaluation_scores_every_meme_by_all_heads(walk: Walk, record: Record) -> None:
    record("evaluate")
    assert [row["id"] for row in walk.evaluated] == [meme.id for meme in walk.memes]
    for head in ("lmh", "lrc", "rkc"):
        assert all(0 <= row[f"{head}_score"] <= 1 for row in walk.evaluated)


def test_prediction_equals_evaluation(walk: Walk, record: Record) -> None:
    record("predict")
    wanted = {
        row["id"]: {head: row[f"{head}_score"] for head in ("lmh", "lrc", "rkc", "krr")} for row in walk.evaluated
    }
    assert {row["id"] for row in walk.predicted} == wanted.keys()
    for row in walk.predicted:
        assert row["scores"] == pytest.approx(wanted[row["id"]], abs=1e-4)


def test_explanations_are_generated_from_picture_and_words(walk: Walk, record: Record) -> None:
    record("explain")
    assert [row["id"] for row in walk.explained] == [meme.id for meme in walk.memes]
    assert any(row["rationale"] for row in walk.explained)
    images = [load_image(meme.image) for meme in walk.memes[:2]]
    asked = {"<image> A cake?": images[:1], "Is it a cake? <image> Say.": images[1:], "<image> or <image>?": images}
    chats = [Chat([{"role": "user", "content": text}], shown) for text, shown in asked.items()]
    model = walk.model(walk.run)
    speaker = ChatModel(model)
    with recorded_generation(model) as answers:
        speaker.generate(chats, max_new_tokens=4)
    assert len(answers) == len(chats)
    for chat, answer in zip(chats, answers, strict=True):  # the shorter one comes first
        assert answer
        assert answer == likeliest_tokens(model, speaker.encode(chat), chat.images, answer)


def test_a_merged_export_scores_as_its_run(walk: Walk, record: Record) -> None:
    record("export")
    config = walk.settings("run")
    options = {name: config[name] for name in ("model_name_or_path", "template", "finetuning_type")}
    merged = walk.folder / "merged"
    tuner.export_model(
        options | {"adapter_name_or_path": str(walk.run), "export_dir": str(merged), "export_device": "cpu"}
    )
    one, other = walk.extract(merged, "dev"), walk.extract(walk.run, "dev")
    assert one.ids == other.ids
    assert one.lrc_logit == pytest.approx(other.lrc_logit, abs=1e-4)
    assert one.lmh_score == pytest.approx(other.lmh_score, abs=1e-4)


def test_four_bit_weights_train_and_extract(walk: Walk, record: Record) -> None:
    record("4 bits")
    run = walk.train("quantized", quantization_bit=4, quantization_method="bnb", max_steps=2)
    layers = [module for module in walk.model(run).model.modules() if type(module).__name__ == "Linear4bit"]
    assert layers
    # The kernels of 4-bit weights on CPUs may compute in bfloat16, which rounds by the shape of the batch.
    assert_extraction_equals_prediction(walk, run, tolerance=2e-3)


@pytest.fixture(scope="session")
def clusters(once: SharedFolders) -> Path:
    """Clusters of a tiny CLIP, with drawn centroids."""

    def make(folder: Path) -> None:
        ra_hmd("tiny-encoder", "--family", "clip", "--output", folder / "clip")
        drawn_clusters(folder / "clip", folder / "clusters", count=3)

    return once("family-clusters", make) / "clusters"


def test_experts_train_are_saved_and_route_what_is_extracted(walk: Walk, record: Record, clusters: Path) -> None:
    settings = EXPERTS | {"clusters": str(clusters), "max_steps": 2}
    if not FAMILIES[walk.family].gated_mlp:
        with pytest.raises(UserError, match="a mixture of experts itself") as refused:
            walk.train("experts", **settings)
        record("experts", str(refused.value).replace(walk.settings("experts")["model_name_or_path"], "MODEL"))
        return
    record("experts")
    run = walk.train("experts", **settings)
    saved = load_file(run / "experts.safetensors")
    assert {name.split(".")[2] for name in saved if name.startswith("layers.1.")} == {"gate", "up", "down", "router"}
    assert all(tensor.abs().max() > 0 for name, tensor in saved.items() if name.endswith(".B"))  # B begins at 0
    assert not any("mlp" in name for name in load_file(run / WEIGHTS[0]))
    assert_extraction_equals_prediction(walk, run)
    model = walk.model(run)
    row = model.encode(walk.memes[0].text or "", load_image(walk.memes[0].image))
    hidden = [model.columns(model.collate([row | {"cluster": cluster}]))["hidden"] for cluster in (0, 1)]
    assert (hidden[0] - hidden[1]).abs().max() > 0
