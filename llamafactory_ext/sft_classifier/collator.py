"""Batches for the classifier: the host's collator, plus class labels and answer positions."""

from dataclasses import dataclass
from typing import Any

import torch
from llamafactory.data import SFTDataCollatorWith4DAttentionMask
from torch import Tensor

from ra_hmd.data.images import load_image
from ra_hmd.models.classifier import answer_spans


@dataclass
class ClassifierCollator(SFTDataCollatorWith4DAttentionMask):
    """Adds to the host's batch: class_labels [B] (multi-label: [B, C] of 0 and 1), sample_index [B], answer_positions
    [B, A], answer_labels [B, A].

    `labels` [B, T] is left out: the loss is computed at the answer positions alone. Needs `model`, for M-RoPE.
    """

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Collate rows as `records.load_records` makes them."""
        features = [dict(feature) for feature in features]
        extras = {key: [feature.pop(key) for feature in features] for key in ("class_label", "sample_index")}
        for feature in features:
            feature.pop("sample_id", None)
            # Opened here: the host would see other pixels of transparent, deep and turned images than we do later.
            feature["images"] = [load_image(path) for path in feature["images"]]
        batch = super().__call__(features)
        batch["answer_positions"], batch["answer_labels"] = answer_spans(batch.pop("labels"))
        batch["class_labels"] = torch.tensor(extras["class_label"])
        batch["sample_index"] = torch.tensor(extras["sample_index"])
        return batch
