"""Output files of in-context classification, in the format of an evaluation."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ra_hmd.core.artifacts import MANIFEST_NAME, plain, write_json, write_jsonl, write_text
from ra_hmd.core.manifests import EvaluationManifest, write_manifest
from ra_hmd.core.markdown import escape, fenced, markdown_table
from ra_hmd.data.meme import Meme
from ra_hmd.evaluation.metrics.estimates import estimates
from ra_hmd.evaluation.metrics.significance import PREDICTIONS_NAME
from ra_hmd.evaluation.provenance import describe_head
from ra_hmd.evaluation.report.outputs import METRICS_NAME
from ra_hmd.evaluation.report.sections import METRIC_NAMES, format_estimate
from ra_hmd.experiments.in_context.candidates import DemonstrationFeatures, MemeSplit
from ra_hmd.experiments.in_context.demonstrations import Demonstrations, DemonstrationSettings
from ra_hmd.experiments.in_context.thresholds import Threshold, official
from ra_hmd.features.columns import label_array
from ra_hmd.models.checkpoint import Run
from ra_hmd.scoring.evidence import plain_score

HEAD = "lmh"
"""Head under which scores are written: they are answers of the LM head, comparable with those of other evaluations."""


@dataclass(frozen=True)
class InContextPlan:
    """Plan of a run: the memes to score and their demonstrations.

    Attributes:
        run: The LMM.
        queries: Labelled memes to classify.
        examples: Labelled memes that may be shown; None for 0 shots.
        selection: Number and kind of the demonstrations.
        stores: Features by which demonstrations are retrieved, if any.
        chosen: The demonstrations of each query.
        shown: Memes of `examples`.
        answers: Answer of each class in the demonstrations.
        stated: Settings that the scores depend on; runs that agree in them may continue each other.
    """

    run: Run
    queries: MemeSplit
    examples: MemeSplit | None
    selection: DemonstrationSettings
    stores: DemonstrationFeatures | None
    chosen: Demonstrations
    shown: Sequence[Meme]
    answers: Sequence[str]
    stated: dict[str, Any]


@dataclass(frozen=True)
class InContextResult:
    """Scores of a split in context.

    Attributes:
        plan: What was scored with which demonstrations.
        scores: float64 [Q, C].
        longest: Length of the longest prompt in tokens.
        threshold: Threshold chosen on dev, or None.
        opened: Result of `open_labels`.
        samples: Resamples of each interval.
        command: Command line.
    """

    plan: InContextPlan
    scores: np.ndarray
    longest: int
    threshold: Threshold | None
    opened: Mapping[str, Any]
    samples: int
    command: str

    @property
    def name(self) -> str:
        """Name of the query split."""
        return str(self.plan.queries.described["split"])

    @property
    def labels(self) -> np.ndarray:
        """int64 [Q]."""
        return label_array(self.plan.queries.memes)

    def system(self) -> dict[str, Any]:
        """Description of the system for the results page."""
        run = self.plan.run
        described = describe_head(run.head) if run.head is not None else {"name": Path(run.base_model).name}
        kind = f"{self.plan.selection.kind}{' per class' if self.plan.selection.per_class else ''}"
        how = f"{self.plan.selection.shots} shots, {kind}" if self.plan.selection.shots else "no shots"
        source = None if self.plan.examples is None else self.plan.examples.described["dataset"]
        of = "" if source in (None, self.plan.queries.described["dataset"]) else f" from {source}"
        return {**described, "name": f"{described['name']}, in context ({how}{of})"}


def write_in_context_result(result: InContextResult, output: Path) -> dict[str, Any]:
    """Write predictions.jsonl, metrics.json, report.md and the manifest, which is returned."""
    plan, labels = result.plan, result.labels
    problem = plan.run.settings.problem
    rule = result.threshold or official(problem)
    found = estimates(result.scores, labels, rule.values, problem, samples=result.samples, seed=plan.selection.seed)
    metrics = {name: estimate.as_dict() for name, estimate in found.items()}
    shown = _shown(result, labels)
    manifest = EvaluationManifest.new(
        arguments={**plan.selection.model_dump(), "answers": list(plan.answers), "bootstrap_samples": result.samples,
                   "checkpoint": str(plan.run.folder), "adapter": plan.run.adapter is not None,
                   "dev": rule.dev, "features": None if plan.stores is None else plain(asdict(plan.stores))},
        seed=plan.selection.seed,
        **result.opened,
        system=result.system(),
        sets={result.name: {**plan.queries.described, "stated": True, "rows": len(labels),
                             "outputs": problem.outputs}},
        examples=None if plan.examples is None else
                 {**plan.examples.described, "rows": len(plan.shown)},
        demonstrations=shown,
        longest_prompt=result.longest,
        decisions={result.name: {HEAD: {"thresholds": rule.values.tolist(), "chosen": rule.dev is not None}}},
        commands=[result.command],
        in_context=dict(plan.stated),
    )  # fmt: skip
    write_jsonl(output / PREDICTIONS_NAME, _predictions(result, labels))
    write_json(output / METRICS_NAME, {result.name: {HEAD: metrics}})
    _report(manifest, metrics, rule, output)
    write_manifest(output / MANIFEST_NAME, manifest)
    return manifest.to_json()


def _predictions(result: InContextResult, labels: np.ndarray) -> list[dict[str, Any]]:
    plan = result.plan
    ids = [meme.id for meme in plan.shown]
    return [
        {
            "set": result.name,
            "id": meme.id,
            "label": labels[row].tolist(),
            f"{HEAD}_score": plain_score(result.scores[row], plan.run.settings.problem),
            "demonstrations": [ids[example] for example in plan.chosen.rows[row]],
        }
        for row, meme in enumerate(plan.queries.memes)
    ]


def _shown(result: InContextResult, labels: np.ndarray) -> dict[str, Any]:
    """Statistics of the demonstrations: number of different ones, similarity, share of the query's class."""
    plan = result.plan
    rows = plan.chosen.rows
    if not rows.size:
        return {"different": 0, "same_class": None, "last_same_class": None, "similarity": None, "left_out": 0}
    same = label_array(plan.shown)[rows] == labels[:, None]
    similarity = plan.chosen.similarity
    return {
        "different": len(np.unique(rows)),
        "same_class": float(same.mean()),
        "last_same_class": float(same[:, -1].mean()),
        "similarity": None if similarity is None else float(similarity.mean()),
        "left_out": plan.chosen.left_out,
    }


