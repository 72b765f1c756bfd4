"""Data sets and configurations of the tasks of several classes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from class_tasks import SEVERAL, SEVERAL_PROMPT, SINGLE, SINGLE_PROMPT, read_jsonl, true_labels

from ra_hmd.core.artifacts import write_json
from ra_hmd.data.training_records import dataset_info_entry


@pytest.fixture(scope="session")
def class_memes(memes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`single`, `single_dev`, `several`, `several_dev` as LLaMA-Factory reads them, images by absolute paths."""
    folder = tmp_path_factory.mktemp("classes")
    attributes = {row["id"]: row for row in read_jsonl(memes / "a" / "attributes.jsonl")}
    files: dict[str, list[dict[str, Any]]] = {}
    for split, suffix in (("train", ""), ("dev", "_dev")):
        for row in read_jsonl(memes / "a" / f"{split}.jsonl"):
            single, several = true_labels(attributes[row["id"]])
            listed = ", ".join(SEVERAL[index] for index in several) or "none"
            for name, prompt, answer, label in (
                ("single", SINGLE_PROMPT, SINGLE[single], single),
                ("several", SEVERAL_PROMPT, listed, several),
            ):
                question = prompt.replace("{text}", row["text"])
                messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
                record = {"id": row["id"], "messages": messages, "images": [str(memes / "a" / row["img"])]}
                files.setdefault(name + suffix, []).append(record | {"label": label})
    for name, records in files.items():
        (folder / f"{name}.json").write_text(json.dumps(records))
    write_json(folder / "dataset_info.json", {name: dataset_info_entry(f"{name}.json") for name in files})
    return folder


@pytest.fixture(scope="session")
def class_config(stage1_config: Callable[..., dict[str, Any]], class_memes: Path) -> Callable[..., dict[str, Any]]:
    """A small configuration of the three-class task (`kind` single) or of the label sets (several)."""

    def make(output: Path, kind: str, **changes: Any) -> dict[str, Any]:
        single = kind == "single"
        return stage1_config(
            output,
            dataset=kind,
            eval_dataset=f"{kind}_dev",
            dataset_dir=str(class_memes),
            problem_type="single_label" if single else "multi_label",
            output_dim=3,
            answers=list(SINGLE if single else SEVERAL),
            prompt_template=SINGLE_PROMPT if single else SEVERAL_PROMPT,
            **changes,
        )

    return make
