"""Write `data/dataset_info.json`, and `configs/stage1/`: every model × data set × {LoRA, QLoRA}, each with its matched
plain-SFT baseline; beside these `EXTRAS`, tasks of several classes and the combined ablation, for one model each.

    python scripts/make_configs.py           # write the files
    python scripts/make_configs.py --check   # change nothing; exit code 1 if the files on disk differ

The hyper-parameters are facts of the official RA-HMD files (`my_configs/memes/*/qwen2vl-*_qlora_classifier.yaml`).
They stand in two small tables, `MODELS` and `DATASETS`, and once each in the sections below, so that no two of the
files can drift apart: an `_sft` file and its classifier differ in `stage`, in the head's keys and in the metric that
chooses the checkpoint, and in nothing else.
"""

import argparse
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ra_hmd.core.artifacts import write_json
from ra_hmd.data.catalogue import dataset_info
from ra_hmd.data.readers import READERS
from ra_hmd.data.readers.tasks import Task

ROOT = Path(__file__).resolve().parents[1]
OUTPUT = ROOT / "configs" / "stage1"
GLOBAL_BATCH = 16
GPUS = 8


@dataclass(frozen=True)
class Model:
    """A backbone.

    Attributes:
        folder: Name of its folder under `configs/stage1` and under `saves`.
        title: Name for people.
        hub: `model_name_or_path`.
        template: LLaMA-Factory template whose last prompt token the head reads.
        billions: Published parameter count, for the size of the weights.
        image: What becomes of an image, for the comment beside `image_max_pixels`.
        small: Whether it takes the official 2B file's batch split.
        liger: Whether LLaMA-Factory 0.9.5 has a Liger patch for this model type.
        attention: Value of `flash_attn`.
        official: Whether the official repository has files for it.
        access: What the hub asks for before it gives the weights.
        overrides: Further keys that change what the model sees of an image, and what they do.
        notes: What differs from the official files because of the model, and why.
    """

    folder: str
    title: str
    hub: str
    template: str
    billions: float
    image: str = "768 × 768"
    small: bool = False
    liger: bool = True
    attention: str = "fa2"
    official: bool = False
    access: str | None = None
    overrides: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Dataset:
    """A data set and what the official files set for it.

    Attributes:
        file: Stem of the YAML file, and the name of the data set's reader.
        name: Name in `data/dataset_info.json`; the dev split is `<name>_dev`.
        title: Name for people.
        epochs: `num_train_epochs`.
        num_layers: Linear layers of the head.
        dropout: Dropout of the head's blocks.
        batch: Per-device batch for the 7B class; accumulation makes it up to `GLOBAL_BATCH`.
        small_batch: The same for the 2B model.
    """

    file: str
    name: str
    title: str
    epochs: float = 3.0
    num_layers: int = 3
    dropout: tuple[float, ...] = (0.2, 0.4, 0.1)
    batch: int = GLOBAL_BATCH
    small_batch: int = GLOBAL_BATCH


