"""vLLM as the backend: the heads on its hidden states are those of our own forward pass, and nothing else is accepted.

The server follows vLLM's documented protocol (`vllm_server`); vLLM itself needs a GPU and is not run here.
"""

import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from pooled_runs import CPU, MEMES, assert_close, columns, lora_run
from safetensors.torch import load_file, save_file
from vllm_server import PoolingModel, VllmServer, vllm_server

from ra_hmd.core.errors import UserError
from ra_hmd.models.checkpoint import Run, open_backbone
from ra_hmd.models.meme_model import MemeModel
from ra_hmd.models.pooling.model import PooledModel, PooledRun, check_servable
from ra_hmd.models.pooling.settings import BackendSettings
from ra_hmd.models.tiny import make_tiny_lmm

QWEN = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")


@pytest.fixture(scope="module")
def lora(tiny: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Run]:
    """The run of a family, made once."""
    made: dict[str, Run] = {}

    def get(family: str) -> Run:
        if family not in made:
            made[family] = lora_run(tiny(family), tmp_path_factory.mktemp(family) / "run")
        return made[family]

    return get


@pytest.fixture(scope="module")
def run(lora: Callable[[str], Run]) -> Run:
    return lora("qwen2_vl")


@pytest.fixture(scope="module")
def model(run: Run) -> PoolingModel:
    return PoolingModel(run.base_model, run.adapter)


@pytest.fixture
def serve(model: PoolingModel) -> Iterator[Callable[..., VllmServer]]:
    """Starts servers of one model, which stop at the end of the test."""
    with ExitStack() as stack:
        yield lambda **settings: stack.enter_context(vllm_server(model, **settings))


def by(*servers: VllmServer, **settings: Any) -> BackendSettings:
    return BackendSettings(backend="vllm", engine_url=",".join(one.url for one in servers), **settings)


def opened(run: Run, *servers: VllmServer, **settings: Any) -> PooledModel:
    return PooledRun(run, by(*servers, **settings)).load(CPU)


@pytest.mark.parametrize("family", QWEN)
def test_hidden_states_and_heads_are_those_of_our_forward_pass(lora: Callable[[str], Run], family: str) -> None:
    run = lora(family)
    ours = MemeModel(run, CPU)
    with vllm_server(PoolingModel(run.base_model, run.adapter)) as server:
        pooled = opened(run, server)
        assert_close(columns(pooled), columns(ours))
        batch = ours.collate([ours.encode(text, image) for text, image in MEMES])
        prompts = [pooled.encode(text, image) for text, image in MEMES]
        assert [prompt.ids for prompt in prompts] == [ours.encode(text, image)["input_ids"] for text, image in MEMES]
        assert (pooled.untuned(prompts) - ours.untuned(batch)).abs().max() < 1e-4
        assert (pooled.untuned(prompts) - ours.columns(batch)["hidden"]).abs().max() > 0.1  # the adapter has an effect
    assert {name: server.bodies[1][name] for name in ("model", "add_generation_prompt", "use_activation")} == {
        "model": "run", "add_generation_prompt": True, "use_activation": False}  # fmt: skip


def test_weights_of_the_lm_head_may_be_those_of_the_embeddings(tmp_path: Path) -> None:
    make_tiny_lmm("qwen2_5_vl", tmp_path / "model", hidden_size=64, num_layers=2, tied=True)
    bare = open_backbone(str(tmp_path / "model"))
    with vllm_server(PoolingModel(bare.base_model, None)) as server:
        assert_close(columns(opened(bare, server)), columns(MemeModel(bare, CPU)))


def test_the_server_has_nothing_left_to_resize(run: Run, serve: Callable[..., VllmServer]) -> None:
    server = serve()
    pooled = opened(run, server)
    processor = pooled.encoder.processor.image_processor
    for text, image in MEMES:
        prompt = pooled.encode(text, image)
        picture = Image.open(BytesIO(prompt.picture))
        assert picture.width % 28 == picture.height % 28 == 0
        known = processor(picture, return_tensors="pt")
        unchanged = processor(picture, do_resize=False, return_tensors="pt")
        assert torch.equal(known["pixel_values"], unchanged["pixel_values"])


