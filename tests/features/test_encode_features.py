"""An encoder's features: those of the plain call of the transformers model, for every family, caption and picture."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from meme_files import picture
from PIL import Image
from torch import Tensor
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoTokenizer

from ra_hmd.core.errors import UserError
from ra_hmd.models.clip_encoder import FAMILIES, Encoder, EncoderSettings
from ra_hmd.models.clip_presets import PRESETS
from ra_hmd.models.tiny_clip import make_tiny_encoder

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CPU = torch.device("cpu")
CAPTIONS = [
    "the cat is here",
    "",
    "a",
    "look: the robot's apple, on THE (green) fish!",
    "😀 ünïcode 漢字",
    "one two " * 9,
]
LONG = "the kitten knows best, and the robot is a red apple on a boat; " * 30 + "Z9 %" * 500


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("encoders")

    def make(family: str) -> Path:
        if not (root / family).exists():
            make_tiny_encoder(family, root / family)
        return root / family

    return make


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Image.Image]:
    root = tmp_path_factory.mktemp("pictures")
    sizes = [(48, 40), (300, 90), (64, 64), (31, 200), (5, 7), (640, 480)]
    return [Image.open(picture(root / f"{number}.png", size=size)) for number, size in enumerate(sizes)]


def opened(folder: Path, **changes: Any) -> Encoder:
    return Encoder(EncoderSettings(path=str(folder), **changes)).load(CPU)


def features(encoder: Encoder, texts: list[str], images: list[Image.Image]) -> tuple[Tensor, Tensor]:
    rows = [encoder.encode(text, image) for text, image in zip(texts, images, strict=True)]
    columns = encoder.columns(encoder.collate(rows))
    return columns["image_features"], columns["text_features"]


class Plain:
    """The published way: one meme, the model's own tokenizer, image processor and towers."""

    def __init__(self, folder: Path, family: str) -> None:
        self.family = family
        self.model = AutoModel.from_pretrained(folder).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.processor = AutoImageProcessor.from_pretrained(folder)

    @torch.inference_mode()
    def image(self, image: Image.Image, *, projected: bool) -> Tensor:
        inputs = self.processor(images=image, return_tensors="pt")
        # SigLIP 2's tower takes the processor's mask under another name; nothing is projected there.
        whole = projected or self.family == "siglip2"
        tower = self.model.get_image_features if whole else self.model.vision_model
        return tower(**inputs).pooler_output[0]

    def tokens(self, text: str) -> dict[str, Tensor]:
        if self.family in ("siglip", "siglip2"):
            inputs = self.tokenizer(text, padding="max_length", max_length=64, truncation=True, return_tensors="pt")
            return {"input_ids": inputs["input_ids"]}
        limit = {"clip": 77, "altclip": 512, "align": 64}[self.family]
        return dict(self.tokenizer(text, max_length=limit, truncation=True, return_tensors="pt"))

    @torch.inference_mode()
    def text(self, inputs: dict[str, Tensor], *, projected: bool) -> Tensor:
        if projected:
            return self.model.get_text_features(**inputs).pooler_output[0]
        output = self.model.text_model(**inputs)
        return output.last_hidden_state[0, 0] if self.family == "align" else output.pooler_output[0]