MODELS = (
    Model("qwen2_vl_2b", "Qwen2-VL-2B", "Qwen/Qwen2-VL-2B-Instruct", "qwen2_vl", 2.2, small=True, official=True),
    Model("qwen2_vl_7b", "Qwen2-VL-7B", "Qwen/Qwen2-VL-7B-Instruct", "qwen2_vl", 8.3, official=True),
    Model("qwen2_5_vl_7b", "Qwen2.5-VL-7B", "Qwen/Qwen2.5-VL-7B-Instruct", "qwen2_vl", 8.3),
    Model(
        "qwen3_vl_8b",
        "Qwen3-VL-8B",
        "Qwen/Qwen3-VL-8B-Instruct",
        "qwen3_vl_nothink",
        8.8,
        liger=False,
        notes=(
            "`enable_liger_kernel: false`. LLaMA-Factory 0.9.5 has no Liger patch for Qwen3-VL.",
            "`template: qwen3_vl_nothink`. With `qwen3_vl` an empty thought comes before the answer.",
        ),
    ),
    Model(
        "qwen3_5_9b",
        "Qwen3.5-9B",
        "Qwen/Qwen3.5-9B",
        "qwen3_5_nothink",
        9.4,
        attention="sdpa",
        notes=(
            "`flash_attn: sdpa`. With `fa2` LLaMA-Factory 0.9.5 trains by a forward pass for packed sequences, which "
            "needs flash-linear-attention, and which extraction does not have.",
            "`template: qwen3_5_nothink`. With `qwen3_5` an empty thought comes before the answer.",
            "`lora_target: all` includes the projections of the linear-attention layers, three of every four.",
        ),
    ),
    Model(
        "llava_1_5_7b",
        "LLaVA-1.5-7B",
        "llava-hf/llava-1.5-7b-hf",
        "llava",
        7.06,
        image="768 × 768; of these the processor takes the middle square at 336 × 336: 576 tokens",
        notes=(
            "The model sees the middle square of an image, whatever `image_max_pixels` is: words at the ends of a long "
            "image are in the caption alone.",
            "`enable_liger_kernel: true` brings the fused loss alone: the host's patch leaves LLaVA's layers as they "
            "are.",
        ),
    ),
    Model(
        "internvl3_8b",
        "InternVL3-8B",
        "OpenGVLab/InternVL3-8B-hf",
        "intern_vl",
        7.9,
        image="768 × 768; the processor scales these to 448 × 448: 256 tokens",
        liger=False,
        overrides=(("crop_to_patches=true cutoff_len=4096", "up to 12 tiles and the whole image, 256 tokens each"),),
        notes=("`enable_liger_kernel: false`. LLaMA-Factory 0.9.5 has no Liger patch for InternVL.",),
    ),
    Model(
        "gemma3_4b",
        "Gemma-3-4B",
        "google/gemma-3-4b-it",
        "gemma3",
        4.3,
        image="768 × 768; the processor scales these to 896 × 896: 256 tokens",
        attention="sdpa",
        access="after its terms are accepted there",
        notes=(
            "`flash_attn: sdpa`. The tokens of an image attend to each other in both directions, and FlashAttention 2 "
            "leaves that out without a word.",
        ),
    ),
)
DATASETS = (
    Dataset("hateful_memes", "hatefulmemes", "Hateful Memes", num_layers=2, dropout=()),
    Dataset("harm_c", "harmc", "Harm-C"),
    Dataset("harm_p", "harmp", "Harm-P", epochs=6.0, batch=2, small_batch=8),
    Dataset("mami", "mami", "MAMI"),
    Dataset("multioff", "multioff", "MultiOFF", epochs=12.0),
    Dataset("pridemm", "pridemm", "PrideMM", epochs=4.0),
)


@dataclass(frozen=True)
class Recipe:
    """One file: a model, a data set, with or without 4-bit weights, RA-HMD Stage 1 or its plain-SFT baseline.

    Attributes:
        task: A task of several classes instead of the binary one.
        rgcl: Both stages in one, the combined ablation.
    """

    model: Model
    dataset: Dataset
    quantized: bool
    sft: bool
    task: Task | None = None
    rgcl: bool = False

    @property
    def variant(self) -> str:
        """`lora` or `qlora`, with `_sft` for the baseline and `_rgcl` for the combined ablation."""
        return ("qlora" if self.quantized else "lora") + ("_sft" if self.sft else "") + ("_rgcl" if self.rgcl else "")

    @property
    def stem(self) -> str:
        """Name of the file without its suffix."""
        return "_".join([self.dataset.file, *([self.task.name] if self.task else []), self.variant])

    @property
    def path(self) -> Path:
        """Path below `configs/stage1`."""
        return Path(self.model.folder) / f"{self.stem}.yaml"

    @property
    def data(self) -> str:
        """Name of the training data in `dataset_info.json`; the dev split is `<name>_dev`."""
        return f"{self.dataset.name}_{self.task.name}" if self.task else self.dataset.name

    @property
    def batch(self) -> int:
        """Per-device batch on one GPU."""
        return self.dataset.small_batch if self.model.small else self.dataset.batch

    def render(self) -> str:
        """The file's text."""
        sections = {
            "model": _model(self),
            "method": _method(self),
            "data": _data(self),
            "output": _output(self),
            "training": _training(self),
            "evaluation and choice of the checkpoint": _evaluation(self),
        }
        body = "\n".join(f"### {title}\n" + "".join(f"{line}\n" for line in lines) for title, lines in sections.items())
        return "".join(f"# {line}".rstrip() + "\n" for line in _header(self)) + "\n" + body


def recipes() -> Iterator[Recipe]:
    """Every recipe, in a fixed order."""
    for model in MODELS:
        for dataset in DATASETS:
            for quantized in (False, True):
                for sft in (False, True):
                    yield Recipe(model, dataset, quantized, sft)
    yield from EXTRAS


