"""The attacked data sets of a study, paired with the clean memes that they were made from."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ra_hmd.attacks.pairing import pair_rows
from ra_hmd.core.artifacts import sha256_file
from ra_hmd.core.errors import UserError, raise_all
from ra_hmd.core.manifests import AttackManifest, VariantDescription, read_manifest
from ra_hmd.data.meme import Meme
from ra_hmd.data.prompt import Answers, PromptTemplate
from ra_hmd.data.resolve import imported_task, resolve_memes
from ra_hmd.evaluation.bank_update import nested_order
from ra_hmd.experiments.robustness.config import RobustnessSettings

ATTACK_MANIFEST = "attack.json"


@dataclass(frozen=True)
class Suite:
    """The variants of a folder of `ra-hmd attack` that a study measures.

    Attributes:
        settings: Settings of the study.
        manifest: The folder's manifest.
        variants: The variants, in the order of the manifest.
    """

    settings: RobustnessSettings
    manifest: AttackManifest
    variants: tuple[VariantDescription, ...]

    @classmethod
    def open(cls, settings: RobustnessSettings) -> "Suite":
        """Open the attacked folder of a study.

        Raises:
            UserError: no such folder, attacks that it does not have, a split that was not attacked, or another clean
                data set than the study's.
        """
        path = settings.attacked / ATTACK_MANIFEST
        if not path.is_file():
            raise UserError(
                f"`attacked`: {path} does not exist; make the attacked memes with `ra-hmd attack {settings.data} "
                f"--output {settings.attacked} --splits {settings.split}`."
            )
        manifest = read_manifest(path, AttackManifest)
        have = list(dict.fromkeys(variant.attack for variant in manifest.variants))
        needed = {name for system in settings.systems for name in settings.system(system).bank_attacks}
        raise_all(
            [f"{name!r}" for name in dict.fromkeys([*settings.attacks, *sorted(needed)]) if name not in have],
            f"{path} has no such attacks; it has {', '.join(have)}",
        )
        variants = [one for one in manifest.variants if not settings.attacks or one.attack in settings.attacks]
        suite = cls(settings, manifest, tuple(variants))
        suite._check_split(settings.split, variants)
        for name in sorted(needed):
            suite._check_split(settings.train_split, suite.taught([name])[:1])
        return suite

    def taught(self, attacks: Sequence[str]) -> list[VariantDescription]:
        """The variants of some attacks whose training memes there are, or all of them where there are none."""
        found = [one for one in self.manifest.variants if one.attack in attacks]
        return [one for one in found if self.settings.train_split in one.rows] or found

    def _check_split(self, split: str, variants: Sequence[VariantDescription]) -> None:
        settings, clean = self.settings, self.manifest.clean.splits.get(split)
        lacking = [variant.name for variant in variants if split not in variant.rows]
        if clean is None or lacking or not variants:
            what = ", ".join(lacking[:3]) or "no variant"
            raise UserError(
                f"{settings.attacked} does not have split {split!r} of {what}; make it with `ra-hmd attack "
                f"{settings.data} --output {settings.attacked} --splits {split}`."
            )
        file = settings.data / f"{split}.jsonl"
        if not file.is_file():
            raise UserError(f"`data`: {file} does not exist; give the folder that was attacked.")
        if sha256_file(file) != clean.sha256:
            raise UserError(
                f"{file} is not the split that {settings.attacked} was made from ({self.manifest.clean.folder}); give "
                "the folder that was attacked, or attack this one."
            )

    def clean(self, split: str) -> list[Meme]:
        """The clean memes of a split.

        Raises:
            UserError: memes without a label, or labels that are not 0 and 1.
        """
        memes = self._read(self.settings.data, split)
        strange = [f"meme {meme.id!r}: {meme.label!r}" for meme in memes if meme.label not in (0, 1)]
        raise_all(strange, f"{self.settings.data}/{split}.jsonl: the study needs labels 0 and 1 (--task)")
        return memes

    def sample(self, memes: Sequence[Meme]) -> list[int]:
        """Rows of the memes of `split` that are measured, in their order."""
        if self.settings.memes is None:
            return list(range(len(memes)))
        return sampled_rows(memes, self.settings.memes, self.settings.seed)

    def folder(self, variant: VariantDescription) -> Path:
        """Folder of a variant."""
        return self.settings.attacked / (variant.folder or variant.name)

    def attacked(self, variant: VariantDescription, split: str, clean: Sequence[Meme]) -> list[Meme]:
        """The attacked memes of a variant in the order of their clean ones, with the labels of these.

        Args:
            variant: The variant.
            split: The split.
            clean: All clean memes of the split.

        Raises:
            UserError: the two do not pair one to one, or labels differ.
        """
        folder = self.folder(variant)
        memes = self._read(folder, split, attacked=True)
        rows = pair_rows([meme.id for meme in clean], [meme.id for meme in memes])
        found = [meme for _, meme in sorted(zip(rows, memes, strict=True), key=lambda pair: pair[0])]
        changed = [one.id for one, other in zip(found, clean, strict=True) if one.label != other.label]
        if changed and self.settings.task is None:
            raise UserError(
                f"{folder}: {len(changed)} memes of {split} have another label than their clean ones, for example "
                f"{changed[:3]}; attack the data set again."
            )
        return [replace(one, label=other.label) for one, other in zip(found, clean, strict=True)]

    def _read(self, folder: Path, split: str, *, attacked: bool = False) -> list[Meme]:
        task = self.settings.task
        chosen = None if task is None or attacked else imported_task(str(folder), task)
        return resolve_memes(str(folder), split, PromptTemplate(), Answers(), task=chosen)


def sampled_rows(memes: Sequence[Meme], count: int, seed: int) -> list[int]:
    """Rows of a class-balanced sample of labelled memes, in their order; all rows where there are no more."""
    if count >= len(memes):
        return list(range(len(memes)))
    labels = np.array([meme.label for meme in memes])
    return sorted(nested_order(labels, seed)[:count].tolist())
