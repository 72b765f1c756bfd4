"""The engines that let an LMM speak: transformers, or vLLM, which is made for many answers on a GPU.

Both get their tokens and their images from the run's own template and pixel limits, so a prompt is the same to the
token whichever of them answers.
"""

import base64
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import torch
from accelerate import PartialState
from PIL import Image

from ra_hmd.core.artifacts import read_json
from ra_hmd.core.choices import EngineKind
from ra_hmd.core.config import choose
from ra_hmd.core.errors import UserError
from ra_hmd.models.checkpoint import ADAPTER_CONFIG, Run
from ra_hmd.models.cluster_assignment import UNKNOWN_CLUSTER
from ra_hmd.models.families.qwen import QwenVL
from ra_hmd.models.generation.chat import Chat, ChatModel, chat_ids, check_length, check_run_adapter, fold_image_tokens
from ra_hmd.models.generation.worker_process import WorkerProcess
from ra_hmd.models.meme_model import MemeModel
from ra_hmd.models.tokenization import MemeEncoder

VLLM_PYTHON = "RA_HMD_VLLM_PYTHON"
_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # vLLM's `MaxLoRARanks`
_CONTEXT = 16384  # most tokens of prompt and answer in vLLM, which keeps room for that many
_VISION = (".visual.", ".vision_tower.", ".multi_modal_projector.")  # in names of modules outside the language model
_FREE_SHARE = 0.9  # of the GPU memory that is free, for vLLM


class Engine(Protocol):
    """Text generation engine. Greedy: the same chat gets the same answer.

    Attributes:
        name: For records.
        adapter: Whether a trained adapter is in force.
    """

    name: str
    adapter: bool

    def plain(self, text: str) -> str:
        """`text` without what the model would read as control tokens: see `MemeEncoder.plain`."""

    def cluster_of(self, text: str, image: Image.Image) -> int:
        """Cluster of a meme, for `Chat.cluster`; -1 where none is needed."""

    def check(self, chat: Chat, max_new_tokens: int) -> None:
        """Raise `ValueError` (a sentence without a subject) when the model cannot take a chat."""

    def generate(self, chats: Sequence[Chat], max_new_tokens: int) -> list[str]:
        """Answers, in the order of the chats."""


def vllm_python() -> str | None:
    """The Python that has vLLM: what `RA_HMD_VLLM_PYTHON` names, or this one if vLLM is installed here; else None."""
    here = sys.executable if importlib.util.find_spec("vllm") is not None else None
    return os.environ.get(VLLM_PYTHON) or here


def vllm_version(option: str) -> str:
    """Version of the vLLM that this machine has, which need not be in this environment.

    Raises:
        UserError: it has none; `option` asked for it.
    """
    python = vllm_python()
    ask = "from importlib.metadata import version; print(version('vllm'))"
    found = None
    if python is not None and shutil.which(python) is not None:
        found = subprocess.run([python, "-c", ask], capture_output=True, text=True, check=False)
    if found is None or found.returncode:
        raise _not_installed(option, python)
    return found.stdout.strip()


def _not_installed(option: str, python: str | None) -> UserError:
    why = "it is not installed" if python is None else f"{VLLM_PYTHON}={python} is no program that has it"
    return UserError(
        f"{option} vllm needs vLLM, and {why}. Its requirements contradict LLaMA-Factory's: make it an environment "
        f"of its own, `python -m venv vllm && vllm/bin/pip install vllm`, and set {VLLM_PYTHON}=vllm/bin/python. "
        f"Or use {option} transformers."
    )


def choose_engine(kind: EngineKind, option: str = "--engine") -> Literal["transformers", "vllm"]:
    """The engine that is meant: `auto` is vLLM where it is installed and a CUDA device is there, else transformers.

    Args:
        kind: What is requested.
        option: The option that requests it, for messages.

    Raises:
        UserError: vLLM is requested and cannot run here.
    """
    choose(option, kind, get_args(EngineKind))
    python, device = vllm_python(), torch.cuda.is_available()
    there = python is not None and shutil.which(python) is not None
    if kind == "auto":
        return "vllm" if there and device else "transformers"
    if kind == "vllm" and not there:
        raise _not_installed(option, python)
    if kind == "vllm" and not device:
        raise UserError(f"{option} vllm needs a CUDA device, and none is here; use {option} transformers.")
    return kind