@pytest.mark.parametrize("kind", ["pooled", "projected"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_is_the_plain_call_of_each_meme(
    folder_of: Callable[[str], Path], pictures: list[Image.Image], family: str, kind: str
) -> None:
    encoder, plain = opened(folder_of(family), features=kind), Plain(folder_of(family), family)
    texts = [*CAPTIONS[:-1], LONG]
    images, captions = features(encoder, texts, pictures)
    projected = kind == "projected"
    expected = torch.stack([plain.image(image, projected=projected) for image in pictures])
    torch.testing.assert_close(images, expected, atol=1e-5, rtol=1e-5)
    expected = torch.stack([plain.text(plain.tokens(text), projected=projected) for text in texts])
    torch.testing.assert_close(captions, expected, atol=1e-5, rtol=1e-5)
    assert captions.std(dim=0).max() > 1e-3, "captions would all be alike"
    torch.testing.assert_close(encoder.text_features(texts, batch_size=2), captions, atol=1e-5, rtol=1e-5)
    if projected:
        assert images.shape == captions.shape


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_pooled_differs_from_what_is_projected_where_there_is_a_projection(
    folder_of: Callable[[str], Path], pictures: list[Image.Image], family: str
) -> None:
    found = [features(opened(folder_of(family), features=kind), CAPTIONS, pictures) for kind in ("pooled", "projected")]
    same = [one.shape == other.shape and torch.equal(one, other) for one, other in zip(*found, strict=True)]
    assert same == {"align": [True, False], "siglip": [True, True], "siglip2": [True, True]}.get(family, [False, False])


@pytest.mark.parametrize("family", FAMILIES)
def test_cosines_make_the_logits_of_the_model(
    folder_of: Callable[[str], Path], pictures: list[Image.Image], family: str
) -> None:
    encoder = opened(folder_of(family), features="projected")
    rows = [encoder.encode(text, image) for text, image in zip(CAPTIONS, pictures, strict=True)]
    batch = encoder.collate(rows)
    columns = encoder.columns(batch)
    image, text = (torch.nn.functional.normalize(columns[f"{name}_features"], dim=1) for name in ("image", "text"))
    scale, offset = encoder.similarity_scale
    inputs = {key: value for key, value in (batch["image"] | batch["text"]).items() if key != "shares"}
    expected = encoder.model(**inputs).logits_per_image
    torch.testing.assert_close(image @ text.T * scale + offset, expected, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_pieces_of_a_caption_hold_all_its_tokens_and_fit(folder_of: Callable[[str], Path], family: str) -> None:
    encoder = Encoder(EncoderSettings(path=str(folder_of(family)), long_text="average"))
    cutting = Encoder(EncoderSettings(path=str(folder_of(family))))
    plain = AutoTokenizer.from_pretrained(folder_of(family))
    special = len(plain("a")["input_ids"]) - len(plain("a", add_special_tokens=False)["input_ids"])

    @settings(max_examples=40, deadline=None)
    @given(st.text(st.characters(exclude_categories=["Cs"], max_codepoint=0x2FFF), max_size=700) | st.just(LONG))
    def check(text: str) -> None:
        pieces = encoder.pieces(text)
        assert all(len(piece) <= encoder.limit for piece in pieces)
        assert pieces[0] == plain(text, truncation=True, max_length=encoder.limit)["input_ids"]
        assert cutting.pieces(text) == pieces[:1]
        begin = len(encoder._prefix)
        kept = [token for piece in pieces for token in piece[begin : len(piece) - special + begin]]
        assert kept == plain(text, add_special_tokens=False)["input_ids"]
        assert encoder.count_tokens([text]) == [len(kept) + special]
        assert (len(pieces) > 1) == (len(kept) + special > encoder.limit)

    check()


@pytest.mark.parametrize("family", FAMILIES)
def test_average_is_the_mean_of_pieces_by_their_tokens(
    folder_of: Callable[[str], Path], pictures: list[Image.Image], family: str
) -> None:
    averaging, plain = opened(folder_of(family), long_text="average"), Plain(folder_of(family), family)
    cutting = opened(folder_of(family))
    texts = [LONG, "short", LONG * 2, "", LONG[:90], "a b"]
    images, found = features(averaging, texts, pictures)
    for row, text in enumerate(texts):
        total, tokens = 0.0, 0
        for piece in averaging.pieces(text):
            count = len(piece) - len(averaging._prefix) - len(averaging._suffix)
            ids = torch.tensor([piece])
            if family in ("siglip", "siglip2"):
                ids = torch.nn.functional.pad(ids, (0, 64 - len(piece)), value=plain.tokenizer.pad_token_id)
            weight = count if len(averaging.pieces(text)) > 1 else 1
            total = total + weight * plain.text({"input_ids": ids}, projected=False)
            tokens += weight
        torch.testing.assert_close(found[row], total / tokens, atol=1e-5, rtol=1e-5)
    pictures_alone, cut = features(cutting, texts, pictures)
    torch.testing.assert_close(images, pictures_alone, atol=1e-6, rtol=1e-6)
    assert (found - cut)[[1, 3, 5]].abs().max() < 1e-5, "short captions stay as they are"
    assert (found - cut)[[0, 2]].abs().amax(dim=1).min() > 1e-4, "the end of a long caption counts"


@pytest.mark.parametrize("family", FAMILIES)
def test_parts_of_a_batch_side_by_side_give_the_same(
    folder_of: Callable[[str], Path], pictures: list[Image.Image], family: str
) -> None:
    encoder = opened(folder_of(family), long_text="average")
    texts = [CAPTIONS[0], LONG, *CAPTIONS[1:-1]]
    whole = features(encoder, texts, pictures)
    for parts in (2, 4, 40):  # 40: more than there are rows
        encoder.parts = parts
        for found, expected in zip(features(encoder, texts, pictures), whole, strict=True):
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "LA", "CMYK", "1"])
def test_pictures_of_every_kind_are_taken_as_rgb(folder_of: Callable[[str], Path], family: str, mode: str) -> None:
    encoder = Encoder(EncoderSettings(path=str(folder_of(family))))
    image = Image.effect_noise((40, 32), 90).convert("RGB").convert(mode)
    found, expected = encoder.pixels(image), encoder.pixels(image.convert("RGB"))
    for name, value in expected.items():
        assert torch.equal(found[name], value)


def test_flexible_resolution_keeps_the_shape_of_a_picture(folder_of: Callable[[str], Path]) -> None:
    encoder = Encoder(EncoderSettings(path=str(folder_of("siglip2"))))
    shapes = [encoder.pixels(Image.new("RGB", size))["spatial_shapes"][0].tolist() for size in ((200, 100), (100, 200))]
    assert shapes[0] == shapes[1][::-1]
    assert shapes[0][1] > shapes[0][0]


def test_lines_are_refused(folder_of: Callable[[str], Path]) -> None:
    encoder = Encoder(EncoderSettings(path=str(folder_of("clip"))))
    assert encoder.encode("a", Image.new("RGB", (400, 2)))["image"]["pixel_values"].shape == (1, 3, 64, 64)
    with pytest.raises(UserError, match="its image has 2 x 401 pixels; one side may be 200 times the other"):
        encoder.encode("a", Image.new("RGB", (2, 401)))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_half_precision_is_close(
    folder_of: Callable[[str], Path], pictures: list[Image.Image], family: str, dtype: str
) -> None:
    halved, whole = (opened(folder_of(family), dtype=kind, long_text="average") for kind in (dtype, "float32"))
    assert str(halved.model.dtype) == f"torch.{dtype}"
    for found, expected in zip(*(features(e, [LONG, *CAPTIONS[1:]], pictures) for e in (halved, whole)), strict=True):
        assert found.dtype == torch.float32
        assert not torch.equal(found, expected)
        cosine = torch.nn.functional.cosine_similarity(found, expected, dim=1)
        assert cosine.min() > 0.99


def test_dtype_auto_is_that_of_the_weights(folder_of: Callable[[str], Path], tmp_path: Path) -> None:
    shutil.copytree(folder_of("clip"), tmp_path / "clip")
    AutoModel.from_pretrained(folder_of("clip"), dtype="bfloat16").save_pretrained(tmp_path / "clip")
    assert opened(tmp_path / "clip").model.dtype == torch.bfloat16
    assert opened(folder_of("clip")).model.dtype == torch.float32


def test_fingerprints_tell_apart_what_gives_other_features(folder_of: Callable[[str], Path], tmp_path: Path) -> None:
    def fingerprint(folder: Path, **changes: Any) -> dict[str, Any]:
        return Encoder(EncoderSettings(path=str(folder), **changes)).fingerprint()

    reference = fingerprint(folder_of("clip"))
    make_tiny_encoder("clip", tmp_path / "seed1", seed=1)
    for name in ("copy", "size", "words"):
        shutil.copytree(folder_of("clip"), tmp_path / name)
    path = tmp_path / "size" / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"image_mean": [0.5, 0.5, 0.5]}))
    path = tmp_path / "words" / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_max_length": 40}))
    assert fingerprint(tmp_path / "copy") == reference
    others = [
        fingerprint(tmp_path / "seed1"),
        fingerprint(tmp_path / "size"),
        fingerprint(tmp_path / "words"),
        fingerprint(folder_of("clip"), features="projected"),
        fingerprint(folder_of("clip"), long_text="average"),
        fingerprint(folder_of("clip"), dtype="bfloat16"),
    ]
    for other in others:
        assert other.keys() == reference.keys()
        assert other != reference
    assert others[2]["encoder.text_limit"] == 40


