"""The forward pass: the same loss as the full computation, whatever the padding, and no more memory than it needs."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ra_hmd.data.images import load_image
from ra_hmd.data.meme_files import read_memes
from ra_hmd.models.checkpoint import open_backbone
from ra_hmd.models.classifier import IGNORE, ReadoutConfig, answer_spans, attach_head, head_of
from ra_hmd.models.families import FAMILIES
from ra_hmd.models.head import HeadConfig, MemeHead
from ra_hmd.models.meme_model import MemeModel

ANSWERS = ("No. It is not a hateful meme.", "Yes. It is a hateful meme.")


def labelled_batch(model: MemeModel, memes: Path, side: str) -> tuple[dict[str, Tensor], Tensor]:
    """A collated batch of prompts and answers, and its full `labels` [B, T]."""
    rows = []
    for index, meme in enumerate(read_memes(memes / "a" / "train.jsonl")[:4]):
        text = meme.text + " and a longer caption" * index
        row = model.encode(text, load_image(meme.image))
        target = model.encoder.encode_answer(ANSWERS[meme.label])
        row["labels"] = row["labels"] + target
        row["input_ids"] = row["input_ids"] + target
        row["attention_mask"] = [1] * len(row["input_ids"])
        rows.append(row)
    model.encoder.tokenizer.padding_side = side
    batch = model._collator(rows)
    return batch, batch.pop("labels")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("side", ["left", "right"])
def test_loss_and_gradient_equal_the_full_computation(
    tiny: Callable[[str], Path], memes: Path, family: str, side: str
) -> None:
    model = MemeModel(open_backbone(str(tiny(family))), torch.device("cpu"))
    batch, labels = labelled_batch(model, memes, side)
    lmm = model.model
    lmm.requires_grad_(True)
    full = lmm(**batch, labels=labels, use_cache=False)
    full.loss.backward()
    expected = lmm.lm_head.weight.grad.clone()
    lmm.zero_grad()
    positions, targets = answer_spans(labels)
    ours = lmm(**batch, answer_positions=positions, answer_labels=targets)
    ours.lm_loss.backward()
    assert ours.lm_loss.item() == pytest.approx(full.loss.item(), abs=1e-5)
    assert torch.allclose(lmm.lm_head.weight.grad, expected, atol=1e-5)
    assert ours.token_loss.shape == targets.shape
    words = full.logits.gather(1, positions[:, :1, None].expand(-1, -1, full.logits.shape[-1]))[:, 0]
    probabilities = words[:, list(lmm.ra_hmd_reader.answer_ids)].softmax(-1)
    assert torch.allclose(ours.answer_probs, probabilities, atol=1e-5)


@pytest.mark.parametrize("embed_mode", ["last_token", "pool"])
@pytest.mark.parametrize("embed_layer", ["last", "penultimate"])
def test_hidden_state_does_not_depend_on_padding(
    tiny: Callable[[str], Path], memes: Path, embed_mode: str, embed_layer: str
) -> None:
    model = MemeModel(open_backbone(str(tiny("qwen2_vl"))), torch.device("cpu"))
    attach_head(
        model.model, MemeHead(HeadConfig(input_dim=64, proj_dim=8)), ReadoutConfig((5, 6), embed_mode, embed_layer)
    )
    found = {}
    for side in ("left", "right"):
        batch, labels = labelled_batch(model, memes, side)
        positions, targets = answer_spans(labels)
        with torch.no_grad():
            found[side] = model.model(**batch, answer_positions=positions, answer_labels=targets)
            states = model.model.model(**batch, output_hidden_states=True).hidden_states
        state = states[-1 if embed_layer == "last" else -2]
        for row, position in enumerate(positions[:, 0]):
            prompt = state[row, : position + 1][batch["attention_mask"][row, : position + 1].bool()]
            expected = prompt[-1] if embed_mode == "last_token" else prompt.mean(0)
            assert torch.allclose(found[side].hidden[row], expected, atol=1e-5)
    assert torch.allclose(found["left"].hidden, found["right"].hidden, atol=1e-4)
    assert torch.allclose(found["left"].logits, found["right"].logits, atol=1e-4)


def test_answer_spans_by_hand() -> None:
    labels = torch.tensor([[IGNORE, IGNORE, 5, 6, 7, IGNORE], [IGNORE, IGNORE, IGNORE, IGNORE, 8, 9]])
    positions, targets = answer_spans(labels)
    assert positions[:, 0].tolist() == [1, 3]
    assert targets.tolist() == [[5, 6, 7], [8, 9, IGNORE]]


def test_fused_loss_is_used_in_training_and_not_in_evaluation(
    tiny: Callable[[str], Path], memes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Liger's kernel needs a GPU (Triton): its place is taken by the same computation in PyTorch.
    import liger_kernel.transformers as liger

    calls = []

    class Fused:
        def __init__(self, ignore_index: int) -> None:
            self.ignore_index = ignore_index

        def __call__(self, weight: Tensor, states: Tensor, targets: Tensor, bias: Tensor | None) -> Tensor:
            calls.append(states.shape)
            logits = torch.nn.functional.linear(states, weight, bias)
            return torch.nn.functional.cross_entropy(logits, targets, ignore_index=self.ignore_index)

    monkeypatch.setattr(liger, "LigerFusedLinearCrossEntropyLoss", Fused)
    model = MemeModel(open_backbone(str(tiny("qwen2_vl"))), torch.device("cpu"))
    batch, labels = labelled_batch(model, memes, "right")
    positions, targets = answer_spans(labels)
    plain = model.model(**batch, answer_positions=positions, answer_labels=targets)
    attach_head(model.model, MemeHead(HeadConfig(input_dim=64, proj_dim=8)), ReadoutConfig((5, 6), fused=True))
    model.model.train()
    fused = model.model(**batch, answer_positions=positions, answer_labels=targets)
    assert calls == [(targets.numel(), 64)]
    assert fused.answer_probs is None
    assert fused.lm_loss.item() == pytest.approx(plain.lm_loss.item(), abs=1e-5)
    model.model.eval()
    assert model.model(**batch, answer_positions=positions, answer_labels=targets).answer_probs is not None
    assert len(calls) == 1


def test_head_computes_in_float32_under_autocast_and_with_cast_weights() -> None:
    head = MemeHead(HeadConfig(input_dim=16, proj_dim=8)).eval()
    hidden = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(head(hidden).logits, head(hidden).logits.float())
        assert head(hidden).logits.dtype == torch.float32
    expected = head(hidden).logits
    half = MemeHead(HeadConfig(input_dim=16, proj_dim=8)).eval()
    half.load_state_dict(head.state_dict())
    half.bfloat16()
    assert half(hidden).logits.dtype == torch.float32
    assert torch.allclose(half(hidden).logits, expected, atol=2e-2)


def test_attached_head_is_found_and_other_calls_take_the_own_forward(tiny: Callable[[str], Path], memes: Path) -> None:
    model = MemeModel(open_backbone(str(tiny("qwen2_vl"))), torch.device("cpu"))
    head = MemeHead(HeadConfig(input_dim=64, proj_dim=8))
    attach_head(model.model, head, ReadoutConfig((5, 6)))
    assert head_of(model.model) is head
    batch, labels = labelled_batch(model, memes, "right")
    with torch.no_grad():
        assert model.model(**batch).logits.shape[:2] == labels.shape
