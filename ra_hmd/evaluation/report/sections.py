"""Sections of the report: classes, comparisons, calibration, selective classification and groups."""

from collections.abc import Mapping, Sequence
from typing import Any

from ra_hmd.core.markdown import escape, markdown_table
from ra_hmd.evaluation.metrics.groups import SMALL
from ra_hmd.evaluation.result import Evaluation
from ra_hmd.retrieval.voting import Voting
from ra_hmd.scoring.calibration import BINS

METRIC_NAMES = {
    "accuracy": "accuracy",
    "pair_accuracy": "pair accuracy",
    "auroc": "AUROC",
    "micro_auroc": "micro AUROC",
    "macro_f1": "macro-F1",
    "micro_f1": "micro-F1",
    "macro_precision": "macro precision",
    "micro_precision": "micro precision",
    "macro_recall": "macro recall",
    "micro_recall": "micro recall",
    "precision": "precision",
    "recall": "recall",
    "f1": "F1",
    "fpr": "false-positive rate",
    "fnr": "false-negative rate",
    "youden": "Youden's J",
}
_SHOWN_COVERAGES = (0.5, 0.7, 0.8, 0.9, 1.0)


def format_estimate(estimate: Mapping[str, Any], signed: bool = False) -> str:
    """Format an estimate: `0.913 [0.890, 0.934]`, of several seeds `0.913 ± 0.004 [0.890, 0.934]`.

    Without an interval for too few memes: `0.913 (too few)`; without a value: `–`.
    """
    if estimate["value"] is None:
        return "–"
    shape = "{:+.3f}" if signed else "{:.3f}"
    text = shape.format(estimate["value"])
    if estimate.get("std") is not None:
        text += f" ± {estimate['std']:.3f}"
    if estimate["low"] is None:
        return f"{text} ({estimate['why']})" if estimate.get("why") else text
    return f"{text} [{shape.format(estimate['low'])}, {shape.format(estimate['high'])}]"


def vote_text(voting: Voting) -> str:
    """Describe the settings of a vote."""
    parts = [f"K = {voting.topk}", f"{voting.weights} weights", "cosine"]
    if voting.min_similarity is not None:
        parts.append(f"abstains below similarity {voting.min_similarity:g}")
    if voting.prior_correction:
        parts.append("classes of the bank weigh equally")
    return ", ".join(parts)


def kernel_text(kernel: Mapping[str, Any]) -> str:
    """Describe a kernel head (`KernelClassifier.describe`)."""
    views = ", ".join(f"{name} {view['weight']:.2f}" for name, view in kernel["views"].items())
    how = "one system of all rows" if kernel["method"] == "exact" else "a system of the nearest rows for each query"
    text = f"{how}, λ = {kernel['noise']:g}, views: {views}, chosen by leave-one-out on {kernel['tuned_on']} rows"
    return text + (", classes of the bank weigh equally" if kernel["balanced"] else "")


def kernel_section(result: Evaluation) -> str:
    """What the kernel head gives with each view; empty where only one was measured."""
    choices = result.kernel["choices"]
    if len(choices) < 2:
        return ""
    names = [scored.name for scored in result.sets]
    rows = []
    for choice in choices:
        weights = choice["weights"]
        mixed = ", ".join(f"{escape(name)} {weights[name]:.2f}" for name in choice["views"]) if len(weights) > 1 else ""
        title = escape(choice["views"][0]) if len(weights) == 1 else mixed
        seconds = "–" if choice["seconds"] is None else f"{1000 * choice['seconds']:.1f}"
        found = [choice["sets"][name][metric] for name in names for metric in ("auroc", "accuracy")]
        values = ["–" if value is None else f"{value:.3f}" for value in found]
        cost = [str(choice["width"]), str(4 * choice["width"]), seconds]
        rows.append([title, f"{choice['loss']:.4f}", *values, *cost])
    header = ["views", "leave-one-out loss", *(f"{escape(name)}: {metric}" for name in names for metric in
              ("AUROC", "accuracy")), "width", "bytes per meme", "ms per meme"]  # fmt: skip
    return (
        "## Kernel head: what each view gives\n\nThe loss is the squared error of leave-one-out on the bank, by which "
        "the weights of several views are chosen. Milliseconds per meme are those of the further forward pass when the "
        "bank's features were made; the embedding needs none.\n\n" + markdown_table(header, rows)
    )


def _per_set(result: Evaluation, heading: str, table: Mapping[str, str]) -> str:
    return heading + "".join(f"\n### {escape(name)}\n\n{text}" for name, text in table.items() if text)


def classes_section(result: Evaluation) -> str:
    """Metrics of each class against the rest; empty for binary problems."""
    if result.problem.kind == "binary":
        return ""
    header = ["class", "head", "memes", "AUROC", "precision", "recall", "F1"]
    tables = {}
    for name, found in result.analysis.items():
        rows = [
            [str(row["class"]), head.upper(), str(row["memes"]), format_estimate(row["auroc"]),
             *(f"{row[key]:.3f}" for key in ("precision", "recall", "f1"))]
            for head, classes in found["classes"].items()
            for row in classes
        ]  # fmt: skip
        tables[name] = markdown_table(header, sorted(rows, key=lambda row: int(row[0])))
    return _per_set(result, "## Class by class\n\nEach class against the rest.\n", tables)


