"""Embeddings of memes by a head, and exhaustive search among them.

Shapes: N rows, Q queries, H hidden size, D embedding, C outputs, K neighbours.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ra_hmd.features.store import Features
from ra_hmd.models.head import MemeHead
from ra_hmd.retrieval.knn import Neighbours, search


def hidden_tensor(features: Features) -> Tensor:
    """The hidden states [N, H] as a float32 tensor on the CPU, without a copy where possible."""
    return torch.from_numpy(np.require(features.hidden, np.float32, ["C", "W"]))


def run_head(head: MemeHead, hidden: Tensor, batch_size: int = 4096) -> tuple[Tensor, Tensor]:
    """Embeddings [N, D] and logits [N, C] of hidden states [N, H], in evaluation mode, without gradient.

    Batches are moved to the head's device and results stay there; the head's mode is restored.
    """
    device = next(head.parameters()).device
    training = head.training
    head.eval()
    try:
        with torch.no_grad():
            parts = [head(batch.to(device)) for batch in hidden.split(batch_size)]
    finally:
        head.train(training)
    return torch.cat([part.embedding for part in parts]), torch.cat([part.logits for part in parts])


@dataclass(frozen=True)
class Embeddings:
    """Memes embedded by a head: N ids, labels [N] or [N, C], embeddings [N, D]. A bank in memory, or queries to one.

    `contents` are N hashes of image and caption (`content_hash`; empty where unknown), or none at all.
    """

    ids: Sequence[str]
    labels: np.ndarray
    embedding: np.ndarray
    contents: Sequence[str] = ()

    @classmethod
    def of(cls, features: Features, head: MemeHead) -> "Embeddings":
        """Embed features with a head."""
        embedding, _ = run_head(head, hidden_tensor(features))
        return cls(features.ids, features.labels, embedding.cpu().numpy(), features.contents or ())

    def __len__(self) -> int:
        return len(self.ids)

    def plus(self, other: "Embeddings") -> "Embeddings":
        """These rows followed by the other's."""
        return Embeddings(
            [*self.ids, *other.ids],
            np.concatenate([self.labels, other.labels]),
            np.concatenate([self.embedding, other.embedding]),
            [content for part in (self, other) for content in part.contents or [""] * len(part)],
        )

    def select(self, rows: np.ndarray) -> "Embeddings":
        """The given rows, in the given order."""
        contents = [self.contents[row] for row in rows] if self.contents else ()
        return Embeddings([self.ids[row] for row in rows], self.labels[rows], self.embedding[rows], contents)

    def nearest(self, queries: "Embeddings", k: int) -> Neighbours:
        """The K nearest of these rows to each query, by cosine; rows with the query's own id are left out."""
        return search(queries.embedding, self.embedding, k, query_ids=queries.ids, bank_ids=self.ids)
