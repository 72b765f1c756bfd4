"""The feature stores of a study: clean and attacked memes by each model, sharded and resumable as `ra-hmd extract`."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image

from ra_hmd.core.artifacts import plain, sha256_bytes
from ra_hmd.core.errors import UserError
from ra_hmd.data.benign_transforms import benign_copies
from ra_hmd.data.meme import Meme
from ra_hmd.data.resolve import describe_source
from ra_hmd.data.unicode_folding import fold_caption
from ra_hmd.experiments.robustness.config import RobustnessSettings, System
from ra_hmd.experiments.robustness.scores import CLEAN
from ra_hmd.experiments.robustness.suite import Suite, sampled_rows
from ra_hmd.features.extract_clip import encode
from ra_hmd.features.extract_lmm import extract_hidden_states
from ra_hmd.features.model_protocol import FeatureModel
from ra_hmd.models.checkpoint import Run, open_run
from ra_hmd.models.encoders import AnyEncoder, open_encoder
from ra_hmd.models.meme_model import MemeModel

_Key = tuple[bool, int, str, str, int | None]


@dataclass(frozen=True)
class Job:
    """A feature store to make.

    Attributes:
        store: Its folder.
        memes: Its memes.
        split: Their split.
        data: Folder of their data set.
        copy: Which changed copy of each picture is read (`benign_copies`); 0: the picture itself.
    """

    store: Path
    memes: Sequence[Meme]
    split: str
    data: Path
    copy: int = 0


class _ReadsCopies:
    """A feature model that reads a changed copy of each picture in its place."""

    def __init__(self, model: FeatureModel, copy: int) -> None:
        self._model, self._copy = model, copy

    def encode(self, text: str, image: Image) -> Any:
        """Encode a meme with the copy of its picture."""
        return self._model.encode(text, benign_copies(image, self._copy)[-1])

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


class FeatureMaker:
    """Plans and makes the feature stores of the systems that share a model and its views.

    Args:
        settings: Settings of the study.
        system: One of these systems.
    """

    def __init__(self, settings: RobustnessSettings, system: System) -> None:
        self.settings, self.system = settings, system
        self._loaded: FeatureModel | None = None
        self._places: dict[_Key, Path] = {}
        self._jobs: dict[Path, Job] = {}

    @cached_property
    def folder(self) -> Path:
        """Folder of the stores, named after what they depend on apart from the memes."""
        system = self.system
        model = self._encoder.fingerprint() if system.checkpoint is None else self._run.fingerprint()
        stated = json.dumps(plain([model, system.made_views]), sort_keys=True)
        name = system.checkpoint or Path(self._encoder.settings.path)
        return self.settings.output_dir / "features" / f"{name.name}-{sha256_bytes(stated.encode())[:8]}"

    def plan(
        self, system: System, variant: str, split: str, memes: Sequence[Meme], data: Path, sample: int | None = None
    ) -> None:
        """Plan a store of a system; where its defences change none of the memes, it shares the store of the others.

        Args:
            system: The system, whose defences are applied to the memes.
            variant: Name of the variant, or `CLEAN`.
            split: Split of the memes.
            memes: The memes.
            data: Folder of their data set.
            sample: Number of memes, where they are a sample of the split.
        """
        treated = [_folded(meme) for meme in memes] if system.fold_captions else list(memes)
        folder = variant if treated == list(memes) else f"{variant}+fold"
        name = split if sample is None else f"{split}-{sample}-of-seed-{self.settings.seed}"
        for copy in range(system.transforms + 1):
            store = self.folder / (f"{folder}+copy{copy}" if copy else folder) / name
            self._places[system.fold_captions, copy, variant, split, sample] = store
            self._jobs.setdefault(store, Job(store, treated, split, data, copy))

    def store(self, system: System, variant: str, split: str, sample: int | None = None, copy: int = 0) -> Path:
        """Folder of a planned store."""
        return self._places[system.fold_captions, copy, variant, split, sample]

    def make(self) -> None:
        """Make the planned stores that are missing."""
        for job in self._jobs.values():
            self._make(job)
        self._loaded = None

    def _make(self, job: Job) -> None:
        settings, memes = self.settings, list(job.memes)

        def open_model(device: torch.device) -> FeatureModel:
            if self._loaded is None:
                lmm = self.system.checkpoint is not None
                self._loaded = MemeModel(self._run, device) if lmm else self._encoder.load(device)
            return _ReadsCopies(self._loaded, job.copy) if job.copy else self._loaded

        options: dict[str, Any] = {
            "split": job.split,
            "source": describe_source(str(job.data), job.split, settings.task),
            "views": self.system.made_views,
            "batch_size": settings.batch_size,
            "num_workers": settings.workers,
            "open_model": open_model,
        }
        if self.system.checkpoint is None:
            encode(self._encoder, memes, job.store, **options)
        else:
            extract_hidden_states(self._run, memes, job.store, **options)

    @cached_property
    def _run(self) -> Run:
        if self.system.checkpoint is None:
            raise UserError("`checkpoint` is not set.")
        return open_run(self.system.checkpoint)

    @cached_property
    def _encoder(self) -> AnyEncoder:
        if self.system.encoder is None:
            raise UserError("`encoder` is not set.")
        return open_encoder(self.system.encoder)


def _folded(meme: Meme) -> Meme:
    text = fold_caption(meme.caption)
    return meme if text == meme.text else replace(meme, text=text)


def makers_of(suite: Suite) -> dict[str, FeatureMaker]:
    """Name of a system → what makes its features, with all stores of the study planned; systems of the same model and
    views share it.
    """
    settings = suite.settings
    systems = {name: settings.system(name) for name in settings.systems}
    shared: dict[Path, FeatureMaker] = {}
    found: dict[str, FeatureMaker] = {}
    for name, system in systems.items():
        maker = FeatureMaker(settings, system)
        found[name] = shared.setdefault(maker.folder, maker)
    pairs = [(found[name], system) for name, system in systems.items()]
    _plan_measured(suite, pairs)
    _plan_banks(suite, pairs)
    return found


def _plan_measured(suite: Suite, pairs: Sequence[tuple[FeatureMaker, System]]) -> None:
    """Plan the stores that are scored: clean dev memes, and clean and attacked memes of the split."""
    settings = suite.settings
    clean, dev = suite.clean(settings.split), suite.clean(settings.dev_split)
    rows = suite.sample(clean)
    for maker, system in pairs:
        maker.plan(system, CLEAN, settings.dev_split, dev, settings.data)
        maker.plan(system, CLEAN, settings.split, [clean[row] for row in rows], settings.data, settings.memes)
    for variant in suite.variants:
        attacked = suite.attacked(variant, settings.split, clean)
        memes = [attacked[row] for row in rows]
        for maker, system in pairs:
            maker.plan(system, variant.name, settings.split, memes, suite.folder(variant), settings.memes)


def _plan_banks(suite: Suite, pairs: Sequence[tuple[FeatureMaker, System]]) -> None:
    """Plan the stores of banks: clean memes of `bank_split`, and the attacked memes of `bank_attacks`."""
    settings = suite.settings
    for maker, system in pairs:
        if system.bank_split is not None:
            maker.plan(system, CLEAN, system.bank_split, suite.clean(system.bank_split), settings.data)
    users = [(maker, system) for maker, system in pairs if system.bank_attacks]
    train = suite.clean(settings.train_split) if users else []
    for maker, system in users:
        count = system.bank_attacked_memes
        rows = sampled_rows(train, count, settings.seed)
        for variant in suite.taught(system.bank_attacks):
            attacked = suite.attacked(variant, settings.train_split, train)
            memes = [attacked[row] for row in rows]
            maker.plan(system, variant.name, settings.train_split, memes, suite.folder(variant), count)
