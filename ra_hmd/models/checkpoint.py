"""Opening what Stage 1 left: a LoRA run, a fully tuned run, a merged export, one of their checkpoints, or a bare LMM.

`llamafactory` is used to load them, so that a model is loaded, and its images are resized, as in training.
"""

import logging
import os
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from ra_hmd.core.artifacts import MANIFEST_NAME, fingerprint_model, read_json, sha256_file
from ra_hmd.core.choices import DType
from ra_hmd.core.config import load_settings
from ra_hmd.core.errors import UserError
from ra_hmd.core.manifests import Stage1Manifest, read_manifest
from ra_hmd.data.images import to_rgb
from ra_hmd.models.classifier import IGNORE, ClassifierOutput, ReadoutConfig, attach_head
from ra_hmd.models.families import family_of
from ra_hmd.models.head import HEAD_WEIGHTS, has_head, load_head, read_head_config
from ra_hmd.models.tokenization import InputSettings, MemeEncoder, check_family

if TYPE_CHECKING:
    from PIL.Image import Image
    from transformers import PreTrainedModel

ADAPTER_CONFIG = "adapter_config.json"
ADDITIVE = ("eva", "gaussian", "orthogonal")
"""PEFT's initialisations by name that leave the base model's weights as they are."""
# Inputs of the language model; others belong to images.
_SEQUENCES = ("input_ids", "attention_mask", "token_type_ids", "position_ids", "rope_deltas")


@dataclass(frozen=True)
class Run:
    """Location and settings of a trained (or bare) LMM.

    Attributes:
        folder: The run; its head is read from here.
        settings: How memes become tokens.
        base_model: Path or hub name of the LMM.
        base_adapters: Adapters that were merged into the LMM before training.
        adapter: Folder of the trained adapter, or None where the weights themselves were tuned.
        head: Folder of the head, or None for a bare LMM.
        loading: How LLaMA-Factory loaded the LMM: quantisation, revision, RoPE scaling; as in training.
        media_dir: Where training looked for images.
    """

    folder: Path
    settings: InputSettings
    base_model: str
    base_adapters: tuple[str, ...] = ()
    adapter: Path | None = None
    head: Path | None = None
    loading: dict[str, Any] = field(default_factory=dict)
    media_dir: str | None = None

    @property
    def quantized(self) -> bool:
        """Whether the LMM is loaded in 4 or 8 bits."""
        return self.loading.get("quantization_bit") is not None

    def fingerprint(self) -> dict[str, Any]:
        """Everything but the meme that a hidden state depends on; equal fingerprints give equal features."""
        adapter = None if self.adapter is None else sha256_file(self.adapter / "adapter_model.safetensors")
        return {
            "model": fingerprint_model(self.base_model),
            "base_adapters": [adapter_digest(path) for path in self.base_adapters],
            "adapter": adapter,
            "head": None if self.head is None else sha256_file(self.head / HEAD_WEIGHTS),
            **{f"loading.{name}": value for name, value in self.loading.items()},
            **{f"inputs.{name}": value for name, value in self.settings.to_dict().items()},
        }


def open_run(folder: str | Path, base_model: str | None = None) -> Run:
    """Open a Stage 1 run, one of its checkpoints, or its merged export.

    Args:
        folder: The folder, with `ra_hmd.json` and a head.
        base_model: Where the base model lies, if it is no longer where the manifest says.

    Raises:
        UserError: not such a folder, or the base model is gone or is another one than in training.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder} does not exist; give the output_dir of a Stage 1 run.")
    if not (folder / MANIFEST_NAME).is_file() or not has_head(folder):
        if (folder / "classifier.bin").is_file():
            raise UserError(
                f"{folder} is an official RA-HMD checkpoint; convert it once with `ra-hmd import-official {folder} "
                "--output RUN` and give RUN."
            )
        raise UserError(
            f"{folder} is not a Stage 1 run: {MANIFEST_NAME} and a head are needed. For a model without a head use "
            "--backbone-only."
        )
    manifest = read_manifest(folder / MANIFEST_NAME, Stage1Manifest)
    settings = load_settings(InputSettings, manifest.inputs or {}, folder / MANIFEST_NAME)
    media_dir = manifest.argument("data", "media_dir")
    if not (folder / ADAPTER_CONFIG).is_file():
        if not (folder / "config.json").is_file():
            raise UserError(f"{folder} holds a head, but neither an adapter nor a model; give the Stage 1 run.")
        return Run(folder, settings, base_model=str(folder), head=folder, media_dir=media_dir)
    check_adapter(folder)
    check_merged_adapters(manifest)
    return Run(
        folder,
        settings,
        base_model=_base_model(manifest, base_model),
        base_adapters=tuple(manifest.base_model.adapters),
        adapter=folder,
        head=folder,
        loading=dict(manifest.base_model.loading),
        media_dir=media_dir,
    )


def adapter_digest(path: str) -> str:
    """Fingerprint of an adapter's weights; a hub name is its own."""
    weights = Path(path) / "adapter_model.safetensors"
    return sha256_file(weights) if weights.is_file() else f"hub:{path}"


