"""Engines: which one is meant, and what vLLM would be asked. vLLM itself needs a GPU and is not run here."""

import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from ra_hmd.core.artifacts import write_json
from ra_hmd.core.errors import UserError
from ra_hmd.models.checkpoint import Run, open_backbone, open_run
from ra_hmd.models.families import FAMILIES
from ra_hmd.models.families.qwen import QwenVL
from ra_hmd.models.generation.chat import Chat, chat_ids, fold_image_tokens
from ra_hmd.models.generation.engines import VllmEngine, choose_engine, open_engine, regular_images, vllm_arguments
from ra_hmd.models.meme_model import MemeModel, load_encoder
from ra_hmd.models.tokenization import MemeEncoder

SIZES = ((96, 96), (320, 40), (31, 700), (20, 20), (900, 655), (882, 668))


def encoder_of(run: Run, **changes: int) -> MemeEncoder:
    return load_encoder(run.base_model, run.settings.replace(**changes))[0]


def shown(image: Image.Image) -> Chat:
    return Chat([{"role": "user", "content": "<image>"}], [image])


def test_auto_is_what_is_here_and_another_choice_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_engine("transformers") == "transformers"
    if torch.cuda.is_available():
        pytest.skip("a CUDA device is here: the choice depends on whether vLLM is installed")
    assert choose_engine("auto") == "transformers"
    with pytest.raises(UserError, match="--engine vllm needs vLLM, and it is not installed.*vllm/bin/pip install"):
        choose_engine("vllm")
    monkeypatch.setenv("RA_HMD_VLLM_PYTHON", "/no/such/python")
    with pytest.raises(UserError, match="=/no/such/python is no program"):
        choose_engine("vllm")
    monkeypatch.setenv("RA_HMD_VLLM_PYTHON", sys.executable)
    with pytest.raises(UserError, match="needs a CUDA device"):
        choose_engine("vllm")
    assert choose_engine("auto") == "transformers"
    with pytest.raises(UserError, match="magic"):
        choose_engine("magic")


def test_the_adapter_becomes_a_lora_request(stage1_run: Path, tmp_path: Path) -> None:
    run = open_run(stage1_run)
    encoder = encoder_of(run)
    found = vllm_arguments(run, encoder, 4096, 5, 2)
    expected = {"model": run.base_model, "tensor_parallel_size": 2, "max_model_len": 4096, "generation_config": "vllm",
                "limit_mm_per_prompt": {"image": 5, "video": 0}, "enable_lora": True, "max_lora_rank": 8,
                "enable_tower_connector_lora": False}  # fmt: skip
    assert expected.items() <= found.items()
    assert "enable_lora" not in vllm_arguments(replace(run, adapter=None), encoder, 4096, 1, 1)
    quantized = replace(run, loading={"quantization_bit": 4, "quantization_method": "bnb"})
    assert vllm_arguments(quantized, encoder, 4096, 1, 1)["quantization"] == "bitsandbytes"
    with pytest.raises(UserError, match="in 8 bits by bnb"):
        vllm_arguments(replace(run, loading={"quantization_bit": 8}), encoder, 4096, 1, 1)
    with pytest.raises(UserError, match="adapters merged into it"):
        vllm_arguments(replace(run, base_adapters=("x",)), encoder, 4096, 1, 1)

    adapter = tmp_path / "adapter"
    adapter.mkdir()
    shutil.copy(run.adapter / "adapter_config.json", adapter)
    weights = load_file(run.adapter / "adapter_model.safetensors")
    name = next(iter(weights))
    save_file(weights | {name.replace("language_model", "visual"): weights[name].clone()},
              adapter / "adapter_model.safetensors")  # fmt: skip
    assert "visual" not in name
    assert vllm_arguments(replace(run, adapter=adapter), encoder, 4096, 1, 1)["enable_tower_connector_lora"] is True
    stated = json.loads((adapter / "adapter_config.json").read_text())
    for rank, room in ((33, 64), (512, 512)):
        (adapter / "adapter_config.json").write_text(json.dumps(stated | {"r": rank}))
        assert vllm_arguments(replace(run, adapter=adapter), encoder, 4096, 1, 1)["max_lora_rank"] == room
    (adapter / "adapter_config.json").write_text(json.dumps(stated | {"r": 600}))
    with pytest.raises(UserError, match="rank is 600"):
        vllm_arguments(replace(run, adapter=adapter), encoder, 4096, 1, 1)


