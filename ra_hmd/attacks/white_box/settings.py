"""Settings of `ra-hmd attack --white-box`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

from pydantic import Field

from ra_hmd.attacks.base import Attack, Variant
from ra_hmd.core.choices import DType, Head
from ra_hmd.core.config import Settings

Method = Literal["pgd", "square"]
JPEG_QUALITIES = (50, 95)
"""Range of the qualities of random JPEG compression."""
RESCALE_FACTORS = (0.5, 0.95)
"""Range of the factors of random rescaling."""
WIDENED = 4.0
"""Bound on a pixel's change at the first step of PGD, in units of eps."""
_UPPER_LIMITS = (4, 8, 255)  # largest eps of severities 1, 2 and 3


def severity_of(eps: int) -> int:
    """The severity of a largest change of a pixel value: 1 up to 4, 2 up to 8, else 3."""
    return next(severity for severity, limit in enumerate(_UPPER_LIMITS, 1) if eps <= limit)


class WhiteBoxSettings(Settings):
    """How pictures are attacked by a model's own scores."""

    TITLE: ClassVar[str] = "white box"

    white_box: Method | None = Field(
        default=None, description="In place of a suite: pgd (by gradients) or square (by scores alone); needs a run."
    )
    checkpoint: Path | None = Field(default=None, description="With --white-box: folder with a head.")
    bank: str | None = Field(default=None, description="With --white-box: labelled memes that vote.")
    backbone: str | None = Field(default=None, description="With --white-box: Stage 1 run or encoder, if moved.")
    base_model: str | None = Field(default=None, description="With --white-box: base model, if moved.")
    dtype: DType | None = Field(default=None, description="With --white-box: precision of the model.")
    device: str | None = Field(default=None, description="With --white-box: where it runs; default: what is found.")
    targets: list[str] = Field(default=["lrc"], description="Heads that are attacked, each by itself: lrc lmh rkc krr.")
    eps: list[int] = Field(default=[8], description="Largest changes of a pixel value, in 1/255: 4 8 16.")
    steps: int = Field(default=20, ge=1, description="Steps of pgd.")
    eot: int = Field(default=0, ge=0, description="Random JPEG and rescaling transforms at each step of pgd.")
    queries: int = Field(default=200, ge=1, description="Scores that square asks for, per meme.")
    batch_size: int = Field(default=8, ge=1, description="With --white-box: memes per forward pass.")

    def _problems(self) -> Iterator[str]:
        for head in self.targets:
            if head not in get_args(Head):
                yield f"`targets` has {head!r}; choose of {', '.join(get_args(Head))}."
        outside = [eps for eps in self.eps if not 1 <= eps <= 255]
        if outside or not self.eps:
            yield f"`eps` is {self.eps}; give whole numbers from 1 to 255."
        elif len({severity_of(eps) for eps in self.eps}) < len(self.eps):
            yield (
                f"`eps` is {self.eps}; severity 1 is up to 4, severity 2 up to 8, severity 3 above: "
                "give one of each at most, and others another --output."
            )
        if self.white_box is not None and self.checkpoint is None:
            yield "`white_box` needs the run that is attacked: give --checkpoint."
        if self.white_box == "square" and self.eot:
            yield "`eot` is for pgd; square asks for the scores of the picture as it is."

    def variants(self, model: dict[str, Any]) -> list[Variant]:
        """One variant for each head and eps.

        Args:
            model: What identifies the attacked system, for the manifest.
        """
        return [
            Variant(self._attack(head, eps, model), severity_of(eps), "picture")
            for head in self.targets
            for eps in self.eps
        ]

    def _attack(self, head: str, eps: int, model: dict[str, Any]) -> Attack:
        budget: dict[str, Any] = {"queries": self.queries}
        name = f"{self.white_box}_{head}"
        if self.white_box == "pgd":
            name = f"pgd_eot_{head}" if self.eot else name
            budget = {"steps": self.steps, "passes": (self.steps + 1) * (self.eot + 1), "widened": WIDENED}
            if self.eot:
                transforms = {"jpeg": list(JPEG_QUALITIES), "rescale": list(RESCALE_FACTORS)}
                budget |= {"eot": self.eot, "transforms": transforms}
        parameters = {"target": head, "eps": eps, **budget, "system": model}
        return Attack(name, "white_box", "image", _not_called, (parameters,) * 3, ("picture",))


def _not_called(*_: Any) -> Any:
    raise RuntimeError("white-box attacks change several memes at once")
