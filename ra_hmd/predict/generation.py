"""The engines that let an LMM speak: transformers, or vLLM, which is made for many answers on a GPU.

Both get their tokens and their pictures from the run's own template and pixel limits, so a prompt is the same to the
token whichever of them answers.
"""

import importlib.util
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, Protocol, get_args

import torch
from PIL import Image

from ra_hmd.config import choose
from ra_hmd.errors import UserError
from ra_hmd.manifest import read_json
from ra_hmd.models.chat import Chat, ChatModel, chat_ids, check_adapter, check_length, fold_image_tokens
from ra_hmd.models.checkpoint import ADAPTER_CONFIG, MemeModel, Run
from ra_hmd.models.inputs import MemeEncoder

EngineKind = Literal["auto", "transformers", "vllm"]
_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # vLLM's `MaxLoRARanks`
_CONTEXT = 16384  # most tokens of prompt and answer in vLLM, which keeps room for that many
_FREE_SHARE = 0.9  # of the GPU memory that is free, for vLLM


class Engine(Protocol):
    """What answers chats. Greedy: the same chat gets the same answer.

    Attributes:
        name: For records.
        adapter: Whether a trained adapter is in force.
    """

    name: str
    adapter: bool

    def check(self, chat: Chat, max_new_tokens: int) -> None:
        """Raise `ValueError` (a sentence without a subject) when a chat cannot be asked."""

    def generate(self, chats: Sequence[Chat], max_new_tokens: int) -> list[str]:
        """Answers, in the order of the chats."""


def choose_engine(kind: EngineKind) -> Literal["transformers", "vllm"]:
    """The engine that is meant: `auto` is vLLM where it is installed and a CUDA device is there, else transformers.

    Raises:
        UserError: vLLM is asked for and cannot run here.
    """
    choose("--engine", kind, get_args(EngineKind))
    installed, device = importlib.util.find_spec("vllm") is not None, torch.cuda.is_available()
    if kind == "auto":
        return "vllm" if installed and device else "transformers"
    if kind == "vllm" and not installed:
        raise UserError(
            "--engine vllm needs vLLM, which is not installed: pip install vllm, in an environment of its own where "
            "its requirements contradict ours; or use --engine transformers."
        )
    if kind == "vllm" and not device:
        raise UserError("--engine vllm needs a CUDA device, and none is here; use --engine transformers.")
    return kind


def open_engine(
    kind: EngineKind,
    model: MemeModel,
    *,
    adapter: bool = True,
    pictures: int = 1,
    tensor_parallel_size: int = 1,
    batch_size: int = 8,
) -> Engine:
    """An engine for the LMM of a loaded run.

    Args:
        kind: Which.
        model: The run. vLLM loads its weights once more.
        adapter: Whether the trained adapter speaks, or the base model.
        pictures: Most pictures of a chat (vLLM).
        tensor_parallel_size: GPUs that share the model (vLLM).
        batch_size: Chats per pass (transformers).

    Raises:
        UserError: see `choose_engine`; a run that vLLM cannot load.
    """
    if choose_engine(kind) == "transformers":
        return TransformersEngine(ChatModel(model, adapter), batch_size)
    check_adapter(model.run, adapter)
    run = model.run if adapter else replace(model.run, adapter=None)
    return VllmEngine(run, model.encoder, pictures=pictures, tensor_parallel_size=tensor_parallel_size)


class TransformersEngine:
    """The model as it is loaded."""

    name = "transformers"

    def __init__(self, model: ChatModel, batch_size: int = 8) -> None:
        self.model, self.batch_size = model, batch_size
        self.adapter = model.adapter and model.model.run.adapter is not None

    def check(self, chat: Chat, max_new_tokens: int) -> None:
        """See `Engine`."""
        self.model.encode(chat, max_new_tokens)

    def generate(self, chats: Sequence[Chat], max_new_tokens: int) -> list[str]:
        """See `Engine`."""
        return self.model.generate(chats, max_new_tokens, self.batch_size)