def _base_model(manifest: Stage1Manifest, given: str | None) -> str:
    recorded = manifest.base_model
    path = given or recorded.path
    if not Path(path).is_dir():
        if given is None and (path.startswith((".", "/", "~")) or not recorded.fingerprint.startswith("hub:")):
            raise UserError(f"The base model {path} is gone; say where it is with --base-model.")
        return path
    check_base_model(manifest, path)
    return path


def check_base_model(manifest: Stage1Manifest, path: str) -> None:
    """Raise `UserError` where the model at `path` is not the base model that a run's manifest states.

    A hub name and a folder cannot be compared.
    """
    recorded, found = manifest.base_model, fingerprint_model(path)
    if recorded.fingerprint.startswith("hub:") == found.startswith("hub:") and found != recorded.fingerprint:
        raise UserError(
            f"{path} is not the base model that this run was trained on, {recorded.path} (its fingerprint differs)."
        )


def check_merged_adapters(manifest: Stage1Manifest) -> None:
    """Raise `UserError` where adapters that were merged into a run's base model are no longer what they were."""
    adapters = manifest.base_model.adapters
    digests = manifest.base_model.adapter_digests or map(adapter_digest, adapters)  # older runs have none
    for adapter, digest in zip(adapters, digests, strict=True):
        check_adapter(adapter)
        if adapter_digest(adapter) != digest:
            raise UserError(f"{adapter} is gone or has changed since it was merged into the base model of this run.")


def check_adapter(place: str | Path) -> None:
    """Raise `UserError` for a LoRA adapter whose initialisation rewrote the weights of the base model below it.

    Loading it decomposes the base model again, PiSSA by random numbers, so neither training nor extraction would have
    the weights that it belongs to.
    """
    config = Path(place) / ADAPTER_CONFIG
    if not config.is_file():
        return
    kind = read_json(config).get("init_lora_weights")
    if isinstance(kind, str) and kind.lower() not in ADDITIVE:
        raise UserError(
            f"The adapter in {place} was initialised by {kind!r}, which rewrites the base model's weights; they are "
            "not saved with it, so its scores cannot be made again. Take an adapter that is a plain difference "
            f"(initialised by true or one of {', '.join(ADDITIVE)}; PEFT converts others while it saves them, by "
            "`path_initial_model_for_weight_conversion`)."
        )


def open_backbone(model: str, template: str | None = None, base_model: str | None = None) -> Run:
    """A bare LMM as a run without head: a model folder or hub name, or a Stage 1 run whose tuning is left aside."""
    from transformers import AutoConfig

    folder = Path(model)
    if (folder / ADAPTER_CONFIG).is_file() and (folder / MANIFEST_NAME).is_file():
        run = open_run(folder, base_model)
        return replace(run, adapter=None, head=None)
    try:
        model_type = AutoConfig.from_pretrained(model).model_type
    except OSError as error:
        raise UserError(f"{model} is neither a model folder nor a model name that can be loaded: {error}") from error
    if template is None:
        family = family_of(model_type)
        if family is None:
            raise UserError(f"No template is known for a {model_type} model; give one with --template.")
        template = family.templates[0]
    return Run(folder, InputSettings(template=template), base_model=model)


def load_encoder(base_model: str, settings: InputSettings, **arguments: Any) -> tuple[MemeEncoder, Any]:
    """The encoder of an LMM, without its weights, and LLaMA-Factory's `ModelArguments` to load these with.

    Args:
        base_model: Path or hub name of the LMM.
        settings: How memes become tokens.
        arguments: Further fields of `ModelArguments`.

    Raises:
        UserError: the template is not the model family's, or tokenizer and processor cannot be loaded.
    """
    os.environ.setdefault("LLAMAFACTORY_VERBOSITY", "WARN")
    from llamafactory.data import get_template_and_fix_tokenizer
    from llamafactory.hparams import DataArguments, ModelArguments
    from llamafactory.model import load_config, load_tokenizer

    _log_to_stderr()
    model_args = ModelArguments(
        model_name_or_path=base_model,
        image_max_pixels=settings.image_max_pixels,
        image_min_pixels=settings.image_min_pixels,
        **arguments,
    )
    data_args = DataArguments(
        template=settings.template, cutoff_len=settings.cutoff_len, default_system=settings.default_system
    )
    try:
        model_type = load_config(model_args).model_type
        check_family(model_type, settings.template)
        loaded = load_tokenizer(model_args)
    except UserError:
        raise
    except (OSError, ValueError) as error:
        raise UserError(f"{base_model}: its tokenizer and processor cannot be loaded: {error}") from error
    template = get_template_and_fix_tokenizer(loaded["tokenizer"], data_args)
    encoder = MemeEncoder(
        template,
        **loaded,
        prompt=settings.prompt,
        cutoff_len=settings.cutoff_len,
        answers=settings.expected_answers,
        family=family_of(model_type),
    )
    return encoder, model_args


