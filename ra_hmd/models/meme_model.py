"""A loaded LMM of a run: memes become tokens as in training, and go through the model, its experts and its head.

`llamafactory` loads the model and resizes images, so that both are as in training.
"""

import logging
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor

from ra_hmd.core.choices import DType
from ra_hmd.core.errors import UserError
from ra_hmd.core.extras import check_extra
from ra_hmd.data.images import to_rgb
from ra_hmd.data.meme import Meme
from ra_hmd.models.checkpoint import Run
from ra_hmd.models.classifier import IGNORE, ClassifierOutput, ReadoutConfig, attach_head
from ra_hmd.models.cluster_assignment import UNKNOWN_CLUSTER
from ra_hmd.models.experts.attach import attach_experts, experts_of
from ra_hmd.models.experts.files import load_experts, read_expert_settings
from ra_hmd.models.families import family_of
from ra_hmd.models.head import load_head, read_head_config
from ra_hmd.models.tokenization import InputSettings, MemeEncoder, check_family
from ra_hmd.models.unlisted_family import check_unlisted

if TYPE_CHECKING:
    from peft import PeftModel
    from PIL.Image import Image
    from transformers import PreTrainedModel

# Inputs of the language model; others belong to images.
_SEQUENCES = ("input_ids", "attention_mask", "token_type_ids", "position_ids", "rope_deltas")


def check_lmm(base_model: str | Path, *, quantized: bool = False) -> None:
    """Raise `UserError` unless the packages that load an LMM are installed.

    Args:
        base_model: Path or hub name of the LMM, for the message.
        quantized: Whether it is loaded in few bits.
    """
    needed = ("llamafactory", "peft", "qwen_vl_utils", *(("bitsandbytes",) if quantized else ()))
    check_extra("lmm", f"The language model {base_model}", needed)


def load_encoder(base_model: str, settings: InputSettings, **arguments: Any) -> tuple[MemeEncoder, Any]:
    """The encoder of an LMM, without its weights, and LLaMA-Factory's `ModelArguments` to load these with.

    Args:
        base_model: Path or hub name of the LMM.
        settings: How memes become tokens.
        arguments: Further fields of `ModelArguments`.

    Raises:
        UserError: the extra `lmm` is not installed, the template is not the model family's, a model of an unlisted
            family fails `check_unlisted`, or tokenizer and processor cannot be loaded.
    """
    check_lmm(base_model, quantized=arguments.get("quantization_bit") is not None)
    os.environ.setdefault("LLAMAFACTORY_VERBOSITY", "WARN")
    from llamafactory.data import get_template_and_fix_tokenizer
    from llamafactory.data.template import TEMPLATES
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
        config = load_config(model_args)
        check_family(config, settings.template)
        loaded = load_tokenizer(model_args)
    except UserError:
        raise
    except (OSError, ValueError) as error:
        raise UserError(f"{base_model}: its tokenizer and processor cannot be loaded: {error}") from error
    shared = TEMPLATES.get(settings.template)
    system = None if shared is None else shared.default_system
    template = copy(get_template_and_fix_tokenizer(loaded["tokenizer"], data_args))
    if shared is not None:
        shared.default_system = system  # the host writes the run's into the template of all runs of this process
    encoder = MemeEncoder(
        template,
        **loaded,
        prompt=settings.prompt,
        cutoff_len=settings.cutoff_len,
        answers=settings.expected_answers,
        family=family_of(config),
        fold_captions=settings.fold_captions,
    )
    check_unlisted(encoder, config, settings.template, settings.expected_answers)
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
        self._assigner = None if run.clusters is None else run.clusters.load(device)
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
        if self.run.experts is not None:
            shape = read_expert_settings(self.run.experts)
            load_experts(attach_experts(model, shape, seed=0, trainable=False), self.run.experts)
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

    def prepare(self, memes: Sequence[Meme]) -> None:
        """Assign memes to their clusters by batches, so that `encode` need not; nothing to do without clusters."""
        if self._assigner is not None:
            self._assigner.prepare(memes)

    def cluster_of(self, text: str, image: "Image") -> int:
        """Cluster of a meme; -1 for an unknown one, and of a run without clusters."""
        return UNKNOWN_CLUSTER if self._assigner is None else self._assigner(text, image)

    def guidance_of(self, cluster: int) -> str:
        """Guidance that the prompts of a cluster have; "" without."""
        return "" if self.run.guidance is None else self.run.guidance.text_of(cluster)

    def encode(self, text: str, image: "Image") -> dict[str, Any]:
        """A meme as a row for `collate`. Raises `UserError` when it does not fit the token budget."""
        cluster = self.cluster_of(text, image)
        image = to_rgb(image)
        ids = self.encoder.encode(text, image, self.guidance_of(cluster)).ids
        return prompt_row(ids, [image], cluster)

    def length(self, row: dict[str, Any]) -> int:
        """Tokens of a row of `encode`."""
        return len(row["input_ids"])

    def collate(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Rows of `encode` as one batch on the CPU; the head reads each row's last prompt token."""
        rows = [dict(row) for row in rows]
        clusters = torch.tensor([row.pop("cluster") for row in rows])
        without_images = not any(row["images"] for row in rows)
        batch = self._collator(rows)  # takes the images out of the rows
        del batch["labels"]
        if len(rows) == 1 and without_images:
            batch = _unmasked(batch)
        if self.run.experts is not None:
            batch["cluster_ids"] = clusters
        steps = torch.arange(batch["attention_mask"].shape[1])
        batch["answer_positions"] = (batch["attention_mask"] * steps).argmax(dim=1, keepdim=True)
        return batch

    @torch.inference_mode()
    def score(self, batch: dict[str, Tensor]) -> ClassifierOutput:
        """All heads of a batch, from one forward pass."""
        return self.model(**{name: value.to(self.device) for name, value in batch.items()})

    @torch.inference_mode()
    def untuned(self, batch: dict[str, Tensor]) -> Tensor:
        """Hidden states [B, H] of the LMM without the run's adapter and experts, by a forward pass of its own."""
        with ExitStack() as stack:
            stack.enter_context(cast("PeftModel", self.model).disable_adapter())
            experts = experts_of(self.model)
            if experts is not None:
                stack.enter_context(experts.disabled())
            return self.model(**{name: value.to(self.device) for name, value in batch.items()}).hidden

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


def prompt_row(ids: list[int], images: list["Image"], cluster: int) -> dict[str, Any]:
    """A row for `MemeModel.collate` from the token ids of a prompt, its images and the cluster that it is routed by."""
    length = len(ids)
    row = {"input_ids": ids, "attention_mask": [1] * length, "labels": [IGNORE] * length, "images": images}
    return row | {"cluster": cluster}


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
