"""Official RA-HMD checkpoints (an adapter and `classifier.bin`), converted once into a Stage 1 run.

Converted, not opened in place: their module names are those of transformers before 4.52, under which peft finds nothing
to adapt today; and every later step reads head and manifest from the run.
"""

import pickle
import re
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
from easydict import EasyDict
from safetensors.torch import save_file
from torch import Tensor

from ra_hmd.core.artifacts import (
    MANIFEST_NAME,
    fingerprint_model,
    new_folder,
    plain,
    sha256_file,
    write_json,
)
from ra_hmd.core.config import load_settings
from ra_hmd.core.errors import UserError, first_line, raise_all
from ra_hmd.core.manifests import Stage1Manifest, write_manifest
from ra_hmd.models.checkpoint import ADAPTER_CONFIG
from ra_hmd.models.families import FAMILIES
from ra_hmd.models.head import HeadConfig, save_head
from ra_hmd.models.official_adapter import ADAPTER_WEIGHTS, read_adapter, read_adapter_config, read_known
from ra_hmd.models.tokenization import InputSettings

CLASSIFIER = "classifier.bin"
CLASSIFIER_CONFIG = "classifier_config.json"
# The official code knows Qwen-VL models alone; `official_adapter` moves the names of their modules.
OFFICIAL_FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe")

_LAYER = re.compile(r"(?:mlp\.(?P<place>\d+)|output_layer)\.(?P<part>weight|bias)")


def import_official(
    folder: str | Path,
    output: str | Path,
    base_model: str | None = None,
    quantization_bit: Literal[4, 8] | None = None,
    command: str = "",
) -> Stage1Manifest:
    """Write an official checkpoint as a Stage 1 run.

    Nothing in `folder` is run: `classifier.bin` is read as tensors alone. Prompts are those of the official
    training, at up to 768 x 768 pixels; the official extraction reduces them to 448 x 448, which the head never saw.

    Args:
        folder: With `adapter_config.json`, `adapter_model.safetensors`, `classifier.bin`, and perhaps
            `classifier_config.json`.
        output: The run.
        base_model: Path or hub name of the LMM, if it is not where the adapter says.
        quantization_bit: Load the LMM in so many bits (NF4, double quantisation), as the released configurations
            train it. The files do not tell; None leaves it in the precision of its weights.
        command: The command line, for the manifest.

    Returns:
        The manifest. Its `official` holds `assumed`: sentences on what the files do not tell.

    Raises:
        UserError: files that are missing, unsafe, damaged, or do not fit one another or the LMM.
    """
    folder = Path(folder)
    _check_files(folder)
    if quantization_bit not in (None, 4, 8):
        raise UserError(f"quantization_bit is {quantization_bit}; give 4 or 8, or leave it out.")
    head, state = read_classifier(folder)
    stated = read_adapter_config(folder)
    path, config = _base_model(stated, folder, base_model)
    width = config.get_text_config().hidden_size
    if head.input_dim != width:
        raise UserError(
            f"{folder / CLASSIFIER} takes hidden states of {head.input_dim} values, and {path} gives {width}; "
            "give the LMM that it was trained on with --base-model."
        )
    lora, tensors = read_adapter(folder, stated, config, path)
    manifest = _manifest(
        folder, path, head, InputSettings(template=FAMILIES[config.model_type].templates[0]), quantization_bit, command
    )
    with new_folder(output) as run:
        save_head(run, head, state)
        save_file(tensors, run / ADAPTER_WEIGHTS, metadata={"format": "pt"})
        write_json(run / ADAPTER_CONFIG, lora | {"base_model_name_or_path": path})
        write_manifest(run / MANIFEST_NAME, manifest)
    return manifest