def _extra(folder: str, file: str, task: str | None = None, *, rgcl: bool = False) -> Recipe:
    model = next(model for model in MODELS if model.folder == folder)
    dataset = next(dataset for dataset in DATASETS if dataset.file == file)
    named = next((one for one in READERS[file].tasks if one.name == task), None)
    return Recipe(model, dataset, quantized=True, sft=False, task=named, rgcl=rgcl)


EXTRAS = (
    _extra("qwen2_5_vl_7b", "harm_c", "intensity"),
    _extra("qwen2_5_vl_7b", "mami", "kind"),
    _extra("qwen2_vl_7b", "hateful_memes", rgcl=True),
)


def render_all() -> dict[Path, str]:
    """Path below `configs/stage1` → text, for every file."""
    return {recipe.path: recipe.render() for recipe in recipes()}


def _header(recipe: Recipe) -> list[str]:
    file = f"configs/stage1/{recipe.path.as_posix()}"
    method = "plain SFT baseline" if recipe.sft else "RA-HMD Stage 1"
    if recipe.rgcl:
        method = "RA-HMD, both stages in one (combined ablation)"
    title = f"{recipe.dataset.title}, {recipe.task.name}" if recipe.task else recipe.dataset.title
    adapter = "LoRA over 4-bit weights (QLoRA)" if recipe.quantized else "LoRA"
    # Eight GPUs take the place of whatever accumulation one GPU needs.
    batch = f"per_device_train_batch_size={GLOBAL_BATCH // GPUS}"
    if recipe.batch < GLOBAL_BATCH:
        batch += " gradient_accumulation_steps=1"
    return [
        f"{recipe.model.title} · {title} · {adapter} · {method}",
        "Written by scripts/make_configs.py: change the recipe there, not here.",
        "",
        "Needs",
        f"  model   {recipe.model.hub}, from the Hugging Face hub{_access(recipe.model)} or a local folder",
        f"  data    `{recipe.data}` and `{recipe.data}_dev` of data/dataset_info.json",
        *_origin_of_data(recipe),
        f"  memory  {_weights(recipe)},",
        "          activations come on top; not measured here",
        "",
        "Launch, from the repository root with the environment activated; `ra-hmd doctor` checks the machine first.",
        "After an interruption the same command continues from the last checkpoint.",
        "  one GPU",
        f"    CUDA_VISIBLE_DEVICES=0 llamafactory-cli train {file}",
        f"  eight GPUs, the global batch still {GLOBAL_BATCH}",
        f"    FORCE_TORCHRUN=1 NPROC_PER_NODE={GPUS} llamafactory-cli train {file} \\",
        f"      {batch} deepspeed=configs/deepspeed/zero2.json",
        "",
        "Common overrides (key=value after the file name)",
        *_overrides(recipe),
        "",
        *textwrap.wrap(_origin(recipe), 112),
        *(line for text in _differences(recipe) for line in _bullet(text)),
    ]


def _access(model: Model) -> str:
    return f" ({model.access})" if model.access else ""


def _origin_of_data(recipe: Recipe) -> list[str]:
    if recipe.task is None:
        return ["          (data/README.md says where the files go)"]
    file = recipe.dataset.file
    lines = [f"          ra-hmd data to-sharegpt data/imported/{file} --task {recipe.task.name} --output data"]
    if file == "mami":
        lines.append(
            "          (sub-labels are in the official tables; import these with --val-fraction 0.1 for a dev split)"
        )
    return lines


def _bullet(text: str) -> list[str]:
    return textwrap.wrap(text, 112, initial_indent="  - ", subsequent_indent="    ", break_on_hyphens=False)


def _weights(recipe: Recipe) -> str:
    bf16 = f"{recipe.model.billions * 2:.0f} GB"
    if recipe.quantized:
        return f"4-bit weights are roughly a third of bf16's {bf16} (parameters × 2 bytes)"
    return f"bf16 weights are about {bf16} (parameters × 2 bytes)"


