"""Copies of a data set whose pictures are changed by the scores of a trained system: `ra-hmd attack --white-box`."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor

from ra_hmd.attacks.apply import CHANGED, NO_EFFECT
from ra_hmd.attacks.base import Variant
from ra_hmd.attacks.chunks import Chunk, write_rows
from ra_hmd.attacks.pairing import attacked_id
from ra_hmd.attacks.run import ATTACK_MANIFEST, AttackJob, write_attacks
from ra_hmd.attacks.white_box.heads import HeadScores, margins
from ra_hmd.attacks.white_box.measure import SCORES, measured
from ra_hmd.attacks.white_box.models import open_memes
from ra_hmd.attacks.white_box.pixels import to_image, to_pixels
from ra_hmd.attacks.white_box.search import Found, pgd, square
from ra_hmd.attacks.white_box.settings import WhiteBoxSettings
from ra_hmd.core.artifacts import alone_in
from ra_hmd.core.errors import UserError
from ra_hmd.core.heads import Head
from ra_hmd.core.manifests import AttackManifest, VariantDescription, read_manifest, write_manifest
from ra_hmd.core.progress import track
from ra_hmd.data.meme import Meme
from ra_hmd.data.meme_dataset import MemeData, open_data
from ra_hmd.inference.detector import Detector


def attack_system(
    folder: str | Path,
    output: str | Path,
    settings: WhiteBoxSettings,
    *,
    seed: int = 0,
    splits: Sequence[str] = (),
    show: bool = False,
    command: str = "",
) -> AttackManifest:
    """Write a copy of a data set for each head and eps, with pictures that make the head's verdicts least right.

    Pictures are saved as PNG and read again from their files before they are scored; scores of all heads, clean and
    attacked, are in the extras of each meme, their summary in the manifest. Memes of both classes are attacked.

    Args:
        folder: Imported data set, with labels.
        output: Folder of the copies; it may hold those of `attack_data`.
        settings: Method, system, heads and budget.
        seed: Seed of all random choices.
        splits: Splits to attack; () stands for all but `train`.
        show: Show a progress bar.
        command: Command line for the manifest.

    Raises:
        UserError: See `attack_data`; a meme has no label, or the system cannot be attacked so.
    """
    if settings.white_box is None or settings.checkpoint is None:
        raise UserError("A white-box attack needs `white_box` (pgd or square) and `checkpoint`.")
    data, detector = open_data(folder), _detector(settings)
    system = _System(detector, settings)
    variants = settings.variants(system.description)
    _check_parameters(Path(output), variants)

    def make(job: AttackJob) -> None:
        if job.total:
            found = ((size, None) for size in _attack_all(data, job, system, seed))
            for _ in track(found, "Attacking", job.total, "memes", show=show):
                pass

    stated = write_attacks(
        data, output, variants, make, splits=splits, suite=settings.white_box, seed=seed, command=command
    )
    with alone_in(Path(output)):
        described = [_with_measures(one, Path(output), system) for one in stated.variants]
        stated = stated.model_copy(update={"variants": described})
        write_manifest(Path(output) / ATTACK_MANIFEST, stated)
    return stated


def _with_measures(variant: VariantDescription, output: Path, system: "_System") -> VariantDescription:
    """The description of a variant that this system made, with what its pictures do."""
    if variant.parameters.get("system") != system.description:
        return variant
    values = measured(output / variant.folder, list(variant.rows), system.problem, system.thresholds)
    return variant.model_copy(update={"measured": values})


def _detector(settings: WhiteBoxSettings) -> Detector:
    assert settings.checkpoint is not None
    return Detector.from_run(
        settings.checkpoint,
        settings.bank,
        backbone=settings.backbone,
        base_model=settings.base_model,
        batch_size=settings.batch_size,
        dtype=settings.dtype,
        device=settings.device,
    )


def _check_parameters(output: Path, variants: Sequence[Variant]) -> None:
    """Raise `UserError` where `output` holds a variant of the same name that was made otherwise."""
    if not (output / ATTACK_MANIFEST).is_file():
        return
    there = {one.name: one.parameters for one in read_manifest(output / ATTACK_MANIFEST, AttackManifest).variants}
    for variant in variants:
        wanted = variant.attack.parameters[variant.severity - 1]
        if there.get(variant.name, wanted) != wanted:
            differing = [name for name in wanted if there[variant.name].get(name) != wanted[name]]
            raise UserError(
                f"{output} holds {variant.name} with other values of {', '.join(differing)}; give another --output."
            )


class _System:
    """A trained system under attack.

    Args:
        detector: The system.
        settings: Method and budget.

    Attributes:
        description: Its identity, for the manifest.
    """

    def __init__(self, detector: Detector, settings: WhiteBoxSettings) -> None:
        self.detector, self.settings = detector, settings
        self.problem = detector.problem
        self.description = {**detector.version, "bank": dict(detector.version["bank"])}
        gradients = settings.white_box == "pgd"
        heads = cast(list[Head], settings.targets)
        self._heads = {head: HeadScores(detector.scorer, head) for head in heads} if gradients else {}

    def thresholds(self, head: Head) -> np.ndarray:
        """Thresholds [C] of the verdicts of a head."""
        return self.detector.scorer.rule(head).thresholds

    def scores(self, memes: Sequence[Meme]) -> dict[Head, np.ndarray]:
        """Scores of all heads, [B, C] each, as the detector gives them."""
        return self.detector.score([self.detector.prepare(meme) for meme in memes]).scores

    def search(self, memes: Sequence[Meme], variant: Variant, seed: int) -> Found:
        """The pictures that make verdicts on memes least right."""
        parameters = variant.attack.parameters[variant.severity - 1]
        generators = [variant.attack.generator(variant.severity, seed, meme.id) for meme in memes]
        device = next(self.detector.scorer.model.parameters()).device
        pictures = [to_pixels(meme.load_image()).to(device) for meme in memes]
        eps, head = parameters["eps"], parameters["target"]
        if self.settings.white_box == "pgd":
            steps, draws = self.settings.steps, self.settings.eot
            return pgd(self._margins(memes, head), pictures, generators, eps=eps, steps=steps, draws=draws)
        return square(self._true_margins(memes, head), pictures, generators, eps=eps, queries=self.settings.queries)

    def _margins(self, memes: Sequence[Meme], head: Head) -> Callable[[Sequence[Tensor]], Tensor]:
        opened, scores = open_memes(self.detector.feature_model, memes), self._heads[head]
        labels = [meme.label for meme in memes]
        return lambda pictures: margins(scores(opened(pictures)), labels, self.problem)

    def _true_margins(self, memes: Sequence[Meme], head: Head) -> Callable[[Sequence[Tensor]], Tensor]:
        """Margins by the detector's own scores, by the way that any picture takes."""
        labels = [meme.label for meme in memes]

        def ask(pictures: Sequence[Tensor]) -> Tensor:
            shown = [replace(meme, image=to_image(one)) for meme, one in zip(memes, pictures, strict=True)]
            scored = self.scores(shown)
            if head not in scored:
                raise UserError(f"The head `{head}` has no scores here; attack one of {', '.join(scored)}.")
            return margins(torch.from_numpy(scored[head]), labels, self.problem)

        return ask


