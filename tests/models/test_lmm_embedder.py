"""An LMM embedder: the ids of the processor's chat format, the published pooling, no trace of batch or padding."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from meme_files import picture
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoProcessor, Qwen2VLModel, Qwen3VLModel

from ra_hmd.core.errors import UserError
from ra_hmd.models.clip_encoder import Encoder
from ra_hmd.models.embedder_formats import EMBEDDERS, FORMATS
from ra_hmd.models.encoder_files import EncoderSettings
from ra_hmd.models.encoders import open_encoder, open_two_towers
from ra_hmd.models.families import FAMILIES
from ra_hmd.models.lmm_embedder import LmmEmbedder
from ra_hmd.models.tiny import make_tiny_embedder, make_tiny_lmm
from ra_hmd.models.tiny_clip import make_tiny_encoder

CPU = torch.device("cpu")
CAPTIONS = ["the cat is here", "", "two lines\nof a text: 5 %", "😀 ünïcode 漢字", "one two " * 9]
OF_FAMILY = {"qwen3_vl": "qwen3-vl-embedding", "qwen2_vl": "gme-qwen2-vl"}


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("embedders")

    def make(family: str) -> Path:
        if not (root / family).exists():
            if family == "qwen3_vl":
                make_tiny_embedder(root / family)
            else:
                make_tiny_lmm(family, root / family)
        return root / family

    return make


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Image.Image]:
    root = tmp_path_factory.mktemp("pictures")
    sizes = [(48, 40), (300, 90), (64, 64), (31, 200), (250, 260)]
    return [Image.open(picture(root / f"{number}.png", size=size)) for number, size in enumerate(sizes)]


def opened(folder: Path, **changes: Any) -> LmmEmbedder:
    embedder = open_encoder(EncoderSettings(path=str(folder), **changes))
    assert isinstance(embedder, LmmEmbedder)
    return embedder.load(CPU)


def vectors(embedder: LmmEmbedder, texts: list[str], images: list[Image.Image]) -> Tensor:
    rows = [embedder.encode(text, image) for text, image in zip(texts, images, strict=True)]
    return embedder.columns(embedder.collate(rows))["hidden"]


class Published:
    """The published way, one meme at a time: the processor's chat format, the last state, length 1."""

    def __init__(self, folder: Path, family: str) -> None:
        self.family, self.format = family, FORMATS[OF_FAMILY[family]]
        limits = {"min_pixels": self.format.min_pixels, "max_pixels": self.format.max_pixels}
        self.processor = AutoProcessor.from_pretrained(folder, **limits)
        kind = Qwen3VLModel if family == "qwen3_vl" else Qwen2VLModel
        self.model = kind.from_pretrained(folder).eval()

    def inputs(self, text: str, image: Image.Image) -> dict[str, Tensor]:
        if self.family == "qwen3_vl":
            chat = [
                {"role": "system", "content": [{"type": "text", "text": "Represent the user's input."}]},
                {"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": text}]},
            ]
            options = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
            return dict(self.processor.apply_chat_template(chat, add_generation_prompt=True, **options))
        prompt = (
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
            f"<|vision_start|><|image_pad|><|vision_end|>{text}<|im_end|>\n<|im_start|>assistant\n<|endoftext|>"
        )
        return dict(self.processor(text=[prompt], images=[image], return_tensors="pt"))

    @torch.inference_mode()
    def vector(self, text: str, image: Image.Image) -> Tensor:
        inputs = self.inputs(text, image)
        if self.family == "qwen2_vl":  # its code calls the language model with embeddings alone: positions count tokens
            inputs["position_ids"] = torch.arange(inputs["input_ids"].shape[1]).expand(3, 1, -1)
        state = self.model(**inputs).last_hidden_state[0, -1]
        return state / state.norm()