def _log_to_stderr() -> None:
    """LLaMA-Factory logs to stdout, where `--json` has its answers."""
    for handler in logging.getLogger("llamafactory").handlers:
        if isinstance(handler, logging.StreamHandler) and handler.stream is sys.stdout:
            handler.setStream(sys.stderr)


class MemeModel:
    """A loaded run: encodes memes and runs them through the LMM and its head."""

    def __init__(
        self,
        run: Run,
        device: torch.device,
        dtype: DType = "auto",
        padding_side: Literal["left", "right"] = "left",
    ) -> None:
        self.run, self.device = run, device
        self.encoder, model_args = load_encoder(
            run.base_model,
            run.settings,
            adapter_name_or_path=",".join(run.base_adapters) or None,
            infer_dtype=dtype,
            **run.loading,
        )
        from llamafactory.data import SFTDataCollatorWith4DAttentionMask  # after its logger is configured

        model_args.device_map = {"": device}
        tokenizer = self.encoder.tokenizer
        tokenizer.padding_side = padding_side
        self.model = self._load_model(model_args, tokenizer)
        self._collator = SFTDataCollatorWith4DAttentionMask(
            template=self.encoder.template,
            model=self.model,
            label_pad_token_id=IGNORE,
            attn_implementation=getattr(self.model.config, "_attn_implementation", None),
            compute_dtype=model_args.compute_dtype,
            tokenizer=tokenizer,
            processor=self.encoder.processor,
        )

    def _load_model(self, model_args: Any, tokenizer: Any) -> "PreTrainedModel":
        from llamafactory.hparams import FinetuningArguments
        from llamafactory.model import load_model

        model = load_model(tokenizer, model_args, FinetuningArguments(), is_trainable=False)
        if self.run.adapter is not None:
            from peft import PeftModel

            # Not merged: in bfloat16 a merged adapter is rounded, and the head was trained on the unrounded one.
            model = PeftModel.from_pretrained(model, self.run.adapter)
        head = None
        if self.run.head is not None:
            head = load_head(self.run.head)
            width = model.config.get_text_config().hidden_size
            if read_head_config(self.run.head).input_dim != width:
                raise UserError(
                    f"The head in {self.run.head} does not fit {self.run.base_model} (hidden size {width})."
                )
        settings = self.run.settings
        answer_ids = tuple(self.encoder.answer_token_ids(settings.expected_answers))
        attach_head(model, head, ReadoutConfig(answer_ids, settings.embed_mode, settings.embed_layer))
        return model.to(self.device).eval() if not self.run.quantized else model.eval()

    def encode(self, text: str, image: "Image") -> dict[str, Any]:
        """A meme as a row for `collate`. Raises `UserError` when it does not fit the token budget."""
        image = to_rgb(image)
        ids = self.encoder.encode(text, image).ids
        return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": [IGNORE] * len(ids), "images": [image]}

    def length(self, row: dict[str, Any]) -> int:
        """Tokens of a row of `encode`."""
        return len(row["input_ids"])

    def collate(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Rows of `encode` as one batch on the CPU; the head reads each row's last prompt token."""
        batch = self._collator([dict(row) for row in rows])
        del batch["labels"]
        if len(rows) == 1 and not rows[0]["images"]:
            batch = _unmasked(batch)
        steps = torch.arange(batch["attention_mask"].shape[1])
        batch["answer_positions"] = (batch["attention_mask"] * steps).argmax(dim=1, keepdim=True)
        return batch

    @torch.inference_mode()
    def score(self, batch: dict[str, Tensor]) -> ClassifierOutput:
        """All heads of a batch, from one forward pass."""
        return self.model(**{name: value.to(self.device) for name, value in batch.items()})

    def columns(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Hidden states, answer probabilities and, with a head, its outputs for a batch of `collate`; each [B, …]."""
        output = self.score(batch)
        answers = output.answer_probs
        if answers is not None and self.run.settings.problem.kind == "binary":
            answers = answers[:, 1:]
        columns = {
            "hidden": output.hidden,
            "lmh_score": answers,
            "embedding": output.embedding,
            "lrc_logit": output.logits,
        }
        return {name: column for name, column in columns.items() if column is not None}


def _unmasked(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """A batch of one row without images, without the masked image that the host adds to it.

    In a batch of one row Qwen3.5's linear attention reads masked tokens too.
    """
    kept = batch["attention_mask"][0].bool()
    return {
        name: value[..., kept] if name != "rope_deltas" else value
        for name, value in batch.items()
        if name in _SEQUENCES
    }
