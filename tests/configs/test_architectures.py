"""Every architecture of `configs/stage1`, built on the meta device from its published config values: nothing is
downloaded, and no weight is allocated.
"""

from types import ModuleType
from typing import Any

import pytest
import torch
from config_files import CLASS_FILES, CLASSIFIER_FILES, FILES, STAGE1

from ra_hmd.models.head import HeadConfig, MemeHead

ROPE = {"rope_type": "default", "mrope_section": [16, 24, 24], "rope_theta": 1000000.0}


def decoder(
    hidden: int, layers: int, heads: int, key_value_heads: int, intermediate: int, vocabulary: int
) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": key_value_heads,
        "intermediate_size": intermediate,
        "vocab_size": vocabulary,
    }


def qwen2_text(hidden: int, heads: int, key_value_heads: int, intermediate: int, vocabulary: int) -> dict[str, Any]:
    return {**decoder(hidden, 28, heads, key_value_heads, intermediate, vocabulary), "rope_parameters": ROPE}


def qwen2_vl(text: dict[str, Any], tied: bool) -> Any:
    from transformers import Qwen2VLConfig

    vision = {"depth": 32, "embed_dim": 1280, "num_heads": 16, "mlp_ratio": 4, "hidden_size": text["hidden_size"]}
    text = {**text, "tie_word_embeddings": tied}
    return Qwen2VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=tied)


def qwen2_5_vl_7b() -> Any:
    from transformers import Qwen2_5_VLConfig

    vision = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 3584}
    text = qwen2_text(3584, 28, 4, 18944, 152064)
    return Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=False)


def qwen3_vl_8b() -> Any:
    from transformers import Qwen3VLConfig

    text = qwen2_text(4096, 32, 8, 12288, 151936) | {"num_hidden_layers": 36, "head_dim": 128}
    text["rope_parameters"] = {"rope_type": "default", "mrope_section": [24, 20, 20], "rope_theta": 5000000.0}
    vision = {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "num_heads": 16, "out_hidden_size": 4096}
    vision["deepstack_visual_indexes"] = [8, 16, 24]
    return Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=False)


def qwen3_5_9b() -> Any:
    from transformers import Qwen3_5Config

    text = qwen2_text(4096, 16, 4, 12288, 248320) | {"num_hidden_layers": 32, "head_dim": 256}
    text["rope_parameters"] = {"rope_type": "default", "mrope_section": [11, 11, 10], "rope_theta": 10000000.0}
    text |= {"full_attention_interval": 4, "linear_num_key_heads": 16, "linear_num_value_heads": 32}
    vision = {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "num_heads": 16, "out_hidden_size": 4096}
    return Qwen3_5Config(text_config=text, vision_config=vision, tie_word_embeddings=False)


def llava_1_5_7b() -> Any:
    from transformers import LlavaConfig

    text = {"model_type": "llama", **decoder(4096, 32, 32, 32, 11008, 32064)}
    vision = {"model_type": "clip_vision_model", "hidden_size": 1024, "intermediate_size": 4096, "projection_dim": 768}
    vision |= {"num_hidden_layers": 24, "num_attention_heads": 16, "patch_size": 14, "image_size": 336}
    return LlavaConfig(text_config=text, vision_config=vision)


def internvl3_8b() -> Any:
    from transformers import InternVLConfig

    text = {"model_type": "qwen2", "tie_word_embeddings": False, **decoder(3584, 28, 28, 4, 18944, 151674)}
    vision = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
    vision |= {"image_size": [448, 448], "patch_size": [14, 14], "attention_bias": True}
    return InternVLConfig(text_config=text, vision_config=vision, tie_word_embeddings=False)


def gemma3_4b() -> Any:
    from transformers import Gemma3Config

    text = decoder(2560, 34, 8, 4, 10240, 262208) | {"head_dim": 256, "sliding_window": 1024}
    vision = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}
    vision |= {"image_size": 896, "patch_size": 14, "vision_use_head": False}
    return Gemma3Config(text_config=text, vision_config=vision)


# folder → config builder, hidden size, layers, published parameters in billions (of Qwen3.5 without the layer that
# predicts further tokens, which transformers does not build)
ARCHITECTURES = {
    "qwen2_vl_2b": (lambda: qwen2_vl(qwen2_text(1536, 12, 2, 8960, 151936), tied=True), 1536, 28, 2.2),
    "qwen2_vl_7b": (lambda: qwen2_vl(qwen2_text(3584, 28, 4, 18944, 152064), tied=False), 3584, 28, 8.3),
    "qwen2_5_vl_7b": (qwen2_5_vl_7b, 3584, 28, 8.3),
    "qwen3_vl_8b": (qwen3_vl_8b, 4096, 36, 8.8),
    "qwen3_5_9b": (qwen3_5_9b, 4096, 32, 9.4),
    "llava_1_5_7b": (llava_1_5_7b, 4096, 32, 7.06),
    "internvl3_8b": (internvl3_8b, 3584, 28, 7.9),
    "gemma3_4b": (gemma3_4b, 2560, 34, 4.3),
}


MLP = {"gate_proj", "up_proj", "down_proj"}
ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}


class TestArchitectures:
    def test_every_folder_has_one(self) -> None:
        assert {path.parent.name for path in FILES} == ARCHITECTURES.keys()

    @pytest.fixture(scope="class", params=ARCHITECTURES)
    def built(self, request: pytest.FixtureRequest) -> tuple[str, Any]:
        from transformers import AutoModelForImageTextToText

        config = ARCHITECTURES[request.param][0]()
        with torch.device("meta"):
            return request.param, AutoModelForImageTextToText.from_config(config)

    def test_nothing_was_allocated_and_the_size_is_the_published_one(self, built, make_configs: ModuleType) -> None:
        folder, model = built
        assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
        billions = sum(parameter.numel() for parameter in model.parameters()) / 1e9
        assert billions == pytest.approx(ARCHITECTURES[folder][3], rel=0.02)
        entry = next(entry for entry in make_configs.MODELS if entry.folder == folder)
        assert entry.billions == ARCHITECTURES[folder][3]

    def test_the_head_fits_the_language_model(self, built, parse) -> None:
        folder, model = built
        hidden = model.config.get_text_config().hidden_size
        assert hidden == ARCHITECTURES[folder][1] == model.get_input_embeddings().embedding_dim
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
        assert len(layers) == ARCHITECTURES[folder][2]
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

    config = gemma3_4b()
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