@pytest.mark.parametrize("family", [name for name, family in FAMILIES.items() if isinstance(family, QwenVL)])
@pytest.mark.parametrize("pixels", [96 * 96, 768 * 768])
def test_prompts_become_the_tokens_of_training_once_vllm_puts_the_pictures_in(
    tiny: Callable[[str], Path], family: str, pixels: int
) -> None:
    """vLLM's rule, by hand: one image token becomes as many as the model's processor, within `max_pixels`, makes of the
    picture it is given.
    """
    run = open_backbone(str(tiny(family)))
    encoder = encoder_of(run, image_max_pixels=pixels)
    processor = encoder.processor.image_processor
    processor.size = processor.size | {"longest_edge": 4_000_000}  # as published models have it
    chat = Chat(
        [{"role": "user", "content": "<image> a cat, " * len(SIZES)}], [Image.new("RGB", size) for size in SIZES]
    )
    image_token = encoder.tokenizer.convert_tokens_to_ids("<|image_pad|>")
    ids = chat_ids(encoder, chat)
    folded = fold_image_tokens(ids, image_token)
    assert folded.count(image_token) == len(SIZES)
    limit = vllm_arguments(run, encoder, 4096, 1, 1)["mm_processor_kwargs"]["max_pixels"]
    assert pixels < limit < 4_000_000
    pictures = iter(regular_images(encoder, chat))
    size = {"shortest_edge": processor.size["shortest_edge"], "longest_edge": limit}
    grown: list[int] = []
    for token in folded:
        count = 1
        if token == image_token:
            (grid,) = processor(next(pictures), size=size, return_tensors="pt")["image_grid_thw"].tolist()
            count = grid[0] * grid[1] * grid[2] // processor.merge_size**2
        grown += [token] * count
    assert grown == ids


