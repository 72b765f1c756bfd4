"""Fusion against loops over single memes; cross heads without their outer product; shapes, counts, saving, refusals."""

from dataclasses import replace
from itertools import product
from math import sqrt
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from json_files import read_json
from torch import Tensor

from ra_hmd.core.artifacts import write_json
from ra_hmd.core.errors import UserError
from ra_hmd.features.compatibility import check_head_fits
from ra_hmd.features.store import Features
from ra_hmd.models.fusion import Fusion, FusionConfig, FusionKind, cross_linear
from ra_hmd.models.head import HEAD_CONFIG, HeadConfig, MemeHead, load_head, load_head_weights, save_head
from ra_hmd.retrieval.embeddings import run_head

KINDS: tuple[FusionKind, ...] = get_args(FusionKind)
PRODUCTS = ("cross", "cross_nd")


def head(kind: FusionKind, mapping_layers: int = 1, **config: Any) -> MemeHead:
    """A fused head with random weights, also biases; image and text features as wide as `mapping_layers` allows."""
    image, text = (5, 4) if mapping_layers else (4, 4)
    fusion = FusionConfig(image_dim=image, text_dim=text, kind=kind, map_dim=3, mapping_layers=mapping_layers)
    torch.manual_seed(0)
    made = MemeHead(HeadConfig(**{"input_dim": image + text, "proj_dim": 6, "fusion": fusion} | config)).eval()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter)
    return made


def memes(model: MemeHead, rows: int = 9) -> Tensor:
    return torch.randn(rows, model.config.input_dim, generator=torch.Generator().manual_seed(1))


# --- a naive head: Python numbers, one meme at a time -----------------------------------------------------------------


def linear(weight: list[list[float]], bias: list[float], x: list[float]) -> list[float]:
    return [sum(w * v for w, v in zip(row, x, strict=True)) + b for row, b in zip(weight, bias, strict=True)]


def relu(x: list[float]) -> list[float]:
    return [max(v, 0.0) for v in x]


def unit(x: list[float]) -> list[float]:
    length = sqrt(sum(v * v for v in x))
    return [v / length for v in x]


def naive_fused(kind: str, a: list[float], b: list[float]) -> list[float]:
    by_kind = {
        "align": lambda: [p * q for p, q in zip(a, b, strict=True)],
        "concat": lambda: a + b,
        "align_concat": lambda: [p * q for p, q in zip(a, b, strict=True)] + a + b,
        "cross": lambda: [p * q for p in a for q in b],
        "cross_nd": lambda: [p * q for i, p in enumerate(a) for j, q in enumerate(b) if i != j],
        "image": lambda: a,
        "text": lambda: b,
    }
    return by_kind[kind]()


def naive_head(model: MemeHead, features: list[float]) -> tuple[list[float], list[float]]:
    """(logits, embedding) of one meme."""
    config = model.config
    weights = {name: value.double().tolist() for name, value in model.state_dict().items()}
    parts = {"image": features[: config.fusion.image_dim], "text": features[config.fusion.image_dim :]}
    for name in config.fusion.modalities:
        places = sorted({key.split(".")[3] for key in weights if key.startswith(f"fusion.maps.{name}.")}, key=int)
        for number, place in enumerate(places):
            key = f"fusion.maps.{name}.{place}"
            x = relu(parts[name]) if number else parts[name]
            parts[name] = linear(weights[f"{key}.weight"], weights[f"{key}.bias"], x)
    x = embedding = naive_fused(config.fusion.kind, unit(parts["image"]), unit(parts["text"]))
    for layer in range(config.blocks):
        before = linear(weights[f"layers.{layer}.weight"], weights[f"layers.{layer}.bias"], x)
        x = relu(before)
        embedding = x if config.embedding == "relu" else before
    return linear(weights["output.weight"], weights["output.bias"], x), embedding


@pytest.mark.parametrize(("kind", "mapping_layers"), [*product(KINDS, (0, 1, 2))])
@pytest.mark.parametrize(("num_layers", "embedding"), [(1, "relu"), (2, "linear"), (3, "relu")])
@pytest.mark.parametrize("gradients", [True, False])
def test_a_fused_head_is_its_loop(
    kind: FusionKind, mapping_layers: int, num_layers: int, embedding: str, gradients: bool
) -> None:
    model = head(kind, mapping_layers, num_layers=num_layers, embedding=embedding)
    features = memes(model)
    with torch.set_grad_enabled(gradients):
        seen = model(features)
    for row, meme in enumerate(features.double().tolist()):
        logits, points = naive_head(model, meme)
        assert seen.logits[row].tolist() == pytest.approx(logits, rel=1e-6, abs=1e-5)
        assert seen.embedding[row].tolist() == pytest.approx(points, rel=1e-6, abs=1e-5)