def _overrides(recipe: Recipe) -> list[str]:
    half = max(recipe.batch // 2, 1)
    pairs = {
        f"per_device_train_batch_size={half} \\": "",
        f"  gradient_accumulation_steps={GLOBAL_BATCH // half}": "less memory, the same global batch",
        **({"flash_attn=sdpa": "without the flash-attn package"} if recipe.model.attention == "fa2" else {}),
        **dict(recipe.model.overrides),
        "bf16=false fp16=true": "GPUs before Ampere",
        "model_name_or_path=FOLDER": "a local copy of the model",
        "report_to=wandb run_name=NAME": "or report_to=tensorboard; nothing is reported by default",
        "seed=43 output_dir=saves/NAME": "another run beside this one",
    }
    if not recipe.sft:
        if recipe.rgcl:
            pairs["'loss_ratio=[1.0,1.0,0.5]'"] = "half the weight of the retrieval-guided loss"
        else:
            pairs["'loss_ratio=[0.0,1.0]'"] = "the head's loss alone; [1.0,0.0] is the language model's"
    if recipe.task:
        pairs["class_weights=effective_number"] = "rare classes count more; `balanced` is more of it"
    width = max(38, *(len(key) + 2 for key in pairs))
    return [f"  {key:<{width}}{meaning}" for key, meaning in pairs.items()]


def _origin(recipe: Recipe) -> str:
    if recipe.sft:
        classifier = Recipe(recipe.model, recipe.dataset, recipe.quantized, sft=False).path.name
        return (
            f"This is {classifier} without the head: stock `stage: sft`, everything else the same, apart from "
            "`metric_for_best_model`, because stock SFT computes no classification metric while it trains. The "
            "official SFT files are another recipe than the official Stage 1 files, so comparing those two mixes "
            "recipe and method. Theirs, and what else differs here:"
        )
    if recipe.task:
        source = (
            "There is no official file for this model or this task; the hyper-parameters are the official ones of "
            "Qwen2-VL-7B on the binary task of this data set"
        )
    elif recipe.rgcl:
        source = (
            "There is no official file for this ablation, and the official code for it does not run. The "
            "hyper-parameters are those of the official Stage 1 file; `rgcl_reindex_every` is the paper's"
        )
    elif recipe.model.official:
        source = "The hyper-parameters of the official file for this model and data set"
    else:
        source = (
            "There is no official file for this model; the hyper-parameters are the official ones of Qwen2-VL-7B on "
            "this data set"
        )
    return (
        f"{source}{'' if recipe.quantized else ', which is QLoRA, without the 4-bit weights'}. What differs, and why:"
    )


def _differences(recipe: Recipe) -> list[str]:
    lines = []
    if recipe.sft:
        lines += [
            "Official SFT: learning rate 1e-5, `pure_bf16`, no 4-bit weights, no choice of the checkpoint on dev.",
            "Official SFT on Harm-C, MAMI, MultiOFF and PrideMM: LLaMA-Factory's default rank 8, here 128.",
            "Official SFT on MultiOFF and PrideMM: 3 epochs, here 12 and 4.",
        ]
    else:
        if recipe.quantized:
            lines.append(
                "`quantization_method: bnb`. LLaMA-Factory 0.9.5 does not know the official value `bitsandbytes`, and "
                "trains unquantised without a word."
            )
        lines += [
            "`classifier_lr` takes effect. The official code reads it, then trains the head at `learning_rate`; "
            "classifier_lr=4.0e-5 does the same.",
            "The checkpoint that is best on dev is kept; the official files leave that choice to the reader.",
        ]
    if recipe.rgcl:
        lines += [
            "Loss, similarity and the numbers of positives and negatives are those of the released Stage 2 script; the "
            "third weight in `loss_ratio` and no warm-up are our choice.",
            "The bank is renewed by optimizer steps; the official code counts micro-batches.",
            "In-batch negatives are those of one GPU's micro-batch: with a smaller one there are fewer, and the loss "
            "is another.",
        ]
    lines += [
        *recipe.model.notes,
        "`image_max_pixels` is the host's default, written out because extraction must use the same value.",
        "`dataloader_num_workers: 4` decodes images beside the GPU; `report_to: none` asks for no account.",
        "The output folder has no date in its name, and is continued, not overwritten.",
    ]
    return lines


def _model(recipe: Recipe) -> list[str]:
    quantization = ["quantization_bit: 4", "quantization_method: bnb"] if recipe.quantized else []
    return [
        f"model_name_or_path: {recipe.model.hub}",
        *quantization,
        f"image_max_pixels: 589824  # {recipe.model.image}",
        f"flash_attn: {recipe.model.attention}",
        f"enable_liger_kernel: {str(recipe.model.liger).lower()}",
    ]


def _method(recipe: Recipe) -> list[str]:
    head = []
    if not recipe.sft:
        ratio = (
            "[1.0, 1.0, 1.0]  # language model, head, retrieval"
            if recipe.rgcl
            else "[1.0, 1.0]  # language model, head"
        )
        head = [
            f"loss_ratio: {ratio}",
            "classifier_lr: 1.0e-4",
            f"num_layers: {recipe.dataset.num_layers}",
        ]
        if recipe.dataset.dropout:
            rates = ", ".join(map(str, recipe.dataset.dropout))
            head.append(f"dropout: [{rates}]  # as in the official files: the last value has no block to use it")
        head += _several_classes(recipe.task) if recipe.task else []
        head += _joint() if recipe.rgcl else []
    return [
        f"stage: {'sft' if recipe.sft else 'sft-classifier'}",
        "do_train: true",
        "finetuning_type: lora",
        "lora_target: all",
        "lora_rank: 128",
        "lora_alpha: 256",
        "lora_dropout: 0.05",
        *head,
    ]


def _several_classes(task: Task) -> list[str]:
    answers = task.classes if task.multi_label else task.answers
    return [
        f"problem_type: {'multi_label' if task.multi_label else 'single_label'}",
        f"output_dim: {len(task.classes)}",
        f"answers: [{', '.join(answers)}]  # in class order",
        f"prompt_template: '{task.prompt}'",
    ]


def _joint() -> list[str]:
    return [
        "rgcl: true",
        "rgcl_loss: contrastive",
        "rgcl_metrics: ip",
        "rgcl_reindex_every: 250  # optimizer steps",
        "rgcl_warmup: 0",
        "rgcl_hard_negatives: 1",
        "rgcl_pseudo_gold_positives: 1",
    ]


def _data(recipe: Recipe) -> list[str]:
    return [
        "dataset_dir: data",
        f"dataset: {recipe.data}",
        f"eval_dataset: {recipe.data}_dev",
        f"template: {recipe.model.template}",
        "cutoff_len: 1024",
        "overwrite_cache: true",
        "preprocessing_num_workers: 16",
        "dataloader_num_workers: 4",
    ]


def _output(recipe: Recipe) -> list[str]:
    return [
        f"output_dir: saves/{recipe.model.folder}/{recipe.stem}",
        "logging_steps: 10",
        "save_steps: 50",
        "save_total_limit: 2  # the best and the last",
        "plot_loss: true",
        "report_to: none",
    ]


def _training(recipe: Recipe) -> list[str]:
    return [
        "seed: 42",
        f"per_device_train_batch_size: {recipe.batch}",
        f"gradient_accumulation_steps: {GLOBAL_BATCH // recipe.batch}",
        "learning_rate: 4.0e-5",
        f"num_train_epochs: {recipe.dataset.epochs}",
        "lr_scheduler_type: cosine",
        "warmup_ratio: 0.1",
        "bf16: true",
        "ddp_timeout: 180000000",
    ]


def _evaluation(recipe: Recipe) -> list[str]:
    return [
        f"per_device_eval_batch_size: {recipe.batch}",
        "eval_strategy: steps",
        "eval_steps: 50",
        "load_best_model_at_end: true",
        f"metric_for_best_model: {'eval_loss' if recipe.sft else 'eval_lrc_auroc'}",
        f"greater_is_better: {str(not recipe.sft).lower()}",
    ]


def compare(folder: Path = OUTPUT) -> list[str]:
    """One sentence for each file below `folder` that is missing, differs, or has no recipe."""
    wanted = render_all()
    found = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
    problems = [f"{folder / path} is missing" for path in sorted(wanted.keys() - found)]
    problems += [f"{folder / path} has no recipe" for path in sorted(found - wanted.keys())]
    for path in sorted(wanted.keys() & found):
        if (folder / path).read_text(encoding="utf-8") != wanted[path]:
            problems.append(f"{folder / path} differs from its recipe")
    return problems


def main() -> int:
    """Write or check the files; the exit code is 1 when the folder does not end up as the recipes say."""
    parser = argparse.ArgumentParser(description="Write configs/stage1 and data/dataset_info.json.")
    parser.add_argument("--check", action="store_true", help="change nothing, tell what differs")
    if not parser.parse_args().check:
        for path, text in render_all().items():
            (OUTPUT / path).parent.mkdir(parents=True, exist_ok=True)
            (OUTPUT / path).write_text(text, encoding="utf-8")
        write_json(ROOT / "data" / "dataset_info.json", dataset_info())
    problems = compare()
    print("\n".join(problems) or f"{len(render_all())} files in {OUTPUT.relative_to(ROOT)} are as their recipes say")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
