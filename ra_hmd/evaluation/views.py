"""What the kernel head would give with each view of the memes, and what a view costs."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ra_hmd.evaluation.metrics.estimates import ThresholdedScores, metric_estimate
from ra_hmd.retrieval.embeddings import EMBEDDING, Embeddings
from ra_hmd.scoring.kernel_classifier import KernelClassifier, fit_kernel_classifier
from ra_hmd.scoring.reference_set import ReferenceSet
from ra_hmd.scoring.scores import ScoredSet


def compare_views(
    classifier: KernelClassifier, examples: ReferenceSet, sets: Sequence[ScoredSet]
) -> list[dict[str, Any]]:
    """The kernel head of each view that the bank and all query sets have, and the head as it is set.

    Only the head as it is set is measured where there are no other views than the embedding and the hidden state, of
    which the first was made. `classifier` is what scored the sets.

    Returns:
        A row per choice: `views`, `loss` (leave-one-out squared error on the bank), `weights`, `width` (numbers per
        meme), `seconds` per meme that making the view took (None where it is not known) and `sets`: query set to
        `accuracy` and `auroc`.
    """
    known = [name for name in examples.views if name != "hidden"]
    further = [name for name in known if all(name in scored.queries.views for scored in sets)]
    bank, names = Embeddings([], np.zeros(0), np.zeros((0, 0))), []
    if further or len(classifier.settings.views) > 1:
        bank = examples.in_memory()
        names = [EMBEDDING, *(name for name in bank.views if name in sets[0].queries.views)]
    rows = []
    for views in dict.fromkeys([*((name,) for name in names), classifier.settings.views]):
        head = classifier
        if views != classifier.settings.views:
            settings = classifier.settings.replace(views=views)
            head = fit_kernel_classifier(bank, classifier.problem, settings)
        stated = [examples.views[name].seconds for name in views if name in examples.views]
        seconds = [value for value in stated if value is not None]
        rows.append(
            {
                "views": list(views),
                "loss": head.parameters.losses.get("chosen", head.parameters.losses.get(views[0])),
                "weights": dict(head.kernel.weights),
                "width": sum(sets[0].queries.view(name).shape[1] for name in views),
                "seconds": sum(seconds) if seconds else None,
                "sets": {
                    # A head costs far more than all else here, and the one as it is set has scored the sets already.
                    scored.name: _quality(
                        scored, scored.scores["krr"] if head is classifier else head.predict(scored.queries, 0).scores
                    )
                    for scored in sets
                },
            }
        )
    return rows


def _quality(scored: ScoredSet, scores: np.ndarray) -> dict[str, float | None]:
    run = [ThresholdedScores(scores, scored.rules["krr"].thresholds)]
    return {
        name: metric_estimate(name, run, scored.labels, scored.problem, samples=0, seed=0).value
        for name in ("accuracy", "auroc")
    }