# -- what cannot be opened -------------------------------------------------------------------------------------------


def test_unknown_names_list_the_presets(tmp_path: Path) -> None:
    for name in ("clip-vit-l-15", "nobody/nothing", "../x/y/z", str(tmp_path / "gone")):
        with pytest.raises(UserError, match=r"is no folder and cannot be loaded(?s:.*)clip-vit-l-14-336, .*siglip2"):
            Encoder(EncoderSettings(path=name))
    with pytest.raises(UserError, match="is not an encoder(?s:.*)clip-vit-l-14-336"):
        Encoder(EncoderSettings(path=str(tmp_path)))
    with pytest.raises(UserError, match="--revision is for names on the hub"):
        Encoder(EncoderSettings(path=str(tmp_path), revision="main"))
    with pytest.raises(UserError, match="`features`: 'pool' is not one of 'pooled', 'projected'"):
        EncoderSettings(path="x", features="pool")


@pytest.fixture
def hub(folder_of: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts the tiny CLIP into a cache of the hub under a name, as a download would."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))

    def put(name: str) -> None:
        folder = tmp_path / "cache" / f"models--{name.replace('/', '--')}"
        shutil.copytree(folder_of("clip"), folder / "snapshots" / COMMIT)
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text(COMMIT)

    return put


def test_a_name_on_the_hub_is_its_folder_at_a_commit(
    folder_of: Callable[[str], Path], hub: Callable[[str], None]
) -> None:
    hub("someone/tiny")
    encoder = Encoder(EncoderSettings(path="someone/tiny"))
    assert encoder.settings == EncoderSettings(path="someone/tiny", revision=COMMIT)
    assert encoder.fingerprint() == Encoder(EncoderSettings(path=str(folder_of("clip")))).fingerprint()
    again = Encoder(EncoderSettings(**encoder.settings.to_dict())).load(CPU)
    assert again.settings == encoder.settings
    with pytest.raises(UserError, match="someone/tiny is no folder and cannot be loaded"):
        Encoder(EncoderSettings(path="someone/tiny", revision="f" * 40))


def test_a_preset_is_a_name_on_the_hub_whose_widths_are_known(hub: Callable[[str], None]) -> None:
    with pytest.raises(UserError, match="clip-vit-l-14 is no folder and cannot be loaded"):
        Encoder(EncoderSettings(path="clip-vit-l-14"))
    hub("openai/clip-vit-large-patch14")
    for kind, widths in (("pooled", "1024 and 768"), ("projected", "768 and 768")):
        encoder = Encoder(EncoderSettings(path="clip-vit-l-14", features=kind))
        assert encoder.settings.path == "openai/clip-vit-large-patch14"
        with pytest.raises(UserError, match=f"gives .* image and .* text features, {widths} are expected"):
            encoder.load(CPU)


# As published, from the models' config.json; what is not said is the default of transformers' classes.
_VIT_L = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
_VIT_L |= {"patch_size": 14, "projection_dim": 768}
_VIT_H = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 16}
_VIT_H |= {"patch_size": 14, "projection_dim": 1024}
_TEXT_L = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "projection_dim": 768}
_TEXT_H = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16, "num_hidden_layers": 24}
_SO400M = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}
_GEMMA = _SO400M | {"vocab_size": 256_000, "projection_size": 1152}
_L14 = {"vision_config": _VIT_L, "text_config": _TEXT_L, "projection_dim": 768}
_AT_336 = _L14 | {"vision_config": _VIT_L | {"image_size": 336}}
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "clip-vit-l-14": ("clip", _L14),
    "clip-vit-l-14-336": ("clip", _AT_336),
    "openclip-vit-l-14": ("clip", _L14),
    "openclip-vit-h-14": ("clip", {"vision_config": _VIT_H, "text_config": _TEXT_H, "projection_dim": 1024}),
    "altclip": ("altclip", {"vision_config": _VIT_L, "projection_dim": 768}),
    "align": ("align", {}),
    "siglip2": ("siglip", {"vision_config": _SO400M | {"patch_size": 14, "image_size": 384}, "text_config": _GEMMA}),
    "siglip2-naflex": ("siglip2", {"vision_config": _SO400M | {"patch_size": 16}, "text_config": _GEMMA}),
}


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_as_wide_as_their_architecture(folder_of: Callable[[str], Path], name: str) -> None:
    preset, (family, config) = PRESETS[name], ARCHITECTURES[name]
    side = preset.resolution or 224
    for kind, expected in (
        ("pooled", (preset.image_dim, preset.text_dim)),
        ("projected", (preset.projection_dim, preset.projection_dim)),
    ):
        encoder = Encoder(EncoderSettings(path=str(folder_of(family)), features=kind))
        with torch.device("meta"):
            encoder.model = AutoModel.from_config(AutoConfig.for_model(family, **config)).eval()
            image = {"pixel_values": torch.empty(2, 3, side, side)}
            ids = torch.ones(2, encoder.limit, dtype=torch.int64)
            # With a mask nobody looks for padding, which cannot be seen on this device.
            mask = {"attention_mask": ids} if family in ("align", "altclip") else {}
            text = {"input_ids": ids, "shares": torch.eye(2)} | mask
            if family == "siglip2":  # shapes of pictures must be known
                head = encoder.model.vision_model.head(torch.empty(2, 196, 1152))
                columns = {"image": head, "text": encoder._text(text)}
            else:
                columns = encoder.columns({"image": image, "text": text})
        assert tuple(column.shape[1] for column in columns.values()) == expected


