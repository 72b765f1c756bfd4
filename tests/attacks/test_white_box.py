"""White-box attacks: gradients through the processor, and pictures that fool a head after they were read from disk."""

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from meme_files import imported
from PIL import Image
from torch import Tensor
from typer.testing import CliRunner

from ra_hmd.attacks.pairing import clean_id
from ra_hmd.attacks.white_box import run
from ra_hmd.attacks.white_box.heads import HeadScores, margins
from ra_hmd.attacks.white_box.models import open_memes
from ra_hmd.attacks.white_box.pixels import PixelPath, to_image, to_pixels
from ra_hmd.attacks.white_box.run import attack_system
from ra_hmd.attacks.white_box.search import pgd, square
from ra_hmd.attacks.white_box.settings import WhiteBoxSettings
from ra_hmd.attacks.white_box.transforms import jpeg, rescaled, resized
from ra_hmd.cli.app import app
from ra_hmd.core.errors import UserError
from ra_hmd.core.heads import Head
from ra_hmd.core.manifests import AttackManifest, read_manifest
from ra_hmd.core.problem import BINARY, Problem
from ra_hmd.data.images import load_image
from ra_hmd.data.meme import Meme
from ra_hmd.data.meme_dataset import open_data
from ra_hmd.inference.detector import Detector
from ra_hmd.models.checkpoint import open_backbone
from ra_hmd.models.families import FAMILIES
from ra_hmd.models.meme_model import MemeModel


def drawn(width: int = 117, height: int = 99, noise: float = 6.0) -> Image.Image:
    """A picture of soft colours with some grain."""
    generator = torch.Generator().manual_seed(0)
    soft = resized(torch.rand(3, 13, 11, generator=generator) * 255, height, width)
    return to_image(soft + noise * torch.randn(3, height, width, generator=generator))


@pytest.mark.parametrize("quality", [10, 30, 50, 75, 95])
def test_differentiable_jpeg_gives_the_pixels_of_pillow_and_a_gradient(quality: int) -> None:
    image, file = drawn(), BytesIO()
    image.save(file, "JPEG", quality=quality)
    pixels = to_pixels(image).requires_grad_()
    compressed = jpeg(pixels, quality)
    real = to_pixels(load_image(file.getvalue()))
    lost = (real - pixels).abs().mean()
    assert (compressed - real).abs().mean() < 0.27 * lost
    compressed.sum().backward()
    assert pixels.grad is not None
    assert (pixels.grad > 0.3).float().mean() > 0.9


def test_rescaling_gives_the_pixels_of_pillow() -> None:
    image = drawn()
    small = image.resize((58, 50), Image.Resampling.BICUBIC)
    real = to_pixels(small.resize(image.size, Image.Resampling.BICUBIC))
    assert (rescaled(to_pixels(image), 0.5) - real).abs().mean() < 0.5


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_path_of_a_picture_has_the_values_of_the_processor_and_their_slope(family: str) -> None:
    processor = FAMILIES[family].tiny_processor().image_processor  # type: ignore[attr-defined]
    image = drawn(70, 93)
    path = PixelPath(processor, lambda picture: picture.resize((60, 80)))
    pixels = to_pixels(image).requires_grad_()
    inputs = path(pixels)
    expected = processor(images=image.resize((60, 80)), return_tensors="pt")
    assert torch.equal(inputs["pixel_values"], expected["pixel_values"])
    assert torch.equal(inputs["image_grid_thw"], expected["image_grid_thw"])
    weights = torch.randn(inputs["pixel_values"].shape, generator=torch.Generator().manual_seed(1))
    (slope,) = torch.autograd.grad((inputs["pixel_values"] * weights).sum(), pixels)
    step = 12 * slope.sign()
    moved = [path(pixels.detach() + sign * step)["pixel_values"] for sign in (1, -1)]
    real = float(((moved[0] - moved[1]) * weights).sum())
    assert real == pytest.approx(24 * float(slope.abs().sum()), rel=0.1)


def test_processor_that_takes_no_tensors_is_refused() -> None:
    def only_images(images: Any, return_tensors: str) -> dict[str, Tensor]:
        if isinstance(images, Tensor):
            raise TypeError("no tensors here")
        return {"pixel_values": to_pixels(images)[None]}

    with pytest.raises(UserError, match="square"):
        PixelPath(only_images)(to_pixels(drawn()).requires_grad_())


def test_margins_are_above_zero_for_right_verdicts_of_every_problem() -> None:
    scores = torch.tensor([[2.0], [-1.0]])
    assert margins(scores, [1, 0], BINARY).tolist() == [2.0, 1.0]
    three = torch.tensor([[1.0, 3.0, 0.5]])
    assert margins(three, [1], Problem("single_label", 3)).tolist() == [2.0]
    assert margins(three, [0], Problem("single_label", 3)).tolist() == [-2.0]
    assert margins(torch.tensor([[1.0, -2.0]]), [(0,)], Problem("multi_label", 2)).tolist() == [1.5]


