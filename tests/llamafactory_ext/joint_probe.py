"""Train with stock LLaMA-Factory and keep what joint training did: `python joint_probe.py CONFIG.yaml FOLDER`.

Each process writes `bank-RANK-STEP.pt` (bank, mined rows) at every re-index and `loss-RANK.pt` (inputs and value of the
first losses). Nothing is replaced: the methods run, and what they took and gave is saved.
"""

import os
import sys
from pathlib import Path
from typing import Any

import torch
import yaml
from llamafactory.train import tuner
from torch import Tensor

from llamafactory_ext.sft_classifier.rgcl import RetrievalGuidance


def main() -> None:
    """Run as said above."""
    config, folder = yaml.safe_load(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    rank = os.environ.get("RANK", "0")
    refresh, loss = RetrievalGuidance.refresh, RetrievalGuidance.loss
    losses: list[dict[str, Any]] = []

    def spied_refresh(self: RetrievalGuidance) -> None:
        before = torch.get_rng_state()
        refresh(self)
        assert torch.equal(torch.get_rng_state(), before)
        rows = {"bank": self.bank, "positives": self.positives, "hard_negatives": self.hard_negatives}
        torch.save(rows, folder / f"bank-{rank}-{self._trainer.state.global_step}.pt")

    def spied_loss(self: RetrievalGuidance, embedding: Tensor, labels: Tensor, index: Tensor, *rest: Any) -> Tensor:
        value = loss(self, embedding, labels, index, *rest)
        taken = {"embedding": embedding, "labels": labels, "index": index, "loss": value}
        taken |= {"step": torch.tensor(self._trainer.state.global_step)}
        losses.append({name: tensor.detach().clone() for name, tensor in taken.items()})
        torch.save(losses, folder / f"loss-{rank}.pt")
        return value

    RetrievalGuidance.refresh, RetrievalGuidance.loss = spied_refresh, spied_loss
    tuner.run_exp(config)


if __name__ == "__main__":
    main()