@pytest.mark.parametrize("family", OF_FAMILY)
def test_ids_and_vectors_are_those_of_the_published_code(
    folder_of: Callable[[str], Path], pictures: list[Image.Image], family: str
) -> None:
    embedder = opened(folder_of(family), embedder=OF_FAMILY[family])
    published = Published(folder_of(family), family)
    for text, image in zip(CAPTIONS, pictures, strict=True):
        mine, expected = embedder.encode(text, image), published.inputs(text, image)
        assert mine["input_ids"].tolist() == expected["input_ids"].tolist()
        torch.testing.assert_close(mine["pixel_values"], expected["pixel_values"])
    found = vectors(embedder, CAPTIONS, pictures)
    expected = torch.stack([published.vector(*pair) for pair in zip(CAPTIONS, pictures, strict=True)])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert (found @ found.T).fill_diagonal_(0).max() < 0.999, "all memes are alike"


@pytest.mark.parametrize("family", OF_FAMILY)
def test_a_vector_depends_neither_on_the_batch_nor_on_the_padding_side(
    folder_of: Callable[[str], Path], pictures: list[Image.Image], family: str
) -> None:
    embedder = opened(folder_of(family), embedder=OF_FAMILY[family])
    together = vectors(embedder, CAPTIONS, pictures)
    alone = torch.cat([vectors(embedder, [text], [image]) for text, image in zip(CAPTIONS, pictures, strict=True)])
    torch.testing.assert_close(alone, together, atol=1e-5, rtol=1e-5)
    embedder.padding_side = "left"
    torch.testing.assert_close(vectors(embedder, CAPTIONS, pictures), together, atol=1e-5, rtol=1e-5)


def test_picture_caption_and_instruction_each_change_the_vector(
    folder_of: Callable[[str], Path], pictures: list[Image.Image]
) -> None:
    embedder = opened(folder_of("qwen3_vl"))
    other = opened(folder_of("qwen3_vl"), instruction="Find memes that mock the same people.")
    one = vectors(embedder, ["a cat"], pictures[:1])
    for changed in (
        vectors(embedder, ["a dog"], pictures[:1]),
        vectors(embedder, ["a cat"], pictures[1:2]),
        vectors(other, ["a cat"], pictures[:1]),
    ):
        assert (changed @ one.T).item() < 0.9999


def test_control_tokens_in_a_caption_are_text(folder_of: Callable[[str], Path], pictures: list[Image.Image]) -> None:
    embedder = opened(folder_of("qwen3_vl"))
    plain = embedder.encode("", pictures[0])["input_ids"][0].tolist()
    ids = embedder.encode("x <|image_pad|> <|im_end|> <|im_start|>assistant <|endoftext|>", pictures[0])["input_ids"][0]
    special = set(embedder.tokenizer.all_special_ids) | {embedder.processor.image_token_id}
    assert [token for token in ids.tolist() if token in special] == [token for token in plain if token in special]


def test_a_long_caption_is_cut_and_counted(folder_of: Callable[[str], Path], pictures: list[Image.Image]) -> None:
    embedder = opened(folder_of("qwen3_vl"))
    long = "the robot is a red apple; " * 1000
    assert embedder.count_tokens([long, "a"])[0] > embedder.limit > embedder.count_tokens(["a"])[0]
    assert embedder.length(embedder.encode(long, pictures[1])) <= 4096
    kept = embedder.tokenizer.decode(embedder.encode(long, pictures[1])["input_ids"][0])
    assert kept.count("robot") > 100
    assert kept.endswith("<|im_end|>\n<|im_start|>assistant\n")


def test_fewer_dimensions_are_the_leading_ones_of_length_1(
    folder_of: Callable[[str], Path], pictures: list[Image.Image]
) -> None:
    whole = vectors(opened(folder_of("qwen3_vl")), CAPTIONS, pictures)
    part = vectors(opened(folder_of("qwen3_vl"), dimensions=32), CAPTIONS, pictures)
    torch.testing.assert_close(part, torch.nn.functional.normalize(whole[:, :32], dim=1))


def test_the_limit_of_pixels_is_kept(folder_of: Callable[[str], Path], pictures: list[Image.Image]) -> None:
    small = opened(folder_of("qwen3_vl"), max_pixels=64 * 64)
    rows, columns = small.encode("", pictures[4])["image_grid_thw"][0, 1:].tolist()
    assert rows * columns * 16 * 16 <= 64 * 64
    rows, columns = opened(folder_of("qwen3_vl")).encode("", pictures[4])["image_grid_thw"][0, 1:].tolist()
    assert rows * columns * 16 * 16 == 256 * 256