def test_our_process_never_loads_the_lmm(
    run: Run, serve: Callable[..., VllmServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers
    from llamafactory import model as host

    server = serve()

    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("the LMM is loaded")

    monkeypatch.setattr(host, "load_model", fail)
    monkeypatch.setattr(transformers.AutoModelForImageTextToText, "from_pretrained", fail)
    monkeypatch.setattr(transformers.PreTrainedModel, "from_pretrained", fail)
    assert columns(opened(run, server))["hidden"].shape == (len(MEMES), 64)


def test_requests_are_bounded_and_shared_by_the_servers(run: Run, serve: Callable[..., VllmServer]) -> None:
    servers = serve(), serve()
    pooled = opened(run, *servers, engine_concurrency=2)
    prompts = [pooled.encode(*MEMES[0])] * 24
    pooled.columns(prompts)
    assert sum(len(server.bodies) for server in servers) == len(prompts) + 2  # a drawn picture each
    for server in servers:
        assert len(server.bodies) > 4
        assert server.most <= 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"names": ("base", "other")}, "does not serve the adapter run; it serves base, other.*--lora-modules NAME="),
        ({"obeys": False}, "normalises its answers to length 1.*use_activation"),
        ({"pooling": "MEAN"}, "does not answer with the last token's state after the model's final norm"),
        ({"limits": {"min_pixels": 300 * 300, "max_pixels": 400 * 400}}, r"read \d+ tokens of a prompt that has \d+"),
        ({"max_model_len": 256}, "at most 256 tokens, the run's have up to 512.*--max-model-len 512"),
        ({"key": "secret"}, "refuses the API key .HTTP 401.; set VLLM_API_KEY"),
        ({"misbehave": lambda number: 400}, "refuses /v1/embeddings .HTTP 400.: EngineCore encountered"),
        ({"misbehave": lambda number: "redirect"}, "redirects /v1/embeddings to 'http://elsewhere.invalid"),
        ({"misbehave": lambda number: "flood"}, r"answers with more than \d+ bytes"),
    ],
)
def test_a_wrong_server_is_refused_before_a_meme_is_sent(
    run: Run, serve: Callable[..., VllmServer], settings: dict[str, Any], message: str
) -> None:
    server = serve(**settings)
    with pytest.raises(UserError, match=message):
        PooledRun(run, by(server, engine_model="run"))
    assert len(server.bodies) <= 1  # the drawn picture


def test_another_adapter_model_or_width_is_refused(
    run: Run, lora: Callable[[str], Run], serve: Callable[..., VllmServer], tmp_path: Path
) -> None:
    other = lora_run(Path(run.base_model), tmp_path / "other")
    weights = tmp_path / "other" / "adapter_model.safetensors"
    save_file({name: 2 * tensor for name, tensor in load_file(weights).items()}, weights)
    with pytest.raises(UserError, match="serves as run the adapter .*, not that of .*other"):
        PooledRun(other, by(serve()))
    with pytest.raises(UserError, match="serves the model .*, which is not the run's"):
        PooledRun(replace(run, base_model=lora("qwen2_5_vl").base_model, settings=run.settings), by(serve()))
    wide = make_tiny_lmm("qwen2_vl", tmp_path / "wide", hidden_size=128, num_layers=2)
    server = serve()
    with pytest.raises(UserError, match="does not fit .*hidden size 128"):
        PooledRun(replace(run, base_model=str(wide)), by(server))
    assert not server.seen
    server.model.root, kept = "org/some-model", server.model.root  # as a server elsewhere names it
    try:
        with pytest.raises(UserError, match=r"answers with \(64,\) values.*hidden size of 128"):
            PooledRun(replace(run, base_model=str(wide), head=None), by(server))
    finally:
        server.model.root = kept


