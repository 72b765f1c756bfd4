"""Tensors that are made on the way lie where the data lie: run on fake CUDA tensors, which hold shape, dtype and device
and need no GPU. An operation on two devices raises.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoConfig, AutoModelForImageTextToText

from ra_hmd.core.problem import Problem
from ra_hmd.models.classifier import ReadoutConfig, attach_head
from ra_hmd.models.head import HeadConfig, MemeHead
from ra_hmd.models.losses import Objective, weights_of
from stage2.losses.settings import RetrievalLossSettings, retrieval_loss

CUDA = torch.device("cuda:0")


@pytest.fixture
def tiny_folder(family: str, tiny: Callable[[str], Path]) -> Path:
    """Folder of the tiny model of a family, written before tensors are fake."""
    return tiny(family)


@pytest.fixture
def on_cuda() -> Iterator[None]:
    with FakeTensorMode():
        yield


def test_mixed_devices_do_raise(on_cuda: None) -> None:
    with pytest.raises(RuntimeError, match="device"):
        torch.ones(2, device=CUDA) + torch.ones(2)


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
@pytest.mark.parametrize(
    "reader", [ReadoutConfig((5, 6)), ReadoutConfig((5, 6), "pool", "penultimate"), ReadoutConfig(())]
)
def test_forward_pass_in_bfloat16(
    reader: ReadoutConfig, tiny_folder: Path, on_cuda: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MemeHead, "to", lambda head, device: head)  # a fake module cannot be moved: it is made there
    with CUDA:
        model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(tiny_folder), dtype=torch.bfloat16)
        attach_head(model, MemeHead(HeadConfig(input_dim=64, proj_dim=8)), reader)
        inputs = {
            "input_ids": torch.full((2, 12), 20),
            "attention_mask": torch.ones(2, 12, dtype=torch.long),
            "position_ids": torch.arange(12).expand(3, 2, 12),
            "answer_positions": torch.tensor([[3, 4], [5, 6]]),
            "answer_labels": torch.tensor([[3, 4], [5, -100]]),
        }
    output = model(**inputs)
    assert {value.device for value in output.values()} == {CUDA}
    assert {output.logits.dtype, output.embedding.dtype, output.lm_loss.dtype} == {torch.float32}


@pytest.mark.parametrize("name", ["contrastive", "triplet", "naive"])
@pytest.mark.parametrize("metric", ["cos", "ip", "l2"])
def test_retrieval_losses(name: str, metric: str, on_cuda: None) -> None:
    loss = retrieval_loss(RetrievalLossSettings(loss=name, metric=metric))
    with CUDA:
        anchors, bank = torch.randn(4, 8), torch.randn(4, 2, 8)
        there = torch.ones(4, 2, dtype=torch.bool)
        labels, weights = torch.zeros(4, dtype=torch.long), torch.ones(4)
    assert loss(anchors, labels, bank, there, bank, there, weights=weights).device == CUDA


@pytest.mark.parametrize("kind", ["binary", "single_label", "multi_label"])
def test_objectives(kind: str, on_cuda: None) -> None:
    problem = Problem(kind, 1 if kind == "binary" else 3)
    with CUDA:
        logits = torch.randn(4, problem.outputs)
        labels = torch.zeros((4, 3) if kind == "multi_label" else 4, dtype=torch.long)
        weights = torch.ones((2, 3) if kind == "multi_label" else problem.classes)
    assert Objective(problem, 2.0)(logits, labels, weights_of(labels, weights)).device == CUDA
