"""Where experts go, what they are named, what is refused, and what routing depends on."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from expert_models import LAYERS, lmm, lmm_batch, small_model, with_experts
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForImageTextToText, Qwen3VLMoeConfig

from ra_hmd.core.errors import UserError
from ra_hmd.models.experts.attach import (
    attach_experts,
    experts_of,
    is_expert_parameter,
    is_router_parameter,
)
from ra_hmd.models.experts.modules import ExpertLinear, Router
from ra_hmd.models.experts.settings import ExpertSettings

CAPTIONS = ["my cat", "the dog knows best", "a kitten has other plans", "be like this bunny"]
IDS = [1, -1, 0, 2]


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_language_model_alone_gets_experts(tiny: Callable[[str], Path], family: str) -> None:
    model = lmm(tiny(family))
    before = {name for name, _ in model.named_parameters()}
    vision = {name for name in before if "visual" in name}
    assert (family == "qwen2_5_vl") == any("gate_proj" in name for name in vision), "the trap of this test is gone"
    experts = attach_experts(model, ExpertSettings(num_clusters=3), seed=0, trainable=True)
    where = {name for name, module in model.named_modules() if isinstance(module, ExpertLinear | Router)}
    number = len(model.get_decoder().layers)
    kinds = ("gate_proj", "up_proj", "down_proj", "expert_router")
    assert where == {f"model.language_model.layers.{i}.mlp.{kind}" for i in range(number) for kind in kinds}
    assert {name for name, _ in model.named_parameters() if "visual" in name} == vision
    new = {name for name, _ in model.named_parameters() if is_expert_parameter(name)}
    assert len(new) == len(experts.state()) - 1  # the running share is no parameter
    assert {name.replace(".base_layer", "") for name, _ in model.named_parameters()} - new == before
    routers = {name for name in new if is_router_parameter(name)}
    assert {name.rpartition(".")[2] for name in routers} == {"weight", "bias", "prior"}
    assert not any("lora_" in name for name in new)
    assert experts_of(model) is experts


def test_saved_names_and_shapes(tiny: Callable[[str], Path]) -> None:
    model = lmm(tiny("qwen2_vl"))
    experts = attach_experts(
        model, ExpertSettings(num_experts=3, rank=5, num_clusters=7, universal=True), seed=0, trainable=True
    )
    shapes = {name: tuple(value.shape) for name, value in experts.state().items()}
    expected = {"share": (3,)}
    for number in range(2):
        layer = f"layers.{number}"
        for name, (outputs, inputs) in {"gate": (128, 64), "up": (128, 64), "down": (64, 128)}.items():
            expected |= {f"{layer}.{name}.A": (5, inputs), f"{layer}.{name}.B": (outputs, 4 * 5)}
        router = {"weight": (3, 64), "bias": (3,), "prior": (7, 3)}
        expected |= {f"{layer}.router.{name}": shape for name, shape in router.items()}
    assert shapes == expected


def test_each_parameter_lives_once_and_in_the_module_that_uses_it() -> None:
    model = small_model(dtype=torch.float32)
    attach_experts(model, ExpertSettings(num_clusters=2), seed=0, trainable=True)
    new = [parameter for name, parameter in model.named_parameters() if is_expert_parameter(name)]
    everywhere = [p for module in model.modules() for p in module._parameters.values() if p is not None]
    assert all(sum(one is other for other in everywhere) == 1 for one in new)
    owned: dict[int, set[str]] = {}
    for module in model.modules():
        if isinstance(module, ExpertLinear | Router):
            own = {name for name, value in module._parameters.items() if value is not None}
            owned[id(module)] = own
            module.register_forward_hook(_check_graph)
    assert set(map(frozenset, owned.values())) == {
        frozenset({"expert_A", "expert_B"}),
        frozenset({"weight", "bias", "prior"}),
    }
    model(input_ids=torch.randint(0, 40, (2, 5)))


def _check_graph(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
    """Assert that each parameter of a module is in the graph of its own output."""
    parameters = [value for value in module._parameters.values() if value is not None]
    gradients = torch.autograd.grad(output.sum(), parameters, allow_unused=True, retain_graph=True)
    assert all(gradient is not None for gradient in gradients)


@pytest.mark.parametrize("settings", [{}, {"top_k": 1}, {"top_k": 2}, {"router_input": "none"}, {"prior_weight": 0}])
@pytest.mark.parametrize("ids", [[-1, -1], [0, 1], None])
def test_every_parameter_has_a_gradient_whatever_the_ids(settings: dict[str, object], ids: list[int] | None) -> None:
    model = small_model(dtype=torch.float32).train()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    experts = attach_experts(model, ExpertSettings(num_clusters=2, **settings), seed=0, trainable=True)
    experts.routing.set(None if ids is None else torch.tensor(ids))
    model(input_ids=torch.randint(0, 40, (2, 5))).logits.sum().backward()
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert [name for name, parameter in trained if parameter.grad is None] == []
    assert len(trained) == len(experts.state()) - 1


def test_seed_decides_the_weights_and_the_caller_keeps_its_random_state() -> None:
    def state(seed: int) -> dict[str, torch.Tensor]:
        model = small_model(dtype=torch.float32)
        torch.manual_seed(int(torch.randint(0, 1000, ()).item()))
        before = torch.get_rng_state()
        values = attach_experts(model, ExpertSettings(num_clusters=2), seed=seed, trainable=False).state()
        assert torch.equal(before, torch.get_rng_state())
        return values

    one, same, other = state(3), state(3), state(4)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["layers.0.gate.A"], other["layers.0.gate.A"])
    assert not torch.equal(one["layers.0.gate.A"], one["layers.0.up.A"])
    assert one["layers.0.router.weight"].abs().min() > 0, "a zero router never tells experts apart"


def test_experts_are_made_on_the_device_of_the_layer_they_wrap() -> None:
    model = small_model(dtype=torch.bfloat16).to("meta")
    experts = attach_experts(model, ExpertSettings(num_clusters=2), seed=0, trainable=False)
    assert {tensor.device.type for tensor in experts.state().values()} == {"meta"}
    assert {tensor.dtype for tensor in experts.state().values()} == {torch.float32}
    assert not any(tensor.requires_grad for tensor in experts.state().values())
    assert model(input_ids=torch.zeros(2, 5, dtype=torch.long, device="meta")).logits.shape == (2, 5, 40)
    half = attach_experts(
        small_model(dtype=torch.bfloat16), ExpertSettings(), seed=0, trainable=True, dtype=torch.bfloat16
    ).state()
    assert half["layers.0.up.A"].dtype == torch.bfloat16
    assert half["layers.0.router.weight"].dtype == torch.float32


def test_mixture_of_experts_backbones_are_refused() -> None:
    text = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "moe_intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "head_dim": 16,
        "vocab_size": 64,
    }
    vision = {"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 32}
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(
            Qwen3VLMoeConfig(text_config=text, vision_config=vision | {"deepstack_visual_indexes": [0]})
        )
    names = [name for name, _ in model.named_parameters()]
    with pytest.raises(UserError, match=r"Layer 0 of Qwen3VLMoe.*gate_proj.*mixture-of-experts"):
        attach_experts(model, ExpertSettings(), seed=0, trainable=True)
    assert [name for name, _ in model.named_parameters()] == names, "a refused model stays as it was"


def test_an_adapter_on_the_same_layers_is_refused_and_one_elsewhere_is_not() -> None:
    model = get_peft_model(small_model(dtype=torch.float32), LoraConfig(r=2, target_modules=["q_proj", "up_proj"]))
    with pytest.raises(UserError, match=r"Layer 0 .*up_proj.*lora_target"):
        attach_experts(model, ExpertSettings(), seed=0, trainable=True)
    model = get_peft_model(small_model(dtype=torch.float32), LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    experts = attach_experts(model, ExpertSettings(), seed=0, trainable=True)
    assert experts_of(model) is experts_of(model.get_base_model()) is experts
    with pytest.raises(ValueError, match="already"):
        attach_experts(model, ExpertSettings(), seed=0, trainable=True)
    assert experts_of(small_model()) is None


def test_experts_are_not_in_the_adapter_of_peft(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    model = get_peft_model(small_model(dtype=torch.float32), LoraConfig(r=2, target_modules=["q_proj"]))
    attach_experts(model, ExpertSettings(), seed=0, trainable=True)
    model.save_pretrained(tmp_path)
    names = list(load_file(tmp_path / "adapter_model.safetensors"))
    assert len(names) == 2 * LAYERS
    assert all("q_proj.lora_" in name for name in names)


def test_scores_are_independent_of_padding_batch_size_row_order_and_batch_mates(tiny: Callable[[str], Path]) -> None:
    folder = tiny("qwen2_vl")
    model = lmm(folder)
    experts = with_experts(model, num_clusters=3)

    def scores(rows: list[int], side: str = "left") -> torch.Tensor:
        captions = [CAPTIONS[row] for row in rows]
        batch = lmm_batch(folder, captions, side)
        one = len(batch["pixel_values"]) // len(rows)
        pictures = lmm_batch(folder, CAPTIONS)["pixel_values"].view(len(CAPTIONS), one, -1)
        batch["pixel_values"] = pictures[rows].flatten(0, 1)
        experts.routing.set(torch.tensor([IDS[row] for row in rows]), batch["attention_mask"])
        with torch.no_grad():
            logits = model(**batch).logits
        last = batch["attention_mask"].cumsum(1).argmax(1)
        means = experts.routing.balance.mean()
        return torch.cat([logits[torch.arange(len(rows)), last], means], dim=1)

    whole = scores([0, 1, 2, 3])
    assert (whole[1:] - whole[:1]).abs().amax(dim=1).min() > 1e-2
    for rows, side in (
        ([0, 1, 2, 3], "right"),
        ([3, 1, 0, 2], "left"),
        ([2, 3], "left"),
        ([1, 1, 1], "right"),
        ([0], "left"),
    ):
        assert torch.allclose(scores(rows, side), whole[rows], atol=1e-5), (rows, side)


def test_another_batch_size_than_was_set_is_an_error() -> None:
    model = small_model(dtype=torch.float32)
    experts = attach_experts(model, ExpertSettings(num_clusters=3), seed=0, trainable=False)
    tokens = torch.randint(0, 40, (2, 5))
    for given in ({"cluster_ids": torch.tensor([0, 1, 2])}, {"cluster_ids": None, "attention_mask": torch.ones(3, 5)}):
        experts.routing.set(**given)
        with pytest.raises(ValueError, match="set for 3 memes and 2 rows"):
            model(input_ids=tokens)
    experts.routing.clear()
    model(input_ids=tokens)
    experts.routing.set(torch.tensor([0, 1]), torch.ones(2, 4))
    with pytest.raises(ValueError, match="5 tokens and the attention mask .* has 4"):
        model(input_ids=tokens)
    for ids, mask in ((torch.zeros(2, 1), None), (torch.zeros(2), torch.ones(3, 5)), (None, torch.ones(2, 1, 5, 5))):
        with pytest.raises(ValueError, match="shape"):
            experts.routing.set(ids, mask)


def test_generation_with_beams_routes_each_meme_by_its_cluster(tiny: Callable[[str], Path]) -> None:
    folder = tiny("qwen2_vl")
    model = lmm(folder)
    experts = with_experts(model, num_clusters=3)
    both = lmm_batch(folder, ["my cat", "my cat"])
    both["pixel_values"] = both["pixel_values"][: len(both["pixel_values"]) // 2].repeat(2, 1)

    def generate(ids: list[int]) -> list[list[int]]:
        with experts.routing.using(torch.tensor(ids), repeated=3):
            return model.generate(**both, num_beams=3, max_new_tokens=6, min_new_tokens=6).tolist()

    first, second = generate([0, 2])
    assert first != second
    assert generate([2, 0]) == [second, first]
    assert (generate([0, 0]), generate([2, 2])) == ([first] * 2, [second] * 2), "beams are of another meme's cluster"
    model(**both)  # cleared: two rows run again, of unknown clusters
    experts.routing.set(torch.tensor([1]))
    with pytest.raises(RuntimeError, match="stopped"), experts.routing.using(torch.tensor([0, 1])):
        raise RuntimeError("stopped")
    with pytest.raises(ValueError, match="set for 1 memes"):
        model(**both)


def test_no_layer_keeps_the_graph_of_a_forward_pass() -> None:
    import weakref

    model = small_model(dtype=torch.float32).train()
    attach_experts(model, ExpertSettings(), seed=0, trainable=True)
    output = model(input_ids=torch.randint(0, 40, (2, 5))).logits
    node = weakref.ref(output)
    del output
    assert node() is None
    hidden = torch.randn(1, 4, 16, requires_grad=True)
    kept = weakref.ref(hidden)
    model.model.layers[0].mlp(hidden)
    del hidden
    assert kept() is None
