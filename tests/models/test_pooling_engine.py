"""vLLM that is started here: what it is given, and that its states are those of our forward pass.

vLLM itself needs a GPU and is not run here. The process is real, and in it a `vllm` with the names and arguments that
are used of it, and transformers' model behind them.
"""

import json
import pickle
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pooled_runs import CPU, MEMES, assert_close, columns, lora_run
from vllm_server import PoolingModel, vllm_server

from ra_hmd.core.errors import UserError
from ra_hmd.models.checkpoint import Run
from ra_hmd.models.meme_model import MemeModel
from ra_hmd.models.pooling.engine import EngineStates
from ra_hmd.models.pooling.model import PooledModel, PooledRun
from ra_hmd.models.pooling.settings import BackendSettings

STAND_IN = '''
"""Stands in for vLLM 0.33: the names and arguments that are used of it, over transformers."""
import json, os
from types import SimpleNamespace

print("a line of log")

class LLM:
    def __init__(self, *, pooler_config, **arguments):
        from transformers import AutoModelForImageTextToText, AutoProcessor
        with open(os.environ["SEEN"], "w") as file:
            json.dump([arguments, vars(pooler_config)], file)
        self.processor = AutoProcessor.from_pretrained(arguments["model"]).image_processor
        self.model = AutoModelForImageTextToText.from_pretrained(arguments["model"]).eval()
        self.tuned = None

    def embed(self, prompts, *, use_tqdm, lora_request):
        import torch
        from peft import PeftModel
        if lora_request is not None and self.tuned is None:
            self.model = self.tuned = PeftModel.from_pretrained(self.model, lora_request[2]).eval()
        answers = []
        for prompt in prompts:
            pixels = self.processor(prompt["multi_modal_data"]["image"], return_tensors="pt")
            base = self.tuned.get_base_model() if self.tuned else self.model
            token, count = base.config.image_token_id, int(pixels["image_grid_thw"].prod()) // 4
            ids = []
            for one in prompt["prompt_token_ids"]:
                ids += [one] * (count if one == token else 1)
            inputs = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
            inputs["mm_token_type_ids"] = (inputs["input_ids"] == token).int()
            with torch.inference_mode():
                states = base.model(**inputs, **pixels).last_hidden_state[0, -1]
            answers.append(SimpleNamespace(prompt_token_ids=ids, outputs=SimpleNamespace(embedding=states.tolist())))
        return answers
'''


@pytest.fixture(scope="module")
def run(tiny: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Run:
    return lora_run(tiny("qwen2_vl"), tmp_path_factory.mktemp("lora") / "run")


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An environment with a `vllm`, and where its `LLM` writes what it was given."""
    package = tmp_path / "site" / "vllm"
    (package / "lora").mkdir(parents=True)
    (package / "__init__.py").write_text(STAND_IN)
    (package / "config.py").write_text("from types import SimpleNamespace as PoolerConfig\n")
    (package / "lora" / "__init__.py").touch()
    (package / "lora" / "request.py").write_text("def LoRARequest(*values):\n    return values\n")
    described = tmp_path / "site" / "vllm-0.33.0.dist-info"
    described.mkdir()
    (described / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.33.0\n")
    monkeypatch.setenv("PYTHONPATH", str(package.parent))
    monkeypatch.setenv("SEEN", str(tmp_path / "seen"))
    monkeypatch.setenv("RA_HMD_VLLM_PYTHON", sys.executable)
    return tmp_path / "seen"


def test_states_of_a_vllm_that_is_started_here(run: Run, stand_in: Path) -> None:
    pooled = PooledRun(run, BackendSettings(backend="vllm"))
    assert pooled.engine == {"engine": "vllm 0.33.0"}
    with pytest.raises(UserError, match="--backend vllm needs a CUDA device"):
        pooled.load(CPU)
    states = EngineStates(run, pooled.maker, pooled.check, 2, "float32")
    model = PooledModel(run, pooled.config, pooled.maker, states, CPU)
    assert_close(columns(model), columns(MemeModel(run, CPU)))
    arguments, pooler = json.loads(stand_in.read_text())
    assert pooler == {"pooling_type": "LAST", "use_activation": False}
    expected = {"model": run.base_model, "runner": "pooling", "convert": "embed", "dtype": "float32",
                "tensor_parallel_size": 2, "max_model_len": 512, "enable_lora": True, "max_lora_rank": 8}  # fmt: skip
    assert expected.items() <= arguments.items()


def test_what_is_missing_is_told(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RA_HMD_VLLM_PYTHON", raising=False)
    with pytest.raises(UserError, match="--backend vllm needs vLLM, and it is not installed.*--backend transformers"):
        PooledRun(run, BackendSettings(backend="vllm"))


def test_a_copy_in_another_process_asks_the_same_version(run: Run) -> None:
    with vllm_server(PoolingModel(run.base_model, run.adapter)) as server:
        opened = PooledRun(run, BackendSettings(backend="vllm", engine_url=server.url))
        load = pickle.loads(pickle.dumps(opened.load))  # as it crosses to a worker of Ray
        text, image = MEMES[0]
        found = load(CPU).columns([load(CPU).encode(text, image)])
        assert torch.equal(found["hidden"], opened.load(CPU).columns([opened.load(CPU).encode(text, image)])["hidden"])
        kept = pickle.dumps(opened.load)
        server.version = "0.34.0"
        load = pickle.loads(kept)
        with pytest.raises(UserError, match="features are of vLLM 0.33.0, and here is 0.34.0"):
            load(CPU)