def test_only_images_that_keep_their_shape_have_a_largest_size(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    run = open_backbone(str(tiny("llava")))
    assert vllm_arguments(run, encoder_of(run), 4096, 1, 1)["mm_processor_kwargs"] == {}
    write_json(tmp_path / "adapter_config.json", {"r": 8})
    for place, sees in (("language_model.layers.0.mlp.up_proj", False), ("multi_modal_projector.linear_1", True)):
        save_file({f"base_model.model.model.{place}.lora_A.weight": torch.ones(8, 4)},
                  tmp_path / "adapter_model.safetensors")  # fmt: skip
        found = vllm_arguments(replace(run, adapter=tmp_path), encoder_of(run), 4096, 1, 1)
        assert found["enable_tower_connector_lora"] is sees


def test_pictures_are_resized_once_as_in_training(stage1_run: Path) -> None:
    run = open_run(stage1_run)
    encoder = encoder_of(run, image_max_pixels=96 * 96)
    (small,) = regular_images(encoder, shown(Image.new("RGBA", (300, 200))))
    assert small.mode == "RGB"
    assert small.width * small.height <= 96 * 96
    assert regular_images(encoder, shown(small))[0].size == small.size


def test_no_adapter_to_leave_aside(tiny: Callable[[str], Path]) -> None:
    model = MemeModel(open_backbone(str(tiny("qwen2_vl"))), torch.device("cpu"))
    with pytest.raises(UserError, match="no adapter"):
        open_engine("transformers", model, adapter=False)
    assert open_engine("transformers", model).adapter is False


STAND_IN = '''
"""Stands in for vLLM 0.33: the names and arguments that are used of it, and no model."""
import json, os
from types import SimpleNamespace

print("a line of log")

class SamplingParams:
    def __init__(self, *, temperature, max_tokens, stop_token_ids):
        self.said = [temperature, max_tokens, stop_token_ids]

class LLM:
    def __init__(self, **arguments):
        if arguments["max_model_len"] < 4096:
            raise ValueError("no memory")
        with open(os.environ["SEEN"], "w") as file:
            json.dump([arguments, "RANK" in os.environ], file)

    def generate(self, prompts, params, *, use_tqdm, lora_request):
        os.write(1, b"more log, past Python")
        answers = []
        for prompt in prompts:
            pictures, ids = iter(prompt.get("multi_modal_data", {}).get("image", [])), []
            for token in prompt["prompt_token_ids"]:
                ids += [token]
                if token == int(os.environ["IMAGE_TOKEN"]):
                    width, height = next(pictures).size
                    ids += [token] * (width // 28 * (height // 28) - 1)
            told = json.dumps(params.said + [lora_request and [*lora_request]])
            answers.append(SimpleNamespace(prompt_token_ids=tuple(ids), outputs=[SimpleNamespace(text=f" {told} ")]))
        return answers
'''


@pytest.fixture
def stand_in(tmp_path: Path, stage1_run: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An environment with a `vllm`, and where its `LLM` writes what it was given."""
    package = tmp_path / "site" / "vllm"
    (package / "lora").mkdir(parents=True)
    (package / "__init__.py").write_text(STAND_IN)
    (package / "lora" / "__init__.py").touch()
    (package / "lora" / "request.py").write_text("def LoRARequest(*values):\n    return values\n")
    token = encoder_of(open_run(stage1_run)).tokenizer.convert_tokens_to_ids("<|image_pad|>")
    values = {"PYTHONPATH": package.parent, "SEEN": tmp_path / "seen", "IMAGE_TOKEN": token, "RANK": 0}
    for name, value in values.items():
        monkeypatch.setenv(name, str(value))
    return tmp_path / "seen"


def test_the_worker_is_asked_and_answers(stage1_run: Path, stand_in: Path) -> None:
    """The real process and its lines, with a `vllm` of the same calls in it; what vLLM makes of them is not tested."""
    run = open_run(stage1_run)
    encoder = encoder_of(run)
    engine = VllmEngine(run, encoder, sys.executable, max_images=2, gpu_memory_utilization=0.5)
    arguments, ranked = json.loads(stand_in.read_text())
    assert arguments == vllm_arguments(run, encoder, 4096, 2, 1) | {"gpu_memory_utilization": 0.5}
    assert not ranked
    chats = [shown(Image.new("RGB", size)) for size in ((84, 112), (56, 84))]
    chats += [Chat([{"role": "user", "content": "Name a cake."}])]
    said = [json.loads(answer) for answer in engine.generate(chats, 7)]
    stop = encoder.template.get_stop_token_ids(encoder.tokenizer)
    assert said == [[0.0, 7, stop, ["run", 1, str(run.adapter.absolute())]]] * 3
    assert engine.generate([], 7) == []
    with pytest.raises(UserError, match="4090 are requested"):
        engine.check(chats[0], 4090)
    with pytest.raises(UserError, match=r"vLLM made \d+ tokens of prompt 1 and training would have made"):
        engine.generate([shown(Image.new("RGB", (108, 112)))], 7)  # the processor rounds it to 112, the stand-in to 84
    process = engine._worker.process
    del engine
    until = time.monotonic() + 20
    while process.poll() is None and time.monotonic() < until:
        time.sleep(0.05)
    assert process.returncode == 0


def test_a_worker_that_ends_is_told(stage1_run: Path, stand_in: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = open_run(stage1_run)
    encoder = encoder_of(run)
    engine = VllmEngine(run, encoder, sys.executable)
    os.kill(engine._worker.process.pid, 9)
    with pytest.raises(UserError, match="vLLM ended .exit code -9"):
        engine.generate([shown(Image.new("RGB", (84, 84)))], 7)
    monkeypatch.setattr("ra_hmd.models.generation.engines._CONTEXT", 100)
    with pytest.raises(UserError, match="vLLM ended .exit code 1"):
        VllmEngine(run, encoder, sys.executable)
