"""A frozen LMM embedder: one vector for image and caption together, the last token's state after the final norm.

Shapes: B memes of a batch, T tokens, H hidden size, D kept values of the vector.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from PIL.Image import Image
from safetensors import SafetensorError
from torch import Tensor

from ra_hmd.core.artifacts import fingerprint_model, read_json, sha256_bytes
from ra_hmd.core.errors import UserError, raise_all
from ra_hmd.data.images import to_rgb
from ra_hmd.data.meme import Meme
from ra_hmd.data.text import PlainText
from ra_hmd.models.embedder_formats import DEFAULT_FORMATS, EMBEDDERS, FORMATS, EmbedderFormat, format_of_hub
from ra_hmd.models.encoder_files import TOKENIZER_FILES, EncoderFiles, EncoderSettings, check_sides
from ra_hmd.models.families import FAMILIES

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_POOLING = "1_Pooling/config.json"
_OF_TOKENS = ("input_ids", "attention_mask", "mm_token_type_ids")


class LmmEmbedder:
    """An opened LMM embedder: turns memes into inputs at once, and into vectors after `load`.

    Args:
        files: The model's files; `open_encoder` finds them.
        padding_side: Padding side of batches; vectors do not depend on it, up to rounding.

    Attributes:
        settings: With preset, revision, format and instruction resolved.
        family: `model_type`.
        limit: Most tokens of a caption.
        model: The transformers model, once loaded.

    Raises:
        UserError: a model that is no embedder of a known format, files that are missing, or settings that do not fit.
    """

    def __init__(self, files: EncoderFiles, padding_side: Literal["left", "right"] = "right") -> None:
        self._files, self.family, self.padding_side = files, files.family, padding_side
        self._format = _choose_format(files)
        self.settings = files.settings.replace(
            embedder=_name_of(self._format), instruction=files.settings.instruction or self._format.instruction
        )
        _check(files, self.settings)
        self.processor = _load_processor(files, self._format)
        self.tokenizer = self.processor.tokenizer
        self._plain = PlainText(
            self.tokenizer, [self.processor.image_token, self.processor.video_token], fold=self.settings.fold_captions
        )
        self.limit = self._room_for_caption()
        self.model: PreTrainedModel | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Another process loads the weights itself."""
        return self.__dict__ | {"model": None}

    def _room_for_caption(self) -> int:
        """Tokens that a caption may have beside the largest image. Raises `UserError` where there is no room."""
        prompt = self._prompt("")
        if prompt.count(self.processor.image_token) != 1:
            raise UserError(
                f"{self.settings.path}: its chat template puts {prompt.count(self.processor.image_token)} images into "
                "a message with one; put the template of this model into the folder."
            )
        text = self._files.config.get_text_config()
        longest = min(self._format.max_tokens, self.tokenizer.model_max_length, text.max_position_embeddings)
        images = self.processor.image_processor
        image = images.size["longest_edge"] // (images.patch_size * images.merge_size) ** 2
        room = longest - len(self.tokenizer(prompt)["input_ids"]) - image
        if room < 1:
            raise UserError(
                f"{self.settings.path} takes {longest} tokens, and an image may have {image} of them: no caption fits; "
                "lower --max-pixels."
            )
        return room

    def load(self, device: torch.device) -> "LmmEmbedder":
        """Load the weights, without a language-model head.

        Raises:
            UserError: they cannot be loaded, or are not complete.
        """
        from transformers import AutoModel

        name, folder = self.settings.path, self._files.folder
        try:
            model, report = AutoModel.from_pretrained(folder, dtype=self.settings.dtype, output_loading_info=True)
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise UserError(f"{name}: its weights cannot be loaded: {error}") from error
        raise_all(sorted(report["missing_keys"]), f"{name} lacks weights that the model needs")
        self.model = model.to(device).eval().requires_grad_(False)
        return self

    def fingerprint(self) -> dict[str, Any]:
        """Fingerprint of everything but the meme that a vector depends on; equal fingerprints give equal vectors."""
        return {
            "model": fingerprint_model(self._files.folder),
            "adapter": None,  # stated, so that a head of a tuned LMM is refused
            "encoder.features": self.settings.features,
            "encoder.long_text": self.settings.long_text,
            "encoder.text_limit": self.limit,
            "encoder.tokenizer": sha256_bytes(*self._files.read(TOKENIZER_FILES)),
            "encoder.prompt": self._prompt(""),
            "encoder.image_processor": self.processor.image_processor.to_dict(),
            "encoder.sequential": self._format.sequential,
            "encoder.dimensions": self.settings.dimensions,
            "dtype": self.settings.dtype,
            **({"encoder.fold_captions": True} if self.settings.fold_captions else {}),
        }

    # -- what happens in the loader's workers ---------------------------------------------------------------------

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each caption; more than `limit` do not fit."""
        return [len(ids) for ids in self._token_ids(texts)]

    def expected_length(self, tokens: int, size: tuple[int, int]) -> float:
        """About the tokens of a meme, from those of its caption and the width and height of its image."""
        images = self.processor.image_processor
        pixels = min(max(size[0] * size[1], images.size["shortest_edge"]), images.size["longest_edge"])
        return tokens + pixels / (images.patch_size * images.merge_size) ** 2

    def prepare(self, memes: Sequence[Meme]) -> None:
        """Nothing: an embedder needs to know no more than `encode` is given."""

    def encode(self, text: str, image: Image) -> dict[str, Any]:
        """A meme as an item for `collate`. Raises `UserError` for an image that is nearly a line."""
        check_sides(image)
        inputs = self.processor(text=[self._prompt(self._fitted(text))], images=[to_rgb(image)], return_tensors="pt")
        return dict(inputs)

    def length(self, row: dict[str, Any]) -> int:
        """Tokens of a row of `encode`."""
        return row["input_ids"].shape[1]

    def collate(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Rows of `encode` as one batch on the CPU; pixels of all images one after the other."""
        longest = max(map(self.length, rows))
        fill = {"input_ids": self.tokenizer.pad_token_id or 0}

        def padded(name: str, row: dict[str, Any]) -> Tensor:
            missing = longest - self.length(row)
            sides = (missing, 0) if self.padding_side == "left" else (0, missing)
            return F.pad(row[name], sides, value=fill.get(name, 0))

        return {
            name: torch.cat([padded(name, row) if name in _OF_TOKENS else row[name] for row in rows])
            for name in rows[0]
        }

    def _token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each caption; what looks like a special token is text."""
        return self.tokenizer(list(map(self._plain, texts)), add_special_tokens=False, verbose=False)["input_ids"]

    def _fitted(self, text: str) -> str:
        """A caption without control tokens, its end cut off beyond `limit`."""
        ids = self._token_ids([text])[0]
        if len(ids) <= self.limit:
            return self._plain(text)
        return self._plain(self.tokenizer.decode(ids[: self.limit]).rstrip("\ufffd"))  # half a character at the end

    def _prompt(self, text: str) -> str:
        """The model's own chat format of an image and a caption, with one placeholder for the image."""
        content = [{"type": "image"}, {"type": "text", "text": text}]
        system = [{"type": "text", "text": self.settings.instruction}]
        chat = [{"role": "system", "content": system}, {"role": "user", "content": content}]
        prompt = self.processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        return prompt + self._format.suffix

    # -- and in the process that has the model ----------------------------------------------------------------------

    @torch.inference_mode()
    def columns(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """`hidden` [B, D] of a batch, float32, each row of length 1."""
        if self.model is None:
            raise RuntimeError("the embedder's weights are not loaded; call `load` first")
        inputs = {name: value.to(self.model.device) for name, value in batch.items()}
        mask = inputs["attention_mask"]
        if self._format.sequential:
            inputs["position_ids"] = (mask.cumsum(dim=1) - 1).clamp(min=0).expand(3, *mask.shape)
        states = self.model(**inputs, use_cache=False).last_hidden_state
        last = (mask * torch.arange(mask.shape[1], device=mask.device)).argmax(dim=1)
        pooled = states[torch.arange(len(states), device=states.device), last].float()
        return {"hidden": F.normalize(pooled[:, : self.settings.dimensions], dim=1)}


def _name_of(chosen: EmbedderFormat) -> str:
    return next(name for name, known in FORMATS.items() if known is chosen)


def _choose_format(files: EncoderFiles) -> EmbedderFormat:
    """The format that is asked for, that of the published model, or that of the family.

    Raises:
        UserError: an unknown format, one of another family, or none that is known for the model.
    """
    settings = files.settings
    of_family = [name for name, known in FORMATS.items() if known.family == files.family]
    name = settings.embedder or format_of_hub(settings.path) or DEFAULT_FORMATS.get(files.family)
    if name is None:
        raise UserError(
            f"{settings.path} is a {files.family} model, and embedders of this family have inputs of several formats: "
            f"say which with --embedder ({', '.join(of_family)}). Other formats are not known here; the hidden states "
            "of any LMM come from `ra-hmd extract`."
        )
    if name not in of_family:
        raise UserError(
            f"--embedder {name!r} is no format of {files.family} models such as {settings.path}; give "
            f"{' or '.join(of_family)}."
        )
    return FORMATS[name]


def _check(files: EncoderFiles, settings: EncoderSettings) -> None:
    """Raise `UserError` where the model is no embedder of its format, or settings do not fit it; lists all problems."""
    config, folder = files.config, files.folder
    width = config.get_text_config().hidden_size
    problems = []
    if settings.features != "pooled":
        problems.append(f"--features {settings.features}: it has one pooled vector, of image and caption together")
    if settings.long_text != "truncate":
        problems.append(f"--long-text {settings.long_text}: captions are read whole, and cut beyond its limit")
    if settings.dimensions is not None and settings.dimensions > width:
        problems.append(f"--dimensions {settings.dimensions}: its vector has {width} values")
    preset = EMBEDDERS.get(files.preset or "")
    if preset is not None and preset.width != width:
        problems.append(f"its hidden size is {width}, {preset.width} is expected of {files.preset}")
    other = [name for name in config.architectures or [] if name != FAMILIES[files.family].model]
    if other and files.settings.embedder is None:
        problems.append(f"its architecture is {other[0]}, another model around the LMM, whose vector is another one")
    if (folder / "adapter_config.json").is_file():
        problems.append("an adapter lies beside its weights; merge it into them, or use `ra-hmd extract`")
    if (folder / _POOLING).is_file() and not _pools_last_token(read_json(folder / _POOLING)):
        problems.append(f"{_POOLING} does not pool the last token")
    raise_all(problems, f"{settings.path} cannot be opened as an LMM embedder of format {settings.embedder}")
    files.check_weights()


def _pools_last_token(stated: dict[str, Any]) -> bool:
    """Whether a pooling file of sentence-transformers, of its older or newer kind, says that the last token counts."""
    return stated.get("pooling_mode") == "lasttoken" or stated.get("pooling_mode_lasttoken") is True


def _load_processor(files: EncoderFiles, chosen: EmbedderFormat) -> Any:
    """The model's processor with the pixel limits. Raises `UserError` where it lacks a part."""
    from transformers import AutoProcessor

    name = files.settings.path
    try:
        processor: Any = AutoProcessor.from_pretrained(files.folder)
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{name}: its tokenizer and image processor cannot be loaded: {error}") from error
    names = processor.tokenizer.vocab_files_names.values()
    if not any((files.folder / file).is_file() for file in names):  # transformers makes an empty one, silently
        raise UserError(f"{name} has no tokenizer; put one of {', '.join(names)} of this model into the folder.")
    if not processor.chat_template:
        raise UserError(f"{name} has no chat template; put chat_template.jinja of this model into the folder.")
    largest = files.settings.max_pixels or chosen.max_pixels
    smallest = min(chosen.min_pixels, largest)
    processor.image_processor.size = {"shortest_edge": smallest, "longest_edge": largest}
    return processor
