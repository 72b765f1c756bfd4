"""Every architecture of `configs/stage1`, built on the meta device from the published sizes in the families' registry.
Nothing is downloaded, and no weight is allocated.
"""

from types import ModuleType
from typing import Any

import pytest
import torch
from config_files import CLASS_FILES, CLASSIFIER_FILES, FILES, STAGE1

from ra_hmd.models.families import FAMILIES
from ra_hmd.models.head import HeadConfig, MemeHead

MLP = {"gate_proj", "up_proj", "down_proj"}
ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}


PUBLISHED = {one.repository: (family, one) for family in FAMILIES.values() for one in family.published}


def on_meta(hub: str) -> Any:
    from transformers import AutoModelForImageTextToText

    config = PUBLISHED[hub][1].config()
    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(config)


@pytest.mark.parametrize("hub", PUBLISHED)
def test_the_registry_has_the_published_sizes(hub: str) -> None:
    model, (family, published) = on_meta(hub), PUBLISHED[hub]
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    # Of Qwen3.5 without the layer that predicts further tokens, which transformers does not build.
    billions = sum(parameter.numel() for parameter in model.parameters()) / 1e9
    assert billions == pytest.approx(published.billions, rel=0.02)
    assert model.config.model_type == family.name
    assert model.config.get_text_config().hidden_size == published.hidden_size
    assert len(family.decoder_layers(model)) == published.num_layers


class TestRecipes:
    def test_every_folder_is_of_a_model_in_the_registry(self, make_configs: ModuleType) -> None:
        assert {path.parent.name for path in FILES} == {model.folder for model in make_configs.MODELS}
        for model in make_configs.MODELS:
            family, published = PUBLISHED[model.hub]
            assert model.template == family.templates[0]
            assert model.billions == pytest.approx(published.billions, rel=0.01)
            assert (model.attention == "fa2") is not bool(family.without_flash_attention)

    @pytest.fixture(scope="class", params=sorted({path.parent.name for path in FILES}))
    def built(self, request: pytest.FixtureRequest, make_configs: ModuleType) -> tuple[str, Any]:
        hub = next(model.hub for model in make_configs.MODELS if model.folder == request.param)
        return request.param, on_meta(hub)

    def test_the_head_fits_the_language_model(self, built, parse) -> None:
        folder, model = built
        hidden = model.config.get_text_config().hidden_size
        assert hidden == model.get_input_embeddings().embedding_dim
        for path in CLASSIFIER_FILES:
            if path.parent.name != folder:
                continue
            config = parse(path, plugin=True).finetuning.head_config(hidden)
            assert isinstance(config, HeadConfig)
            assert config.input_dim == hidden
            output = MemeHead(config)(torch.zeros(2, hidden))
            assert output.logits.shape == (2, {"intensity": 3, "kind": 4}.get(CLASS_FILES.get(path, ("", ""))[1], 1))
            assert output.embedding.shape == (2, 1024)

    def test_lora_goes_into_every_linear_layer_of_the_language_model_and_nowhere_else(self, built, parse) -> None:
        from llamafactory.model.model_utils.misc import find_all_linear_modules
        from llamafactory.model.model_utils.visual import patch_target_modules

        folder, model = built
        args = parse(STAGE1 / folder / "hateful_memes_qlora.yaml", plugin=True).finetuning
        names = find_all_linear_modules(model, args.freeze_vision_tower)
        layers = model.model.language_model.layers
        linear = [name for name, module in layers.named_modules() if isinstance(module, torch.nn.Linear)]
        assert set(names) == {name.rpartition(".")[2] for name in linear} >= MLP | ATTENTION
        targets = patch_target_modules(model, args, names)
        assert sorted(targets) == sorted(f"model.language_model.layers.{name}" for name in linear)
        # One of four layers of Qwen3.5 has these four projections, the others linear attention.
        per_kind = {kind: sum(target.endswith(f".{kind}") for target in targets) for kind in MLP | ATTENTION}
        full = len(layers) // 4 if folder == "qwen3_5_9b" else len(layers)
        assert per_kind == dict.fromkeys(MLP, len(layers)) | dict.fromkeys(ATTENTION, full)


@pytest.mark.parametrize(("attention", "both_ways"), [("sdpa", True), ("flash_attention_2", False)])
def test_flash_attention_leaves_out_how_the_tokens_of_an_image_see_each_other_in_gemma3(
    attention: str, both_ways: bool
) -> None:
    from transformers.models.gemma3.modeling_gemma3 import create_causal_mask_mapping

    config = PUBLISHED["google/gemma-3-4b-it"][1].config()
    config._attn_implementation = config.text_config._attn_implementation = attention
    mask = create_causal_mask_mapping(
        config,
        inputs_embeds=torch.zeros(1, 6, 8),
        attention_mask=torch.ones(1, 6, dtype=torch.long),
        past_key_values=None,
        position_ids=None,
        token_type_ids=torch.tensor([[0, 1, 1, 1, 0, 0]]),
    )["full_attention"]
    assert (mask is not None and bool(mask[0, 0, 1, 3])) is both_ways
    # The recipe asks for the attention that has it.
    assert "flash_attn: sdpa" in (STAGE1 / "gemma3_4b" / "hateful_memes_lora.yaml").read_text(encoding="utf-8")
