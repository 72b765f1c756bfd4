"""Embeddings of memes by a head, and exhaustive search among them.

Shapes: N rows, Q queries, H hidden size, D embedding, C outputs, K neighbours.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ra_hmd.core.errors import UserError
from ra_hmd.features.store import Features
from ra_hmd.models.head import MemeHead
from ra_hmd.retrieval.knn import Neighbours, search

EMBEDDING = "embedding"
"""Name of the view that the head makes."""


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

    `contents` are N hashes of image and caption (`content_hash`; empty where unknown), or none at all. `views` are
    further vectors of the same memes by name, float32 [N, D_v]: `hidden` and those of the feature store.
    """

    ids: Sequence[str]
    labels: np.ndarray
    embedding: np.ndarray
    contents: Sequence[str] = ()
    views: Mapping[str, np.ndarray] = field(default_factory=dict)

    @classmethod
    def of(cls, features: Features, head: MemeHead) -> "Embeddings":
        """Embed features with a head."""
        embedding, _ = run_head(head, hidden_tensor(features))
        return cls.with_features(features, embedding.cpu().numpy())

    @classmethod
    def with_features(cls, features: Features, embedding: np.ndarray) -> "Embeddings":
        """Features with their embeddings [N, D] by a head."""
        views = {"hidden": features.hidden, **features.views}
        return cls(features.ids, features.labels, embedding, features.contents or (), views)

    def __len__(self) -> int:
        return len(self.ids)

    def view(self, name: str) -> np.ndarray:
        """The vectors [N, D_v] of a view: `embedding`, or one of `views`.

        Raises:
            UserError: there is no such view.
        """
        if name == EMBEDDING:
            return self.embedding
        if name not in self.views:
            have = ", ".join(["embedding", *self.views])
            raise UserError(
                f"View {name!r} is not among those of these {len(self)} memes ({have}). Make their features again with "
                "`--views` of `ra-hmd extract` or `ra-hmd encode`; a bank keeps the views that `ra-hmd bank create "
                "--views` names."
            )
        return self.views[name]

    def plus(self, *others: "Embeddings") -> "Embeddings":
        """These rows followed by the others', with the views that all have."""
        parts = (self, *others)
        shared = [name for name in self.views if all(name in other.views for other in others)]
        return Embeddings(
            [name for part in parts for name in part.ids],
            np.concatenate([part.labels for part in parts]),
            np.concatenate([part.embedding for part in parts]),
            [content for part in parts for content in part.contents or [""] * len(part)],
            {name: np.concatenate([part.views[name] for part in parts]) for name in shared},
        )

    def select(self, rows: np.ndarray, views: Sequence[str] | None = None) -> "Embeddings":
        """The given rows, in the given order, with the named views; default: with all.

        Raises:
            UserError: there is no such view.
        """
        contents = [self.contents[row] for row in rows] if self.contents else ()
        names = self.views if views is None else [name for name in views if name != EMBEDDING]
        chosen = {name: self.view(name)[rows] for name in names}
        return Embeddings([self.ids[row] for row in rows], self.labels[rows], self.embedding[rows], contents, chosen)

    def nearest(self, queries: "Embeddings", k: int) -> Neighbours:
        """The K nearest of these rows to each query, by cosine; rows with the query's own id are left out."""
        return search(queries.embedding, self.embedding, k, query_ids=queries.ids, bank_ids=self.ids)