def open_engine(
    kind: EngineKind,
    model: MemeModel,
    *,
    adapter: bool = True,
    max_images: int = 1,
    tensor_parallel_size: int = 1,
    batch_size: int = 8,
) -> Engine:
    """An engine for the LMM of a loaded run.

    Args:
        kind: Which.
        model: The run. vLLM loads its weights once more.
        adapter: Whether the trained adapter speaks, or the base model.
        max_images: Most images of a chat (vLLM).
        tensor_parallel_size: GPUs that share the model (vLLM).
        batch_size: Chats per pass (transformers).

    Raises:
        UserError: see `choose_engine`; a run that vLLM cannot load, vLLM under torchrun.
    """
    if choose_engine(kind) == "transformers":
        return TransformersEngine(ChatModel(model, adapter), batch_size)
    if PartialState().num_processes > 1:
        raise UserError("vLLM is started by one process, not under torchrun; give it GPUs by --tensor-parallel-size.")
    check_run_adapter(model.run, adapter)
    run = model.run if adapter else replace(model.run, adapter=None)
    free, total = torch.cuda.mem_get_info()
    memory = round(_FREE_SHARE * free / total, 3)
    how = {"max_images": max_images, "tensor_parallel_size": tensor_parallel_size}
    return VllmEngine(run, model.encoder, vllm_python() or sys.executable, **how, gpu_memory_utilization=memory)


class TransformersEngine:
    """The model as it is loaded."""

    name = "transformers"

    def __init__(self, model: ChatModel, batch_size: int = 8) -> None:
        self.model, self.batch_size = model, batch_size
        self.adapter = model.adapter and model.model.run.adapter is not None
        self.plain, self.cluster_of = model.model.encoder.plain, model.model.cluster_of

    def check(self, chat: Chat, max_new_tokens: int) -> None:
        """See `Engine`."""
        self.model.encode(chat, max_new_tokens)

    def generate(self, chats: Sequence[Chat], max_new_tokens: int) -> list[str]:
        """See `Engine`."""
        return self.model.generate(chats, max_new_tokens, self.batch_size)


class VllmEngine:
    """The run's base model in vLLM, its adapter as a LoRA request. Written against vLLM 0.33; not measured here.

    vLLM runs in a process of its own (`vllm_worker`), which may have another environment, until this object is gone.

    Args:
        run: The run.
        encoder: Its template, tokenizer and processor.
        python: The Python that has vLLM.
        max_images: Most images of a chat.
        tensor_parallel_size: GPUs that share the model.
        gpu_memory_utilization: Share of a GPU's memory for vLLM, the weights included.

    Raises:
        UserError: a run that vLLM cannot load, a process that ended.
    """

    name = "vllm"

    def __init__(
        self,
        run: Run,
        encoder: MemeEncoder,
        python: str,
        *,
        max_images: int = 1,
        tensor_parallel_size: int = 1,
        gpu_memory_utilization: float = _FREE_SHARE,
    ) -> None:
        from transformers import AutoConfig

        config = AutoConfig.from_pretrained(run.base_model, revision=run.loading.get("model_revision") or "main")
        self.encoder, self.adapter, self.image_token = encoder, run.adapter is not None, config.image_token_id
        self.plain = encoder.plain
        self.context = min(config.get_text_config().max_position_embeddings, _CONTEXT)
        arguments = vllm_arguments(run, encoder, self.context, max_images, tensor_parallel_size)
        self._worker = WorkerProcess([python, str(Path(__file__).with_name("vllm_worker.py"))])
        lora = None if run.adapter is None else str(run.adapter.absolute())
        engine = arguments | {"gpu_memory_utilization": gpu_memory_utilization}
        self._worker.ask({"engine": engine, "adapter": lora})

    def cluster_of(self, text: str, image: Image.Image) -> int:
        """See `Engine`: no experts, so none is needed."""
        return UNKNOWN_CLUSTER

    def check(self, chat: Chat, max_new_tokens: int) -> None:
        """See `Engine`."""
        check_length(len(chat_ids(self.encoder, chat)), max_new_tokens, self.context)

    def generate(self, chats: Sequence[Chat], max_new_tokens: int) -> list[str]:
        """See `Engine`.

        Raises:
            UserError: vLLM made other tokens of a prompt than training would have, or ended.
        """
        if not chats:
            return []
        expected = [chat_ids(self.encoder, chat) for chat in chats]
        prompts = [
            {
                "ids": fold_image_tokens(ids, self.image_token),
                "images": list(map(_png, regular_images(self.encoder, chat))),
            }
            for chat, ids in zip(chats, expected, strict=True)
        ]
        stop = self.encoder.template.get_stop_token_ids(self.encoder.tokenizer)
        found = self._worker.ask({"prompts": prompts, "max_tokens": max_new_tokens, "stop": stop})
        for row, (ids, made) in enumerate(zip(expected, found["ids"], strict=True)):
            if made != ids:
                raise UserError(
                    f"vLLM made {len(made)} tokens of prompt {row + 1} and training would have made {len(ids)}: it "
                    "treats images in another way. Use --engine transformers."
                )
        return [text.strip() for text in found["texts"]]


