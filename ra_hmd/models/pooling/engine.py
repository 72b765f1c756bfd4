"""Hidden states by vLLM's pooling runner in a process of its own. Written against vLLM 0.33; not measured here."""

import base64
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ra_hmd.core.choices import DType
from ra_hmd.core.errors import UserError
from ra_hmd.models.checkpoint import Run
from ra_hmd.models.generation.chat import fold_image_tokens
from ra_hmd.models.generation.engines import vllm_arguments, vllm_python
from ra_hmd.models.generation.worker_process import WorkerProcess
from ra_hmd.models.pooling.prompts import Prompt, PromptMaker
from ra_hmd.models.pooling.states import StateCheck


class EngineStates:
    """Hidden states by vLLM in a process of its own: a `StateSource`. The prompts are token ids, so nothing but the
    picture's patches is left to vLLM.

    Args:
        run: The run; its adapter becomes a LoRA request.
        maker: Makes its prompts.
        check: What is checked of each state.
        gpus: GPUs that share the model.
        dtype: Precision of the model.

    Raises:
        UserError: a run that vLLM cannot load, a process that ended.
    """

    def __init__(self, run: Run, maker: PromptMaker, check: StateCheck, gpus: int = 1, dtype: DType = "auto") -> None:
        self._check, self._image_token = check, maker.image_token
        arguments = vllm_arguments(run, maker.encoder, run.settings.cutoff_len, 1, gpus)
        del arguments["generation_config"]  # nothing is sampled
        arguments |= {"runner": "pooling", "convert": "embed", "dtype": dtype}
        worker = str(Path(__file__).with_name("vllm_worker.py"))
        self._process = WorkerProcess([vllm_python() or sys.executable, worker])
        adapter = None if run.adapter is None else str(run.adapter.absolute())
        self._process.ask({"engine": arguments, "adapter": adapter})

    def states(self, prompts: Sequence[Prompt], *, tuned: bool = True) -> Tensor:
        """See `StateSource`."""
        folded = [fold_image_tokens(prompt.ids, self._image_token) for prompt in prompts]
        pictures = [base64.b64encode(prompt.picture).decode() for prompt in prompts]
        asked = [{"ids": ids, "image": picture} for ids, picture in zip(folded, pictures, strict=True)]
        found: dict[str, Any] = self._process.ask({"prompts": asked, "tuned": tuned})
        states = []
        for prompt, made, state in zip(prompts, found["ids"], found["states"], strict=True):
            if made != prompt.ids:
                raise UserError(
                    f"vLLM made {len(made)} tokens of a prompt of {len(prompt.ids)}: it treats pictures otherwise. "
                    "Use --backend transformers."
                )
            values = np.frombuffer(base64.b64decode(state), "<f4")
            states.append(self._check(torch.from_numpy(values.copy()), "vLLM"))
        return torch.stack(states)
