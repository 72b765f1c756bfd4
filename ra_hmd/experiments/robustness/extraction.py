"""The feature stores of a study: clean and attacked memes by each model, sharded and resumable as `ra-hmd extract`."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from ra_hmd.core.artifacts import plain, sha256_bytes
from ra_hmd.core.errors import UserError
from ra_hmd.data.meme import Meme
from ra_hmd.data.resolve import describe_source
from ra_hmd.experiments.robustness.config import RobustnessSettings, System
from ra_hmd.experiments.robustness.scores import CLEAN
from ra_hmd.experiments.robustness.suite import Suite, sampled_rows
from ra_hmd.features.extract_clip import encode
from ra_hmd.features.extract_lmm import extract_hidden_states
from ra_hmd.models.checkpoint import Run, open_run
from ra_hmd.models.encoders import AnyEncoder, open_encoder
from ra_hmd.models.meme_model import MemeModel


@dataclass(frozen=True)
class Job:
    """A feature store to make.

    Attributes:
        store: Its folder.
        memes: Its memes.
        split: Their split.
        data: Folder of their data set.
    """

    store: Path
    memes: Sequence[Meme]
    split: str
    data: Path


class FeatureMaker:
    """Makes the feature stores of the systems that share a model and its settings.

    Args:
        settings: Settings of the study.
        system: One of these systems.
    """

    def __init__(self, settings: RobustnessSettings, system: System) -> None:
        self.settings, self.system = settings, system
        self._loaded: MemeModel | None = None

    @cached_property
    def folder(self) -> Path:
        """Folder of the stores, named after what they depend on apart from the memes."""
        system = self.system
        model = self._encoder.fingerprint() if system.checkpoint is None else self._run.fingerprint()
        stated = json.dumps(plain([model, system.made_views]), sort_keys=True)
        name = system.checkpoint or Path(self._encoder.settings.path)
        return self.settings.output_dir / "features" / f"{name.name}-{sha256_bytes(stated.encode())[:8]}"

    def store(self, variant: str, split: str, memes: int | None = None) -> Path:
        """Folder of the features of a variant, or of `CLEAN` memes, of a split, or of a sample of so many memes."""
        return self.folder / variant / (split if memes is None else f"{split}-{memes}-of-seed-{self.settings.seed}")

    def make(self, job: Job) -> None:
        """Make a store; one that exists is left as it is."""
        settings, system = self.settings, self.system
        source = describe_source(str(job.data), job.split, settings.task)
        if system.checkpoint is None:
            encode(
                self._encoder, list(job.memes), job.store, split=job.split, source=source, views=system.made_views,
                batch_size=settings.batch_size, num_workers=settings.workers,
            )  # fmt: skip
            return
        extract_hidden_states(
            self._run, list(job.memes), job.store, split=job.split, source=source, views=system.made_views,
            batch_size=settings.batch_size, num_workers=settings.workers, open_model=self._open_model,
        )  # fmt: skip

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

    def _open_model(self, device: torch.device) -> MemeModel:
        if self._loaded is None:
            self._loaded = MemeModel(self._run, device)
        return self._loaded

    def release(self) -> None:
        """Let go of the model."""
        self._loaded = None


def makers_of(settings: RobustnessSettings) -> dict[str, FeatureMaker]:
    """Name of a system → what makes its features; systems that need the same ones share it."""
    shared: dict[Path, FeatureMaker] = {}
    found = {}
    for name in settings.systems:
        maker = FeatureMaker(settings, settings.system(name))
        found[name] = shared.setdefault(maker.folder, maker)
    return found


def study_jobs(suite: Suite, makers: Mapping[str, FeatureMaker]) -> Iterator[tuple[FeatureMaker, Job]]:
    """The stores that a study needs, in the order in which they are made."""
    settings = suite.settings
    for maker in dict.fromkeys(makers.values()):
        users = [settings.system(name) for name, one in makers.items() if one is maker]
        yield from ((maker, job) for job in _jobs(suite, maker, users))


def _jobs(suite: Suite, maker: FeatureMaker, users: Sequence[System]) -> Iterator[Job]:
    settings = suite.settings
    clean = suite.clean(settings.split)
    rows = suite.sample(clean)
    yield Job(
        maker.store(CLEAN, settings.split, settings.memes), [clean[row] for row in rows], settings.split, settings.data
    )
    for split in dict.fromkeys([settings.dev_split, *(one.bank_split for one in users if one.bank_split)]):
        yield Job(maker.store(CLEAN, split), suite.clean(split), split, settings.data)
    for variant in suite.variants:
        memes = suite.attacked(variant, settings.split, clean)
        folder = settings.attacked / (variant.folder or variant.name)
        yield Job(
            maker.store(variant.name, settings.split, settings.memes),
            [memes[row] for row in rows],
            settings.split,
            folder,
        )
    wanted = dict.fromkeys((name, one.bank_attacked_memes) for one in users for name in one.bank_attacks)
    train = suite.clean(settings.train_split) if wanted else []
    for attack, count in wanted:
        chosen = sampled_rows(train, count, settings.seed)
        for variant in suite.manifest.variants:
            if variant.attack == attack:
                memes = suite.attacked(variant, settings.train_split, train)
                folder = settings.attacked / (variant.folder or variant.name)
                store = maker.store(variant.name, settings.train_split, count)
                yield Job(store, [memes[row] for row in chosen], settings.train_split, folder)
