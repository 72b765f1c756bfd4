"""Small models with experts, and the mathematics of the experts written as loops."""

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import torch
from engines import ROOT
from PIL import Image
from torch import Tensor, nn
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from ra_hmd.models.experts.attach import Experts, attach_experts
from ra_hmd.models.experts.settings import ExpertSettings

HIDDEN, WIDTH, LAYERS = 16, 24, 2


def bench(name: str) -> ModuleType:
    """A script of `scripts/bench` as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / "bench" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def lmm_batch(folder: Path, captions: Sequence[str], side: str = "left") -> dict[str, Tensor]:
    """Memes of one colour each, as a padded batch for the tiny Qwen-VL model in `folder`."""
    processor = AutoProcessor.from_pretrained(folder)
    processor.tokenizer.padding_side = side
    question = "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>{}<|im_end|>\n<|im_start|>assistant\n"
    images = [Image.new("RGB", (112, 112), (40 * number % 255, 120, 200)) for number in range(len(captions))]
    texts = [question.format(caption) for caption in captions]
    return dict(processor(text=texts, images=images, padding=True, return_tensors="pt"))


def lmm(folder: Path) -> PreTrainedModel:
    """The tiny model in `folder`, in evaluation mode."""
    return AutoModelForImageTextToText.from_pretrained(folder).eval()


def small_model(seed: int = 0, dtype: torch.dtype = torch.float64) -> LlamaForCausalLM:
    """A random language model of two layers."""
    config = LlamaConfig(
        hidden_size=HIDDEN,
        intermediate_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        vocab_size=40,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).to(dtype).eval()


def with_experts(model: nn.Module, seed: int = 0, *, dtype: torch.dtype = torch.float32, **settings: object) -> Experts:
    """Attach trainable experts without dropout, and fill B, the bias and the prior with random numbers."""
    experts = attach_experts(
        model, ExpertSettings(**{"dropout": 0.0, **settings}), seed=seed, trainable=True, dtype=dtype
    )
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for name, tensor in experts.state().items():
            if name.endswith((".B", ".bias", ".prior")):
                tensor.copy_(0.5 * torch.randn(tensor.shape, generator=generator, dtype=torch.float64))
    return experts


def looped_probabilities(hidden: Tensor, state: dict[str, Tensor], ids: list[int], settings: ExpertSettings) -> Tensor:
    """The router, one token and one expert at a time: [B, T, E]."""
    rows = []
    for row, cluster in zip(hidden, ids, strict=True):
        tokens = []
        for token in row:
            exponentials = []
            for expert in range(settings.num_experts):
                logit = state["router.bias"][expert]
                if settings.router_input == "token":
                    for value, weight in zip(token, state["router.weight"][expert], strict=True):
                        logit = logit + value * weight
                if cluster >= 0 and settings.num_clusters:
                    logit = logit + settings.prior_weight * state["router.prior"][cluster, expert]
                exponentials.append((logit / settings.tau).exp())
            tokens.append(torch.stack([one / sum(exponentials) for one in exponentials]))
        rows.append(torch.stack(tokens))
    return torch.stack(rows)


def looped_gates(probabilities: Tensor, settings: ExpertSettings) -> list[list[list[Tensor]]]:
    """The weights of the experts of each token; those outside the k largest are None."""
    k = settings.top_k or settings.num_experts
    result = []
    for row in probabilities:
        result.append([])
        for token in row:
            order = sorted(range(len(token)), key=lambda expert: -float(token[expert].detach()))
            chosen = order[:k]
            total = sum(token[expert] for expert in chosen) if k > 1 else 1.0
            result[-1].append([token[e] / total if e in chosen else 0.0 * token[e] for e in range(len(token))])
    return result


def looped_linear(base: nn.Module, inputs: Tensor, state: dict[str, Tensor], name: str, gates: list, s: ExpertSettings):
    """A projection with experts, one token and one expert at a time: [B, T, d_out]."""
    a, b = state[f"{name}.A"], state[f"{name}.B"]
    rows = []
    for row, row_gates in zip(inputs, gates, strict=True):
        tokens = []
        for token, weights in zip(row, row_gates, strict=True):
            result = base(token)
            for expert, weight in enumerate([*weights, 1.0] if s.universal else weights):
                block = b[:, expert * s.rank : (expert + 1) * s.rank]
                result = result + s.alpha / s.rank * weight * (block @ (a @ token))
            tokens.append(result)
        rows.append(torch.stack(tokens))
    return torch.stack(rows)


def looped_mlp(mlp: nn.Module, hidden: Tensor, state: dict[str, Tensor], ids: list[int], s: ExpertSettings) -> Tensor:
    """An MLP with experts, by loops, from the base layers of `mlp` and the tensors of `state`."""
    gates = looped_gates(looped_probabilities(hidden, state, ids, s), s)
    gate = looped_linear(mlp.gate_proj.base_layer, hidden, state, "gate", gates, s)
    up = looped_linear(mlp.up_proj.base_layer, hidden, state, "up", gates, s)
    return looped_linear(mlp.down_proj.base_layer, mlp.act_fn(gate) * up, state, "down", gates, s)
