"""A frozen image–text encoder of the CLIP family: features of images, and of captions, one vector each.

Shapes: B memes of a batch, R pieces of their captions (a long one may have several), I image features, T text features.
What transformers 5.6 gives, per `model_type`:

| family | pooled image | pooled text | projected |
|---|---|---|---|
| clip (also OpenCLIP), altclip | vision tower's pooler output | text tower's pooler output | both after a linear map |
| align | vision tower's pooler output | text tower's state of [CLS], without its pooler | text after a linear map |
| siglip, siglip2 | attention pooling | last token's state, after the tower's own linear map | the same |
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, cast

import torch
from PIL.Image import Image
from PIL.Image import new as new_image
from pydantic import Field
from safetensors import SafetensorError
from torch import Tensor

from ra_hmd.core.artifacts import fingerprint_model, sha256_bytes
from ra_hmd.core.choices import DType
from ra_hmd.core.config import Settings
from ra_hmd.core.errors import UserError, raise_all
from ra_hmd.data.images import to_rgb
from ra_hmd.data.meme import Meme
from ra_hmd.data.text import PlainText
from ra_hmd.models.clip_presets import PRESETS, Preset

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FAMILIES = ("clip", "altclip", "align", "siglip", "siglip2")
"""`model_type` of the models that are encoders."""

FeatureKind = Literal["pooled", "projected"]
LongText = Literal["truncate", "average"]

# SigLIP was trained on captions padded to the full length, with the padding attended to.
_FULL_LENGTH = ("siglip", "siglip2")
_LONGEST_SIDE_RATIO = 200  # as in Qwen-VL; an image's shorter side is scaled up, and a line would fill the memory
_TOKENIZER_FILES = (
    "tokenizer*.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "*.model",
)
_WEIGHT_FILES = ("model*.safetensors", "pytorch_model*.bin")
_HUB_FILES = ["*.json", "*.txt", "*.model", _WEIGHT_FILES[0]]


class EncoderSettings(Settings):
    """Settings that determine how a meme is encoded; a store's manifest has them as `encoder`."""

    TITLE: ClassVar[str] = "encoder"

    path: str = Field(description="Folder of a model, or its id on the Hugging Face hub.")
    revision: str | None = Field(default=None, description="Commit there; null for a folder.")
    features: FeatureKind = Field(
        default="pooled",
        description="`pooled`: output of each tower before the projection into the shared space (Hate-CLIPper, RGCL); "
        "`projected`: in the shared space, where images and captions are compared (zero-shot).",
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

    def to_dict(self) -> dict[str, Any]:
        """Return the values for the manifest."""
        return self.model_dump()


class _TwoTowers(Protocol):
    """Attributes of the families' models that `PreTrainedModel` does not declare; each has some of the scales."""

    device: torch.device
    dtype: torch.dtype
    vision_model: Callable[..., Any]
    text_model: Callable[..., Any]
    get_image_features: Callable[..., Any]
    get_text_features: Callable[..., Any]
    temperature: Tensor
    logit_scale: Tensor
    logit_bias: Tensor


class Encoder:
    """An opened encoder: turns memes into inputs at once, and into features after `load`.

    Args:
        settings: `path` may also be the name of a preset.

    Attributes:
        settings: With preset and revision resolved.
        family: `model_type`.
        limit: Most tokens of a caption, special tokens included.
        model: The transformers model, once loaded.
        parts: Into how many parts, each a call of a thread of its own, a batch is cut.

    Raises:
        UserError: nothing of that name, a model of another kind, or without tokenizer, image processor or weights.
    """

    def __init__(self, settings: EncoderSettings) -> None:
        from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer

        self._preset = None if Path(settings.path).is_dir() else PRESETS.get(settings.path)
        self.settings, self._folder = _locate(settings)
        name = self.settings.path
        try:
            self._config = AutoConfig.from_pretrained(self._folder)
        except (OSError, ValueError) as error:
            raise UserError(f"{name} is not an encoder: {error}\n{_known()}") from error
        self.family = self._config.model_type
        if self.family not in FAMILIES:
            raise UserError(
                f"{name} is a {self.family} model; encoders are of the families {', '.join(FAMILIES)}. {_known()}"
            )
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(self._folder)
            self.image_processor = AutoImageProcessor.from_pretrained(self._folder, backend="torchvision")
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"{name}: its tokenizer and image processor cannot be loaded: {error}") from error
        names = self.tokenizer.vocab_files_names.values()
        if not any((self._folder / file).is_file() for file in names):  # transformers makes an empty one, silently
            raise UserError(f"{name} has no tokenizer; put one of {', '.join(names)} of this model into the folder.")
        if not any(file for pattern in _WEIGHT_FILES for file in self._folder.glob(pattern)):
            # Before anything is written: a store's fingerprint has the weights.
            raise UserError(f"{name} has no weights; put {' or '.join(_WEIGHT_FILES)} of this model into the folder.")
        self._plain = PlainText(self.tokenizer)
        self._prefix, self._suffix = self._special_tokens()
        text = self._config.text_config
        # XLM-R counts positions from the padding's index on.
        positions = text.max_position_embeddings - (text.pad_token_id + 1 if self.family == "altclip" else 0)
        self.limit = min(self.tokenizer.model_max_length, positions)
        if self.family not in _FULL_LENGTH:
            self.tokenizer.padding_side = "right"  # CLIP counts positions from the left, padding included
        self._check_pixels()
        self.model: PreTrainedModel | None = None
        self.parts = 1

    def _special_tokens(self) -> tuple[list[int], list[int]]:
        """Special tokens that the tokenizer puts before and behind a caption."""
        bare, whole = self._token_ids(["a"])[0], self.tokenizer("a")["input_ids"]
        start = next(i for i in range(len(whole)) if whole[i : i + len(bare)] == bare)
        return whole[:start], whole[start + len(bare) :]

    def _check_pixels(self) -> None:
        """Raise `UserError` unless the image processor gives what the vision tower takes."""
        if self.family == "align":
            return  # convolutions take any size
        config = self._config.vision_config
        given = self.pixels(new_image("RGB", (32, 24)))["pixel_values"].shape[-1]
        taken = config.patch_size**2 * config.num_channels if self.family == "siglip2" else config.image_size
        if given != taken:
            raise UserError(
                f"{self.settings.path}: the image processor gives rows of {given} values and the model takes {taken}; "
                "put the processor of this model into the folder."
            )

    def load(self, device: torch.device) -> "Encoder":
        """Load the weights.

        Raises:
            UserError: they cannot be loaded, are not complete, or have other widths than the preset.
        """
        from transformers import AutoModel

        name = self.settings.path
        try:
            model, report = AutoModel.from_pretrained(self._folder, dtype=self.settings.dtype, output_loading_info=True)
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise UserError(f"{name}: its weights cannot be loaded: {error}") from error
        raise_all(sorted(report["missing_keys"]), f"{name} lacks weights that the model needs")
        self.model = model.to(device).eval().requires_grad_(False)
        if self._preset is not None:
            self._check_widths(self._preset)
        return self

    def _check_widths(self, preset: Preset) -> None:
        """Raise `UserError` unless features are as wide as the preset says."""
        blank = self.columns(self.collate([self.encode("", new_image("RGB", (32, 24)))]))
        found = tuple(column.shape[1] for column in blank.values())
        projected = self.settings.features == "projected"
        expected = (preset.projection_dim,) * 2 if projected else (preset.image_dim, preset.text_dim)
        if found != expected:
            raise UserError(
                f"{self.settings.path} at {self.settings.revision} gives {found[0]} image and {found[1]} text "
                f"features, {expected[0]} and {expected[1]} are expected; give another --revision."
            )

    def fingerprint(self) -> dict[str, Any]:
        """Fingerprint of everything but the meme that a feature depends on; equal fingerprints give equal features."""
        files = sorted({path for pattern in _TOKENIZER_FILES for path in self._folder.glob(pattern)})
        return {
            "model": fingerprint_model(self._folder),
            "adapter": None,  # stated, so that a head of a tuned LMM is refused
            "encoder.features": self.settings.features,
            "encoder.long_text": self.settings.long_text,
            "encoder.text_limit": self.limit,
            "encoder.tokenizer": sha256_bytes(*[path.read_bytes() for path in files]),
            "encoder.image_processor": self.image_processor.to_dict(),
            "dtype": self.settings.dtype,
        }

    # -- what happens in the loader's workers ---------------------------------------------------------------------

    def _token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, without special tokens: what looks like one is text."""
        return self.tokenizer(list(map(self._plain, texts)), add_special_tokens=False, verbose=False)["input_ids"]

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, special tokens included; more than `limit` do not fit."""
        special = len(self._prefix) + len(self._suffix)
        return [len(ids) + special for ids in self._token_ids(texts)]

    def pieces(self, text: str) -> list[list[int]]:
        """Token ids of a caption, special tokens included, in as many pieces as its features are the mean of."""
        ids = self._token_ids([text])[0]
        room = self.limit - len(self._prefix) - len(self._suffix)
        parts = [ids[start : start + room] for start in range(0, len(ids), room)] or [[]]
        kept = parts[:1] if self.settings.long_text == "truncate" else parts
        return [self._prefix + part + self._suffix for part in kept]

    def prepare(self, memes: Sequence[Meme]) -> None:
        """Nothing: an encoder needs to know no more than `encode` is given."""

    def encode(self, text: str, image: Image) -> dict[str, Any]:
        """A meme as an item for `collate`. Raises `UserError` for an image that is nearly a line."""
        return {"pieces": self.pieces(text), "image": self.pixels(image)}

    def pixels(self, image: Image) -> dict[str, Tensor]:
        """An image as the vision tower takes it, each tensor with a first dimension of 1."""
        short, long = sorted(image.size)
        if long > _LONGEST_SIDE_RATIO * short:
            raise UserError(
                f"its image has {image.width} x {image.height} pixels; one side may be {_LONGEST_SIDE_RATIO} times "
                "the other at most"
            )
        return dict(self.image_processor(images=to_rgb(image), return_tensors="pt"))

    def length(self, row: dict[str, Any]) -> int:
        """Tokens of a row of `encode`, of its longest piece."""
        return max(map(len, row["pieces"]))

    def collate(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Rows of `encode` as one batch on the CPU."""
        images = {name: torch.cat([row["image"][name] for row in rows]) for name in rows[0]["image"]}
        return {"image": images, "text": self.collate_text([row["pieces"] for row in rows])}

    def collate_text(self, captions: list[list[list[int]]]) -> dict[str, Tensor]:
        """Token ids of all R pieces of B captions, their mask, and `shares` [B, R]: how much each piece counts."""
        pieces = [piece for caption in captions for piece in caption]
        full = self.family in _FULL_LENGTH
        batch = self.tokenizer.pad(
            {"input_ids": pieces},
            padding="max_length" if full else "longest",
            max_length=self.limit if full else None,
            return_attention_mask=not full,
            return_tensors="pt",
            verbose=False,
        )
        special = len(self._prefix) + len(self._suffix)
        shares = torch.block_diag(*[_shares([len(piece) - special for piece in caption]) for caption in captions])
        return {**batch, "shares": shares}

    # -- and in the process that has the model ----------------------------------------------------------------------

    def columns(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """`image_features` [B, I] and `text_features` [B, T] of a batch, float32."""
        tokens = {name: value for name, value in batch["text"].items() if name != "shares"}
        images, pieces = self._in_parts([(self._image, batch["image"]), (self._text, tokens)])
        return {"image_features": images, "text_features": _averaged(pieces, batch["text"]["shares"])}

    @property
    def _towers(self) -> _TwoTowers:
        if self.model is None:
            raise RuntimeError("the encoder's weights are not loaded; call `load` first")
        return cast(_TwoTowers, self.model)

    def _in_parts(self, calls: list[tuple[Callable[..., Tensor], dict[str, Tensor]]]) -> list[Tensor]:
        """The result of each call, its rows in `parts` parts that run side by side."""
        split = [(call, _split(inputs, self.parts)) for call, inputs in calls]
        jobs = [(call, part) for call, parts in split for part in parts]
        with ThreadPoolExecutor(self.parts) if self.parts > 1 else nullcontext() as pool:
            results = (map if pool is None else pool.map)(lambda job: job[0](job[1]), jobs)
            return [torch.cat([next(results) for _ in parts]) for _, parts in split]

    @torch.inference_mode()
    def _image(self, inputs: dict[str, Tensor]) -> Tensor:
        # SigLIP 2 has no projection, and its tower calls the mask of an image by another name than its processor.
        whole = self.settings.features == "projected" or self.family == "siglip2"
        call = self._towers.get_image_features if whole else self._towers.vision_model
        return call(**self._to_model(inputs)).pooler_output.float()

    @torch.inference_mode()
    def _text(self, inputs: dict[str, Tensor]) -> Tensor:
        """[R, T]."""
        inputs = self._to_model(inputs)
        if self.settings.features == "projected":
            return self._towers.get_text_features(**inputs).pooler_output.float()
        output = self._towers.text_model(**inputs)
        return (output.last_hidden_state[:, 0] if self.family == "align" else output.pooler_output).float()

    def _to_model(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Inputs on the model's device, numbers that are not counts in its dtype."""
        device, dtype = self._towers.device, self._towers.dtype
        return {name: value.to(device, dtype if value.is_floating_point() else None) for name, value in inputs.items()}

    def text_features(self, texts: Sequence[str], batch_size: int = 64) -> Tensor:
        """[N, T] features of texts without images: the prompts of zero-shot classification."""
        found = []
        for start in range(0, len(texts), batch_size):
            tokens = self.collate_text([self.pieces(text) for text in texts[start : start + batch_size]])
            shares = tokens.pop("shares")
            found.append(_averaged(self._text(tokens), shares))
        return torch.cat(found)

    @property
    def similarity_scale(self) -> tuple[float, float]:
        """Factor and offset that make the model's logit of a cosine in the shared space."""
        if self.family == "align":
            return 1 / self._towers.temperature.item(), 0.0
        offset = self._towers.logit_bias.item() if self.family in _FULL_LENGTH else 0.0
        return self._towers.logit_scale.exp().item(), offset


def _shares(tokens: list[int]) -> Tensor:
    """[1, R] share of each of R pieces in a caption, from their numbers of tokens; of one piece exactly 1."""
    counts = torch.tensor([tokens if len(tokens) > 1 else [1]], dtype=torch.float32)
    return counts / counts.sum()


def _averaged(pieces: Tensor, shares: Tensor) -> Tensor:
    """[B, T] from the features [R, T] of pieces; a caption of one piece keeps its own to the bit."""
    return pieces if len(pieces) == len(shares) else shares.to(pieces.device) @ pieces


def _split(inputs: dict[str, Tensor], parts: int) -> list[dict[str, Tensor]]:
    """The rows of a batch in `parts` batches, or as many as there are rows."""
    rows = len(next(iter(inputs.values())))
    split = {name: value.tensor_split(min(parts, rows)) for name, value in inputs.items()}
    return [dict(zip(split, part, strict=True)) for part in zip(*split.values(), strict=True)]


def _known() -> str:
    names = ", ".join(PRESETS)
    return f"Give a folder, a name on the Hugging Face hub, or one of the presets {names}."


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
    name = PRESETS[settings.path].hub if settings.path in PRESETS else settings.path
    try:
        folder = _download(name, settings.revision, _HUB_FILES)
        if not any(folder.glob("*.safetensors")):
            _download(name, settings.revision, [_WEIGHT_FILES[1]])
    except (OSError, ValueError) as error:
        raise UserError(f"{settings.path} is no folder and cannot be loaded: {error}\n{_known()}") from error
    return settings.replace(path=name, revision=folder.name), folder


def _download(name: str, revision: str | None, patterns: list[str]) -> Path:
    """The folder of a model of the hub at a commit, downloaded or as it was downloaded before."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except OSError as error:
        try:  # offline, a commit whose files are all there would not be taken otherwise
            return Path(snapshot_download(name, revision=revision, allow_patterns=patterns, local_files_only=True))
        except OSError:
            raise error from None