def read_classifier(folder: str | Path) -> tuple[HeadConfig, dict[str, Tensor]]:
    """The official head in `folder`: its shape, from the tensors, and its tensors under our names.

    Official `Classifier`: `mlp.<place>` are the linear layers of the blocks, at whatever place dropouts leave them, and
    `output_layer` is the logistic regression. Dropout rates are in `classifier_config.json`; without it they are 0.

    Raises:
        UserError: not a file of tensors alone, other tensors than these, widths that do not join.
    """
    path = Path(folder) / CLASSIFIER
    layers: dict[int | None, dict[str, Tensor]] = {}
    unknown = []
    for name, tensor in _load_tensors(path).items():
        match = _LAYER.fullmatch(name)
        if match is None:
            unknown.append(f"unknown tensor `{name}`; RA-HMD's are `mlp.<place>` and `output_layer`.")
        else:
            place = None if match["place"] is None else int(match["place"])
            layers.setdefault(place, {})[match["part"]] = tensor
    raise_all(unknown, f"{path} is no RA-HMD head")
    if None not in layers:
        raise UserError(f"{path} lacks `output_layer.weight` and `output_layer.bias`.")
    output = layers.pop(None)
    chain = [(f"mlp.{place}", layers[place]) for place in sorted(layers, key=lambda place: int(place or 0))] + [
        ("output_layer", output)
    ]
    raise_all(_chain_problems(chain), f"{path} is no RA-HMD head")
    shapes = [layer["weight"].shape for _, layer in chain]
    config = _head_config(Path(folder), shapes[0][1], len(chain), shapes[-1][1])
    names = [*(f"layers.{number}" for number in range(len(layers))), "output"]
    state = {f"{new}.{part}": layer[part] for new, (_, layer) in zip(names, chain, strict=True) for part in layer}
    return config, state


def _check_files(folder: Path) -> None:
    if not folder.is_dir():
        raise UserError(f"{folder} does not exist; give the folder of an official RA-HMD checkpoint.")
    missing = [name for name in (CLASSIFIER, ADAPTER_CONFIG, ADAPTER_WEIGHTS) if not (folder / name).is_file()]
    if missing:
        tuned = " Fully tuned models are not converted." if (folder / "config.json").is_file() else ""
        raise UserError(f"{folder} is no official RA-HMD checkpoint: {', '.join(missing)} is not there.{tuned}")


def _load_tensors(path: Path) -> dict[str, Tensor]:
    """Name → float tensor; nothing else is accepted."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read safely: it must be a torch file of tensors only ({first_line(error)})."
        ) from error
    if not isinstance(content, dict) or not content:
        raise UserError(f"{path} holds a {type(content).__name__}, or nothing; a state dict of tensors is needed.")
    problems = []
    for name, tensor in content.items():
        if not isinstance(tensor, Tensor) or tensor.layout is not torch.strided or not tensor.is_cpu:
            problems.append(f"`{name}` is a {type(tensor).__name__}, not an ordinary tensor.")
        elif not tensor.is_floating_point() or not torch.isfinite(tensor).all():
            problems.append(f"`{name}` ({tensor.dtype}) is not all finite floating-point numbers.")
    raise_all(problems, f"{path} does not hold weights")
    return {str(name): tensor for name, tensor in content.items()}


def _chain_problems(chain: list[tuple[str, dict[str, Tensor]]]) -> list[str]:
    """Reasons why the linear layers, in order, are not blocks of one width and a logistic regression."""
    problems = []
    for name, layer in chain:
        problems += [f"`{name}.{part}` is missing." for part in ("weight", "bias") if part not in layer]
        shapes = {part: tuple(tensor.shape) for part, tensor in layer.items()}
        if len(layer) == 2 and (len(shapes["weight"]) != 2 or shapes["bias"] != shapes["weight"][:1]):
            problems.append(f"`{name}` has weight {shapes['weight']} and bias {shapes['bias']}: no linear layer.")
    if problems:
        return problems
    for (name, layer), (after, following) in pairwise(chain):
        if len(layer["weight"]) != following["weight"].shape[1]:
            problems.append(f"`{name}` gives {len(layer['weight'])} values, `{after}` takes "
                            f"{following['weight'].shape[1]}.")  # fmt: skip
    if len(chain[-1][1]["weight"]) != 1:
        problems.append(f"`output_layer` gives {len(chain[-1][1]['weight'])} logits; RA-HMD's has one.")
    return problems


def _head_config(folder: Path, input_dim: int, num_layers: int, proj_dim: int) -> HeadConfig:
    """The head's shape, with the dropout rates of `classifier_config.json`, which must not say another shape."""
    path = folder / CLASSIFIER_CONFIG
    optional = ("dropout", "input_dropout")
    shape = {"hidden_size": input_dim, "num_layers": num_layers, "proj_dim": proj_dim, "output_dim": 1}
    stated = read_known(path, [*shape, *optional], optional) if path.is_file() else EasyDict.fromkeys(optional)
    differing = [
        f"`{name}` is {stated[name]!r}, by the tensors of {CLASSIFIER} it is {value}."
        for name, value in shape.items()
        if name in stated and stated[name] != value
    ]
    raise_all(differing, f"{path} is of another head")
    dropout = stated.dropout or ()
    values = {
        "input_dim": input_dim,
        "num_layers": num_layers,
        "proj_dim": proj_dim,
        "input_dropout": stated.input_dropout or 0.0,
        # The released files give one rate more than there are blocks.
        "dropout": dropout[: num_layers - 1] if isinstance(dropout, list) else dropout,
    }
    return load_settings(HeadConfig, values, path)


