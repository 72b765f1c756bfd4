"""The files of a new project: the YAML files of its steps, and the commands in their order (`ra-hmd init`)."""

import json
import re
import shlex
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from ra_hmd.core.artifacts import new_folder, write_text
from ra_hmd.core.config import Settings, read_yaml
from ra_hmd.core.errors import UserError
from ra_hmd.data.readers import READERS
from ra_hmd.experiments.pipeline import configs_folder
from ra_hmd.models.clip_presets import PRESETS
from ra_hmd.training.reporting import ReportTo

GENERIC, RECIPE = "generic", "hateful_memes"
STEPS = "steps.sh"
_STEPS_HEADER = (
    "#!/bin/sh",
    "# The steps of this project, from the folder where it was made. Run one after the other, and look at each.",
    "set -e",
    "",
)
_OWN_SPLITS = "Your splits may have other names than those below and in stage1.yaml: `ra-hmd data import` lists them."
_DEV = ("dev", "val", "validation")


def data_names() -> list[str]:
    """Data sets with a recipe, and `generic` for files of one's own."""
    return [*(path.stem for path in sorted(configs_folder("stage2").glob("*.yaml"))), GENERIC]


def model_names() -> list[str]:
    """LMMs with a recipe, and encoders."""
    return [*sorted(path.name for path in configs_folder("stage1").iterdir() if path.is_dir()), *PRESETS]


class ProjectSettings(Settings):
    """What a project is about."""

    TITLE: ClassVar[str] = "project"

    data: str = Field(description="Data set with a recipe (`ra-hmd data list`), or generic: files of your own.")
    source: Path = Field(description="Folder that it was unpacked to; of your own data also a file.")
    model: str = Field(description="LMM of configs/stage1, such as qwen2_vl_7b, or an encoder: clip-vit-l-14-336.")
    gpus: int = Field(ge=0, description="GPUs of this machine to train on; 0: none.")
    report_to: ReportTo | Literal["none"] = Field(
        description="Where curves are reported: none, tensorboard, wandb, mlflow or swanlab."
    )
    model_path: str | None = Field(None, description="Folder of the model's weights, if they are not to be downloaded.")
    four_bit: bool = Field(True, description="Train an LMM over 4-bit weights (QLoRA).")

    def _problems(self) -> Iterator[str]:
        if self.data not in data_names():
            yield f"--data {self.data!r} is not one of {', '.join(data_names())}."
        if self.model not in model_names():
            yield f"--model {self.model!r} is not one of {', '.join(model_names())}."

    @property
    def encoder(self) -> bool:
        """Whether an encoder takes the place of the LMM."""
        return self.model in PRESETS

    def splits(self) -> dict[str, str]:
        """`train`, `dev` and `test` to the name of the split."""
        if self.data == GENERIC:
            dev = next((name for name in _DEV if any(self.source.glob(f"{name}.*"))), "val")
            return {"train": "train", "dev": dev, "test": "test"}
        names = {name: split for split, (name, _) in READERS[self.data].sharegpt.items()}
        train = self.registered("train")
        dev = next(names[f"{train}_{one}"] for one in _DEV if f"{train}_{one}" in names)
        return {"train": "train", "dev": dev, "test": names[f"{train}_test"]}

    def registered(self, split: str) -> str:
        """Name of a split's training file in dataset_info.json."""
        if self.data == GENERIC:
            return GENERIC if split == "train" else f"{GENERIC}_{split}"
        return READERS[self.data].sharegpt[split][0]


def make_project(folder: str | Path, settings: ProjectSettings) -> list[str]:
    """Write the files of a project. Returns its commands, in order.

    Args:
        folder: A new or empty folder: with the project's files, and later with all that its commands make.
        settings: What it is about.

    Raises:
        UserError: the folder is not empty, the data is not there.
    """
    folder = Path(folder)
    if not settings.source.exists():
        raise UserError(f"{settings.source} does not exist; give the place of the data with --source.")
    commands = _commands(folder, settings)
    with new_folder(folder) as made:
        recipe = RECIPE if settings.data == GENERIC else settings.data
        if settings.encoder:
            _write_stage2(made, folder, configs_folder("rgcl") / f"{recipe}.yaml", settings)
        else:
            _write_stage1(made, folder, recipe, settings)
            _write_stage2(made, folder, configs_folder("stage2") / f"{recipe}.yaml", settings)
        serve = f"# ra-hmd serve {folder}/stage2 --config {folder}/serve.yaml\nbank: {folder}/bank\n"
        write_text(made / "serve.yaml", serve)
        write_text(made / STEPS, "\n".join([*_STEPS_HEADER, *_titled(commands, settings)]))
    return [command for group in commands.values() for command in group]


