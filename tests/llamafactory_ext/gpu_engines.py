"""Run what the Stage 1 files ask of a GPU on a CPU: `python gpu_engines.py RESULT.json CONFIG.yaml …`.

Each file is trained by stock LLaMA-Factory. Liger's own Triton kernels run in Triton's interpreter. FlashAttention 2 is
a stand-in with the published signatures, which takes half precision alone, as the real kernels do; all that lies around
it is the installed transformers. RESULT.json counts the calls of both. (Triton's interpreter reckons in float32 alone.)
"""

import importlib.machinery
import json
import os
import sys
import types
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor

CALLS: Counter[str] = Counter()


def flash_attn_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Tensor:
    """Attention of [B, T, heads, width], as flash-attn 2 takes it."""
    if {q.dtype, k.dtype, v.dtype} not in ({torch.bfloat16}, {torch.float16}):
        raise RuntimeError(f"FlashAttention only support fp16 and bf16 data type, not {q.dtype}, {k.dtype}, {v.dtype}")
    CALLS["flash"] += 1
    swapped = (x.transpose(1, 2) for x in (q, k, v))
    attended = F.scaled_dot_product_attention(
        *swapped, dropout_p=dropout_p, is_causal=causal, scale=softmax_scale, enable_gqa=True
    )
    return attended.transpose(1, 2)


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    block_table: Tensor | None = None,
) -> Tensor:
    """Attention within the sequences that lie one after the other in [tokens, heads, width]."""
    CALLS["varlen"] += 1
    ends = [cu.tolist() for cu in (cu_seqlens_q, cu_seqlens_k)]
    assert max(np.diff(ends[0])) == int(max_seqlen_q)
    parts = []
    for (start, end), (first, last) in zip(pairwise(ends[0]), pairwise(ends[1]), strict=True):
        rows = q[None, start:end], k[None, first:last], v[None, first:last]
        parts.append(flash_attn_func(*rows, dropout_p, softmax_scale, causal)[0])
    return torch.cat(parts)


def offer_flash_attention() -> None:
    """Make transformers and the host believe in the package and in a device for it."""
    import transformers
    from transformers import modeling_flash_attention_utils as flash

    package, padding = types.ModuleType("flash_attn"), types.ModuleType("flash_attn.bert_padding")
    package.flash_attn_func, package.flash_attn_varlen_func = flash_attn_func, flash_attn_varlen_func
    package.flash_attn_with_kvcache = None
    padding.pad_input, padding.unpad_input = flash._pad_input, flash._unpad_input
    for module in (package, padding):
        module.__spec__ = importlib.machinery.ModuleSpec(module.__name__, None)
        sys.modules[module.__name__] = module
    for module in (transformers.utils, transformers.utils.import_utils, flash):
        module.is_flash_attn_2_available = lambda: True
    flash.is_flash_attn_4_available = lambda: False  # of the same package
    flash.FLASH_ATTENTION_COMPATIBILITY_MATRIX[2]["general_availability_check"] = lambda: True
    transformers.PreTrainedModel._flash_attn_can_dispatch = lambda *args, **kwargs: True
    # transformers asks for the autocast of CUDA; what is on here is the CPU's.
    enabled, dtype = torch.is_autocast_enabled, torch.get_autocast_dtype
    torch.is_autocast_enabled = lambda device="cpu": enabled("cpu" if device == "cuda" else device)
    torch.get_autocast_dtype = lambda device: dtype("cpu" if device == "cuda" else device)


def interpret_triton() -> None:
    """Teach Triton's interpreter what Liger's kernels need: plain numbers as arguments, `rsqrt` and `tanh`."""
    import triton.language as tl
    from triton.language.extra import libdevice
    from triton.runtime import interpreter

    convert = interpreter._implicit_cvt

    def converted(value: Any) -> Any:
        if isinstance(value, float):
            return tl.tensor(interpreter.TensorHandle(np.array([value], np.float32), tl.float32), tl.float32)
        return convert(value)

    def rsqrt(x: Any) -> Any:
        return tl.tensor(interpreter.TensorHandle(1 / np.sqrt(x.handle.data), x.handle.dtype), x.type)

    def tanh(x: Any) -> Any:
        return tl.tensor(interpreter.TensorHandle(np.tanh(x.handle.data), x.handle.dtype), x.type)

    run = interpreter.InterpretedFunction.run

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        CALLS[self.fn.__name__] += 1
        return run(self, *args, **kwargs)

    libdevice.rsqrt, libdevice.tanh = rsqrt, tanh
    interpreter._implicit_cvt, interpreter.InterpretedFunction.run = converted, counted


def main() -> None:
    """Run as said above."""
    interpret_triton()
    offer_flash_attention()
    from llamafactory.hparams import parser
    from llamafactory.train import tuner

    parser.is_torch_bf16_gpu_available = lambda: True  # for `pure_bf16`
    result = {}
    for path in sys.argv[2:]:
        CALLS.clear()
        config = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        tuner.run_exp(config)
        result[Path(path).stem] = dict(CALLS)
    Path(sys.argv[1]).write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
