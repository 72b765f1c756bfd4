"""General instruction data beside memes: records without a class, which count in the language loss alone.

Shapes: B batch, C outputs of the head.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from llamafactory.data.parser import get_dataset_list
from torch import Tensor

from ra_hmd.core.errors import UserError, raise_all
from ra_hmd.core.problem import UNLABELLED
from ra_hmd.data.images import load_image
from ra_hmd.models.classifier import IGNORE
from ra_hmd.models.losses import Objective

if TYPE_CHECKING:
    from llamafactory.hparams import DataArguments

    from llamafactory_ext.arguments import ClassifierFinetuningArguments

GENERAL = "_general"
"""Column of aligned records: whether the record is of a data set without classes."""


def general_sources(data_args: "DataArguments", args: "ClassifierFinetuningArguments") -> list[dict[str, Any]]:
    """Attributes of the data sets that `general_dataset` names.

    Raises:
        UserError: data sets that are not trained on, or no memes beside them; general records would be evaluated.
    """
    names, trained = args.general_names, data_args.dataset or []
    if not names:
        return []
    problems = [
        f"{name} is not in `dataset: {','.join(trained)}`; add it there." for name in names if name not in trained
    ]
    problems += [f"{name} is in `eval_dataset` too, whose rows need a class; take it out."
                 for name in names if name in (data_args.eval_dataset or [])]  # fmt: skip
    if not set(trained) - set(names):
        problems.append("`dataset` names nothing else; memes with a class are needed too.")
    if data_args.val_size > 0:
        problems.append(f"`val_size: {data_args.val_size}` would put such rows into the dev split; use `eval_dataset`.")
    raise_all(problems, f"`general_dataset: {args.general_dataset}` does not fit")
    return [vars(attributes) for attributes in get_dataset_list(names, data_args.dataset_dir)]


def encode_general(
    example: dict[str, Any], template: Any, tokenizer: Any, processor: Any, cutoff_len: int
) -> dict[str, list[int]]:
    """Token ids and labels of a conversation; the loss counts on its last answer.

    Raises:
        ValueError: films, sound, a picture that cannot be read, or a conversation that does not fit `cutoff_len`.
    """
    if example["_videos"] or example["_audios"]:
        raise UserError("it has films or sound; a general record has text and pictures")
    messages = [dict(message) for message in (example["_prompt"] or []) + (example["_response"] or [])]
    if [message["role"] for message in messages] != ["user", "assistant"] * max(1, len(messages) // 2):
        raise UserError(f"it has {len(messages)} valid messages; user and assistant in turn are needed, assistant last")
    images = [load_image(path) for path in example["_images"] or []]
    plugin = template.mm_plugin
    expanded = plugin.process_messages(messages, images, [], [], processor)
    prefix, _ = plugin.process_token_ids([], [], images, [], [], tokenizer, processor)
    prompt, answer = template.encode_oneturn(tokenizer, expanded, example["_system"] or None, example["_tools"] or None)
    prompt, answer = prefix + prompt, answer + [tokenizer.eos_token_id] * template.efficient_eos
    if len(prompt) + len(answer) > cutoff_len:
        raise UserError(
            f"it has {len(prompt) + len(answer)} tokens and `cutoff_len` is {cutoff_len}: raise that, or leave it out"
        )
    return {"input_ids": prompt + answer, "labels": [IGNORE] * len(prompt) + answer}


def labelled(labels: Sequence[Any] | np.ndarray) -> np.ndarray:
    """Labels [N] or [N, C] without the rows that have no class."""
    found = np.asarray(labels)
    return found[(found.reshape(len(found), -1) != UNLABELLED).all(axis=1)]


def head_loss(
    objective: Objective, logits: Tensor, labels: Tensor, weights: Tensor | None, rows_per_meme: float
) -> Tensor:
    """Loss of the head [] over the rows that have a class, so scaled that its mean over batches is the mean over memes.

    A batch without a class has a loss of 0 with a gradient of 0. No element is read on the host.

    Args:
        objective: The loss.
        logits: [B, C].
        labels: [B] or [B, C]; `UNLABELLED` where there is no class.
        weights: Of the labels, [B] or [B, C].
        rows_per_meme: Rows of the training set for each one that has a class.
    """
    known = (labels.reshape(len(labels), -1) != UNLABELLED).all(dim=1).to(logits.dtype)
    rows = known if labels.ndim == 1 else known[:, None].expand_as(labels)
    counted = (rows if weights is None else rows * weights).clamp(min=torch.finfo(torch.float32).tiny)
    return objective(logits, labels.clamp(min=0), counted) * known.mean() * rows_per_meme
