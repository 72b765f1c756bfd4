"""A training step with experts against one with a LoRA of the same total rank on the same layers, in one run.

A Qwen2-VL is tuned on text, once with E experts of rank r, router and balance loss in each MLP of its language model,
once with PEFT's LoRA of rank E·r on the same gate_proj, up_proj and down_proj. Steps of the two alternate, and so does
which of them is first; the figure is the median over pairs of steps of the ratio of their times, for forward pass,
backward pass and optimizer together. The ratio carries over to other machines better than the times.

    python scripts/bench/experts_step.py [--steps 30] [--experts 4] [--rank 16] [--checkpointing] [--output FILE]
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ra_hmd.models.experts.attach import attach_experts
from ra_hmd.models.experts.settings import ExpertSettings

WARM_UP = 3
MLP = ["gate_proj", "up_proj", "down_proj"]


def build(folder: Path, options: argparse.Namespace) -> nn.Module:
    """A random Qwen2-VL of the benchmark's size, frozen."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    config = AutoConfig.from_pretrained(folder)
    config.text_config.intermediate_size = options.width
    dtype = torch.bfloat16 if options.device == "cuda" else torch.float32
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config, dtype=dtype).to(options.device).train()
    if options.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": True})
        model.enable_input_require_grads()
    return model.requires_grad_(False)


def expert_step(model: nn.Module, options: argparse.Namespace) -> Callable[[], None]:
    """A step with experts."""
    settings = ExpertSettings(
        num_experts=options.experts, rank=options.rank, alpha=options.rank, num_clusters=8, universal=options.universal
    )
    experts = attach_experts(model, settings, seed=0, trainable=True)
    optimizer = _optimizer(model)
    tokens, mask = _batch(options)
    ids = torch.arange(options.batch, device=options.device) % settings.num_clusters

    def step() -> None:
        experts.routing.set(ids, mask)
        loss = _loss(model, tokens, mask, options) + 0.05 * experts.balance_loss("batch")
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        experts.end_step(lambda total: total)

    return step


def lora_step(model: nn.Module, options: argparse.Namespace) -> Callable[[], None]:
    """A step with a LoRA of rank E·r."""
    from peft import LoraConfig, get_peft_model

    rank = options.rank * (options.experts + options.universal)
    layers = rf".*language_model.*\.({'|'.join(MLP)})"
    peft = get_peft_model(model, LoraConfig(r=rank, lora_alpha=rank, lora_dropout=0.05, target_modules=layers))
    optimizer = _optimizer(peft)
    tokens, mask = _batch(options)

    def step() -> None:
        _loss(peft, tokens, mask, options).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW([value for value in model.parameters() if value.requires_grad], lr=1e-4)


def _batch(options: argparse.Namespace) -> tuple[torch.Tensor, torch.Tensor]:
    tokens = torch.randint(20, 200, (options.batch, options.tokens), generator=torch.Generator().manual_seed(0))
    return tokens.to(options.device), torch.ones_like(tokens).to(options.device)


def _loss(model: nn.Module, tokens: torch.Tensor, mask: torch.Tensor, options: argparse.Namespace) -> torch.Tensor:
    with torch.autocast(options.device, dtype=torch.bfloat16, enabled=options.device == "cuda"):
        logits = model(input_ids=tokens, attention_mask=mask, use_cache=False, logits_to_keep=4).logits
    return F.cross_entropy(logits.float().flatten(0, 1), tokens[:, -4:].flatten())


def seconds(step: Callable[[], None], device: str) -> float:
    """How long a step takes."""
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    wait()
    began = time.perf_counter()
    step()
    wait()
    return time.perf_counter() - began


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Alternate steps of both, and return their times and ratio."""
    from ra_hmd.models.tiny import make_tiny_lmm

    with tempfile.TemporaryDirectory() as name:
        folder = make_tiny_lmm("qwen2_vl", Path(name) / "model", hidden_size=options.hidden, num_layers=options.layers)
        steps = {"experts": expert_step(build(folder, options), options)}
        steps["lora"] = lora_step(build(folder, options), options)
    times: dict[str, list[float]] = {"experts": [], "lora": []}
    for turn in range(WARM_UP + options.steps):
        for kind in sorted(steps, reverse=bool(turn % 2)):
            times[kind].append(seconds(steps[kind], options.device))
    experts, lora = times["experts"][WARM_UP:], times["lora"][WARM_UP:]
    return {
        "experts_seconds": statistics.median(experts),
        "lora_seconds": statistics.median(lora),
        "ratio": statistics.median(one / other for one, other in zip(experts, lora, strict=True)),
        "ratio_of_fastest": min(experts) / min(lora),
    }


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in {"steps": 30, "experts": 4, "rank": 16, "batch": 4, "tokens": 256}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    for name, value in {"hidden": 512, "width": 2048, "layers": 4}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--universal", action="store_true", help="with a universal expert; the LoRA's rank grows too")
    parser.add_argument("--checkpointing", action="store_true", help="reentrant gradient checkpointing")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    result = measure(options)
    for key, value in result.items():
        print(f"{key:18} {value:.4f}")
    if options.output:
        given = {name: value for name, value in vars(options).items() if name != "output"}
        options.output.write_text(json.dumps({"settings": given, **result}, indent=2) + "\n")


if __name__ == "__main__":
    main()
