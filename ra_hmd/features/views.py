"""Further views of a meme: the LMM's hidden state without its adapter, and the features of encoders.

Shapes: B memes of a batch, H hidden size of the LMM, I image and T text features of an encoder, D_v width of a view.
"""

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from PIL.Image import Image
from torch import Tensor

from ra_hmd.core.artifacts import plain
from ra_hmd.core.config import load_settings
from ra_hmd.core.errors import UserError, raise_all
from ra_hmd.core.manifests import ViewDescription
from ra_hmd.data.meme import Meme
from ra_hmd.features.model_protocol import FeatureModel
from ra_hmd.features.shard_files import VIEW
from ra_hmd.models.checkpoint import Run
from ra_hmd.models.encoder_files import EncoderSettings
from ra_hmd.models.encoders import AnyEncoder, open_encoder, unit_vectors
from ra_hmd.models.meme_model import MemeModel

UNTUNED = "untuned"
"""The view of an LMM's hidden state [H] without its adapter and experts, for the run's own prompt."""
OWN_VIEWS = ("embedding", "hidden")
"""Views that every feature store gives; see `Embeddings.views`."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_MAIN = ""  # key of the main model's items among those of the views, whose names are never empty


@dataclass(frozen=True)
class View:
    """A further vector of memes, before its model is loaded.

    Attributes:
        name: Its name.
        fingerprint: What it depends on, apart from the meme.
        encoder: The encoder that makes it; None for `untuned`, which the LMM itself makes.
    """

    name: str
    fingerprint: dict[str, Any]
    encoder: AnyEncoder | None = None

    def describe(self) -> dict[str, Any]:
        """The view as a manifest states it (`ViewDescription`)."""
        encoder = None if self.encoder is None else self.encoder.settings.to_dict()
        return plain({"fingerprint": self.fingerprint, "encoder": encoder})


def requested_views(
    requested: Sequence[str], run: Run | None, *, fold_captions: bool = False, **more: Any
) -> list[View]:
    """The views that the options `--views` name.

    Args:
        requested: `untuned`, or `NAME=ENCODER` with an encoder of `ra-hmd encode --encoder`.
        run: The LMM; None for features of an encoder.
        fold_captions: Fold captions for encoders.
        more: Further parts of the fingerprint of `untuned`.

    Raises:
        UserError: a name that is taken, given twice or not of letters, digits and `_.-`; an encoder that cannot be
            opened; `untuned` of a model without adapter.
    """
    views: list[View] = []
    problems = []
    for text in requested:
        name, _, encoder = text.partition("=")
        if name in (view.name for view in views):
            problems.append(f"{text}: there is a view {name!r} already.")
        elif name == UNTUNED and not encoder:
            views.append(_untuned(run, **more))
        elif not encoder:
            problems.append(f"{text}: give {UNTUNED}, or NAME=ENCODER with an encoder of `ra-hmd encode --encoder`.")
        elif name in (UNTUNED, *OWN_VIEWS) or not _NAME.fullmatch(name):
            problems.append(f"{text}: {name!r} cannot be the name of an encoder's view; take letters, digits and _.-")
        else:
            views.append(_encoder_view(name, EncoderSettings(path=encoder, fold_captions=fold_captions)))
    raise_all(problems, "--views")
    return views


def stated_views(
    stated: Mapping[str, ViewDescription], run: Run | None, place: object, *, fold_captions: bool = False
) -> list[View]:
    """The views that a feature store or a bank states, to be made of other memes.

    Args:
        stated: The views by name; those that every feature store gives are left out.
        run: The LMM; None for features of an encoder.
        place: The store or the bank, for messages.
        fold_captions: Fold captions for encoders also where the views were made without.

    Raises:
        UserError: an encoder that cannot be opened; `untuned` of a model without adapter.
    """
    views = []
    for name, view in stated.items():
        if name in OWN_VIEWS:
            continue
        try:
            if view.encoder is None:
                views.append(_untuned(run))
            else:
                settings = load_settings(EncoderSettings, view.encoder.to_json(), str(place))
                folding = settings.replace(fold_captions=True) if fold_captions else settings
                views.append(_encoder_view(name, folding))
        except UserError as error:
            raise UserError(f"View {name!r} of {place} cannot be made: {error}") from error
    return views


def _untuned(run: Run | None, **more: Any) -> View:
    if run is None:
        raise UserError(f"View {UNTUNED!r} is of an LMM with its adapter switched off; an encoder has none.")
    return View(UNTUNED, run.untuned().fingerprint() | more)


def _encoder_view(name: str, settings: EncoderSettings) -> View:
    encoder = open_encoder(settings)
    return View(name, encoder.fingerprint(), encoder)


class ViewedModel:
    """A model with the models of further views around it: a `FeatureModel` that makes `view_NAME` columns too.

    Attributes:
        main: The model that makes the features of the head.
        names: Names of the further views.
    """

    def __init__(self, main: FeatureModel, views: Sequence[View], device: torch.device) -> None:
        self.main, self.names = main, [view.name for view in views]
        self._encoders = {view.name: view.encoder.load(device) for view in views if view.encoder is not None}
        self._seconds: dict[str, float] = {}

    @classmethod
    def of(cls, main: FeatureModel, views: Sequence[View], device: torch.device) -> FeatureModel:
        """A model that also makes `views`, whose encoders are loaded; `main` itself where there are none."""
        return cls(main, views, device) if views else main

    def prepare(self, memes: Sequence[Meme]) -> None:
        """See `FeatureModel`."""
        for model in (self.main, *self._encoders.values()):
            model.prepare(memes)

    def encode(self, text: str, image: Image) -> dict[str, Any]:
        """A meme as an item of each model. Raises `ValueError` where one of them cannot encode it."""
        return {_MAIN: self.main.encode(text, image)} | {
            name: encoder.encode(text, image) for name, encoder in self._encoders.items()
        }

    def length(self, row: dict[str, Any]) -> int:
        """Cost of an item for the main model."""
        return self.main.length(row[_MAIN])

    def collate(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """B items of `encode` as one batch of each model."""
        models: dict[str, FeatureModel] = {_MAIN: self.main, **self._encoders}
        return {name: model.collate([row[name] for row in rows]) for name, model in models.items()}

    def columns(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """The main model's columns and `view_NAME` [B, D_v] of each further view, on the CPU."""
        columns = self._timed("hidden", lambda: self.main.columns(batch[_MAIN]))
        for name in self.names:
            encoder = self._encoders.get(name)
            columns |= self._timed(name, lambda: {VIEW + name: self._vectors(batch, name, encoder)})  # noqa: B023
        return columns

    def _vectors(self, batch: dict[str, Any], name: str, encoder: AnyEncoder | None) -> Tensor:
        if encoder is None:
            return cast(MemeModel, self.main).untuned(batch[_MAIN])
        return torch.from_numpy(unit_vectors(encoder.columns(batch[name])))

    def _timed(self, name: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        start = time.perf_counter()
        made = {column: value.float().cpu() for column, value in make().items()}  # waits for the device
        self._seconds[name] = self._seconds.get(name, 0.0) + time.perf_counter() - start
        return made

    def take_seconds(self) -> dict[str, float]:
        """Seconds that each view took since the last call; `hidden` are those of the main model."""
        taken, self._seconds = self._seconds, {}
        return taken