@pytest.mark.parametrize(("kind", "mapping_layers"), [*product(KINDS, (0, 1, 2))])
def test_the_fused_vector_is_its_loop_to_one_millionth(kind: FusionKind, mapping_layers: int) -> None:
    model = head(kind, mapping_layers)
    projected = model.fusion.project(memes(model))
    assert set(projected) == set(model.config.fusion.modalities)
    fused = model.fusion.fuse(projected)
    assert fused.shape == (9, model.config.fusion.output_dim)
    rows = {name: value.double().tolist() for name, value in projected.items()}
    for row in range(9):
        image, text = (rows.get(name, rows[next(iter(rows))])[row] for name in ("image", "text"))
        assert sqrt(sum(v * v for v in image)) == pytest.approx(1, abs=1e-6)
        assert fused[row].tolist() == pytest.approx(naive_fused(kind, image, text), abs=1e-6)


# --- the outer product that is not made -------------------------------------------------------------------------------


def _pieces(n: int, m: int, outputs: int, rows: int, width: int, dtype: torch.dtype) -> list[Tensor]:
    make = torch.Generator().manual_seed(n + 10 * m + 100 * outputs + 1000 * rows)
    shapes = ((rows, n), (rows, m), (outputs, width), (outputs,))
    return [torch.randn(shape, generator=make, dtype=dtype).requires_grad_() for shape in shapes]