def _commands(folder: Path, settings: ProjectSettings) -> dict[str, list[str]]:
    """Step to its commands."""
    place, imported = shlex.quote(str(folder)), shlex.quote(f"{folder}/data/imported")
    source = shlex.quote(str(settings.source))
    weights = shlex.quote(settings.model_path or settings.model)
    made = f"ra-hmd encode --encoder {weights}" if settings.encoder else f"ra-hmd extract --checkpoint {place}/stage1"
    lmm = [] if settings.encoder else [f"ra-hmd data to-sharegpt {imported} --output {place}/data"]
    several = f"FORCE_TORCHRUN=1 NPROC_PER_NODE={settings.gpus} " if settings.gpus > 1 else ""
    train = {} if settings.encoder else {"2 train": [f"{several}llamafactory-cli train {place}/stage1.yaml"]}
    stores = {name: f"{place}/features/{name}" for name in ("train", "dev", "test")}
    return {
        "1 data": [
            f"ra-hmd data import {settings.data} {source} --output {imported}",
            f"ra-hmd data check {imported}",
            *lmm,
        ],
        **train,
        "3 extract": [
            f"{made} --data {imported} --split {split} --output {stores[name]}"
            for name, split in settings.splits().items()
        ],
        "4 refine": [f"ra-hmd stage2 {place}/stage2.yaml"],
        "5 evaluate": [
            f"ra-hmd evaluate --checkpoint {place}/stage2 --bank {stores['train']} --dev {stores['dev']} "
            f"--queries {stores['test']} --final --output {place}/report"
        ],
        "6 serve": [
            f"ra-hmd bank create {place}/bank --checkpoint {place}/stage2 --features {stores['train']} "
            "--reason 'training split'",
            f"ra-hmd serve {place}/stage2 --config {place}/serve.yaml",
        ],
    }


def _titled(commands: Mapping[str, list[str]], settings: ProjectSettings) -> Iterator[str]:
    for title, group in commands.items():
        yield f"# {title}"
        yield from (*group, "")
        if title == "1 data" and settings.data == GENERIC:
            yield f"# {_OWN_SPLITS}"


def _write_stage1(made: Path, folder: Path, recipe: str, settings: ProjectSettings) -> None:
    quantized = settings.four_bit and settings.gpus > 0
    source = configs_folder("stage1") / settings.model / f"{recipe}_{'qlora' if quantized else 'lora'}.yaml"
    shipped = read_yaml(source)
    total = int(shipped["per_device_train_batch_size"]) * int(shipped["gradient_accumulation_steps"])
    size = max(1, min(int(shipped["per_device_train_batch_size"]), total // max(settings.gpus, 1)))
    values: dict[str, Any] = {
        "model_name_or_path": settings.model_path or shipped["model_name_or_path"],
        "dataset_dir": f"{folder}/data",
        "dataset": settings.registered("train"),
        "eval_dataset": settings.registered(settings.splits()["dev"]),
        "output_dir": f"{folder}/stage1",
        "report_to": settings.report_to,
        "per_device_train_batch_size": size,
        "gradient_accumulation_steps": max(1, total // (size * max(settings.gpus, 1))),
    }
    if settings.gpus == 0:
        values |= {"bf16": False, "flash_attn": "disabled", "enable_liger_kernel": False}
    if settings.gpus > 1:
        shutil.copyfile(configs_folder("deepspeed") / "zero2.json", made / "zero2.json")
        values["deepspeed"] = f"{folder}/zero2.json"
    write_text(made / "stage1.yaml", _edited(source, values, f"llamafactory-cli train {folder}/stage1.yaml"))


def _write_stage2(made: Path, folder: Path, source: Path, settings: ProjectSettings) -> None:
    values: dict[str, Any] = {
        "train": f"{folder}/features/train",
        "dev": f"{folder}/features/dev",
        "output_dir": f"{folder}/stage2",
        "report_to": settings.report_to,
    }
    if not settings.encoder:
        values["init_head"] = f"{folder}/stage1"
    write_text(made / "stage2.yaml", _edited(source, values, f"ra-hmd stage2 {folder}/stage2.yaml"))


def _edited(source: Path, values: Mapping[str, Any], command: str) -> str:
    """A shipped YAML file with other values, its sections and their comments as they are, under a header of its own."""
    lines = source.read_text(encoding="utf-8").splitlines()
    first = next(number for number, line in enumerate(lines) if not re.match("# |#$", line))
    body = lines[first:]
    left = dict(values)
    edited = []
    for line in body:
        key = line.partition(":")[0]
        if re.fullmatch(r"\w+", key) and key in left:
            edited.append(f"{key}: {json.dumps(left.pop(key), ensure_ascii=False)}")
        else:
            edited.append(line)
    if left:
        further = (f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in left.items())
        edited += ["", "### this project", *further]
    recipe = "/".join(source.parts[source.parts.index("configs") :])
    header = [f"# {command}", f"# The recipe is that of {recipe}, whose header says what may be changed."]
    return "\n".join([*header, *([""] if body[0] else []), *edited]) + "\n"