def _attack_all(data: MemeData, job: AttackJob, system: _System, seed: int) -> Iterator[int]:
    """Attack by batches; the number of memes of each."""
    for split, variants, first, memes in job.chunks(data, system.settings.batch_size):
        yield _WhiteBoxChunk(job.output, split, first, memes, variants, seed, {}, system).attack()


@dataclass(frozen=True)
class _WhiteBoxChunk(Chunk):
    """Memes that go through the system together; see `Chunk`.

    Attributes:
        system: The system.
    """

    system: _System

    def attack(self) -> int:
        """See `Chunk`."""
        unlabelled = [meme.id for meme in self.memes if meme.label is None]
        if unlabelled:
            raise UserError(f"Meme {unlabelled[0]!r} has no label, so no verdict on it is right or wrong.")
        clean: dict[Head, np.ndarray] = {}
        for variant in self.variants:
            if not self.rows_file(variant).is_file():
                clean = clean or self.system.scores(self.memes)
                self._attack_by(variant, clean)
        return len(self.memes) * len(self.variants)

    def _attack_by(self, variant: Variant, clean: dict[Head, np.ndarray]) -> None:
        found = self.system.search(self.memes, variant, self.seed)
        made = []
        for row, (meme, picture) in enumerate(zip(self.memes, found.pictures, strict=True), self.first):
            image = to_image(picture)
            changed = image.tobytes() != meme.load_image().tobytes()
            extras = {**meme.extras, CHANGED: changed}
            attacked = replace(meme, id=attacked_id(meme.id, variant.name), image=image, extras=extras)
            record = self.record(attacked if changed else replace(attacked, image=meme.image), variant, row)
            made.append((record, "" if changed else NO_EFFECT))
        read = [replace(meme, image=record["image"]) for meme, (record, _) in zip(self.memes, made, strict=True)]
        scores = self.system.scores(read)  # of the files
        for row, (record, _) in enumerate(made):
            record["extras"][SCORES] = {
                head: {"clean": clean[head][row].tolist(), "attacked": scores[head][row].tolist()} for head in scores
            }
        write_rows(self.rows_file(variant), made)