def comparison_section(result: Evaluation) -> str:
    """Paired differences between heads and from other runs."""
    tables = {}
    for name, found in result.analysis.items():
        text = _comparisons(found["comparisons"]) if found["comparisons"] else ""
        for run in found["runs"]:
            text += f"\nWith {escape(run['run'])}:\n\n{_comparisons(run['comparisons'])}" if run["comparisons"] else ""
        tables[name] = text
    return _per_set(
        result,
        "## Comparisons\n\nDifferences on the same memes, the second minus the first, with paired intervals. An "
        "interval that contains 0 shows no difference. McNemar's exact test compares the numbers of memes that only "
        "one of the two classified correctly; p is corrected for the number of pairs in the table (Holm).\n",
        tables,
    )


def _comparisons(entries: Sequence[Mapping[str, Any]]) -> str:
    metrics = list(entries[0]["difference"])
    header = ["first", "second", "memes", *(f"{METRIC_NAMES[metric]}" for metric in metrics)]
    rows = [
        [
            escape(entry["first"]),
            escape(entry["second"]),
            str(entry["memes"]),
            *(format_estimate(entry["difference"][metric], signed=True) for metric in metrics),
            f"{entry['mcnemar']['only_first']} / {entry['mcnemar']['only_second']}",
            _p_value(entry["mcnemar"]["p_holm"]),
        ]
        for entry in entries
    ]
    return markdown_table([*header, "only first / only second right", "p"], rows)


def _p_value(value: float) -> str:
    return "&lt; 0.001" if value < 0.001 else f"{value:.3f}"


def calibration_section(result: Evaluation) -> str:
    """Calibration errors before and after calibration."""
    header = ["head", "map", "ECE", "Brier score", "negative log-likelihood"]
    names = {"none": "as scored", "temperature": "temperature", "platt": "Platt", "isotonic": "isotonic"}
    tables = {}
    for name, found in result.analysis.items():
        rows = []
        for head, values in found["calibration"].items():
            for stage, kind in (("before", "none"), ("after", values["kind"] if values else "none")):
                if values and values[stage]:
                    cells = [format_estimate(values[stage][loss]) for loss in ("brier", "nll")]
                    rows.append([head.upper(), names[kind], f"{values[stage]['ece']:.3f}", *cells])
        tables[name] = markdown_table(header, rows)
    return _per_set(
        result,
        "## Calibration\n\nOf the memes with an estimated probability of 0.8, 80 % should be hateful. ECE is the mean "
        f"distance from that over {BINS} bins; all three measures are better when smaller. The scores of RKC and "
        "KRR are no probabilities: without calibration their sigmoid is used, as in the released code. Maps are "
        "fitted on dev only.\n",
        tables,
    )


def abstention_section(result: Evaluation) -> str:
    """Accuracy of the most certain verdicts, and abstentions of the vote."""
    header = ["head", "AURC", *(f"accuracy at {share:.0%}" for share in _SHOWN_COVERAGES)]
    tables = {}
    for name, found in result.analysis.items():
        rows, abstains = [], ""
        for head, values in found["abstention"].items():
            at = [
                next(point for point in values["curve"] if point["coverage"] >= share - 1e-9)
                for share in _SHOWN_COVERAGES
            ]
            rows.append([head.upper(), f"{values['aurc']:.4f}", *(f"{point['accuracy']:.3f}" for point in at)])
            if "abstained" in values:
                shown = {key: format_estimate(value) for key, value in values["answered"].items()}
                answered = ", ".join(f"{METRIC_NAMES[key]} {value}" for key, value in shown.items()) or "none"
                abstains = (
                    f"\nThe vote found no example similar enough for {values['abstained']} memes. Its coverage is "
                    f"{format_estimate(values['coverage'])}; metrics of the memes that it covers: {answered}.\n"
                )
        tables[name] = markdown_table(header, rows) + abstains
    return _per_set(
        result,
        "## Leaving uncertain memes to people\n\nAccuracy of each head on the share of memes that it is most certain "
        "of. AURC is the mean error rate over all shares; smaller is better.\n",
        tables,
    )


def groups_section(result: Evaluation) -> str:
    """Results per group of memes; empty without groups."""
    tables = {}
    for name, found in result.analysis.items():
        texts = []
        for field in found["groups"]:
            keys = list(next(iter(field["groups"][0]["heads"].values())))
            header = ["group", "memes", "of class 1", "head", *(METRIC_NAMES[key] for key in keys)]
            if result.problem.kind != "binary":
                header.remove("of class 1")
            rows = [_group_row(group, head, keys) for group in field["groups"] for head in group["heads"]]
            missing = f" {field['without']} memes have no such field." if field["without"] else ""
            texts.append(f"By `{escape(field['field'])}`.{missing}\n\n{markdown_table(header, rows)}")
        tables[name] = "\n".join(texts)
    if not any(tables.values()):
        return ""
    return _per_set(
        result,
        "## Groups\n\nA meme with several values of a field is in several groups. False-positive rate: share of "
        "harmless memes that are flagged; false-negative rate: share of hateful memes that are not. Rates have exact "
        f"intervals. A star marks groups with fewer than {SMALL} memes of one of their classes.\n",
        tables,
    )


def _group_row(group: Mapping[str, Any], head: str, keys: Sequence[str]) -> list[str]:
    marked = escape(group["group"]) + (r" \*" if group["small"] else "")
    positives = [] if group["positives"] is None else [str(group["positives"])]
    values = [format_estimate(group["heads"][head][key]) for key in keys]
    return [marked, str(group["memes"]), *positives, head.upper(), *values]