def _png(image: Image.Image) -> str:
    content = BytesIO()
    image.save(content, "PNG", compress_level=1)
    return base64.b64encode(content.getvalue()).decode()


def regular_images(encoder: MemeEncoder, chat: Chat) -> list[Image.Image]:
    """A chat's images within the run's pixel limits. The model's own processor, ours or vLLM's, comes after that."""
    processor = encoder.processor
    return encoder.template.mm_plugin._regularize_images(
        chat.images,
        image_max_pixels=processor.image_max_pixels,
        image_min_pixels=processor.image_min_pixels,
    )["images"]


def vllm_arguments(
    run: Run, encoder: MemeEncoder, context: int, max_images: int, tensor_parallel_size: int
) -> dict[str, Any]:
    """Arguments of `vllm.LLM` for a run.

    Raises:
        UserError: experts, adapters under the adapter, or a quantisation that vLLM does not make.
    """
    if run.experts is not None:
        raise UserError(
            f"{run.folder} has experts, whose routing vLLM cannot do; use --engine transformers. Experts of "
            "`router_input: none` become plain LoRA adapters by `ra-hmd export-clusters`."
        )
    if run.base_adapters:
        raise UserError(
            f"{run.folder} was trained on a base model with adapters merged into it, which vLLM cannot do: export the "
            "merged model (`llamafactory-cli export`) and give that, or use --engine transformers."
        )
    arguments: dict[str, Any] = {
        "model": run.base_model,
        "revision": run.loading.get("model_revision") or "main",
        "tensor_parallel_size": tensor_parallel_size,
        "max_model_len": context,
        "limit_mm_per_prompt": {"image": max_images, "video": 0},
        "mm_processor_kwargs": _largest_picture(encoder),
        "generation_config": "vllm",  # the sampling is ours, not the one in the model's folder
        "seed": 0,
    }
    if run.quantized:
        method = (run.loading.get("quantization_method") or "bnb", run.loading["quantization_bit"])
        if method != ("bnb", 4):
            raise UserError(
                f"vLLM does not load a model in {method[1]} bits by {method[0]}; use --engine transformers."
            )
        arguments["quantization"] = "bitsandbytes"
    if run.adapter is not None:
        from safetensors import safe_open

        rank = read_json(run.adapter / ADAPTER_CONFIG)["r"]
        with safe_open(run.adapter / "adapter_model.safetensors", "pt") as weights:
            sees = any(part in name for name in weights.keys() for part in _VISION)  # noqa: SIM118 - no mapping
        # Without the last one vLLM would leave the image's part of the adapter out, and only log it.
        arguments |= {"enable_lora": True, "max_lora_rank": _room(rank), "enable_tower_connector_lora": sees}
    return arguments


def _room(rank: int) -> int:
    """The smallest LoRA rank that vLLM makes room for and that holds `rank`."""
    found = next((room for room in _RANKS if room >= rank), None)
    if found is None:
        raise UserError(f"The adapter's rank is {rank}, vLLM takes up to {_RANKS[-1]}; use --engine transformers.")
    return found


def _largest_picture(encoder: MemeEncoder) -> dict[str, int]:
    """`max_pixels` of a Qwen-VL's processor: pixels that no image exceeds once it is rounded to whole patches, or the
    model's own limit if that is less. Nothing for families whose images have one size.

    vLLM keeps memory for its largest image. The run's limit itself would be too small: LLaMA-Factory applies it
    before the model's processor rounds each side up by half a patch, and aspect ratios go up to 200.
    """
    if not isinstance(encoder.family, QwenVL):
        return {}
    pixels, processor = encoder.processor.image_max_pixels, encoder.processor.image_processor
    half = processor.patch_size * processor.merge_size / 2
    longest_sides = pixels**0.5 * (200**0.5 + 200**-0.5)  # of width and height, added
    rounded = int(pixels + half * longest_sides + half * half) + 1
    return {"max_pixels": min(rounded, processor.size["longest_edge"])}
