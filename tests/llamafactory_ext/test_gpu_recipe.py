"""What the Stage 1 files ask of a GPU, executed on a CPU through the installed packages: FlashAttention 2, Liger, bf16,
4 bits with double quantisation, the fused optimizer, `ddp_timeout`.
"""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from engines import ROOT, run
from gpu_engines import flash_attn_func, flash_attn_varlen_func
from transformers import AutoModelForImageTextToText

from ra_hmd.models.families import FAMILIES

pytestmark = pytest.mark.slow

PROBE = str(Path(__file__).with_name("gpu_engines.py"))
SIZES = {
    "dataset": "confounders_a",
    "eval_dataset": "confounders_a_dev",
    "max_samples": 4,
    "image_max_pixels": 4096,
    "lora_rank": 4,
    "preprocessing_num_workers": None,
    "dataloader_num_workers": 0,
    "per_device_train_batch_size": 2,
    "per_device_eval_batch_size": 2,
    "gradient_accumulation_steps": 1,
    "num_train_epochs": 1,
    "learning_rate": 2e-3,
    "logging_steps": 1,
    "eval_steps": 2,
    "save_steps": 2,
    "plot_loss": False,
    "use_cpu": True,  # without it transformers refuses bf16 here
}


# What the host's Liger patch takes the place of; of the other families norm, MLP, M-RoPE and loss.
LIGER_PARTS = {
    "qwen3_5": ("rms_norm", "swiglu", "cross_entropy"),
    "llava": ("cross_entropy",),
    "gemma3": ("rms_norm", "geglu", "rope", "cross_entropy"),
}
WITHOUT_LIGER: dict[str, Any] = {"enable_liger_kernel": False}
PURE_BF16: dict[str, Any] = {"enable_liger_kernel": False, "bf16": False, "pure_bf16": True}
LIGER_ALONE: dict[str, Any] = {"flash_attn": "sdpa", "bf16": False}  # the interpreter of its kernels has no bf16
EXPERTS: dict[str, Any] = {"llm_moe": True, "expert_rank": 4, "expert_dropout": 0.0, "lora_target": None}


@pytest.mark.parametrize(
    ("recipe", "family", "changes", "tolerance"),
    [
        ("qwen2_vl_7b/hateful_memes_qlora.yaml", "qwen2_vl", WITHOUT_LIGER, 0.02),
        ("qwen3_vl_8b/hateful_memes_qlora.yaml", "qwen3_vl", {}, 0.02),
        ("qwen2_vl_7b/hateful_memes_lora.yaml", "qwen2_vl", PURE_BF16, 0.02),
        ("qwen2_vl_7b/hateful_memes_lora.yaml", "qwen2_vl", LIGER_ALONE, 1e-4),
        ("qwen2_5_vl_7b/hateful_memes_lora_sft.yaml", "qwen2_5_vl", LIGER_ALONE, 1e-4),
        ("qwen3_5_9b/hateful_memes_lora.yaml", "qwen3_5", LIGER_ALONE, 1e-4),
        ("qwen3_5_9b/hateful_memes_qlora.yaml", "qwen3_5", WITHOUT_LIGER, 0.02),
        ("llava_1_5_7b/hateful_memes_lora.yaml", "llava", LIGER_ALONE, 1e-4),
        ("llava_1_5_7b/hateful_memes_qlora.yaml", "llava", WITHOUT_LIGER, 0.02),
        ("internvl3_8b/hateful_memes_qlora.yaml", "internvl", {}, 0.02),
        ("gemma3_4b/hateful_memes_lora.yaml", "gemma3", LIGER_ALONE, 1e-4),
        ("qwen2_vl_7b/hateful_memes_lora.yaml", "qwen2_vl", LIGER_ALONE | EXPERTS, 1e-4),
        ("qwen2_vl_7b/hateful_memes_lora.yaml", "qwen2_vl", PURE_BF16 | EXPERTS, 0.02),
    ],
)
def test_the_recipe_trains_as_without_its_kernels(
    recipe: str,
    family: str,
    changes: dict[str, Any],
    tolerance: float,
    tiny: Callable[[str], Path],
    memes: Path,
    tmp_path: Path,
) -> None:
    asked = yaml.safe_load((ROOT / "configs" / "stage1" / recipe).read_text(encoding="utf-8"))
    wanted = "sdpa" if FAMILIES[family].without_flash_attention else "fa2"
    assert (asked["flash_attn"], asked["bf16"], asked["ddp_timeout"]) == (wanted, True, 180_000_000)
    whole = changes.items() >= LIGER_ALONE.items()
    model = tiny(family) if whole else in_bfloat16(tiny(family), tmp_path / "model")
    asked |= {"model_name_or_path": str(model), "dataset_dir": str(memes)} | SIZES | changes
    paths = []
    for name, others in (("plain", {"flash_attn": "sdpa", "enable_liger_kernel": False}), ("asked", {})):
        config = asked | {"output_dir": str(tmp_path / name)} | others
        paths.append(tmp_path / f"{name}.yaml")
        paths[-1].write_text(yaml.safe_dump({key: value for key, value in config.items() if value is not None}))
    done = run([sys.executable, PROBE, str(tmp_path / "calls.json"), *map(str, paths)], tmp_path)
    assert done.returncode == 0, done.stdout[-6000:]

    calls = json.loads((tmp_path / "calls.json").read_text())
    assert calls["plain"] == {}
    assert ("varlen" in calls["asked"]) == (asked["flash_attn"] == "fa2")
    kernels = " ".join(calls["asked"])
    for part in LIGER_PARTS.get(family, ("rms_norm", "swiglu", "mrope", "cross_entropy")):
        assert (part in kernels) == asked["enable_liger_kernel"], kernels
    plain, found = (history(tmp_path / name) for name in ("plain", "asked"))
    assert len(plain) >= 3
    assert found == pytest.approx(plain, rel=tolerance)


def in_bfloat16(folder: Path, copy: Path) -> Path:
    """A copy of a model with weights in bfloat16, as published ones are; the host loads them as they are."""
    shutil.copytree(folder, copy)
    AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(copy)
    return copy


def history(folder: Path) -> list[float]:
    log = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [row[key] for row in log for key in ("loss", "eval_loss") if key in row]


@pytest.mark.parametrize("padded", [False, True])
def test_the_installed_flash_function_needs_no_attention_sink(padded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers 5.6.0 called `s_aux.to(...)` on None here."""
    from transformers import modeling_flash_attention_utils as utils
    from transformers.integrations.flash_attention import flash_attention_forward

    kernels = (flash_attn_func, flash_attn_varlen_func, None, utils._pad_input, utils._unpad_input)
    process = utils._lazy_define_process_function(flash_attn_varlen_func)
    monkeypatch.setattr(utils, "lazy_import_flash_attention", lambda implementation: (kernels, process))
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, heads, 6, 8, dtype=torch.bfloat16) for heads in (4, 2, 2))
    mask = torch.tensor([[1] * 6, [1] * 4 + [0] * 2]) if padded else None
    layer = torch.nn.Module()
    layer.config = type("Config", (), {"_attn_implementation": "flash_attention_2"})()
    layer.is_causal = True
    found, _ = flash_attention_forward(layer, q, k, v, mask, scaling=8**-0.5)
    wanted = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).transpose(1, 2)
    assert torch.equal(found[0], wanted[0])
    assert torch.equal(found[1, :4], wanted[1, :4])
