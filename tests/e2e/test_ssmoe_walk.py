"""The four commands of SSMoE's README by our names, on a tiny LLaVA: cluster, guidance, train, evaluate.

And the bugs of the release that are not here; docs/ssmoe.md lists them.
"""

import base64
import io
import json
import pickletools
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engines import BIN, ROOT, run, train
from json_files import read_json
from once import SharedFolders
from openai_server import Reply, completion, serve
from PIL import Image
from safetensors.torch import load_file
from sklearn.metrics import f1_score, roc_auc_score

from ra_hmd.core.problem import BINARY
from ra_hmd.data.guidance import Guidance
from ra_hmd.data.images import load_image
from ra_hmd.data.meme_files import read_memes
from ra_hmd.data.prompt import Answers
from ra_hmd.evaluation.metrics.estimates import ThresholdedScores, metric_estimate
from ra_hmd.features.store import read_features
from ra_hmd.models.cluster_assignment import Clusters

CLUSTERS = 3
# Flags of the user's document, in its order; docs/ssmoe.md has a row for each.
FLAGS = """
--clusters --feature_type --text_model --vision_model --provider --openai_model --ollama_model --use_lora --lora_rank
--lora_alpha --llm_moe --llm_moe_num_experts --n_clusters --cluster_prior_weight --router_tau --cluster_assignments
--cluster_prompts_file --inject_cluster_prompt --model_name_or_path --version --freeze_backbone --data_path
--image_folder --vision_tower --pretrain_mm_mlp_adapter --mm_projector_type --mm_vision_select_layer
--mm_use_im_start_end --mm_use_im_patch_token --image_aspect_ratio --group_by_modality_length --bf16 --output_dir
--num_train_epochs --per_device_train_batch_size --gradient_accumulation_steps --evaluation_strategy --save_strategy
--save_steps --save_total_limit --learning_rate --weight_decay --warmup_ratio --lr_scheduler_type --logging_steps --tf32
--model_max_length --gradient_checkpointing --dataloader_num_workers --lazy_preprocess --model-base --model-path --data
--image-folder --assignments --cluster-prompts --out --batch-size --temperature
"""


def ra_hmd(cwd: Path, *words: object) -> str:
    done = run([str(BIN / "ra-hmd"), *map(str, words)], cwd)
    assert done.returncode == 0, f"{' '.join(map(str, words))}\n{done.stdout[-4000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def walked(once: SharedFolders, memes: Path) -> Path:
    """Folder with everything that the commands wrote, and the questions that the teacher got in `asked.json`."""

    def make(folder: Path) -> None:
        ra_hmd(folder, "tiny-lmm", "--family", "llava", "--output", "llava")
        ra_hmd(folder, "tiny-encoder", "--output", "clip")
        data = memes / "a"
        ra_hmd(folder, "cluster", "--data", data, "--split", "train", "--encoder", "clip", "--clusters", CLUSTERS,
               "--workers", 0, "--output", "clusters")  # fmt: skip
        with serve(_teach) as teacher:
            ra_hmd(folder, "guidance", "clusters", "--data", data, "--endpoint", teacher.url, "--model", "teacher",
                   "--output", "guidance.json")  # fmt: skip
            (folder / "asked.json").write_text(json.dumps(teacher.requests))
        ra_hmd(folder, "data", "k-shot", data, "--shots", 4, "--seeds", 1, "--output", folder / "lists.json")
        ra_hmd(folder, "data", "to-sharegpt", data, "--output", "records", "--k-shot", "lists.json", "--shots", 4)
        train(_config(folder), folder)
        for split in ("train", "test"):
            ra_hmd(folder, "extract", "--checkpoint", "run", "--data", data, "--split", split, "--workers", 0,
                   "--output", f"features/{split}")  # fmt: skip
        ra_hmd(folder, "evaluate", "--checkpoint", "run", "--bank", "features/train", "--queries", "features/test",
               "--bootstrap-samples", 100, "--final", "--output", "report")  # fmt: skip

    return once("ssmoe-walk", make)