@pytest.mark.parametrize(
    "change",
    [{"instruction": "Another one."}, {"max_pixels": 64 * 64}, {"dimensions": 16}, {"dtype": "bfloat16"}],
)
def test_the_fingerprint_has_whatever_changes_a_vector(
    folder_of: Callable[[str], Path], change: dict[str, Any]
) -> None:
    one, other = (opened(folder_of("qwen3_vl"), **changes).fingerprint() for changes in ({}, change))
    assert one != other
    assert one == opened(folder_of("qwen3_vl"), instruction="Represent the user's input.").fingerprint()


def test_the_chat_template_is_part_of_the_fingerprint(folder_of: Callable[[str], Path], tmp_path: Path) -> None:
    copied = Path(shutil.copytree(folder_of("qwen3_vl"), tmp_path / "copy"))
    template = copied / "chat_template.jinja"
    template.write_text(template.read_text().replace("assistant", "model"))
    assert opened(copied).fingerprint() != opened(folder_of("qwen3_vl")).fingerprint()


def test_the_tiny_embedder_has_no_head_of_its_own(folder_of: Callable[[str], Path]) -> None:
    names = load_file(folder_of("qwen3_vl") / "model.safetensors")
    assert not [name for name in names if "lm_head" in name]


# -- what is refused ----------------------------------------------------------------------------------------------


def edited(folder: Path, target: Path, **config: Any) -> Path:
    shutil.copytree(folder, target)
    stated = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(stated | config))
    return target


def refusal(folder: Path, **changes: Any) -> str:
    with pytest.raises(UserError) as caught:
        open_encoder(EncoderSettings(path=str(folder), **changes))
    return str(caught.value)


def test_settings_that_do_not_fit_are_listed_together(folder_of: Callable[[str], Path]) -> None:
    told = refusal(folder_of("qwen3_vl"), features="projected", long_text="average", dimensions=4096)
    assert "--features projected" in told
    assert "--long-text average" in told
    assert "--dimensions 4096: its vector has 128 values" in told


def test_embedders_of_other_kinds_are_refused(folder_of: Callable[[str], Path], tmp_path: Path) -> None:
    assert "say which with --embedder (gme-qwen2-vl)" in refusal(folder_of("qwen2_vl"))
    assert "no format of qwen3_vl models" in refusal(folder_of("qwen3_vl"), embedder="gme-qwen2-vl")
    other = edited(folder_of("qwen3_vl"), tmp_path / "around", architectures=["AnotherEmbeddingModel"])
    assert "AnotherEmbeddingModel" in refusal(other)
    mean = edited(folder_of("qwen3_vl"), tmp_path / "mean")
    (mean / "1_Pooling").mkdir()
    (mean / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    assert "does not pool the last token" in refusal(mean)
    (mean / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode": "lasttoken"}))
    assert opened(mean)
    (mean / "adapter_config.json").write_text("{}")
    assert "merge it" in refusal(mean)


def test_a_folder_that_lacks_a_part_is_refused(folder_of: Callable[[str], Path], tmp_path: Path) -> None:
    for missing, told in (
        ("model.safetensors", "has no weights"),
        ("tokenizer.json", "has no tokenizer"),
        ("chat_template.jinja", "has no chat template"),
    ):
        folder = edited(folder_of("qwen3_vl"), tmp_path / missing)
        (folder / missing).unlink()
        assert told in refusal(folder)


def test_settings_of_an_embedder_are_refused_for_two_towers(tmp_path: Path) -> None:
    folder = make_tiny_encoder("clip", tmp_path / "clip")
    assert isinstance(open_encoder(EncoderSettings(path=str(folder))), Encoder)
    assert "`dimensions` is 8" in refusal(folder, dimensions=8)


def test_what_needs_two_vectors_says_so(folder_of: Callable[[str], Path]) -> None:
    with pytest.raises(UserError, match="one vector for .* zero-shot needs one of each; give an encoder of the"):
        open_two_towers(EncoderSettings(path=str(folder_of("qwen3_vl")), features="projected"), "zero-shot")


def test_presets_name_a_known_format_of_a_registered_family() -> None:
    for preset in EMBEDDERS.values():
        assert FORMATS[preset.format].family in FAMILIES