def test_models_of_other_kinds_are_refused(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a qwen2_vl model; encoders are of the families clip, altclip"):
        Encoder(EncoderSettings(path=str(tiny("qwen2_vl"))))
    AutoConfig.for_model("clip_vision_model").save_pretrained(tmp_path / "tower")
    with pytest.raises(UserError, match="is a clip_vision_model model"):
        Encoder(EncoderSettings(path=str(tmp_path / "tower")))


def test_incomplete_folders_are_refused(folder_of: Callable[[str], Path], tmp_path: Path) -> None:
    for name in ("tokenizer", "no_processor", "weights", "half", "pixels"):
        shutil.copytree(folder_of("clip"), tmp_path / name)
    for path in (tmp_path / "tokenizer").glob("tokenizer*"):
        path.unlink()
    with pytest.raises(UserError, match="has no tokenizer; put one of .*vocab.json.* of this model"):
        Encoder(EncoderSettings(path=str(tmp_path / "tokenizer")))
    (tmp_path / "no_processor" / "preprocessor_config.json").unlink()
    with pytest.raises(UserError, match="its tokenizer and image processor cannot be loaded"):
        Encoder(EncoderSettings(path=str(tmp_path / "no_processor")))
    (tmp_path / "weights" / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"has no weights; put model\*.safetensors or .* of this model into the folder"):
        Encoder(EncoderSettings(path=str(tmp_path / "weights")))
    (tmp_path / "weights" / "model.safetensors").write_bytes(b"{}")
    with pytest.raises(UserError, match="its weights cannot be loaded"):
        opened(tmp_path / "weights")
    AutoModel.from_pretrained(folder_of("clip")).vision_model.save_pretrained(tmp_path / "half")
    shutil.copy(folder_of("clip") / "config.json", tmp_path / "half" / "config.json")
    with pytest.raises(UserError, match=r"lacks weights that the model needs(?s:.*)text_model"):
        opened(tmp_path / "half")
    path = tmp_path / "pixels" / "preprocessor_config.json"
    size = {"crop_size": {"height": 32, "width": 32}, "size": {"shortest_edge": 32}}
    path.write_text(json.dumps(json.loads(path.read_text()) | size))
    with pytest.raises(UserError, match="the image processor gives rows of 32 values and the model takes 64"):
        Encoder(EncoderSettings(path=str(tmp_path / "pixels")))
