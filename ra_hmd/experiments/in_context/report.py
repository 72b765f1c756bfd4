"""What judging in context found, in the files of an evaluation."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ra_hmd.core.artifacts import MANIFEST_NAME, plain, run_manifest, write_json, write_jsonl, write_text
from ra_hmd.core.markdown import escape, fenced, markdown_table
from ra_hmd.data.meme import Meme
from ra_hmd.evaluation.metrics.estimates import estimates
from ra_hmd.evaluation.metrics.significance import PREDICTIONS_NAME
from ra_hmd.evaluation.provenance import describe_head
from ra_hmd.evaluation.report.outputs import METRICS_NAME
from ra_hmd.evaluation.report.sections import METRIC_NAMES, format_estimate
from ra_hmd.experiments.in_context.candidates import DemonstrationFeatures
from ra_hmd.experiments.in_context.demonstrations import Demonstrations, DemonstrationSettings
from ra_hmd.experiments.in_context.thresholds import KEY, Threshold, official
from ra_hmd.features.extraction import label_array
from ra_hmd.models.checkpoint import Run
from ra_hmd.scoring.evidence import plain_score

if TYPE_CHECKING:
    from ra_hmd.experiments.in_context.candidates import MemeSplit

HEAD = "lmh"
"""Under this name the scores are written: it is the LM head's answer, and compares with that of other evaluations."""


@dataclass(frozen=True)
class InContextResult:
    """Scores of a split in context, and all that they depend on; see `in_context`.

    Attributes:
        shown_from: The examples.
        said: What demonstrations say of each class.
        scores: float64 [Q, C].
        longest: Tokens of the longest prompt.
        stated: What a score depends on.
    """

    run: Run
    queries: "MemeSplit"
    examples: "MemeSplit | None"
    choice: DemonstrationSettings
    stores: DemonstrationFeatures | None
    chosen: Demonstrations
    shown_from: Sequence[Meme]
    said: Sequence[str]
    scores: np.ndarray
    longest: int
    threshold: Threshold | None
    opened: Mapping[str, Any]
    stated: Mapping[str, Any]
    samples: int
    command: str

    @property
    def name(self) -> str:
        """Of the set."""
        return str(self.queries.described["split"])

    @property
    def labels(self) -> np.ndarray:
        """int64 [Q]."""
        return label_array(self.queries.memes)

    def system(self) -> dict[str, Any]:
        """What was evaluated, as the results page names it."""
        run = self.run
        described = describe_head(run.head) if run.head is not None else {"name": Path(run.base_model).name}
        kind = f"{self.choice.kind}{' per class' if self.choice.per_class else ''}"
        how = f"{self.choice.shots} shots, {kind}" if self.choice.shots else "no shots"
        source = None if self.examples is None else self.examples.described["dataset"]
        of = "" if source in (None, self.queries.described["dataset"]) else f" from {source}"
        return {**described, "name": f"{described['name']}, in context ({how}{of})"}


def write_in_context_result(outcome: InContextResult, output: Path) -> dict[str, Any]:
    """Write predictions.jsonl, metrics.json, report.md and the manifest, which is returned."""
    problem, labels = outcome.run.settings.problem, outcome.labels
    rule = outcome.threshold or official(problem)
    found = estimates(
        outcome.scores, labels, rule.values, problem, samples=outcome.samples, seed=outcome.choice.seed
    )  # fmt: skip
    metrics = {name: estimate.as_dict() for name, estimate in found.items()}
    shown = _shown(outcome, labels)
    manifest = run_manifest(
        "evaluation",
        arguments={**outcome.choice.model_dump(), "answers": list(outcome.said), "bootstrap_samples": outcome.samples,
                   "checkpoint": str(outcome.run.folder), "adapter": outcome.run.adapter is not None,
                   "dev": rule.dev, "features": None if outcome.stores is None else plain(asdict(outcome.stores))},
        seed=outcome.choice.seed,
        **outcome.opened,
        system=outcome.system(),
        sets={outcome.name: {**outcome.queries.described, "stated": True, "rows": len(labels),
                             "outputs": problem.outputs}},
        examples=None if outcome.examples is None else
                 {**outcome.examples.described, "rows": len(outcome.shown_from)},
        demonstrations=shown,
        longest_prompt=outcome.longest,
        decisions={outcome.name: {HEAD: {"thresholds": rule.values.tolist(), "chosen": rule.dev is not None}}},
        commands=[outcome.command],
        **{KEY: dict(outcome.stated)},
    )  # fmt: skip
    write_jsonl(output / PREDICTIONS_NAME, _predictions(outcome, labels))
    write_json(output / METRICS_NAME, {outcome.name: {HEAD: metrics}})
    _report(manifest, metrics, rule, output)
    write_json(output / MANIFEST_NAME, manifest)
    return manifest


