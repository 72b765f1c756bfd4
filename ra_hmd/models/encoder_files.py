"""Settings of a frozen encoder, and its files: a folder, or a commit on the Hugging Face hub."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from ra_hmd.core.choices import DType
from ra_hmd.core.config import Settings
from ra_hmd.core.errors import UserError
from ra_hmd.core.hub import HUB_FILES, download
from ra_hmd.models.clip_presets import PRESETS
from ra_hmd.models.embedder_formats import EMBEDDERS, FORMATS

if TYPE_CHECKING:
    from PIL.Image import Image
    from transformers import PreTrainedConfig

FeatureKind = Literal["pooled", "projected"]
LongText = Literal["truncate", "average"]

OF_EMBEDDERS = ("embedder", "instruction", "max_pixels", "dimensions")
"""Settings of LMM embedders alone."""
WEIGHT_FILES = ("model*.safetensors", "pytorch_model*.bin")
TOKENIZER_FILES = (
    "tokenizer*.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "*.model",
)
_LONGEST_SIDE_RATIO = 200  # as in Qwen-VL


class EncoderSettings(Settings):
    """Settings that determine how a meme is encoded; a store's manifest has them as `encoder`."""

    TITLE: ClassVar[str] = "encoder"

    path: str = Field(description="Folder of a model, or its id on the Hugging Face hub.")
    revision: str | None = Field(default=None, description="Commit there; null for a folder.")
    features: FeatureKind = Field(
        default="pooled",
        description="`pooled`: output of each tower before the projection into the shared space (Hate-CLIPper, RGCL); "
        "`projected`: in the shared space, where images and captions are compared (zero-shot). An LMM embedder has one "
        "pooled vector.",
    )
    long_text: LongText = Field(
        default="truncate",
        description="Treatment of a caption with more tokens than the model takes. `truncate`: its end is cut off. "
        "`average`: it is cut into pieces, each with the special tokens; the caption's features are the mean of "
        "theirs, weighted by their tokens without the special ones.",
    )
    dtype: DType = Field(
        default="auto",
        description="Number format of the computation; `auto` is that of the weights. Features are stored in float32.",
    )
    embedder: str | None = Field(
        default=None,
        description=f"Of an LMM embedder, the format of its input: {', '.join(FORMATS)}; null: that of the model.",
    )
    instruction: str | None = Field(
        default=None, description="Of an LMM embedder, its system message; null: that of the format."
    )
    max_pixels: int | None = Field(
        default=None,
        ge=1,
        description="Of an LMM embedder, most pixels of an image, larger ones are scaled down; null: that of the "
        "format.",
    )
    dimensions: int | None = Field(
        default=None,
        ge=1,
        description="Of an LMM embedder, leading values of the vector that are kept (Matryoshka); null: all.",
    )
    fold_captions: bool = Field(
        default=False,
        description="Fold captions: one spelling for look-alikes, nothing invisible (docs/robustness.md).",
    )

    def to_dict(self) -> dict[str, Any]:
        """Return the values for the manifest, those of LMM embedders and `fold_captions` where they are set."""
        values = self.model_dump(exclude=None if self.fold_captions else {"fold_captions"})
        return {name: value for name, value in values.items() if value is not None or name not in OF_EMBEDDERS}


@dataclass(frozen=True)
class EncoderFiles:
    """Files of an encoder.

    Attributes:
        settings: With preset and revision resolved.
        folder: Folder of the files.
        preset: Name of the preset that was given; None for a folder or a hub name.
        config: The model's configuration.
    """

    settings: EncoderSettings
    folder: Path
    preset: str | None
    config: "PreTrainedConfig"

    @property
    def family(self) -> str:
        """`model_type` of the model."""
        return self.config.model_type

    @classmethod
    def find(cls, settings: EncoderSettings) -> "EncoderFiles":
        """Find the files of an encoder; a model on the hub is downloaded.

        Raises:
            UserError: neither a folder nor loadable, or files without a model.
        """
        from transformers import AutoConfig

        preset = None if Path(settings.path).is_dir() or settings.path not in _hub_names() else settings.path
        found, folder = _locate(settings)
        try:
            config = AutoConfig.from_pretrained(folder)
        except (OSError, ValueError) as error:
            raise UserError(f"{found.path} is not an encoder: {error}\n{known_encoders()}") from error
        return cls(found, folder, preset, config)

    def check_weights(self) -> None:
        """Raise `UserError` without weights, before anything is written: a store's fingerprint has them."""
        if not any(file for pattern in WEIGHT_FILES for file in self.folder.glob(pattern)):
            raise UserError(
                f"{self.settings.path} has no weights; put {' or '.join(WEIGHT_FILES)} of this model into the folder."
            )

    def read(self, patterns: tuple[str, ...]) -> list[bytes]:
        """Contents of the files of some patterns, in the order of their names."""
        return [path.read_bytes() for path in sorted({path for name in patterns for path in self.folder.glob(name)})]


def check_sides(image: "Image") -> None:
    """Raise `UserError` for an image that is nearly a line: scaled up to its shorter side, it would fill the memory."""
    short, long = sorted(image.size)
    if long > _LONGEST_SIDE_RATIO * short:
        raise UserError(
            f"its image has {image.width} x {image.height} pixels; one side may be {_LONGEST_SIDE_RATIO} times the "
            "other at most"
        )


def known_encoders() -> str:
    """Sentence on what an encoder may be, for messages."""
    return f"Give a folder, a name on the Hugging Face hub, or one of the presets {', '.join(_hub_names())}."


def _hub_names() -> dict[str, str]:
    """Preset to its id on the hub."""
    return {name: preset.hub for name, preset in PRESETS.items()} | {name: one.hub for name, one in EMBEDDERS.items()}


def _locate(settings: EncoderSettings) -> tuple[EncoderSettings, Path]:
    """The settings with preset and revision resolved, and the folder of the model's files.

    Raises:
        UserError: neither a folder nor loadable.
    """
    folder = Path(settings.path)
    if folder.is_dir():
        if settings.revision is not None:
            raise UserError(f"{folder} is a folder; --revision is for names on the hub.")
        return settings, folder
    name = _hub_names().get(settings.path, settings.path)
    try:
        folder = download(name, settings.revision, [*HUB_FILES, WEIGHT_FILES[0]])
        if not any(folder.glob("*.safetensors")):
            download(name, settings.revision, [WEIGHT_FILES[1]])
    except (OSError, ValueError) as error:
        raise UserError(f"{settings.path} is no folder and cannot be loaded: {error}\n{known_encoders()}") from error
    return settings.replace(path=name, revision=folder.name), folder