def _teach(body: dict[str, Any], _: int) -> Reply:
    number = sum(map(ord, json.dumps(body))) % 1000
    return completion(f"Compare what the picture shows with what the words say, as in lesson {number}.")


def _config(folder: Path) -> dict[str, Any]:
    """The training command of the README with our keys; sizes and steps are those of a test."""
    return {
        "model_name_or_path": str(folder / "llava"),
        "template": "llava",
        "stage": "sft-classifier",
        "do_train": True,
        "finetuning_type": "lora",
        "lora_rank": 4,
        "lora_alpha": 4,
        "loss_ratio": [1.0, 0.0],
        "llm_moe": True,
        "llm_moe_num_experts": 3,
        "expert_rank": 4,
        "clusters": str(folder / "clusters"),
        "cluster_prior_weight": 1.0,
        "router_tau": 1.0,
        "guidance": str(folder / "guidance.json"),
        "dataset_dir": str(folder / "records"),
        "dataset": "generic_4_shot_seed_0",
        "cutoff_len": 512,
        "overwrite_cache": True,
        "output_dir": str(folder / "run"),
        "num_train_epochs": 2,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 2,
        "learning_rate": 2e-3,
        "lr_scheduler_type": "cosine",
        "warmup_ratio": 0.03,
        "weight_decay": 0.0,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
    }


@pytest.mark.slow
class TestWalk:
    def test_the_teacher_sees_pictures_of_training_memes_alone(self, walked: Path, memes: Path) -> None:
        asked = json.loads((walked / "asked.json").read_text())
        assert len(asked) == CLUSTERS
        captions = {
            split: {meme.caption for meme in read_memes(memes / f"a/{split}.jsonl")} for split in ("train", "test")
        }
        for body in asked:
            parts = body["messages"][-1]["content"]
            pictures = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
            assert len(pictures) == 5
            for url in pictures:
                Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).load()
            words = " ".join(part["text"] for part in parts if part["type"] == "text")
            assert any(caption in words for caption in captions["train"])
            assert not any(caption in words for caption in captions["test"] - captions["train"])

    def test_the_run_carries_what_a_score_depends_on(self, walked: Path) -> None:
        folder = walked / "run"
        assert Clusters.open(folder / "clusters").digest == Clusters.open(walked / "clusters").digest
        assert Guidance.open(folder / "guidance.json") == Guidance.open(walked / "guidance.json")
        inputs = read_json(folder / "ra_hmd.json").inputs
        assert inputs.clusters == Clusters.open(walked / "clusters").digest
        assert inputs.guidance == Guidance.open(walked / "guidance.json").digest
        tensors = load_file(folder / "experts.safetensors")
        moved = [name for name, tensor in tensors.items() if name.endswith(".B") and tensor.abs().max() > 0]
        assert len(moved) == sum(name.endswith(".B") for name in tensors)
        assert (folder / "trainer_state.json").is_file()
        assert read_json(folder / "trainer_state.json").global_step == 8

    def test_the_report_is_of_probabilities_of_the_whole_test_split(self, walked: Path, memes: Path) -> None:
        features = read_features(walked / "features/test")
        labels = {meme.id: meme.label for meme in read_memes(memes / "a/test.jsonl")}
        assert dict(zip(features.ids, features.labels.tolist(), strict=True)) == labels
        score = features.lmh_score[:, 0]
        assert len(np.unique(score)) > len(score) // 2, "a score, and no matched word"
        metrics = read_json(walked / "report/metrics.json")["test"]["lmh"]
        assert metrics.auroc.value == pytest.approx(roc_auc_score(features.labels, score))
        assert metrics.macro_f1.value == pytest.approx(f1_score(features.labels, score >= 0.5, average="macro"))

    def test_a_single_meme_has_the_score_of_the_report(self, walked: Path, memes: Path) -> None:
        features = read_features(walked / "features/test")
        meme = read_memes(memes / "a/test.jsonl")[0]
        words = ["--text", meme.caption, "--checkpoint", "run", "--head", "lmh", "--json"]
        verdict = json.loads(ra_hmd(walked, "predict", meme.path, *words).strip().splitlines()[-1])
        expected = float(features.lmh_score[features.ids.index(meme.id), 0])
        assert verdict["scores"]["lmh"] == pytest.approx(expected, abs=1e-5)