def _predictions(outcome: InContextResult, labels: np.ndarray) -> list[dict[str, Any]]:
    ids = [meme.id for meme in outcome.shown_from]
    return [
        {
            "set": outcome.name,
            "id": meme.id,
            "label": labels[row].tolist(),
            f"{HEAD}_score": plain_score(outcome.scores[row], outcome.run.settings.problem),
            "demonstrations": [ids[example] for example in outcome.chosen.rows[row]],
        }
        for row, meme in enumerate(outcome.queries.memes)
    ]


def _shown(outcome: InContextResult, labels: np.ndarray) -> dict[str, Any]:
    """About the demonstrations: how many different ones, how alike, how often of the query's class."""
    rows = outcome.chosen.rows
    if not rows.size:
        return {"different": 0, "same_class": None, "last_same_class": None, "similarity": None, "left_out": 0}
    same = label_array(outcome.shown_from)[rows] == labels[:, None]
    similarity = outcome.chosen.similarity
    return {
        "different": len(np.unique(rows)),
        "same_class": float(same.mean()),
        "last_same_class": float(same[:, -1].mean()),
        "similarity": None if similarity is None else float(similarity.mean()),
        "left_out": outcome.chosen.left_out,
    }


def _report(
    manifest: Mapping[str, Any], metrics: Mapping[str, Mapping[str, Any]], rule: Threshold, output: Path
) -> None:
    judged, arguments, shown = next(iter(manifest["sets"].values())), manifest["arguments"], manifest["demonstrations"]
    threshold = "official" if rule.dev is None else f"best {rule.dev['criterion']} on {rule.dev['place']}"
    per_class = " per class" if arguments["per_class"] else ""
    rows = [
        ["demonstrations", f"{arguments['shots']}{per_class}, {arguments['kind']}"],
        ["order", "nearest last, next to the question" if arguments["kind"] == "retrieved" else "random"],
        ["answers shown", " / ".join(arguments["answers"])],
        ["threshold", f"{', '.join(f'{value:.4g}' for value in rule.values)} ({threshold})"],
        ["longest prompt", f"{manifest['longest_prompt']} tokens"],
        ["examples", "" if manifest["examples"] is None else
         f"{shown['different']} different ones of {manifest['examples']['rows']} in {manifest['examples']['place']}, "
         f"{manifest['examples']['split']}"],
        ["shown memes of the query's class", _share(shown["same_class"])],
        ["the last one of the query's class", _share(shown["last_same_class"])],
        ["mean similarity", "" if shown["similarity"] is None else f"{shown['similarity']:.3f}"],
        ["not considered: own id or picture", f"{shown['left_out']} pairs of query and example"],
    ]  # fmt: skip
    lines = [
        f"# {escape(manifest['system']['name'])}\n",
        f"{judged['rows']} memes of {escape(judged['dataset'])}, {escape(judged['split'])}. The score is the language "
        "model's probability of the answer, from one forward pass.\n",
        markdown_table(["metric", "value [95 % interval]"],
                       [[METRIC_NAMES[name], format_estimate(value)] for name, value in metrics.items()]),
        markdown_table(["", ""], [[escape(name), escape(value)] for name, value in rows if value]),
        *([fenced(manifest["commands"])] if any(manifest["commands"]) else []),
    ]  # fmt: skip
    write_text(output / "report.md", "\n".join(lines))


def _share(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f} %"