def test_servers_that_disagree_are_refused(
    run: Run, lora: Callable[[str], Run], serve: Callable[..., VllmServer]
) -> None:
    with pytest.raises(UserError, match="has vLLM 0.32.1, the other servers have 0.33.0"):
        PooledRun(run, by(serve(), serve(version="0.32.1")))
    untuned = PoolingModel(run.base_model, run.adapter)
    untuned.model.get_base_model().model.language_model.layers[0].mlp.up_proj.weight.data.mul_(3)
    with vllm_server(untuned) as odd, pytest.raises(UserError, match="another state than the other servers"):
        PooledRun(run, by(serve(), odd))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"modules_to_save": ["embed_tokens"]}, "`modules_to_save: "),
        ({"target_modules": ["q_proj", "lm_head"]}, "`target_modules: .*lm_head"),
        ({"use_dora": True}, "`use_dora: True`"),
        ({"rank_pattern": {"q_proj": 4}}, "`rank_pattern"),
        ({"bias": "all"}, "`bias: all`"),
        ({"peft_type": "OFT"}, "`peft_type: OFT`"),
    ],
)
def test_adapters_that_vllm_does_otherwise_are_refused(
    run: Run, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    assert run.adapter is not None
    stated = json.loads((run.adapter / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(stated | change))
    shutil.copy(run.adapter / "adapter_model.safetensors", tmp_path)
    with pytest.raises(UserError, match=f"(?s)cannot be run by vLLM; use --backend transformers.*{message}"):
        check_servable(replace(run, adapter=tmp_path))
    check_servable(run)


def test_runs_whose_head_reads_something_else_are_refused(run: Run, tmp_path: Path) -> None:
    for change in ({"embed_mode": "pool"}, {"embed_layer": "penultimate"}):
        with pytest.raises(UserError, match="its head reads"):
            check_servable(replace(run, settings=run.settings.replace(**change)))
    with pytest.raises(UserError, match="it has experts"):
        check_servable(replace(run, experts=tmp_path))
    with pytest.raises(UserError, match="trained on adapters merged"):
        check_servable(replace(run, base_adapters=("x",)))
    with pytest.raises(UserError, match="rope_scaling"):
        check_servable(replace(run, loading={"rope_scaling": "linear"}))


def test_a_prompt_that_the_chat_template_makes_otherwise_is_refused(run: Run, serve: Callable[..., VllmServer]) -> None:
    server = serve()
    silent = replace(run, settings=run.settings.replace(default_system=""))  # the chat template adds its own
    with pytest.raises(UserError, match="the model's own chat template makes other tokens"):
        PooledRun(silent, by(server))
    assert not server.seen


def test_a_server_that_fails_is_replaced_by_another(run: Run, serve: Callable[..., VllmServer]) -> None:
    expected = columns(opened(run, serve()))
    for wrong in ("die", "hang", 500, 503):
        failing = serve(misbehave=lambda number, wrong=wrong: wrong if number > 2 else None)
        pooled = opened(run, failing, serve(), engine_timeout=1)
        for _ in range(2):
            assert_close(columns(pooled), expected)


def test_a_server_that_comes_back_is_asked_again(run: Run, serve: Callable[..., VllmServer]) -> None:
    server = serve(misbehave=lambda number: 503 if number in (2, 3) else None)
    pooled = opened(run, server)
    assert columns(pooled)["hidden"].shape == (len(MEMES), 64)
    assert [path for path, _ in server.seen].count("/version") >= 2  # greeted again after the failure


def test_nothing_that_answers_is_told_with_the_reasons(run: Run, serve: Callable[..., VllmServer]) -> None:
    dead = BackendSettings(backend="vllm", engine_url="http://127.0.0.1:9", engine_timeout=1)
    with pytest.raises(
        UserError, match=r"(?s)No vLLM server answers:.*http://127.0.0.1:9: .*refused.*goes on from there"
    ):
        PooledRun(run, dead)
    server = serve(misbehave=lambda number: 500 if number else None)
    pooled = opened(run, server)
    start = time.monotonic()
    with pytest.raises(UserError, match="HTTP 500: EngineCore encountered"):
        columns(pooled)
    assert time.monotonic() - start < 20


def test_the_key_goes_to_the_servers_alone(
    run: Run, serve: Callable[..., VllmServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "secret")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    server = serve(key="secret", misbehave=lambda number: 400 if number else None)
    pooled = opened(run, server)
    assert {given for _, given in server.seen} == {"Bearer secret"}
    with pytest.raises(UserError) as refused:
        columns(pooled)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"engine_url": "http://x"}, "--engine-url goes with --backend vllm"),
        ({"backend": "vllm", "engine_model": "x"}, "--engine-model goes with --engine-url"),
        (
            {"backend": "vllm", "engine_url": "http://x", "engine_gpus": 2},
            "--engine-gpus is for vLLM that is started here",
        ),
        ({"backend": "vllm", "engine_url": "http://me:pw@x"}, "user name or password"),
        ({"backend": "vllm", "engine_url": "ftp://x"}, "no URL of an API"),
        ({"backend": "vllm", "engine_url": " , "}, "--engine-url is empty"),
    ],
)
def test_options_that_do_not_go_together(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        BackendSettings(**values)


def test_urls_may_end_like_those_of_openai_clients() -> None:
    settings = BackendSettings(backend="vllm", engine_url="http://a:8000/v1, http://a:8000/,http://b")
    assert settings.urls == ["http://a:8000", "http://b"]