def _report(
    manifest: EvaluationManifest, metrics: Mapping[str, Mapping[str, Any]], rule: Threshold, output: Path
) -> None:
    queries, arguments = next(iter(manifest.sets.values())), manifest.arguments
    examples, shown = manifest.examples, manifest.demonstrations or {}
    threshold = "official" if rule.dev is None else f"best {rule.dev['criterion']} on {rule.dev['place']}"
    per_class = " per class" if arguments["per_class"] else ""
    rows = [
        ["demonstrations", f"{arguments['shots']}{per_class}, {arguments['kind']}"],
        ["order", "nearest last, next to the question" if arguments["kind"] == "retrieved" else "random"],
        ["answers shown", " / ".join(arguments["answers"])],
        ["threshold", f"{', '.join(f'{value:.4g}' for value in rule.values)} ({threshold})"],
        ["longest prompt", f"{manifest.longest_prompt} tokens"],
        ["examples", "" if examples is None else
         f"{shown['different']} different ones of {examples.rows} in {examples.place}, {examples.split}"],
        ["shown memes of the query's class", _share(shown["same_class"])],
        ["the last one of the query's class", _share(shown["last_same_class"])],
        ["mean similarity", "" if shown["similarity"] is None else f"{shown['similarity']:.3f}"],
        ["excluded: own id or image", f"{shown['left_out']} pairs of query and example"],
    ]  # fmt: skip
    lines = [
        f"# {escape('' if manifest.system is None else manifest.system.name)}\n",
        f"{queries.rows} memes of {escape(queries.dataset)}, {escape(queries.split)}. The score is the language "
        "model's probability of the answer, from one forward pass.\n",
        markdown_table(["metric", "value [95 % interval]"],
                       [[METRIC_NAMES[name], format_estimate(value)] for name, value in metrics.items()]),
        markdown_table(["", ""], [[escape(name), escape(value)] for name, value in rows if value]),
        *([fenced(manifest.commands)] if any(manifest.commands) else []),
    ]  # fmt: skip
    write_text(output / "report.md", "\n".join(lines))


def _share(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f} %"
