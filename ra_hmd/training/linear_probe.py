"""Linear probe: logistic regression on an encoder's features, saved as a head.

Shapes: N rows, C outputs, W features of the modalities that are used.
"""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from ra_hmd.core.artifacts import plain
from ra_hmd.core.errors import UserError
from ra_hmd.core.manifests import LinearProbeManifest
from ra_hmd.core.problem import UNLABELLED, Problem
from ra_hmd.core.progress import track
from ra_hmd.evaluation.metrics.classification import auroc
from ra_hmd.features.compatibility import check_output, check_same_origin, check_store, store_fingerprint
from ra_hmd.features.store import Features, read_features
from ra_hmd.models.head import MemeHead
from ra_hmd.retrieval.embeddings import hidden_tensor, run_head
from ra_hmd.scoring.operating_point import check_dev
from ra_hmd.training.checkpointing import describe_encoder, describe_features, describe_shots
from ra_hmd.training.inputs import take_shots
from ra_hmd.training.linear_head import Modality, check_modality, linear_head, save_linear_head

GRID = tuple(10.0**power for power in range(-6, 7))
"""The values of C that dev chooses among, the range of CLIP's linear probes (arXiv 2103.00020, appendix A.3)."""

_ITERATIONS = 1000  # of L-BFGS, as CLIP's


@dataclass(frozen=True)
class ShotSelection:
    """One K-shot list: the only rows that are fitted."""

    path: Path
    shots: int
    seed: int = 0

    def take(self, features: Features, place: Path) -> Features:
        """Return the rows of the list, in the order of the store that was read at `place`."""
        return take_shots(features, place, self.path, self.shots, self.seed)


def linear_probe(
    train: str | Path,
    output: str | Path,
    *,
    dev: str | Path | None = None,
    modality: Modality = "both",
    c: float | None = None,
    standardise: bool = False,
    shot_list: ShotSelection | None = None,
    command: str = "",
) -> LinearProbeManifest:
    """Fit a logistic regression by L-BFGS, with an L2 penalty of 1 / C, and write it as a head.

    Each modality's features are normalised to length 1, as the head does with every meme; an LMM embedder's one vector
    is of length 1. Labels say which problem it
    is: 0 and 1, one of C classes (softmax), or label sets (one regression per class, all with one C).

    Args:
        train: Feature store of an encoder, to be fitted.
        output: Folder of the head.
        dev: Feature store that chooses C from `GRID` by AUROC (of several classes, their mean); of equal ones the
            smallest C.
        modality: Features that are used; of one vector, `both`.
        c: C, instead of a choice; without it and without `dev` it is 1.
        standardise: The penalty treats features as if each had mean 0 and variance 1 on the fitted rows; mean and
            variance are then folded into the weights. Encoders have features of very different variance, and without
            this the penalty leaves the small ones out; of a few rows, though, a variance is a bad estimate.
        shot_list: Fit the rows of a K-shot list only.
        command: The command line, for the manifest.

    Returns:
        The manifest.

    Raises:
        UserError: stores that are not an encoder's, not labelled, or not made alike; a dev store of a test split; a
            class without a row.
    """
    train, output = Path(train), Path(output)
    check_modality(modality)
    check_output(output, "linear_probe")
    _check_c(c, dev)
    places = {"train": train} | ({} if dev is None else {"dev": Path(dev)})
    stores = {name: read_features(place) for name, place in places.items()}
    problem = _check(stores, places, modality)
    rows = stores["train"] if shot_list is None else shot_list.take(stores["train"], train)
    notes = _check_classes(rows, problem, train if shot_list is None else shot_list.path)
    probe = _Probe(modality, problem, rows, standardise)
    head, c, scores = _fit(probe, c) if dev is None else _choose(probe, stores["dev"])
    return save_linear_head(
        output,
        LinearProbeManifest,
        head,
        command=command,
        arguments=plain(places | {"modality": modality, "standardise": standardise} | _shot_arguments(shot_list)),
        c=c,
        dev=scores,
        features=_describe_stores(places, stores | {"train": rows}, shot_list),
        notes=[*notes, *probe.notes, *_notes(stores, c)],
        **describe_encoder(rows),
    )


def _describe_stores(
    places: dict[str, Path], stores: dict[str, Features], shot_list: ShotSelection | None
) -> dict[str, dict[str, Any]]:
    described = {name: describe_features(places[name], features) for name, features in stores.items()}
    if shot_list is not None:
        described["train"] |= describe_shots(stores["train"])
    return described


def _shot_arguments(shot_list: ShotSelection | None) -> dict[str, object]:
    if shot_list is None:
        return {}
    return {"k_shot": shot_list.path, "shots": shot_list.shots, "shot_seed": shot_list.seed}


def _check_c(c: float | None, dev: str | Path | None) -> None:
    if c is None:
        return
    if not (c > 0 and np.isfinite(c)):
        raise UserError(f"--c {c} must be a number above 0.")
    if dev is not None:
        raise UserError(f"--dev chooses C, and --c {c} sets it; leave one of them out.")


def _check(stores: dict[str, Features], places: dict[str, Path], modality: Modality) -> Problem:
    """The problem that the labels state, with all stores checked against it."""
    for name, features in stores.items():
        if features.modalities is None and features.manifest.encoder is None:
            raise UserError(
                f"{places[name]} has one vector per meme, not image and text features, and not of an encoder; a linear "
                "probe is for stores of `ra-hmd encode`."
            )
        if features.modalities is None and modality != "both":
            raise UserError(
                f"--modality {modality}: {places[name]} has one vector for image and caption together; leave "
                "--modality out, or encode with an encoder of two vectors."
            )
        if _widths(features) != _widths(stores["train"]):
            raise UserError(
                f"{places['train']} has {_described(stores['train'])}, {places[name]} has {_described(features)}; "
                "encode both alike."
            )
    problem = _problem(list(stores.values()))
    for name, features in stores.items():
        check_store(features, places[name], problem)
    check_same_origin({str(places[name]): store_fingerprint(features) for name, features in stores.items()})
    if "dev" in stores:
        check_dev(places["dev"], stores["dev"], problem)
    return problem


