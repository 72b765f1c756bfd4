"""What all layers with experts of a model share: the clusters of the batch, and the weights of the running MLP."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor

from ra_hmd.models.experts.balance import BalanceRecord


@dataclass
class _Batch:
    """The memes of a forward pass."""

    cluster_ids: Tensor | None
    size: int | None
    record: BalanceRecord | None


class Routing:
    """The clusters of the memes that run through a model, and the weights of the experts in the MLP that is running.

    Layers run one after the other, in the backward pass of gradient checkpointing too, so one place for the weights
    serves them all. It is no module, and a model that runs in two threads at once needs a lock, as for its cache.

    Args:
        num_layers: L, layers with experts.

    Attributes:
        enabled: Whether the experts take part; without them the base model runs.
    """

    def __init__(self, num_layers: int) -> None:
        self.num_layers, self.enabled = num_layers, True
        self._batch = _Batch(None, None, None)
        self._gates: Tensor | None = None

    def set(self, cluster_ids: Tensor | None, attention_mask: Tensor | None = None) -> None:
        """Say which memes run next.

        It stays in force until the next `set` or `clear`: gradient checkpointing runs the layers again in the backward
        pass.

        Args:
            cluster_ids: int64 [B], -1 where the cluster is unknown; None where all are.
            attention_mask: [B, T]; with it, `balance` describes how the memes were routed.

        Raises:
            ValueError: the mask does not have the shape [B, T].
        """
        if cluster_ids is not None and cluster_ids.ndim != 1:
            raise ValueError(f"cluster_ids have the shape {tuple(cluster_ids.shape)}; one id per meme is needed.")
        size = None if cluster_ids is None else len(cluster_ids)
        record = None
        if attention_mask is not None:
            if attention_mask.ndim != 2 or size not in (None, len(attention_mask)):
                raise ValueError(
                    f"The attention mask has the shape {tuple(attention_mask.shape)} for {size} cluster ids; [B, T] of "
                    "the same batch is needed."
                )
            size = len(attention_mask)
            valid = attention_mask.bool().float()
            weights = valid / valid.sum(dim=1, keepdim=True).clamp(min=1)
            record = BalanceRecord(weights[..., None], self.num_layers)
        self._batch = _Batch(cluster_ids, size, record)

    def clear(self) -> None:
        """Forget the memes: batches of any size run, of unknown clusters."""
        self._batch = _Batch(None, None, None)

    @contextmanager
    def using(self, cluster_ids: Tensor | None, repeated: int = 1) -> Iterator[None]:
        """Route as `set` says inside a `with`; what was in force before returns after it.

        Args:
            cluster_ids: int64 [B], or None.
            repeated: Rows that each meme becomes: beams, or sequences that are returned for it.
        """
        before = self._batch
        self.set(cluster_ids if cluster_ids is None else cluster_ids.repeat_interleave(repeated))
        try:
            yield
        finally:
            self._batch = before

    @property
    def balance(self) -> BalanceRecord:
        """How the memes of the last forward pass were routed.

        Raises:
            RuntimeError: `set` was not called with an attention mask.
        """
        if self._batch.record is None:
            raise RuntimeError("How the experts are used is not known: `Routing.set` needs the batch's attention mask.")
        return self._batch.record

    def cluster_ids(self, hidden: Tensor) -> Tensor | None:
        """The cluster ids of an MLP's input [B, T, H], on its device.

        Raises:
            ValueError: the input has another batch size than the memes that were set.
        """
        batch = self._batch
        if batch.size is not None and batch.size != len(hidden):
            raise ValueError(
                f"The routing was set for {batch.size} memes and {len(hidden)} rows run through the model; set it for "
                "this batch, or clear it."
            )
        if batch.cluster_ids is not None and batch.cluster_ids.device != hidden.device:
            batch.cluster_ids = batch.cluster_ids.to(hidden.device)
        return batch.cluster_ids

    def observe(self, layer: int, probabilities: Tensor) -> Tensor:
        """Note a layer's probabilities for the balance; return those to go on with."""
        record = self._batch.record
        return probabilities if record is None else record.observe(layer, probabilities)

    @property
    def gates(self) -> Tensor:
        """Weights [B, T, E] of the experts in the MLP that is running.

        Raises:
            RuntimeError: no MLP is running.
        """
        if self._gates is None:
            raise RuntimeError("A projection with experts was called outside the MLP whose router weighs them.")
        return self._gates

    @gates.setter
    def gates(self, gates: Tensor | None) -> None:
        self._gates = gates
