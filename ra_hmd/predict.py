"""Verdicts of a trained head on memes, labelled or not: `ra-hmd predict`.

`Scorer` is a head that is opened for answering, with its bank and its rules; it turns features into a `ScoredSet`. What
is done with the answers (a file here) is no part of it.

Shapes: Q memes, C outputs of the problem (1 if binary), K neighbours.
"""

import csv
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import repeat
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from accelerate import Accelerator

from ra_hmd.config import choose
from ra_hmd.errors import UserError
from ra_hmd.evaluation.banks import Examples, open_examples
from ra_hmd.evaluation.checks import (
    check_head_fits,
    check_same_origin,
    check_store,
    head_fingerprint,
    store_fingerprint,
)
from ra_hmd.evaluation.decision import Decision, read_decision, use_rules
from ra_hmd.evaluation.metrics import Head
from ra_hmd.evaluation.results import plain_score, vote_evidence
from ra_hmd.evaluation.scores import ScoredSet, score_set
from ra_hmd.features.store import Features, read_features
from ra_hmd.manifest import atomic_path, plain, run_manifest, sha256_file, write_json
from ra_hmd.models.head import HEAD_WEIGHTS, MemeHead, load_head
from ra_hmd.progress import track
from ra_hmd.retrieval.bank import is_bank
from ra_hmd.retrieval.voting import Voting

PredictionFormat = Literal["hateclipper-csv", "jsonl"]
HATECLIPPER_COLUMNS = ("id", "prob_hate", "pred_label")
_NO_BANK = {"place": None, "sha256": None}


@dataclass(frozen=True)
class Scorer:
    """A trained head, ready to answer.

    Attributes:
        checkpoint: Folder of the head.
        model: The head, on its device.
        examples: The bank that votes, or None: then there is no RKC.
        origins: Folder of the head, place of the bank → what is known of the features that they are for.
        decision: Thresholds and calibration from dev, or None: official thresholds, scores taken for probabilities.
        voting: The vote.
    """

    checkpoint: Path
    model: MemeHead
    examples: Examples | None
    origins: Mapping[str, Mapping[str, Any]]
    decision: Decision | None
    voting: Voting

    @classmethod
    def open(
        cls,
        checkpoint: str | Path,
        bank: str | Path | None = None,
        voting: Voting | None = None,
        *,
        thresholds: Literal["stored", "official"] = "stored",
        device: str | torch.device | None = None,
    ) -> "Scorer":
        """Open a head.

        Args:
            checkpoint: Folder with a head.
            bank: Feature store of labelled examples, or an example bank; without it there is no RKC.
            voting: The vote; by default the official one.
            thresholds: `stored` takes what lies beside the head, if it is there, or the official ones.
            device: Where the head runs; by default what accelerate finds.

        Raises:
            UserError: no head; a bank of another head or LMM, or one that is not labelled as the head decides.
        """
        choose("thresholds", thresholds, ("stored", "official"))
        checkpoint = Path(checkpoint)
        model = load_head(checkpoint).to(device if device is not None else Accelerator().device)
        decision = read_decision(checkpoint) if thresholds == "stored" else None
        origins = {str(checkpoint): head_fingerprint(checkpoint)}
        examples, stores = None, {}
        if bank is not None and not is_bank(bank):
            features = stores[Path(bank)] = read_features(bank)
            check_store(features, bank, model.config.problem)
            check_head_fits(model.config, checkpoint, features, bank)
            check_same_origin({**origins, str(bank): store_fingerprint(features)})
            origins[str(bank)] = store_fingerprint(features)
        if bank is not None:
            examples = open_examples(bank, stores, model, checkpoint)
        return cls(checkpoint, model, examples, origins, decision, voting or Voting())

    def __call__(self, place: str | Path, features: Features) -> ScoredSet:
        """Scores of Q memes by every head that has some; a meme's scores and verdicts depend on no other meme.

        Labels play no part. A meme whose id is in the bank does not vote for itself.

        Args:
            place: Where the features are from, for messages.
            features: Of the memes.

        Raises:
            UserError: features that this head, or this bank, cannot be asked about.
        """
        check_store(features, place, labelled=False)
        check_head_fits(self.model.config, self.checkpoint, features, place)
        for origin, fingerprint in self.origins.items():
            check_same_origin({origin: fingerprint, str(place): store_fingerprint(features)})
        rows = None if self.examples is None else self.examples.rows
        scored = score_set(Path(place).name, place, features, self.model, rows, self.voting)
        if self.decision is not None:
            use_rules(self.decision, scored, self.state, self.voting)
        return scored

    @property
    def state(self) -> dict[str, Any]:
        """Of the bank: `place`, `sha256`, of an example bank also `version`."""
        return dict(_NO_BANK if self.examples is None else self.examples.state)