def _widths(features: Features) -> tuple[int, ...]:
    """Widths of image and text features, or of the one vector."""
    return features.modalities or (features.hidden.shape[1],)


def _described(features: Features) -> str:
    if features.modalities is None:
        return f"one vector of {features.hidden.shape[1]}"
    return f"{features.modalities} image and text features"


def _problem(stores: list[Features]) -> Problem:
    if stores[0].labels.ndim == 2:
        return Problem("multi_label", stores[0].labels.shape[1])
    highest = max(int(features.labels.max(initial=UNLABELLED)) for features in stores)
    return Problem() if highest <= 1 else Problem("single_label", highest + 1)


def _check_classes(rows: Features, problem: Problem, place: Path) -> list[str]:
    """Refuse rows that leave a class unknown; of label sets, a note on the classes that get a constant score."""
    constant = problem.constant_classes(rows.labels)
    constant = [1] if problem.kind == "binary" and constant else constant
    if problem.kind == "multi_label" and len(constant) < problem.outputs:
        return [f"Classes {constant} do not vary among the fitted rows: their score is constant."] if constant else []
    if constant:
        raise UserError(
            f"The rows to fit, of {place}, do not vary in classes {constant} of {problem.classes}: a regression needs "
            "rows inside and outside of each."
        )
    return []


class _Probe:
    """The rows that are fitted, and the fit.

    Attributes:
        notes: What went wrong on the way.
    """

    def __init__(self, modality: Modality, problem: Problem, rows: Features, standardise: bool) -> None:
        self._modality, self._problem, self._widths = modality, problem, _widths(rows)
        self._labels = rows.labels
        empty = linear_head(modality, self._widths, problem)
        # The embedding of a head without blocks is what its output layer takes.
        vectors = run_head(empty, hidden_tensor(rows))[0].double().numpy()
        self._mean = vectors.mean(axis=0) if standardise else np.zeros(vectors.shape[1])
        deviation = vectors.std(axis=0) if standardise else np.ones(vectors.shape[1])
        self._scale = np.where(deviation > 0, deviation, 1)
        self._vectors = (vectors - self._mean) / self._scale
        self.notes: list[str] = []

    def fit(self, c: float) -> MemeHead:
        """The head of one C."""
        if self._problem.kind == "multi_label":
            fits = [self._fit_one(self._labels[:, column], c) for column in range(self._problem.outputs)]
            weight, bias = (np.concatenate(parts) for parts in zip(*fits, strict=True))
        else:
            weight, bias = self._fit_one(self._labels, c)
        weight = weight / self._scale
        bias = bias - weight @ self._mean
        return linear_head(self._modality, self._widths, self._problem, torch.tensor(weight), torch.tensor(bias))

    def _fit_one(self, labels: np.ndarray, c: float) -> tuple[np.ndarray, np.ndarray]:
        """Weights [C, W] and biases [C]; of 0 and 1, [1, W] and [1]."""
        if len(np.unique(labels)) == 1:  # the log-odds of its rate, half a row added to either side
            count = labels.sum()
            odds = np.log((count + 0.5) / (len(labels) - count + 0.5))
            return np.zeros((1, self._vectors.shape[1])), np.array([odds])
        model = LogisticRegression(C=c, max_iter=_ITERATIONS)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", ConvergenceWarning)
            model.fit(self._vectors, labels)
        if any(issubclass(one.category, ConvergenceWarning) for one in caught):
            self.notes.append(f"L-BFGS had not converged after {_ITERATIONS} iterations with C = {c:g}.")
        return model.coef_, model.intercept_


def _fit(probe: _Probe, c: float | None) -> tuple[MemeHead, float, list[dict[str, float]]]:
    """The head of one C, 1 unless given, without scores on dev."""
    c = 1.0 if c is None else c
    return probe.fit(c), c, []


def _choose(probe: _Probe, dev: Features) -> tuple[MemeHead, float, list[dict[str, float]]]:
    """The head with the best AUROC on dev, its C, and the AUROC of each C."""
    hidden = hidden_tensor(dev)
    best: tuple[float, float, MemeHead] | None = None
    scores: list[dict[str, float]] = []
    for c in track(((1, value) for value in GRID), "Linear probe", len(GRID), "fits"):
        head = probe.fit(c)
        value = _auroc(head, hidden, dev.labels)
        scores.append({"c": c, "auroc": value})
        if best is None or value > best[0]:
            best = value, c, head
    assert best is not None
    return best[2], best[1], scores


def _auroc(head: MemeHead, hidden: torch.Tensor, labels: np.ndarray) -> float:
    problem = head.config.problem
    scores = problem.probabilities(run_head(head, hidden)[1].double()).numpy()
    value = auroc(scores, problem.membership(labels))
    if value is None:
        raise UserError("No class of the dev store has both rows inside and rows outside: it has no AUROC.")
    return value


def _notes(stores: dict[str, Features], c: float) -> list[str]:
    if "dev" not in stores:
        return [f"No dev store was given: C is {c:g}."]
    notes = []
    if c in (GRID[0], GRID[-1]):
        notes.append(f"The best C, {c:g}, is at the edge of the grid from {GRID[0]:g} to {GRID[-1]:g}.")
    shared = len(set(stores["train"].ids) & set(stores["dev"].ids))
    if shared:
        notes.append(f"{shared} ids of the dev store are also in the train store: the choice of C is optimistic.")
    return notes
