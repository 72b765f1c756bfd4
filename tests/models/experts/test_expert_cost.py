"""What experts cost: the number of operations, and the benchmark of a training step."""

from argparse import Namespace
from typing import Any

import pytest
import torch
from expert_models import bench, small_model, with_experts
from torch.utils._python_dispatch import TorchDispatchMode


class Operations(TorchDispatchMode):
    """Counts the operations that run."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return operation(*args, **(kwargs or {}))


def operations(memes: int, tokens: int, **settings: object) -> int:
    """Operations of a training step without its optimizer."""
    model = small_model(dtype=torch.float32).train().requires_grad_(False)
    experts = with_experts(model, **{"num_clusters": 5, "dropout": 0.1, **settings})
    batch = torch.ones(memes, tokens, dtype=torch.long)
    with Operations() as counted:
        experts.routing.set(torch.arange(memes) % 5, batch)
        output = model(input_ids=batch).logits
        (output.sum() + experts.balance_loss("batch")).backward()
        experts.end_step(lambda total: total)
    return counted.count


@pytest.mark.parametrize("settings", [{}, {"universal": True}, {"top_k": 1}])
def test_no_loop_runs_over_experts_memes_or_tokens(settings: dict[str, object]) -> None:
    counts = {
        (number, memes, tokens): operations(memes, tokens, num_experts=number, **settings)
        for number, memes, tokens in ((2, 2, 3), (7, 2, 3), (2, 9, 3), (2, 2, 11))
    }
    assert len(set(counts.values())) == 1, counts


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
def test_step_benchmark(checkpointing: bool) -> None:
    sizes = {"hidden": 64, "width": 128, "layers": 2, "batch": 2, "tokens": 16}
    options = Namespace(**sizes, steps=2, experts=4, rank=2, universal=False, checkpointing=checkpointing, device="cpu")
    result = bench("experts_step").measure(options)
    assert set(result) == {"experts_seconds", "lora_seconds", "ratio", "ratio_of_fastest"}
    assert all(value > 0 for value in result.values())
