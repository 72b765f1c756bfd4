"""Searches for the change of a picture, within eps of each pixel value, that makes verdicts on it least right.

Shapes: B memes; pictures [3, H, W] with values from 0 to 255.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ra_hmd.attacks.white_box.settings import JPEG_QUALITIES, RESCALE_FACTORS, WIDENED
from ra_hmd.attacks.white_box.transforms import jpeg, quantised, rescaled

Margins = Callable[[Sequence[Tensor]], Tensor]
"""Margins [B] of B pictures: how far their verdicts are on the side of the labels."""
_FIRST_SHARE = 0.3  # of the picture, that a square of the search without gradients covers at first


@dataclass(frozen=True)
class Found:
    """Result of a search.

    Attributes:
        pictures: B pictures with 8 bits per channel.
        passes: Forward passes of each meme that it took.
    """

    pictures: list[Tensor]
    passes: int


def pgd(
    margins: Margins,
    pictures: Sequence[Tensor],
    generators: Sequence[random.Random],
    *,
    eps: float,
    steps: int,
    draws: int = 0,
) -> Found:
    """Projected gradient descent on the margin, from a random start.

    In the first half of the steps the bound on a pixel's change shrinks from `WIDENED` · eps to eps, so that the
    search gets past plateaus around the clean picture. Each step moves every pixel value by a quarter of the bound, in
    the last quarter of the steps by less and less, against the sign of the gradient. The best of the pictures within
    eps is returned, as it is with 8 bits.

    Args:
        margins: Differentiable margins.
        pictures: The clean pictures.
        generators: Generator of each meme.
        eps: Largest change of a pixel value.
        steps: Number of steps.
        draws: With expectation over transformation: number of random transforms at each step; the margin is the mean
            over these and the picture itself.

    Source: Madry et al., Towards Deep Learning Models Resistant to Adversarial Attacks, 2018; Athalye et al.,
    Synthesizing Robust Adversarial Examples, 2018.
    """
    changes = [_noise(picture, generator) * eps for picture, generator in zip(pictures, generators, strict=True)]
    best, lowest = list(pictures), torch.full((len(pictures),), torch.inf)
    for step in range(steps + 1):
        bound, size = _bound(step, steps, eps)
        changes = [change.clamp(-bound, bound) for change in changes]
        at = [(clean + change).clamp(0, 255) for clean, change in zip(pictures, changes, strict=True)]
        value, gradients = _mean_margins(margins, at, generators, draws, gradient=step < steps)
        if bound <= eps:
            better = value < lowest
            lowest = torch.where(better, value, lowest)
            best = [new.round() if wins else old for new, old, wins in zip(at, best, better.tolist(), strict=True)]
        changes = [change - size * slope.sign() for change, slope in zip(changes, gradients, strict=True)]
    return Found(best, (steps + 1) * (draws + 1))


def _bound(step: int, steps: int, eps: float) -> tuple[float, float]:
    """The bound on a pixel's change at a step, and the length of the step."""
    done = step / steps
    bound = eps * WIDENED ** max(1 - 2 * done, 0.0)
    return bound, max(bound * min(1.0, 4 * (1 - done)) / 4, 1.0)


def _mean_margins(
    margins: Margins, pictures: Sequence[Tensor], generators: Sequence[random.Random], draws: int, *, gradient: bool
) -> tuple[Tensor, Sequence[Tensor]]:
    """Mean margins [B] over the pictures and their transforms, and the gradients of their sum."""
    total = torch.zeros(len(pictures))
    slopes = [torch.zeros_like(picture) for picture in pictures]
    for draw in range(draws + 1):
        leaves = [picture.detach().requires_grad_(gradient) for picture in pictures]
        shown = [quantised(leaf) for leaf in leaves]
        if draw:
            shown = [transformed(one, generator) for one, generator in zip(shown, generators, strict=True)]
        with torch.set_grad_enabled(gradient):
            values = margins(shown)
        total += values.detach().cpu().float() / (draws + 1)
        if gradient:
            found = torch.autograd.grad(values.sum(), leaves)
            slopes = [slope + one for slope, one in zip(slopes, found, strict=True)]
    return total, slopes


def transformed(picture: Tensor, generator: random.Random) -> Tensor:
    """A picture after a random transform of those that a platform applies: JPEG, rescaling, or both."""
    kind = generator.choice(("jpeg", "rescale", "both"))
    if kind != "jpeg":
        picture = rescaled(picture, generator.uniform(*RESCALE_FACTORS))
    return picture if kind == "rescale" else jpeg(picture, generator.randint(*JPEG_QUALITIES))


def square(
    margins: Margins, pictures: Sequence[Tensor], generators: Sequence[random.Random], *, eps: float, queries: int
) -> Found:
    """Random search that needs the scores alone: squares of ± eps are kept where they lower the margin.

    It starts from vertical stripes; squares shrink as the search goes on.

    Args:
        margins: Margins of pictures, by any means.
        pictures: The clean pictures.
        generators: Generator of each meme.
        eps: Largest change of a pixel value.
        queries: Number of times that the margins are asked for.

    Source: Andriushchenko et al., Square Attack, 2020 (L∞).
    """
    best = [
        (picture + eps * _signs(generator, picture, (3, 1, picture.shape[2]))).clamp(0, 255)
        for picture, generator in zip(pictures, generators, strict=True)
    ]
    lowest = margins(best).detach().cpu()
    for query in range(1, queries):
        tried = [
            _with_square(old, clean, generator, eps, _share(query, queries))
            for old, clean, generator in zip(best, pictures, generators, strict=True)
        ]
        value = margins(tried).detach().cpu()
        better = value < lowest
        lowest = torch.where(better, value, lowest)
        best = [new if wins else old for new, old, wins in zip(tried, best, better.tolist(), strict=True)]
    return Found(best, queries)


def _share(query: int, queries: int) -> float:
    """Share of the picture that a square covers: halved as the queries go on, at the paper's places of 10,000."""
    places = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
    return _FIRST_SHARE / 2 ** sum(query / queries * 10_000 >= place for place in places)


def _with_square(old: Tensor, clean: Tensor, generator: random.Random, eps: float, share: float) -> Tensor:
    height, width = clean.shape[1:]
    side = max(1, round((share * height * width) ** 0.5))
    tall, wide = min(side, height), min(side, width)
    top, left = generator.randint(0, height - tall), generator.randint(0, width - wide)
    new, window = old.clone(), (slice(None), slice(top, top + tall), slice(left, left + wide))
    new[window] = (clean[window] + eps * _signs(generator, clean, (3, 1, 1))).clamp(0, 255)
    return new


def _signs(generator: random.Random, like: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Random ±1."""
    return 2 * _draw(generator, like, shape).round() - 1


def _noise(like: Tensor, generator: random.Random) -> Tensor:
    """Uniform numbers from -1 to 1."""
    return 2 * _draw(generator, like, like.shape) - 1


def _draw(generator: random.Random, like: Tensor, shape: Any) -> Tensor:
    source = torch.Generator().manual_seed(generator.getrandbits(62))
    return torch.rand(shape, generator=source).to(like)