class TestBugsOfTheRelease:
    """Not inherited: numbers are those of the list in docs/ssmoe.md."""

    @pytest.mark.parametrize(
        ("answer", "label"),
        [("Not harmful.", 0), ("not harmful", 0), ("Harmful", 1), ("Harmful. It mocks somebody.", 1)],
    )
    def test_not_harmful_is_class_0(self, answer: str, label: int) -> None:
        assert Answers(("Not harmful", "Harmful")).label_of(answer) == label

    def test_yes_is_class_1_and_other_words_are_refused(self) -> None:
        assert [Answers().label_of(word) for word in ("No, not at all", "Yes, it is")] == [0, 1]
        with pytest.raises(ValueError, match="begins with neither"):
            Answers().label_of("Harmless, as far as I can see")

    @pytest.mark.parametrize("metric", ["accuracy", "macro_f1", "auroc"])
    def test_all_right_differs_from_all_wrong(self, metric: str) -> None:
        labels = np.array([0, 1, 1, 0, 1, 0])
        right, wrong = (
            metric_estimate(metric, [ThresholdedScores.binary(scores, 0.5)], labels, BINARY, samples=0, seed=0).value
            for scores in (labels * 0.8 + 0.1, 0.9 - labels * 0.8)
        )
        assert (right, wrong) == (1.0, 0.0)

    @pytest.mark.slow
    def test_a_run_without_experts_file_refuses_to_evaluate(self, walked: Path, memes: Path, tmp_path: Path) -> None:
        copy = Path(shutil.copytree(walked / "run", tmp_path / "run"))
        (copy / "experts.safetensors").unlink()
        words = ["extract", "--checkpoint", str(copy), "--data", str(memes / "a"), "--split", "dev"]
        done = run([str(BIN / "ra-hmd"), *words, "--output", str(tmp_path / "features")], tmp_path)
        assert done.returncode == 2
        assert "experts.safetensors" in done.stdout
        assert not (tmp_path / "features").exists()

    @pytest.mark.slow
    def test_a_checkpoint_loads_without_pickle(
        self, walked: Path, memes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """No file of the run that is read for a score is a pickle, and none is opened as one."""
        import pickle

        import torch

        from ra_hmd.models.checkpoint import open_run
        from ra_hmd.models.meme_model import MemeModel

        copy = Path(shutil.copytree(walked / "run", tmp_path / "run"))
        monkeypatch.chdir(walked)  # where the encoder of the clusters was named from
        for path in copy.rglob("*"):
            if path.is_file() and _is_pickle(path):
                assert path.name == "training_args.bin", "the host's own record, which nothing here reads"
                path.unlink()

        def refused(*_: Any, **__: Any) -> Any:
            raise AssertionError("a pickle was opened")

        for module, name in ((torch, "load"), (pickle, "load"), (pickle, "Unpickler")):
            monkeypatch.setattr(module, name, refused)
        model = MemeModel(open_run(copy), torch.device("cpu"))
        meme = read_memes(memes / "a/dev.jsonl")[0]
        row = model.encode(meme.caption, load_image(meme.path))
        assert 0 < float(model.columns(model.collate([row]))["lmh_score"][0, 0]) < 1


def _is_pickle(path: Path) -> bool:
    content = path.read_bytes()
    if content.startswith(b"PK"):
        return b"data.pkl" in content
    try:
        return content.startswith(b"\x80") and any(True for _ in pickletools.genops(content))
    except ValueError:
        return False


def test_each_flag_of_the_user_s_document_has_a_row() -> None:
    page = (ROOT / "docs" / "ssmoe.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| ")]
    missing = [
        flag for flag in re.findall(r"--[\w-]+", FLAGS) if not any(f"`{flag}`" in row.split("|")[1] for row in rows)
    ]
    assert missing == []