def _base_model(stated: EasyDict, folder: Path, given: str | None) -> tuple[str, Any]:
    """Path or hub name of the LMM, and its configuration."""
    from transformers import AutoConfig

    path = given or stated.base_model_name_or_path
    if not isinstance(path, str) or not path:
        raise UserError(f"{folder / ADAPTER_CONFIG} does not name the base model; give it with --base-model.")
    try:
        config = AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise UserError(
            f"The base model {path} cannot be opened ({first_line(error)}); say where it is with --base-model."
        ) from error
    if config.model_type not in OFFICIAL_FAMILIES:
        raise UserError(
            f"{path} is a {config.model_type} model; official checkpoints are of {', '.join(OFFICIAL_FAMILIES)}."
        )
    return (str(Path(path).resolve()) if Path(path).is_dir() else path), config


def _manifest(
    folder: Path, base_model: str, head: HeadConfig, settings: InputSettings, quantization_bit: int | None, command: str
) -> Stage1Manifest:
    loading: dict[str, Any] = {}
    if quantization_bit is not None:
        loading = {"quantization_bit": quantization_bit, "quantization_method": "bnb", "quantization_type": "nf4"}
        loading["double_quantization"] = True
    assumed = [
        f"The prompt, template {settings.template}, the last token of the last layer and images of at most "
        f"{settings.image_max_pixels} pixels are those of the official training's defaults."
    ]
    if quantization_bit is None:
        assumed.append(
            "The base model is not quantised; the released configurations train with 4 bits (--quantization-bit 4)."
        )
    if not (folder / CLASSIFIER_CONFIG).is_file():
        assumed.append(f"Without {CLASSIFIER_CONFIG} dropout is 0, which matters only where training goes on.")
    return Stage1Manifest.new(
        command=command,
        base_model={
            "path": base_model,
            "fingerprint": fingerprint_model(base_model),
            "loading": loading,
            "adapters": [],
        },
        finetuning_type="lora",
        inputs=plain(settings.to_dict()),
        head=plain(head.model_dump()),
        data={},
        arguments={"data": {"media_dir": None}},
        official={
            "folder": str(folder.resolve()),
            "classifier_sha256": sha256_file(folder / CLASSIFIER),
            "adapter_sha256": sha256_file(folder / ADAPTER_WEIGHTS),
            "assumed": assumed,
        },
    )