@settings(deadline=None, max_examples=40)
@given(st.integers(2, 7), st.integers(1, 7), st.integers(1, 5), st.integers(1, 6), st.booleans())
def test_factored_layer_and_gradients_equal_the_materialised_ones(
    n: int, m: int, outputs: int, rows: int, diagonal: bool
) -> None:
    m = m if diagonal else n
    width = n * m if diagonal else n * (n - 1)
    image, text, weight, bias = pieces = _pieces(n, m, outputs, rows, width, torch.float64)
    fusion = Fusion(FusionConfig(image_dim=n, text_dim=m, kind="cross" if diagonal else "cross_nd", mapping_layers=0))
    made = torch.nn.functional.linear(fusion.fuse({"image": image, "text": text}), weight, bias)
    factored = cross_linear(image, text, weight, bias, diagonal=diagonal)
    assert torch.allclose(factored, made, rtol=1e-12, atol=1e-12)
    upstream = torch.randn(made.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    for ours, theirs in zip(*(torch.autograd.grad(y, pieces, upstream) for y in (factored, made)), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("diagonal", [True, False])
def test_gradients_of_the_factored_layer_are_those_of_finite_differences(diagonal: bool) -> None:
    # In float64, which a head's own layers do not compute in: so of the function.
    pieces = _pieces(3, 3, 2, 2, 9 if diagonal else 6, torch.float64)
    assert torch.autograd.gradcheck(lambda *args: cross_linear(*args, diagonal=diagonal), pieces)


@pytest.mark.parametrize("kind", PRODUCTS)
def test_a_weight_that_is_copied_in_parts_gives_the_same(kind: FusionKind, monkeypatch: pytest.MonkeyPatch) -> None:
    model = head(kind, num_layers=2)
    features = memes(model)
    with torch.no_grad():
        whole = model(features).logits
        monkeypatch.setattr("ra_hmd.models.fusion._COPIED", 9 * 2)  # two of six outputs at a time
        assert torch.allclose(model(features).logits, whole, atol=1e-6)


@pytest.mark.parametrize("kind", PRODUCTS)
def test_evaluation_does_not_make_the_product(kind: FusionKind) -> None:
    n, rows = 128, 4096  # the product would be 268 MB
    config = HeadConfig(
        input_dim=2 * n,
        num_layers=2,
        proj_dim=4,
        fusion=FusionConfig(image_dim=n, text_dim=n, kind=kind, mapping_layers=0),
    )
    model = MemeHead(config).eval()
    features = torch.randn(rows, 2 * n)
    with torch.profiler.profile(profile_memory=True) as profile:
        run_head(model, features)
    largest = max(event.cpu_memory_usage for event in profile.events())
    assert largest < rows * n * n * 4 / 10
    model.train()
    with torch.profiler.profile(profile_memory=True) as profile:
        model(features)
    assert max(event.cpu_memory_usage for event in profile.events()) >= rows * n * (n - 1) * 4, "the measure sees it"


def test_every_element_of_the_product_is_dropped_by_itself() -> None:
    model = head("cross", input_dropout=0.5, num_layers=2, proj_dim=1)
    with torch.no_grad():
        model.layers[0].weight.fill_(1.0)
        model.layers[0].bias.zero_()
        model.train()
        row = torch.ones(1, 9)
        projected = model.fusion.project(row)
        parts = model.fusion.fuse(projected)[0]
        sums = {round(float(value), 4) for _ in range(400) for value in model(row).embedding[0]}
    # Nine values kept or not, doubled: of 2**9 sums far more turn up than the 2**3 · 2**3 of dropped rows and columns.
    possible = {round(max(0.0, 2 * float(parts[list(kept)].sum())), 4) for kept in _subsets(9)}
    assert all(min(abs(value - other) for other in possible) < 2e-4 for value in sums)
    assert len(sums) > 64


def _subsets(count: int) -> list[list[int]]:
    return [[place for place in range(count) if bits >> place & 1] for bits in range(1 << count)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mixed_precision_stays_near_and_gives_float32(kind: FusionKind, dtype: torch.dtype) -> None:
    model = head(kind, num_layers=3)
    features = memes(model)
    exact = model(features)
    model.autocast_dtype = dtype
    for gradients in (True, False):
        with torch.set_grad_enabled(gradients):
            rounded = model(features)
        for ours, theirs in ((rounded.logits, exact.logits), (rounded.embedding, exact.embedding)):
            assert ours.dtype is torch.float32
            assert not torch.equal(ours, theirs)
            assert (ours - theirs).abs().max() < 0.05 * theirs.abs().max()


@pytest.mark.parametrize("kind", KINDS)
def test_batches_and_order_do_not_matter(kind: FusionKind) -> None:
    model = head(kind, num_layers=3)
    features = memes(model, 50)
    whole, logits = run_head(model, features)
    order = torch.randperm(50)
    parts, shuffled = run_head(model, features[order], batch_size=7)
    assert torch.allclose(parts, whole[order], atol=1e-5)
    assert torch.allclose(shuffled, logits[order], atol=1e-5)


def test_unused_modality_is_not_looked_at() -> None:
    for kind, unused in (("image", slice(5, 9)), ("text", slice(0, 5))):
        model = head(kind)
        features = memes(model)
        changed = features.clone()
        changed[:, unused] = 100
        assert torch.equal(model(features).logits, model(changed).logits)


def test_a_zero_vector_is_no_nan() -> None:
    for kind in KINDS:
        model = head(kind, mapping_layers=0)
        features = torch.zeros(2, 8, requires_grad=True)
        model(features).logits.sum().backward()
        assert torch.isfinite(features.grad).all()


# --- published sizes --------------------------------------------------------------------------------------------------


def hate_clipper(kind: FusionKind, m: int) -> HeadConfig:
    """Hate-CLIPper on ViT-L/14 with m pre-output layers (arXiv 2210.05916, table 3)."""
    fusion = FusionConfig(image_dim=1024, text_dim=768, kind=kind, map_dim=1024, map_dropout=0.2)
    return HeadConfig(
        input_dim=1792, num_layers=m + 1, proj_dim=1024, input_dropout=0.4, dropout=(0.1,) * m, fusion=fusion
    )


@pytest.mark.parametrize(
    ("kind", "m", "exact", "published"),
    [
        ("align", 3, 4_986_881, "5 M"),
        ("align", 1, 2_887_681, "2.9 M"),
        ("cross", 1, 1_075_580_929, "1.1 B"),
        ("cross", 3, 1_077_680_129, "1.1 B"),
    ],
)
def test_parameter_counts_are_the_published_ones(kind: FusionKind, m: int, exact: int, published: str) -> None:
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in MemeHead(hate_clipper(kind, m)).parameters())
    assert count == exact
    unit_of = {"M": 1e6, "B": 1e9}[published[-1]]
    shown, digits = published[:-2], len(published[:-2].partition(".")[2])
    assert f"{count / unit_of:.{digits}f}" == shown


# --- saved and refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mapping_layers", [0, 2])
def test_saved_heads_come_back_equal(kind: FusionKind, mapping_layers: int, tmp_path: Path) -> None:
    rates = {"input_dropout": 0.4, "dropout": (0.1, 0.2)}
    model = head(
        kind, mapping_layers, num_layers=3, embedding="linear", output_dim=2, problem_type="multi_label", **rates
    )
    save_head(tmp_path, model.config, model.state_dict())
    back = load_head(tmp_path)
    assert back.config == model.config
    assert not back.training
    assert all(parameter.requires_grad and parameter.is_cpu for parameter in back.parameters())
    features = memes(model)
    for ours, theirs in zip(back(features)[:2], model(features)[:2], strict=True):
        assert torch.equal(ours, theirs)
    with torch.no_grad():  # what was loaded can be trained without touching the file
        back.output.weight.zero_()
    assert torch.equal(load_head(tmp_path).output.weight, model.output.weight)


def test_a_head_saved_before_there_was_a_fusion_opens(tmp_path: Path) -> None:
    model = MemeHead(HeadConfig(input_dim=7, proj_dim=3))
    save_head(tmp_path, model.config, model.state_dict())
    values = read_json(tmp_path / HEAD_CONFIG)
    for key in ("fusion", "embedding"):
        values.pop(key)
    write_json(tmp_path / HEAD_CONFIG, values)
    back = load_head(tmp_path)
    assert back.config == model.config
    x = torch.randn(4, 7)
    assert torch.equal(back(x).logits, model.eval()(x).logits)
    assert back(x).projected is None


def test_heads_of_another_fusion_are_not_mixed(tmp_path: Path) -> None:
    model = head("align")
    save_head(tmp_path, model.config, model.state_dict())
    with pytest.raises(UserError, match=r"`fusion` is FusionConfig\(.*'align'.*'concat'"):
        load_head_weights(head("concat"), tmp_path)
    with pytest.raises(UserError, match="`embedding` is .relu"):
        load_head_weights(head("align", embedding="linear"), tmp_path)
    write_json(tmp_path / HEAD_CONFIG, read_json(tmp_path / HEAD_CONFIG) | {"proj_dim": 7})
    with pytest.raises(UserError, match=r"head\.safetensors does not fit head\.json"):
        load_head(tmp_path)


def test_a_head_fits_only_stores_of_its_modalities() -> None:
    config = head("align").config
    store = Features(["a"], np.zeros(1, np.int64), np.zeros((1, 9), np.float32), modalities=(5, 4))
    check_head_fits(config, "head", store, "store")
    for modalities, have in (((4, 5), "has 4 and 5"), (None, "has one vector of 9")):
        with pytest.raises(UserError, match=f"takes 5 image and 4 text features, store {have}"):
            check_head_fits(config, "head", replace(store, modalities=modalities), "store")
    check_head_fits(HeadConfig(input_dim=9), "head", store, "store")
    with pytest.raises(UserError, match="of size 8, those in store have 9"):
        check_head_fits(HeadConfig(input_dim=8), "head", store, "store")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"image_dim": 0}, "`image_dim` is 0"),
        ({"kind": "sum"}, "'sum' is not one of 'align', 'concat'"),
        ({"map_dropout": 1.0}, r"`map_dropout` is 1.0.*\[0, 1\)"),
        ({"mapping_layers": -1}, "`mapping_layers` is -1"),
        ({"mapping_layers": 0}, "multiplies features of 5 and 4 dimensions.*`mapping_layers: 1`"),
        ({"mapping_layers": 0, "kind": "cross_nd"}, "`kind: cross_nd` multiplies"),
        ({"mapping_layers": 0, "kind": "align_concat"}, "`kind: align_concat` multiplies"),
        ({"map_dim": 1, "kind": "cross_nd"}, "leaves nothing of 1 × 1"),
    ],
)
def test_fusions_that_cannot_be_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        FusionConfig(**{"image_dim": 5, "text_dim": 4, "map_dim": 3} | values)


def test_unequal_features_may_be_crossed_as_they_are() -> None:
    assert FusionConfig(image_dim=5, text_dim=4, kind="cross", mapping_layers=0).output_dim == 20
    assert FusionConfig(image_dim=5, text_dim=4, kind="concat", mapping_layers=0).output_dim == 9


def test_heads_that_cannot_be_are_refused() -> None:
    fusion = FusionConfig(image_dim=5, text_dim=4)
    with pytest.raises(UserError, match=r"`input_dim` is 8, its fusion takes 5 image and 4 text features, 9 in all"):
        HeadConfig(input_dim=8, fusion=fusion)
    with pytest.raises(UserError, match=r"embeddings of 1048576 values.*`num_layers: 2`"):
        HeadConfig(input_dim=9, num_layers=1, fusion=fusion.replace(kind="cross"))
    HeadConfig(input_dim=9, num_layers=1, fusion=fusion.replace(kind="cross", map_dim=32))
    with pytest.raises(UserError, match="`embedding`: 'last' is not one of 'relu', 'linear'"):
        HeadConfig(input_dim=9, embedding="last", fusion=fusion)
