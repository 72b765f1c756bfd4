"""A run with experts, clusters and guidance, opened and run by every command that scores or explains memes."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from expert_runs import TEXTS
from served import ra_hmd
from servers import queries

from ra_hmd.core.errors import UserError
from ra_hmd.data.images import load_image
from ra_hmd.features.compatibility import check_same_origin, store_fingerprint
from ra_hmd.features.store import Features, read_features
from ra_hmd.inference.detector import Detector
from ra_hmd.inference.explainer import Explainer
from ra_hmd.models.checkpoint import open_backbone, open_run
from ra_hmd.models.generation.chat import Chat, ChatModel
from ra_hmd.models.meme_model import MemeModel

pytestmark = pytest.mark.slow


def _scores(model: MemeModel, memes: Path) -> np.ndarray:
    rows = [model.encode(one.text or "", load_image(one.path)) for one in queries(memes, "test")[:6]]
    return torch.cat([model.columns(model.collate([row]))["lrc_logit"] for row in rows]).numpy()[:, 0]


def _changed(folder: Path, tmp_path: Path, name: str) -> Path:
    return Path(shutil.copytree(folder / "run", tmp_path / name))


def test_clusters_decide_guidance_and_routing(served_experts: Path, memes: Path, tmp_path: Path) -> None:
    run = open_run(served_experts / "run")
    assert run.clusters is not None
    assert run.guidance is not None
    assert run.experts == served_experts / "run"
    model = MemeModel(run, torch.device("cpu"))
    found = set()
    for meme in queries(memes, "test")[:12]:
        image = load_image(meme.path)
        row = model.encode(meme.text or "", image)
        found.add(row["cluster"])
        text = model.encoder.tokenizer.decode(row["input_ids"])
        assert f"{TEXTS[row['cluster']]}\n\nThis is an image" in text or not TEXTS[row["cluster"]]
        assert row["cluster"] == model.cluster_of(meme.text or "", image)
    assert len(found) > 1
    routed = _scores(model, memes)
    other = MemeModel(replace(run, guidance=run.guidance.shuffled(1)), torch.device("cpu"))
    assert np.abs(_scores(other, memes) - routed).max() > 1e-4
    bare = MemeModel(replace(run, experts=None), torch.device("cpu"))
    assert np.abs(_scores(bare, memes) - routed).max() > 1e-3


def test_other_ids_give_other_scores(served_experts: Path, memes: Path) -> None:
    model = MemeModel(open_run(served_experts / "run"), torch.device("cpu"))
    row = next(model.encode(one.text or "", load_image(one.path)) for one in queries(memes, "test"))
    one, other, unknown = (
        model.columns(model.collate([row | {"cluster": cluster}]))["hidden"] for cluster in (0, 1, -1)
    )
    assert (one - other).abs().max() > 1e-3
    assert (one - unknown).abs().max() > 1e-3


def test_rows_do_not_depend_on_batch_mates_of_other_clusters(served_experts: Path, memes: Path) -> None:
    model = MemeModel(open_run(served_experts / "run"), torch.device("cpu"))
    rows = [model.encode(one.text or "", load_image(one.path)) for one in queries(memes, "test")[:8]]
    assert len({row["cluster"] for row in rows}) > 1
    together = model.columns(model.collate(rows))["hidden"]
    alone = torch.cat([model.columns(model.collate([row]))["hidden"] for row in rows])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)
    backwards = model.columns(model.collate(rows[::-1]))["hidden"].flip(0)
    torch.testing.assert_close(together, backwards, rtol=1e-4, atol=1e-4)


def test_generation_is_routed_by_the_chat_s_cluster(served_experts: Path, memes: Path) -> None:
    model = ChatModel(MemeModel(open_run(served_experts / "run"), torch.device("cpu")))
    image = load_image(queries(memes, "test")[0].path)
    chats = [Chat([{"role": "user", "content": "<image> What is it?"}], [image], cluster) for cluster in (0, 1, 0)]
    answers = model.model.run.settings.expected_answers
    probs = model.answer_probs(chats, answers)
    assert np.allclose(probs[0], probs[2], atol=1e-5)
    assert not np.allclose(probs[0], probs[1], atol=1e-4)
    assert model.generate(chats[:1], 4) == model.generate(chats, 4)[:1]
    base = ChatModel(model.model, adapter=False).answer_probs(chats, answers)
    assert np.allclose(base[0], base[1], atol=1e-6)


def test_a_run_without_its_parts_is_refused(served_experts: Path, tmp_path: Path) -> None:
    for name, expected in (("experts.safetensors", "experts"), ("guidance.json", "guidance"), ("clusters", "clusters")):
        folder = _changed(served_experts, tmp_path, name.partition(".")[0])
        place = folder / name
        if place.is_dir():
            shutil.rmtree(place)
        else:
            place.unlink()
        with pytest.raises(UserError, match=expected):
            open_run(folder)


def test_other_guidance_is_refused(served_experts: Path, tmp_path: Path) -> None:
    folder = _changed(served_experts, tmp_path, "run")
    run = open_run(folder)
    assert run.guidance is not None
    run.guidance.shuffled(1).copy_to(folder / "guidance.json")
    with pytest.raises(UserError, match=r"guidance\.json is not what the run was trained with"):
        open_run(folder)


def test_stores_of_other_guidance_are_not_mixed(served_experts: Path, served_lmm: Path) -> None:
    guided = read_features(served_experts / "features" / "train")
    plain = read_features(served_lmm / "features" / "train")

    def origin(features: Features) -> dict[str, object]:
        return {name: value for name, value in store_fingerprint(features).items() if name != "adapter"}

    assert "inputs.guidance" in origin(guided)
    assert "inputs.guidance" not in origin(plain)
    check_same_origin({"one": origin(plain), "other": origin(plain)})
    with pytest.raises(UserError, match=r"inputs\.guidance"):
        check_same_origin({"one": origin(plain), "other": origin(guided)})


def test_an_untuned_model_with_guidance(served_experts: Path, tiny: object, memes: Path, tmp_path: Path) -> None:
    run = served_experts / "run"
    base = open_run(run).base_model
    with pytest.raises(UserError, match="folder of the clusters"):
        open_backbone(base, guidance=run / "guidance.json")
    ra_hmd("extract", "--backbone-only", "--checkpoint", base, "--clusters", run / "clusters", "--guidance",
           run / "guidance.json", "--data", memes / "a", "--split", "dev", "--workers", "0", "--limit", "4",
           "--output", tmp_path / "guided")  # fmt: skip
    ra_hmd("extract", "--backbone-only", "--checkpoint", base, "--data", memes / "a", "--split", "dev", "--workers",
           "0", "--limit", "4", "--output", tmp_path / "plain")  # fmt: skip
    guided, plain = (read_features(tmp_path / name) for name in ("guided", "plain"))
    assert guided.lmh_score is not None
    assert plain.lmh_score is not None
    assert np.abs(guided.lmh_score - plain.lmh_score).max() > 1e-5
    with pytest.raises(UserError, match=r"inputs\.guidance"):
        check_same_origin({"guided": store_fingerprint(guided), "plain": store_fingerprint(plain)})


def test_a_rationale_is_routed_by_the_cluster_of_the_meme(served_experts: Path, memes: Path) -> None:
    detector = Detector.from_run(served_experts / "run", device="cpu")
    explainer = Explainer.of(detector, engine="transformers", max_new_tokens=2)
    prepared = [detector.prepare(meme) for meme in queries(memes, "test")[:6]]
    asked = [
        explainer.ask(verdict, meme.image) for verdict, meme in zip(detector.judge(prepared), prepared, strict=True)
    ]
    assert [question.chat.cluster for question in asked] == [meme.item["cluster"] for meme in prepared]
    assert len({question.chat.cluster for question in asked}) > 1
