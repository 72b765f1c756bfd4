"""Reading of a Stage 1 YAML file outside of training: its model, how memes become tokens, and how it is loaded."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ra_hmd.core.config import load_settings
from ra_hmd.core.errors import UserError
from ra_hmd.models.tokenization import InputSettings

LOADING = (
    "quantization_bit",
    "quantization_method",
    "quantization_type",
    "double_quantization",
    "model_revision",
    "rope_scaling",
    "use_fast_tokenizer",
    "image_do_pan_and_scan",
    "crop_to_patches",
)
"""Keys that decide how LLaMA-Factory loads a model. Not `trust_remote_code`: a file must not make anyone run code."""


@dataclass(frozen=True)
class Stage1Config:
    """What a Stage 1 YAML file says about model and inputs.

    Attributes:
        model: Its `model_name_or_path`.
        inputs: How memes become tokens. The file names clusters and guidance by their places; these are left out.
        loading: Its keys of `LOADING`.
        guidance: Its guidance file, if any.
    """

    model: str
    inputs: InputSettings
    loading: dict[str, Any]
    guidance: str | None


def read_stage1_config(config: str | Path) -> Stage1Config:
    """Read a Stage 1 YAML file.

    Raises:
        UserError: no such file, no YAML, or a file without model and template.
    """
    path = Path(config)
    if not path.is_file():
        raise UserError(f"--config {path} does not exist; give the YAML file of Stage 1.")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"--config {path} is not valid YAML: {error}") from error
    if not isinstance(values, dict) or not values.get("template") or not values.get("model_name_or_path"):
        raise UserError(f"--config {path} has no `model_name_or_path` and `template`; give a YAML file of Stage 1.")
    known = values.keys() & InputSettings.model_fields.keys() - {"clusters", "guidance"}
    return Stage1Config(
        values["model_name_or_path"],
        load_settings(InputSettings, {key: values[key] for key in known}, path),
        {key: values[key] for key in LOADING if values.get(key) is not None},
        values.get("guidance"),
    )