class VllmEngine:
    """The run's base model in vLLM, its adapter as a LoRA request. Written against vLLM 0.33; not measured here.

    Args:
        run: The run.
        encoder: Its template, tokenizer and processor.
        pictures: Most pictures of a chat.
        tensor_parallel_size: GPUs that share the model.

    Raises:
        UserError: a run that vLLM cannot load.
    """

    name = "vllm"

    def __init__(self, run: Run, encoder: MemeEncoder, *, pictures: int = 1, tensor_parallel_size: int = 1) -> None:
        from transformers import AutoConfig

        config = AutoConfig.from_pretrained(run.base_model, revision=run.loading.get("model_revision") or "main")
        self.adapter = run.adapter is not None
        self.encoder, self.image_token = encoder, config.image_token_id
        self.context = min(config.get_text_config().max_position_embeddings, _CONTEXT)
        arguments = vllm_arguments(run, encoder, self.context, pictures, tensor_parallel_size)

        os.environ.setdefault("VLLM_WORKER_MULTIPROCESSING_METHOD", "spawn")  # CUDA is in use in this process
        from vllm import LLM
        from vllm.lora.request import LoRARequest

        free, total = torch.cuda.mem_get_info()
        self._llm = LLM(**arguments, gpu_memory_utilization=round(_FREE_SHARE * free / total, 3))
        self._lora = None if run.adapter is None else LoRARequest("run", 1, str(run.adapter.absolute()))

    def check(self, chat: Chat, max_new_tokens: int) -> None:
        """See `Engine`."""
        check_length(len(chat_ids(self.encoder, chat)), max_new_tokens, self.context)

    def generate(self, chats: Sequence[Chat], max_new_tokens: int) -> list[str]:
        """See `Engine`.

        Raises:
            UserError: vLLM made other tokens of a prompt than training would have.
        """
        from vllm import SamplingParams

        stop = self.encoder.template.get_stop_token_ids(self.encoder.tokenizer)
        greedy = SamplingParams(temperature=0.0, max_tokens=max_new_tokens, stop_token_ids=stop)
        expected = [chat_ids(self.encoder, chat) for chat in chats]
        asked = [vllm_prompt(self.encoder, chat, ids, self.image_token)
                 for chat, ids in zip(chats, expected, strict=True)]  # fmt: skip
        found = self._llm.generate(asked, greedy, use_tqdm=False, lora_request=self._lora)
        for row, (ids, output) in enumerate(zip(expected, found, strict=True)):
            if list(output.prompt_token_ids) != ids:
                raise UserError(
                    f"vLLM made {len(output.prompt_token_ids)} tokens of prompt {row + 1} and training would have made "
                    f"{len(ids)}: this vLLM treats pictures in another way. Use --engine transformers."
                )
        return [output.outputs[0].text.strip() for output in found]


def vllm_prompt(encoder: MemeEncoder, chat: Chat, ids: list[int], image_token: int) -> dict[str, Any]:
    """A chat as vLLM's `TokensPrompt`: one image token per picture, and the pictures as LLaMA-Factory resizes them."""
    pictures = regular_images(encoder, chat.images)
    return {"prompt_token_ids": fold_image_tokens(ids, image_token), "multi_modal_data": {"image": pictures}}


def regular_images(encoder: MemeEncoder, images: Sequence[Image.Image]) -> list[Image.Image]:
    """Pictures within the run's pixel limits. The model's own processor, ours and vLLM's, comes after that."""
    processor = encoder.processor
    return encoder.template.mm_plugin._regularize_images(
        list(images),
        image_max_pixels=processor.image_max_pixels,
        image_min_pixels=processor.image_min_pixels,
    )["images"]


def vllm_arguments(
    run: Run, encoder: MemeEncoder, context: int, pictures: int, tensor_parallel_size: int
) -> dict[str, Any]:
    """Arguments of `vllm.LLM` for a run.

    Raises:
        UserError: adapters under the adapter, or a quantisation that vLLM does not make.
    """
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
        "limit_mm_per_prompt": {"image": pictures, "video": 0},
        "mm_processor_kwargs": {"max_pixels": _largest_picture(encoder)},
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
            sees = any(".visual." in name for name in weights.keys())  # noqa: SIM118 - no mapping
        # Without the last one vLLM would leave the picture's part of the adapter out, and only log it.
        arguments |= {"enable_lora": True, "max_lora_rank": _room(rank), "enable_tower_connector_lora": sees}
    return arguments


def _room(rank: int) -> int:
    """The smallest LoRA rank that vLLM makes room for and that holds `rank`."""
    found = next((room for room in _RANKS if room >= rank), None)
    if found is None:
        raise UserError(f"The adapter's rank is {rank}, vLLM takes up to {_RANKS[-1]}; use --engine transformers.")
    return found


def _largest_picture(encoder: MemeEncoder) -> int:
    """Pixels that no picture exceeds once it is rounded to whole patches, or the model's own limit if that is less.

    vLLM keeps memory for its largest picture. The run's limit itself would be too small: LLaMA-Factory applies it
    before the model's processor rounds each side up by half a patch, and aspect ratios go up to 200.
    """
    pixels, processor = encoder.processor.image_max_pixels, encoder.processor.image_processor
    half = processor.patch_size * processor.merge_size / 2
    longest_sides = pixels**0.5 * (200**0.5 + 200**-0.5)  # of width and height, added
    rounded = int(pixels + half * longest_sides + half * half) + 1
    return min(rounded, processor.size["longest_edge"])
