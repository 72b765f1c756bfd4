"""LLM-as-a-judge grading of rationales against human references (`ra-hmd judge`)."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from ra_hmd.core.artifacts import MANIFEST_NAME, plain, sha256_bytes, sha256_file, write_jsonl
from ra_hmd.core.config import Settings
from ra_hmd.core.errors import UserError, raise_all
from ra_hmd.core.manifests import JudgeManifest, write_manifest
from ra_hmd.core.progress import track
from ra_hmd.experiments.judge.agreement import OtherJudge, agreement, read_other
from ra_hmd.experiments.judge.client import JudgeSettings, judge_client
from ra_hmd.experiments.judge.pairs import Matched, Pair, read_pairs
from ra_hmd.experiments.judge.report import RESULTS_NAME, summary, write_judge_report
from ra_hmd.experiments.judge.rubric import Grade, capped, question, read_rubric
from ra_hmd.features.compatibility import check_output
from ra_hmd.models.generation.openai_client import Answer, OpenAIClient, SilentEndpoint, ask_all


class Prices(Settings):
    """Prices per million tokens, in any currency; without them there is no cost."""

    TITLE: ClassVar[str] = "prices"

    tokens_in: float | None = Field(default=None, ge=0, description="Price of a million input tokens.")
    tokens_out: float | None = Field(default=None, ge=0, description="Price of a million output tokens.")

    def _problems(self) -> Iterator[str]:
        if (self.tokens_in is None) != (self.tokens_out is None):
            yield "give both --price-input and --price-output, or neither."

    def cost(self, tokens_in: int | None, tokens_out: int | None) -> float | None:
        """Cost of so many tokens; None where prices or counts are unknown."""
        if self.tokens_in is None or self.tokens_out is None or tokens_in is None or tokens_out is None:
            return None
        return (tokens_in * self.tokens_in + tokens_out * self.tokens_out) / 1e6


def judge(
    rationales: str | Path,
    references: str | Path,
    output: str | Path,
    settings: JudgeSettings,
    *,
    key: str | None = None,
    rubric: str | Path | None = None,
    cache: str | Path | None = None,
    concurrency: int = 8,
    prices: Prices | None = None,
    limit: int | None = None,
    partial: bool = False,
    compare: str | Path | None = None,
    bootstrap_samples: int = 1000,
    seed: int = 0,
    show: bool = True,
    command: str = "",
) -> JudgeManifest:
    """Grade rationales by the rubric; write results, report and figure. Stored answers are not requested again.

    Args:
        rationales: See `read_pairs`.
        references: See `read_pairs`.
        output: Folder for results.jsonl, report.md, scores.png and the manifest.
        settings: Judge model and endpoint.
        key: API key.
        rubric: File with another rubric.
        cache: Folder of the answers, which several runs may share; default: `cache` in `output`.
        concurrency: Number of concurrent questions.
        prices: Prices for the cost.
        limit: Judge only the first so many rationales.
        partial: Leave out ids that only one file has.
        compare: results.jsonl of another judge (or its folder) for their agreement.
        bootstrap_samples: Resamples of each interval.
        seed: Seed of the resampling.
        show: Whether to show a progress bar.
        command: Command line for the manifest.

    Returns:
        The manifest.

    Raises:
        UserError: files that do not match, an endpoint that fails or refuses, no grade at all.
    """
    output, text = Path(output), read_rubric(rubric)
    for name, value in (("concurrency", concurrency), ("limit", limit)):
        if value is not None and value < 1:
            raise UserError(f"{name} is {value}, it must be at least 1.")
    check_output(output, "judge")
    matched = read_pairs(rationales, references, partial=partial)
    other = read_other(compare) if compare is not None else None
    with judge_client(settings, key, Path(cache) if cache is not None else output / "cache") as client:
        answers = _ask_all(client, text, matched.pairs[:limit], concurrency, show)
        form = client.form
    arguments = {"rationales": rationales, "references": references, "rubric": rubric, "limit": limit,
                 "partial": partial, "compare": compare, "bootstrap_samples": bootstrap_samples,
                 "concurrency": concurrency, "seed": seed}  # fmt: skip
    return _write(output, settings, form, text, matched, answers, other, prices or Prices(), arguments, command)


def _write(
    output: Path,
    settings: JudgeSettings,
    form: str,
    rubric: str,
    matched: Matched,
    answers: Sequence[Answer[Grade]],
    other: OtherJudge | None,
    prices: Prices,
    arguments: Mapping[str, Any],
    command: str,
) -> JudgeManifest:
    """Write the files of a run, and return its manifest."""
    resampling = {"samples": arguments["bootstrap_samples"], "seed": arguments["seed"]}
    rows = [_row(pair, answer) for pair, answer in zip(matched.pairs, answers, strict=False)]  # `limit` cuts pairs
    compared = agreement(rows, other, **resampling) if other else None
    found = summary(rows, **resampling)
    manifest = JudgeManifest.new(
        command=command,
        arguments=plain(dict(arguments)),
        judge={**settings.model_dump(), "host": settings.host, "served": sorted({a.served for a in answers} - {""}),
               "response_format": form},
        rubric_sha256=sha256_bytes(rubric.encode()),
        rationales_sha256=sha256_file(arguments["rationales"]),
        references_sha256=sha256_file(arguments["references"]),
        **found,
        usage=_usage(answers, prices),
        agreement=compared,
        notes=_notes(matched, found, answers, arguments["limit"]),
    )  # fmt: skip
    write_jsonl(output / RESULTS_NAME, rows)
    write_judge_report(manifest, rows, output)
    write_manifest(output / MANIFEST_NAME, manifest)
    return manifest


def _ask_all(
    client: OpenAIClient[Grade], rubric: str, pairs: Sequence[Pair], concurrency: int, show: bool
) -> list[Answer[Grade]]:
    """Grade all pairs, in order. See `ask_all`.

    Raises:
        UserError: the endpoint answers none of the first questions.
    """
    found: dict[int, Answer[Grade]] = {}

    def ask(pair: Pair) -> Answer[Grade]:
        return client.ask(question(rubric, pair.rationale, pair.references))

    answers = ((1, one) for one in ask_all(pairs, ask, concurrency))
    try:
        for number, answer in track(answers, "Judging", len(pairs), "rationales", show=show):
            found[number] = answer
    except SilentEndpoint:
        _give_up(client, pairs, found)
    return [found[number] for number in range(len(pairs))]


def _give_up(client: OpenAIClient[Grade], pairs: Sequence[Pair], found: Mapping[int, Answer[Grade]]) -> None:
    raise_all(
        [f"{pairs[number].id!r}: {answer.failure}: {answer.message}" for number, answer in sorted(found.items())],
        f"{client.settings.host} gave no grade by {client.settings.model!r}; the first questions failed",
    )


def _row(pair: Pair, answer: Answer[Grade]) -> dict[str, Any]:
    """Line of results.jsonl."""
    grade = answer.value
    raw = None if grade is None else grade.score
    score = None if raw is None else capped(raw, pair.verdict, pair.label)
    return {
        "id": pair.id,
        "score": score,
        "raw_score": raw,
        "capped": score != raw,
        "verdict": pair.verdict,
        "label": pair.label,
        "reason": "" if grade is None else grade.reason,
        "failure": answer.failure or None,
        "message": answer.message or None,
        "texts_sha256": sha256_bytes(*(text.encode() for text in (pair.rationale, *pair.references))),
    }


def _usage(answers: Sequence[Answer[Grade]], prices: Prices) -> dict[str, Any]:
    """Tokens and cost of all answers, and of those requested in this run."""

    def counted(some: Sequence[Answer[Grade]]) -> dict[str, Any]:
        counts = [(a.tokens_in, a.tokens_out) for a in some]
        known = all(None not in pair for pair in counts)
        tokens_in, tokens_out = (sum(pair[side] or 0 for pair in counts) if known else None for side in (0, 1))
        return {"input_tokens": tokens_in, "output_tokens": tokens_out, "cost": prices.cost(tokens_in, tokens_out)}

    fresh = [answer for answer in answers if not answer.cached]
    return {
        **counted(answers),
        "this_run": {
            "asked": sum(answer.asked for answer in fresh),
            "repeated_by_client": sum(answer.retries for answer in fresh),
            **counted(fresh),
        },
        "cache_hits": len(answers) - len(fresh),
        "prices_per_million": prices.model_dump(),
    }


def _notes(
    matched: Matched, found: Mapping[str, Any], answers: Sequence[Answer[Grade]], limit: int | None
) -> list[str]:
    notes = []
    if matched.only_rationales or matched.only_references:
        notes.append(f"Left out: {matched.only_rationales} rationales without a reference, {matched.only_references} "
                     "references without a rationale.")  # fmt: skip
    if limit is not None and limit < len(matched.pairs):
        notes.append(f"Only the first {limit} of {len(matched.pairs)} rationales were graded.")
    failed = found["items"] - found["graded"]
    if failed:
        notes.append(f"{failed} rationales have no score and are in no mean; the same command requests them again.")
    if found["verdicts_unknown"]:
        notes.append(f"{found['verdicts_unknown']} rationales come without a verdict: the cap cannot concern them.")
    if any(answer.tokens_in is None or answer.tokens_out is None for answer in answers):
        notes.append("The server does not count tokens of every answer, so their sum and the cost are not known.")
    return notes