def brightness(pictures: Sequence[Tensor]) -> Tensor:
    """Margins of a head that finds pictures right when they are bright."""
    return torch.stack([picture.mean() for picture in pictures])


@pytest.mark.parametrize("search", ["pgd", "eot", "square"])
def test_searches_stay_within_eps_and_lower_the_margin(search: str) -> None:
    clean = [to_pixels(drawn()), to_pixels(drawn(40, 33))]
    generators = [random.Random(row) for row in range(2)]
    if search == "square":
        found = square(brightness, clean, generators, eps=4, queries=60)
    else:
        found = pgd(brightness, clean, generators, eps=4, steps=6, draws=2 * (search == "eot"))
    for picture, before in zip(found.pictures, clean, strict=True):
        assert picture.shape == before.shape
        assert (picture - before).abs().max() <= 4
        assert torch.equal(picture, picture.round().clamp(0, 255))
    assert (brightness(found.pictures) < brightness(clean) - (0.2 if search == "square" else 2)).all()
    assert found.passes == {"pgd": 7, "eot": 21, "square": 60}[search]


def test_settings_name_their_problems_together() -> None:
    with pytest.raises(UserError, match=r"(?s)'llm'.*severity 3 above.*--checkpoint"):
        WhiteBoxSettings(white_box="pgd", targets=["llm"], eps=[16, 32])
    with pytest.raises(UserError, match="eot"):
        WhiteBoxSettings(white_box="square", checkpoint=Path("x"), eot=2)


@pytest.fixture(scope="module")
def clean(memes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An import of a few drawn memes."""
    folder = tmp_path_factory.mktemp("white_box")
    lines = (memes / "a" / "test.jsonl").read_text().splitlines()[:6]
    absolute = [line.replace("img/", f"{memes / 'a' / 'img'}/") for line in lines]
    (folder / "test.jsonl").write_text("\n".join(absolute) + "\n")
    imported("generic", folder / "test.jsonl", folder / "data")
    return folder / "data"


def memes_of(folder: Path) -> list[Meme]:
    return list(open_data(folder).memes("test"))


STEP = 1


def margins_of(detector: Detector, memes: Sequence[Meme], head: Head) -> np.ndarray:
    """Margins by the detector's own scores, of the files."""
    scores = torch.from_numpy(detector.score([detector.prepare(meme) for meme in memes]).scores[head])
    centre = 0.5 if head in ("lrc", "lmh") else 0.0
    return margins(scores - centre, [meme.label for meme in memes], BINARY).numpy()


def check_gradient(detector: Detector, memes: Sequence[Meme], head: Head) -> None:
    """A step along the gradient raises the margins, one against it lowers them: those of the detector, and of the soft
    vote, which stands for one that goes up and down by steps."""
    labels, opened = [meme.label for meme in memes], open_memes(detector.feature_model, memes)
    scores = HeadScores(detector.scorer, head)
    pixels = [to_pixels(meme.load_image()).requires_grad_() for meme in memes]
    slopes = torch.autograd.grad(margins(scores(opened(pixels)), labels, BINARY).sum(), pixels)

    def moved(by: int) -> np.ndarray:
        shown = [(one.detach() + by * slope.sign()).clamp(0, 255) for one, slope in zip(pixels, slopes, strict=True)]
        if head == "rkc":
            with torch.no_grad():
                return margins(scores(opened(shown)), labels, BINARY).numpy()
        images = [replace(meme, image=to_image(picture)) for meme, picture in zip(memes, shown, strict=True)]
        return margins_of(detector, images, head)

    up, down = moved(STEP), moved(-STEP)
    assert (up > down).all(), (up, down)


@pytest.mark.slow
@pytest.mark.parametrize("head", ["lrc", "lmh", "rkc", "krr"])
def test_gradient_of_each_head_of_an_lmm_agrees_with_its_scores(served_lmm: Path, clean: Path, head: Head) -> None:
    detector = Detector.from_run(served_lmm / "run", str(served_lmm / "bank"))
    check_gradient(detector, memes_of(clean), head)


@pytest.mark.slow
@pytest.mark.parametrize("head", ["lrc", "rkc", "krr"])
def test_gradient_of_each_head_of_an_encoder_agrees_with_its_scores(served_clip: Path, clean: Path, head: Head) -> None:
    detector = Detector.from_run(served_clip / "head", str(served_clip / "bank"))
    check_gradient(detector, memes_of(clean), head)


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_gradient_through_each_lmm_family_is_that_of_its_scores(
    tiny: Callable[[str], Path], clean: Path, family: str
) -> None:
    """Nothing is lost on the way: hidden states are those of extraction, and change as the gradient says."""
    model = MemeModel(open_backbone(str(tiny(family))), torch.device("cpu"))
    memes = memes_of(clean)[:2]
    opened = open_memes(model, memes)
    pixels = [to_pixels(meme.load_image()).requires_grad_() for meme in memes]
    hidden = opened(pixels).hidden
    batch = model.collate([model.encode(meme.caption, meme.load_image()) for meme in memes])
    assert torch.equal(hidden.detach(), model.score(batch).hidden.clone())
    towards = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(0))
    slopes = torch.autograd.grad((hidden * towards).sum(), pixels)
    with torch.no_grad():
        up, down = (
            opened([one + sign * slope.sign() for one, slope in zip(pixels, slopes, strict=True)]).hidden
            for sign in (1, -1)
        )
    assert (((up - down) * towards).sum(dim=1) > 0).all()


