"""Mathematics of the experts: loops over tokens and experts, PEFT's LoRA, and the base model."""

import copy
from types import MethodType
from typing import Any

import pytest
import torch
from expert_models import HIDDEN, looped_mlp, small_model, with_experts
from peft import LoraConfig, get_peft_model

from ra_hmd.core.errors import UserError
from ra_hmd.models.experts.attach import PROJECTIONS, attach_experts
from ra_hmd.models.experts.modules import ExpertLinear
from ra_hmd.models.experts.settings import ExpertSettings

IDS = [2, -1, 0]
CASES: dict[str, dict[str, Any]] = {
    "dense": {},
    "without_clusters": {"num_clusters": 0},
    "universal": {"universal": True},
    "one_of_four": {"top_k": 1},
    "two_of_four": {"top_k": 2, "universal": True},
    "all_of_four": {"top_k": 4},
    "weight_and_temperature": {"prior_weight": 0.3, "tau": 0.7},
    "clusters_alone": {"router_input": "none"},
    "one_expert": {"num_experts": 1, "num_clusters": 0},
}


def settings_of(case: str) -> dict[str, Any]:
    return {"num_experts": 4, "rank": 3, "alpha": 7, "num_clusters": 3} | CASES[case]


@pytest.mark.parametrize("case", CASES)
def test_equals_loops_over_tokens_and_experts(case: str) -> None:
    model = small_model()
    experts = with_experts(model, dtype=torch.float64, **settings_of(case))
    model.double()  # routers too: all of the comparison is in double precision
    mlp = model.model.layers[1].mlp
    hidden = torch.randn(3, 5, HIDDEN, dtype=torch.float64, requires_grad=True)
    seen = torch.randn(3, 5, HIDDEN, dtype=torch.float64)
    experts.routing.set(torch.tensor(IDS))
    result = mlp(hidden)
    (result * seen).sum().backward()

    prefix = "layers.1."
    own = {name.removeprefix(prefix): value for name, value in experts.state().items() if name.startswith(prefix)}
    copies = {name: value.detach().clone().requires_grad_() for name, value in own.items()}
    same_hidden = hidden.detach().clone().requires_grad_()
    expected = looped_mlp(mlp, same_hidden, copies, IDS, experts.settings)
    (expected * seen).sum().backward()

    assert (result - expected).abs().max() < 1e-10
    assert (hidden.grad - same_hidden.grad).abs().max() < 1e-10
    for name, tensor in own.items():
        assert tensor.grad is not None, f"{name} took no part"
        by_loops = torch.zeros_like(tensor) if copies[name].grad is None else copies[name].grad
        assert (tensor.grad - by_loops).abs().max() < 1e-10, name
    without_choice = {"router.weight", "router.bias"} if case == "one_expert" else set()
    assert {name for name, tensor in own.items() if tensor.grad.abs().max() < 1e-6} == without_choice


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_one_expert_is_a_lora_of_peft(dtype: torch.dtype) -> None:
    model = small_model(dtype=dtype)
    targets = [f"{name}_proj" for name in PROJECTIONS]
    peft = get_peft_model(copy.deepcopy(model), LoraConfig(r=4, lora_alpha=8, target_modules=targets, lora_dropout=0.0))
    wide = torch.float32 if dtype == torch.bfloat16 else dtype
    experts = with_experts(model, dtype=wide, num_experts=1, rank=4, alpha=8)
    if dtype == torch.float64:
        peft.double()
        model.double()
    layers = peft.base_model.model.model.layers
    for name, tensor in experts.state().items():
        if name.endswith((".A", ".B")):
            _, number, projection, matrix = name.split(".")
            layer = getattr(layers[int(number)].mlp, f"{projection}_proj")
            getattr(layer, f"lora_{matrix}")["default"].weight.data.copy_(tensor)
    ids = torch.randint(0, 40, (2, 6))
    ours, theirs = model(input_ids=ids).logits, peft(input_ids=ids).logits
    assert ours.dtype == theirs.dtype == dtype
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-10)  # in bfloat16: equal
    if dtype == torch.float64:
        ours.square().sum().backward()
        theirs.square().sum().backward()
        for number, layer in enumerate(model.model.layers):
            mine, other = layer.mlp.down_proj, layers[number].mlp.down_proj
            assert (mine.expert_A.grad - other.lora_A["default"].weight.grad).abs().max() < 1e-10
            assert (mine.expert_B.grad - other.lora_B["default"].weight.grad).abs().max() < 1e-10
            assert mine.expert_B.grad.abs().max() > 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_new_experts_leave_the_model_as_it_is_bit_for_bit(dtype: torch.dtype) -> None:
    model = small_model(dtype=dtype)
    ids = torch.randint(0, 40, (2, 6))
    before = model(input_ids=ids).logits
    experts = attach_experts(model, ExpertSettings(num_clusters=2, universal=True), seed=0, trainable=True)
    model.train()
    experts.routing.set(torch.tensor([1, 0]))
    assert torch.equal(model(input_ids=ids).logits, before)
    with torch.no_grad():
        experts.state()["layers.1.down.B"][0, 0] = 1.0
    assert not torch.equal(model(input_ids=ids).logits, before)


