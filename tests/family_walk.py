"""The pipeline on a tiny model of one LMM family: each step once, in the tests' process."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from llamafactory.train import tuner
from PIL.Image import Image
from safetensors.torch import load_file
from served import ra_hmd

from ra_hmd.core.artifacts import write_jsonl
from ra_hmd.data.meme import Meme
from ra_hmd.data.meme_files import read_memes
from ra_hmd.features.store import Features, read_features
from ra_hmd.models.checkpoint import open_run
from ra_hmd.models.classifier import base_model
from ra_hmd.models.cluster_assignment import UNKNOWN_CLUSTER
from ra_hmd.models.meme_model import MemeModel, prompt_row

LIMIT = 12  # memes of a split that are extracted, judged and explained
STEPS = 4  # optimizer steps of Stage 1
WORDS = 5  # tokens of a rationale
EXPERTS = {"llm_moe": True, "lora_target": None, "llm_moe_num_experts": 3, "expert_rank": 4}
STAGE2 = "metric: cos\nbatch_size: 6\nepochs: 2\nlr: 1.0e-2\ntopk: 5\nselect_by: dev_rkc_auroc\n"


class Walk:
    """Train, resume, extract, refine, evaluate, predict and explain with one family.

    A step is run when it is asked for first, after the steps that it needs.

    Args:
        folder: Folder for what the steps write.
        family: `model_type` of the tiny model.
        config: Makes a configuration of Stage 1 (fixture `stage1_config`).
        memes: Synthetic memes (fixture `memes`).
    """

    def __init__(self, folder: Path, family: str, config: Callable[..., dict[str, Any]], memes: Path) -> None:
        self.folder, self.family, self._config, self._memes = folder, family, config, memes

    def settings(self, name: str, **changes: Any) -> dict[str, Any]:
        """A configuration of Stage 1 that trains in the folder `name` and predicts the dev memes."""
        settings = {
            "max_samples": 16,
            "cutoff_len": 384,  # some templates have a long system message, which tiny tokenizers cut into bytes
            "max_steps": STEPS,
            "per_device_train_batch_size": 4,
            "do_predict": True,
        }
        return self._config(self.folder / name, self.family, **settings | changes)

    def train(self, name: str, **changes: Any) -> Path:
        """Stage 1 in the folder `name`."""
        tuner.run_exp(self.settings(name, **changes), callbacks=[])
        return self.folder / name

    @cached_property
    def run(self) -> Path:
        """A LoRA run with a checkpoint after half of its steps."""
        return self.train("run", save_strategy="steps", save_steps=STEPS // 2)

    @cached_property
    def resumed(self) -> Path:
        """A run that continued from the checkpoint of `run`."""
        checkpoint = self.run / f"checkpoint-{STEPS // 2}"
        return self.train(
            "resumed", save_strategy="steps", save_steps=STEPS // 2, resume_from_checkpoint=str(checkpoint)
        )

    def extract(self, run: Path, split: str) -> Features:
        """Features of the first memes of a split, by `ra-hmd extract`."""
        return read_features(self._store(run, split))

    def _store(self, run: Path, split: str) -> Path:
        output = self.folder / f"{run.name}_features" / split
        if not output.exists():
            ra_hmd("extract", "--checkpoint", run, "--data", self._memes / "a", "--split", split, "--limit", str(LIMIT),
                   "--workers", "0", "--output", output)  # fmt: skip
        return output

    @cached_property
    def refined(self) -> Path:
        """The head after Stage 2."""
        (self.folder / "stage2.yaml").write_text(STAGE2)
        stores = [f"{split}={self._store(self.run, split)}" for split in ("train", "dev")]
        ra_hmd("stage2", self.folder / "stage2.yaml", *stores, f"init_head={self.run}",
               f"output_dir={self.folder / 'stage2'}")  # fmt: skip
        return self.folder / "stage2"

    @cached_property
    def evaluated(self) -> list[dict[str, Any]]:
        """Scores of the test memes, by `ra-hmd evaluate`."""
        ra_hmd("evaluate", "--checkpoint", self.refined, "--bank", self._store(self.run, "train"),
               "--queries", self._store(self.run, "test"), "--output", self.folder / "evaluation",
               "--bootstrap-samples", "100", "--final")  # fmt: skip
        return rows_of(self.folder / "evaluation" / "predictions.jsonl")

    @cached_property
    def memes(self) -> list[Meme]:
        """The test memes."""
        return read_memes(self._memes / "a" / "test.jsonl")[:LIMIT]

    @cached_property
    def _input(self) -> Path:
        rows = [{"id": meme.id, "image": str(meme.image), "text": meme.text} for meme in self.memes]
        write_jsonl(self.folder / "memes.jsonl", rows)
        return self.folder / "memes.jsonl"

    @cached_property
    def predicted(self) -> list[dict[str, Any]]:
        """Scores of the test memes, by `ra-hmd predict` from their images and captions."""
        ra_hmd("predict", "--checkpoint", self.refined, "--bank", self._store(self.run, "train"),
               "--input", self._input, "--output", self.folder / "verdicts.jsonl")  # fmt: skip
        return rows_of(self.folder / "verdicts.jsonl")

    @cached_property
    def explained(self) -> list[dict[str, Any]]:
        """Rationales of the test memes, by `ra-hmd explain`."""
        ra_hmd("explain", "--checkpoint", self.refined, "--input", self._input, "--max-new-tokens", str(WORDS),
               "--output", self.folder / "rationales.jsonl")  # fmt: skip
        return rows_of(self.folder / "rationales.jsonl")

    def model(self, run: Path, padding_side: Any = "left") -> MemeModel:
        """A run, loaded."""
        return MemeModel(open_run(run), torch.device("cpu"), padding_side=padding_side)


@contextmanager
def recorded_generation(model: MemeModel) -> Iterator[list[list[int]]]:
    """Token ids of each answer that is generated in the meantime, up to its end-of-turn token."""
    base, answers = base_model(model.model), []
    generate, stop = base.generate, model.encoder.template.get_stop_token_ids(model.encoder.tokenizer)

    def recording(**inputs: Any) -> torch.Tensor:
        found = generate(**inputs)
        for row in found[:, inputs["input_ids"].shape[1] :].tolist():
            end = next((place + 1 for place, token in enumerate(row) if token in stop), len(row))
            answers.append(row[:end])
        return found

    base.generate = recording
    try:
        yield answers
    finally:
        del base.generate


def likeliest_tokens(model: MemeModel, prompt: list[int], images: list[Image], answer: list[int]) -> list[int]:
    """The likeliest token at each place of an answer, from one forward pass over prompt and answer without a cache."""
    ids = [*prompt, *answer]
    batch = model.collate([prompt_row(ids, images, UNKNOWN_CLUSTER)])
    del batch["answer_positions"]
    with torch.inference_mode():
        logits = base_model(model.model)(**batch, use_cache=False).logits
    return logits[0, len(prompt) - 1 : -1].argmax(dim=-1).tolist()


def rows_of(path: Path) -> list[dict[str, Any]]:
    """Rows of a JSONL file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def largest_difference(one: Path, other: Path, *names: str) -> float:
    """Largest difference of two folders' weights."""
    found = 0.0
    for name in names:
        left, right = load_file(one / name), load_file(other / name)
        assert left.keys() == right.keys()
        found = max(found, *(float((left[key].float() - right[key].float()).abs().max()) for key in left))
    return found