@pytest.mark.slow
def test_soft_scores_are_on_the_side_of_the_verdicts(served_lmm: Path, clean: Path) -> None:
    detector = Detector.from_run(served_lmm / "run", str(served_lmm / "bank"))
    memes = memes_of(clean)
    found = detector.score([detector.prepare(meme) for meme in memes]).scores
    pictures = [to_pixels(meme.load_image()) for meme in memes]
    with torch.no_grad():
        read = open_memes(detector.feature_model, memes)(pictures)
        made = {head: HeadScores(detector.scorer, head)(read) for head in ("lrc", "lmh", "krr")}
    assert made["lrc"].sigmoid().numpy() == pytest.approx(found["lrc"], abs=1e-4)
    assert made["lmh"].sigmoid().numpy() == pytest.approx(found["lmh"], abs=1e-4)
    assert made["krr"].numpy() == pytest.approx(found["krr"], abs=1e-3)


@pytest.mark.slow
def test_pictures_on_disk_fool_the_head_by_gradients_and_without(
    served_clip: Path, clean: Path, tmp_path: Path
) -> None:
    words = ["attack", clean, "--output", tmp_path / "out", "--splits", "test", "--checkpoint", served_clip / "head",
             "--bank", served_clip / "bank", "--eps", "8", "--targets", "lrc"]  # fmt: skip
    for method in (["pgd", "--steps", "8"], ["square", "--queries", "40"]):
        outcome = CliRunner().invoke(app, [str(word) for word in [*words, "--white-box", *method]])
        assert outcome.exit_code == 0, outcome.output
    stated = {one.name: one for one in read_manifest(tmp_path / "out" / "attack.json", AttackManifest).variants}
    assert list(stated) == ["pgd_lrc-2", "square_lrc-2"]
    assert stated["pgd_lrc-2"].parameters["passes"] == 9
    assert stated["square_lrc-2"].parameters["queries"] == 40
    assert "LRC auroc" in outcome.output

    detector = Detector.from_run(served_clip / "head", str(served_clip / "bank"))
    originals = memes_of(clean)
    before, after = margins_of(detector, originals, "lrc"), {}
    for name, described in stated.items():
        attacked = memes_of(tmp_path / "out" / name)
        assert [clean_id(meme.id) for meme in attacked] == [meme.id for meme in originals]
        assert [(meme.label, meme.text) for meme in attacked] == [(meme.label, meme.text) for meme in originals]
        for one, other in zip(attacked, originals, strict=True):
            assert one.path.suffix == ".png"
            change = np.asarray(one.load_image(), int) - np.asarray(other.load_image(), int)
            assert 0 < np.abs(change).max() <= 8
        after[name] = margins_of(detector, attacked, "lrc")
        scores = [meme.extras["attack_scores"]["lrc"]["attacked"][0] for meme in attacked]
        signs = np.array([1 if meme.label == 1 else -1 for meme in attacked])
        assert after[name] == pytest.approx(signs * (np.array(scores) - 0.5), abs=1e-6)
        values = described.measured["test"]["lrc"]
        assert values["auroc"]["attacked"] <= values["auroc"]["clean"]
    assert (after["square_lrc-2"] < before).all()  # the search without gradients agrees on the direction
    assert (after["pgd_lrc-2"] < after["square_lrc-2"]).all()


@pytest.mark.slow
def test_interrupted_attack_continues_to_the_same_files(
    served_clip: Path, clean: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = WhiteBoxSettings(white_box="pgd", checkpoint=served_clip / "head", steps=2, batch_size=2)
    whole = attack_system(clean, tmp_path / "whole", settings)
    real, calls = run._System.search, []

    def twice(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(run._System, "search", twice)
        with pytest.raises(KeyboardInterrupt):
            attack_system(clean, tmp_path / "cut", settings)
    with monkeypatch.context() as patched:
        patched.setattr(run._System, "search", lambda *arguments: calls.append(arguments) or real(*arguments))
        again = attack_system(clean, tmp_path / "cut", settings)
    assert len(calls) == 3 + 1
    assert again.variants == whole.variants
    pictures = [sorted((tmp_path / name).rglob("*.png")) for name in ("whole", "cut")]
    assert [path.read_bytes() for path in pictures[0]] == [path.read_bytes() for path in pictures[1]]
    with pytest.raises(UserError, match="steps"):
        attack_system(clean, tmp_path / "cut", settings.replace(steps=3))