def predict(
    checkpoint: str | Path,
    queries: str | Path,
    output: str | Path,
    *,
    head: Head = "lrc",
    style: PredictionFormat = "jsonl",
    bank: str | Path | None = None,
    voting: Voting | None = None,
    thresholds: Literal["stored", "official"] = "stored",
    device: str | torch.device | None = None,
    command: str = "",
) -> dict[str, Any]:
    """Write one head's verdict on each meme of a feature store; labels are not looked at, there may be none.

    Args:
        checkpoint: Folder with a head.
        queries: Feature store.
        output: File to write; its manifest lies beside it, as `<output>.manifest.json`.
        head: Who decides.
        style: `hateclipper-csv` has the columns `id, prob_hate, pred_label`, for a binary head; `jsonl` is for every
            problem, and has the neighbours behind a vote.
        bank: Labelled examples, for the RKC.
        voting: The vote of the RKC.
        thresholds: See `Scorer.open`.
        device: Where the head runs.
        command: The command line, for the manifest.

    Returns:
        The manifest: `rows`, `verdicts` (how many of each), `notes`, arguments, thresholds, fingerprints.

    Raises:
        UserError: head, bank and store that do not belong together; a format that cannot hold the answers.
    """
    output = Path(output)
    choose("head", head, get_args(Head))
    choose("format", style, get_args(PredictionFormat))
    if output.is_dir():
        raise UserError(f"{output} is a folder; give a file to write, for example {output / 'predictions.csv'}.")
    if (head == "rkc") != (bank is not None):
        raise UserError(
            "`--head rkc` needs `--bank`: the labelled memes that vote."
            if bank is None
            else f"`--bank` is for `--head rkc` alone, {head!r} does not look at it; leave it out."
        )
    scorer = Scorer.open(checkpoint, bank, voting, thresholds=thresholds, device=device)
    problem = scorer.model.config.problem
    if style == "hateclipper-csv" and problem.kind != "binary":
        raise UserError(
            f"`hateclipper-csv` has one probability and one class per meme; the head in {checkpoint} decides "
            f"`{problem.kind}` of {problem.outputs} classes. Use `--format jsonl`."
        )
    features = read_features(queries)
    scored = scorer(queries, features)
    _check_answers(scored, head, style, queries)
    rows = track(((1, row) for row in _answers(scored, head, scorer.examples)), "Writing", len(scored), "memes")
    verdicts = _write(output, style, rows)
    rule = scored.rules[head]
    arguments = {"checkpoint": checkpoint, "queries": queries, "bank": bank, "head": head, "format": style}
    manifest = run_manifest(
        "predictions",
        command=command,
        arguments=plain({**arguments, "thresholds": thresholds, **asdict(scorer.voting)}),
        rows=len(scored),
        verdicts=verdicts,
        output_sha256=sha256_file(output),
        head_sha256=sha256_file(scorer.checkpoint / HEAD_WEIGHTS),
        bank=scorer.state,
        rule={"thresholds": rule.thresholds.tolist(), "calibration": rule.calibration.kind, "chosen": rule.chosen},
        features=plain(store_fingerprint(features)),
        notes=_notes(scorer, scored, head),
    )
    write_json(output.with_name(f"{output.name}.manifest.json"), manifest)
    return manifest


def _check_answers(scored: ScoredSet, head: Head, style: PredictionFormat, place: str | Path) -> None:
    if head not in scored.scores:
        why = next((note for note in scored.notes if note.startswith(head.upper())), "")
        raise UserError(f"{place}: `--head {head}` has no answer. {why} Choose another head.")
    silent = scored.abstained.nonzero()[0]
    if style == "hateclipper-csv" and len(silent):
        raise UserError(
            f"The vote abstains on {len(silent)} memes, the first is {scored.queries.ids[silent[0]]!r}, and "
            "`hateclipper-csv` cannot say so. Use `--format jsonl`, or lower --min-similarity."
        )


def _answers(scored: ScoredSet, head: Head, examples: Examples | None) -> Iterator[dict[str, Any]]:
    """Per meme `id`, `head`, `score`, `probability`, `verdict` (None where the vote abstained), of a vote `neighbours`.

    Score and probability are lists, one value per class, where there are several classes.
    """
    scores, probabilities, verdicts = scored.scores[head], scored.probabilities(head), scored.verdicts(head)
    evidence = vote_evidence(scored, examples.rows) if examples is not None else repeat(None)
    for row, (name, neighbours) in enumerate(zip(scored.queries.ids, evidence, strict=False)):
        answer = {
            "id": name,
            "head": head,
            "score": plain_score(scores[row], scored.problem),
            "probability": plain_score(probabilities[row], scored.problem),
            "verdict": None if scored.abstained[row] else verdicts[row].tolist(),
        }
        yield answer if neighbours is None else answer | {"neighbours": neighbours}


def _write(output: Path, style: PredictionFormat, answers: Iterable[dict[str, Any]]) -> dict[str, int]:
    """Write the file, atomically and meme by meme; returns how often each verdict was given."""
    verdicts: Counter[str] = Counter()
    with atomic_path(output) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        if style == "hateclipper-csv":
            table.writerow(HATECLIPPER_COLUMNS)
        for answer in answers:
            verdicts.update(_named(answer["verdict"]))
            if style == "hateclipper-csv":
                table.writerow((answer["id"], answer["probability"], answer["verdict"]))
            else:
                file.write(json.dumps(answer, ensure_ascii=False, allow_nan=False) + "\n")
    return dict(sorted(verdicts.items()))


def _named(verdict: int | list[int] | None) -> list[str]:
    """The classes of a verdict; of label sets those that it holds."""
    if verdict is None:
        return ["abstained"]
    if isinstance(verdict, int):
        return [str(verdict)]
    return [str(number) for number, holds in enumerate(verdict) if holds] or ["none"]


def _notes(scorer: Scorer, scored: ScoredSet, head: Head) -> list[str]:
    """What a reader of this head's verdicts must know."""
    others = tuple(name.upper() for name in get_args(Head) if name != head)
    notes = [note for note in scored.notes if not note.startswith(others)]
    if scored.in_bank:
        notes.append(f"{scored.in_bank} memes are in the bank too; none votes for itself.")
    if scorer.decision is None:
        notes.append("The threshold is the official one, and scores are taken for probabilities as they are.")
    return notes
