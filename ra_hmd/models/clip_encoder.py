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
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch
from PIL.Image import Image
from PIL.Image import new as new_image
from safetensors import SafetensorError
from torch import Tensor

from ra_hmd.core.artifacts import fingerprint_model, sha256_bytes
from ra_hmd.core.errors import UserError, raise_all
from ra_hmd.data.images import to_rgb
from ra_hmd.data.meme import Meme
from ra_hmd.data.text import PlainText
from ra_hmd.models.clip_presets import PRESETS, Preset
from ra_hmd.models.encoder_files import (
    OF_EMBEDDERS,
    TOKENIZER_FILES,
    EncoderFiles,
    EncoderSettings,
    check_sides,
    known_encoders,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FAMILIES = ("clip", "altclip", "align", "siglip", "siglip2")
"""`model_type` of the models that are encoders."""

# SigLIP was trained on captions padded to the full length, with the padding attended to.
_FULL_LENGTH = ("siglip", "siglip2")


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
        files: The model's files, where they are found already.

    Attributes:
        settings: With preset and revision resolved.
        family: `model_type`.
        limit: Most tokens of a caption, special tokens included.
        model: The transformers model, once loaded.
        parts: Into how many parts, each a call of a thread of its own, a batch is cut.

    Raises:
        UserError: nothing of that name, a model of another kind, or without tokenizer, image processor or weights.
    """

    def __init__(self, settings: EncoderSettings, files: EncoderFiles | None = None) -> None:
        from transformers import AutoImageProcessor, AutoTokenizer

        self._files = EncoderFiles.find(settings) if files is None else files
        self._preset = PRESETS.get(self._files.preset or "")
        self.settings, self._folder, self._config = self._files.settings, self._files.folder, self._files.config
        name, self.family = self.settings.path, self._files.family
        if self.family not in FAMILIES:
            raise UserError(
                f"{name} is a {self.family} model; encoders are of the families {', '.join(FAMILIES)}. "
                f"{known_encoders()}"
            )
        raise_all(
            [f"`{option}` is {getattr(self.settings, option)!r}" for option in OF_EMBEDDERS
             if getattr(self.settings, option) is not None],
            f"{name} is a {self.family} encoder, and settings of LMM embedders are set; remove them",
        )  # fmt: skip
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(self._folder)
            self.image_processor = AutoImageProcessor.from_pretrained(self._folder, backend="torchvision")
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"{name}: its tokenizer and image processor cannot be loaded: {error}") from error
        names = self.tokenizer.vocab_files_names.values()
        if not any((self._folder / file).is_file() for file in names):  # transformers makes an empty one, silently
            raise UserError(f"{name} has no tokenizer; put one of {', '.join(names)} of this model into the folder.")
        self._files.check_weights()
        self._plain = PlainText(self.tokenizer, fold=self.settings.fold_captions)
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

    def __getstate__(self) -> dict[str, Any]:
        """Another process loads the weights itself."""
        return self.__dict__ | {"model": None}

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
        return {
            "model": fingerprint_model(self._folder),
            "adapter": None,  # stated, so that a head of a tuned LMM is refused
            "encoder.features": self.settings.features,
            "encoder.long_text": self.settings.long_text,
            "encoder.text_limit": self.limit,
            "encoder.tokenizer": sha256_bytes(*self._files.read(TOKENIZER_FILES)),
            "encoder.image_processor": self.image_processor.to_dict(),
            "dtype": self.settings.dtype,
            **({"encoder.fold_captions": True} if self.settings.fold_captions else {}),
        }

    # -- what happens in the loader's workers ---------------------------------------------------------------------

    def _token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, without special tokens: what looks like one is text."""
        return self.tokenizer(list(map(self._plain, texts)), add_special_tokens=False, verbose=False)["input_ids"]

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, special tokens included; more than `limit` do not fit."""
        special = len(self._prefix) + len(self._suffix)
        return [len(ids) + special for ids in self._token_ids(texts)]

    def expected_length(self, tokens: int, size: tuple[int, int]) -> float:
        """Tokens of a caption: an image costs the same whatever its size."""
        return tokens

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
        check_sides(image)
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
        return self.image_features(inputs)

    def image_features(self, inputs: dict[str, Tensor]) -> Tensor:
        """[B, I] features of the inputs of images, float32, with a gradient where these have one."""
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