def test_a_base_layer_of_four_bits() -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    model = small_model(dtype=torch.float32)
    mlp = model.model.layers[0].mlp
    for name in PROJECTIONS:
        plain = getattr(mlp, f"{name}_proj")
        quantized = bitsandbytes.nn.Linear4bit(
            plain.in_features, plain.out_features, bias=False, compute_dtype=torch.float32, quant_type="nf4"
        )
        quantized.load_state_dict(plain.state_dict())
        setattr(mlp, f"{name}_proj", quantized.to("cpu"))
    hidden = torch.randn(2, 5, HIDDEN)
    before = mlp(hidden)
    experts = with_experts(model, num_clusters=2, rank=4)
    assert mlp.gate_proj.base_layer.weight.dtype == torch.uint8, "the base layer is not quantised"
    state = experts.state()
    experts.routing.set(torch.tensor([1, 0]))
    result = mlp(hidden.requires_grad_())
    result.square().sum().backward()
    assert state["layers.0.down.B"].grad.abs().max() > 0
    assert hidden.grad.abs().max() > 0
    own = {name.removeprefix("layers.0."): value for name, value in state.items()}
    expected = looped_mlp(mlp, hidden, own, [1, 0], experts.settings)
    assert torch.allclose(result, expected, rtol=1e-3, atol=1e-4)
    assert (result - before).abs().max() > 0.01
    with torch.no_grad():
        for name in PROJECTIONS:
            state[f"layers.0.{name}.B"].zero_()
    assert torch.equal(mlp(hidden), before)


def test_swiglu_of_liger_calls_the_same_projections(monkeypatch: pytest.MonkeyPatch) -> None:
    swiglu = pytest.importorskip("liger_kernel.transformers.swiglu")
    monkeypatch.setattr(  # its kernel needs a GPU
        swiglu, "_swiglu_dispatch", lambda gate, up, *_: torch.nn.functional.silu(gate) * up
    )
    model = small_model(dtype=torch.float32)
    experts = with_experts(model, num_clusters=2)
    experts.routing.set(torch.tensor([1, 0]))
    mlp, hidden = model.model.layers[0].mlp, torch.randn(2, 5, HIDDEN)
    expected = mlp(hidden)
    mlp.forward = MethodType(swiglu.LigerSwiGLUMLP.forward, mlp)
    assert torch.equal(mlp(hidden), expected)


def test_router_is_float32_under_autocast_and_experts_are_not() -> None:
    model = small_model(dtype=torch.bfloat16)
    experts = with_experts(model, num_clusters=2)
    mlp, hidden = model.model.layers[0].mlp, torch.randn(2, 5, HIDDEN)
    experts.routing.set(torch.tensor([1, -1]), torch.ones(2, 5))
    dtypes: list[torch.dtype] = []
    mlp.expert_router.register_forward_hook(lambda *call: dtypes.append(call[2].dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = mlp(hidden.bfloat16())
        exact = mlp.expert_router(hidden.bfloat16(), torch.tensor([1, -1]))
    assert dtypes == [torch.float32] * 2
    assert result.dtype == torch.bfloat16
    outside = mlp.expert_router(hidden.bfloat16().float(), torch.tensor([1, -1]))
    assert torch.equal(exact, outside)


def test_dropout_acts_in_training_alone() -> None:
    model = small_model(dtype=torch.float32)
    experts = with_experts(model, dropout=0.5)
    experts.routing.set(None)
    mlp, hidden = model.model.layers[0].mlp, torch.randn(2, 5, HIDDEN)
    assert torch.equal(mlp(hidden), mlp(hidden))
    mlp.train()
    assert not torch.equal(mlp(hidden), mlp(hidden))


def test_a_projection_alone_has_no_weights() -> None:
    model = small_model(dtype=torch.float32)
    experts = with_experts(model)
    mlp, hidden = model.model.layers[0].mlp, torch.randn(2, 5, HIDDEN)
    mlp(hidden)
    assert isinstance(mlp.up_proj, ExpertLinear)
    with pytest.raises(RuntimeError, match="outside the MLP"):
        mlp.up_proj(hidden)
    with pytest.raises(RuntimeError, match="outside the MLP"):
        _ = experts.routing.gates


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"top_k": 5}, "top_k.*5.*4 experts"),
        ({"router_input": "none"}, "num_clusters.*0"),
        ({"tau": 0}, "tau"),
        ({"num_experts": 0}, "num_experts"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(values: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=named):
        ExpertSettings(**values)
