"""The tab with statistics of the model, the bank and the queue."""

import base64
import json
from io import BytesIO
from pathlib import Path
from typing import Any

from ra_hmd.bank.bank import Bank
from ra_hmd.console.labels import HEADS, ClassNames, format_number
from ra_hmd.console.review_queue import ReviewQueue
from ra_hmd.console.views import render
from ra_hmd.core.artifacts import sha256_bytes
from ra_hmd.core.heads import Head
from ra_hmd.serve.batching import BatchingService
from ra_hmd.serve.errors import public_name

_FROM_DEV = "chosen on a development set"
_OFFICIAL = "the published default"
_TIMEOUT = 30.0
_PROBLEMS_SHOWN = 5


def render_stats(service: BatchingService, names: ClassNames, queue: ReviewQueue) -> str:
    """Render the statistics as HTML."""
    detector, bank = service.detector, service.detector.scorer.bank
    version = detector.version
    model = [
        ("Run", Path(version["run"]).name),
        ("Weights of the head", version["head_sha256"][:12]),
        ("Who decides", " – ".join(HEADS[detector.head])),
        ("Classes", ", ".join(names.names)),
        (
            "Left to a person",
            f"closer than {detector.abstain} to the threshold" if detector.abstain else "never by rule",
        ),
    ]
    missing: set[Head] = set() if getattr(detector.model, "run", None) is not None else {"lmh"}
    missing |= {"rkc"} if detector.scorer.reference_set is None else set()
    missing |= {"krr"} if detector.scorer.kernel is None else set()
    heads = [head for head in HEADS if head not in missing]
    parts = {"Model": model, "Thresholds": [(HEADS[head][0], _describe_rule(service, head)) for head in heads]}
    if bank is not None:
        with service.exclusive(_TIMEOUT):
            parts["Bank"] = _describe_bank(bank, names)
    reviews = queue.reviews
    parts["Work"] = [
        ("Memes judged since the start", service.statistics.memes),
        ("Memes that wait for a moderator", f"{queue.pending}{' (still being judged)' if queue.scoring else ''}"),
        ("Decided", f"{reviews.count('agree')} agreed, {reviews.count('correct')} corrected, "
                    f"{reviews.count('skip')} skipped"),
        ("Rows that cannot be judged", _problem_summary(queue.problems)),
    ]  # fmt: skip
    growth = None if bank is None or len(bank.log) < 2 else plot_bank_growth(bank)
    return render("stats.html", parts=parts, growth=growth)


def _problem_summary(problems: list[tuple[str, str]]) -> str:
    """Number and places of problems, without their reasons, which may name folders of the server."""
    names = [place.rsplit("/", 1)[-1] for place, _ in problems[:_PROBLEMS_SHOWN]]
    more = ["…"] if len(problems) > len(names) else []
    return f"{len(problems)}{': ' if names else ''}{'; '.join(names + more)}"


def _describe_rule(service: BatchingService, head: Head) -> str:
    scorer = service.detector.scorer
    rule = scorer.rule(head)
    limits = "the most likely class wins" if scorer.model.config.problem.kind == "single_label" else (
        "score from " + ", ".join(map(format_number, rule.thresholds)) + " on")  # fmt: skip
    where = _FROM_DEV if rule.chosen else _OFFICIAL
    if rule.chosen and scorer.decision is not None:
        dev = scorer.decision.dev
        where += f" ({dev.rows} memes, split {dev.split}, best {scorer.decision.criterion})"
    kind = rule.calibration.kind
    probabilities = "as the score says" if kind == "none" else f"{kind} calibration"
    return "; ".join([f"{limits}; {where}; probabilities: {probabilities}", *scorer.notes(head)])


def _describe_bank(bank: Bank, names: ClassNames) -> list[tuple[str, Any]]:
    info = bank.info()
    last = bank.log[-1]
    return [
        ("Bank", public_name(info["bank"])),
        ("Version", info["version"]),
        ("Rows", info["rows"]),
        *[(f"Rows “{name}”", count) for name, count in zip(names.names, info["rows_per_class"], strict=True)],
        ("Last change", f"{last.action} by {last.author}, {last.time[:16].replace('T', ' ')} UTC: {last.reason}"),
        ("Fingerprint of what made it", sha256_bytes(json.dumps(info["fingerprint"], sort_keys=True).encode())[:12]),
    ]


def plot_bank_growth(bank: Bank) -> str:
    """Plot the number of rows at each version, as a `data:` URL of a PNG."""
    from ra_hmd.core.plotting import BLUE, panels

    figure, axes = panels(1, width=6.4, height=3.0)
    axis = axes[0, 0]
    log = bank.log  # read once: another version may be added at any time
    axis.step([one.version for one in log], [one.counts["rows"] for one in log], where="post", color=BLUE, marker="o",
              markersize=4)  # fmt: skip
    axis.set_xlabel("version of the bank")
    axis.set_ylabel("rows")
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.yaxis.get_major_locator().set_params(integer=True)
    content = BytesIO()
    figure.savefig(content, format="png", dpi=120)
    return "data:image/png;base64," + base64.b64encode(content.getvalue()).decode()
