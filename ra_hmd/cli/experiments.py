"""Commands of studies: `cross-eval`, `robustness`, `staleness`, `in-context`, `judge`, `ablate`, and `demo`."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from ra_hmd.cli import options as o
from ra_hmd.cli.finish import Outcome
from ra_hmd.cli.options import SourceOptions, checked, command_line, from_settings, print_notes
from ra_hmd.core.errors import UserError
from ra_hmd.core.extras import check_extra
from ra_hmd.inference.options import LmmOptions

experiments_app = typer.Typer()


@experiments_app.command("cross-eval")
def cross_eval_command(
    config: Annotated[Path, typer.Argument(help="YAML file: systems, targets, heads, banks (docs/studies.md).")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value …")] = None,
    final: o.Final = False,
) -> Outcome:
    """Test what was trained on one data set on others: a matrix by head and bank, with K-shot banks of the target."""
    from ra_hmd.core.config import load_yaml
    from ra_hmd.experiments.cross_eval.config import CrossEvalArguments
    from ra_hmd.experiments.cross_eval.run import cross_eval

    args = load_yaml(CrossEvalArguments, config, overrides or [])
    words = ["ra-hmd", "cross-eval", str(config), *(overrides or []), *(["--final"] if final else [])]
    result = cross_eval(args, final=final, command=shlex.join(words))
    for gap in dict.fromkeys(f"{gap['reason']} {gap['command']}".strip() for gap in result["missing"]):
        typer.echo(f"Missing: {gap}", err=True)
    return Outcome(result, [args.output_dir / "cross_eval.md"])


@experiments_app.command("robustness")
def robustness_command(
    config: Annotated[Path, typer.Argument(help="YAML file: data, attacked sets, systems (docs/robustness.md).")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value …")] = None,
    final: o.Final = False,
) -> Outcome:
    """Measure heads on clean and attacked memes, and what defences give and cost. Can be resumed."""
    from ra_hmd.core.config import load_yaml
    from ra_hmd.experiments.robustness.config import RobustnessSettings
    from ra_hmd.experiments.robustness.run import robustness

    settings = load_yaml(RobustnessSettings, config, overrides or [])
    words = ["ra-hmd", "robustness", str(config), *(overrides or []), *(["--final"] if final else [])]
    result = robustness(settings, final=final, command=shlex.join(words))
    return Outcome(result, [result["summary"], settings.output_dir / "robustness.md"])


@experiments_app.command("staleness")
def staleness_command(
    checkpoint: Annotated[Path, typer.Option(help="Stage 1 run or Stage 2 folder with the head.")],
    bank: Annotated[list[Path], typer.Option(help="Feature store; several: without --period-key, periods in order.")],
    output: o.Output,
    queries: Annotated[
        list[Path] | None, typer.Option(help="Feature store of the memes to score; default: the memes of the bank.")
    ] = None,
    period_key: Annotated[str | None, typer.Option(help="Field of the memes' extras that holds the period.")] = None,
    order: Annotated[str | None, typer.Option(help="Names of the periods in order, as in a,b,c.")] = None,
    date_part: Annotated[str, typer.Option(help="Part of a date that makes a period: day, month or year.")] = "day",
    bins: Annotated[int | None, typer.Option(help="Cut numbers or dates into so many periods of equal size.")] = None,
    window: Annotated[int | None, typer.Option(help="Number of latest periods in a bank; default: all.")] = None,
    bank_size: Annotated[int | None, typer.Option(help="Number of memes drawn for a bank, class-balanced.")] = None,
    min_memes: Annotated[int, typer.Option(help="Periods with fewer memes are not scored.")] = 20,
    views: Annotated[
        list[str] | None,
        typer.Option(
            help="View that the KRR compares: embedding (default), hidden, untuned, or an encoder's; several."
        ),
    ] = None,
    topk: o.TopK = 20,
    weights: o.Weights = "arithmetic",
    bootstrap_samples: o.BootstrapSamples = 1000,
    seed: Annotated[int, typer.Option(help="Seed of resampling and of the draw.")] = 0,
    final: o.Final = False,
) -> Outcome:
    """Measure what RKC and KRR lose as their bank ages: memes of each period, scored with banks of every age."""
    from ra_hmd.core.config import load_settings
    from ra_hmd.experiments.staleness.config import StalenessSettings
    from ra_hmd.experiments.staleness.run import staleness

    values = {
        "key": period_key,
        "order": order.split(",") if order else [],
        "date_part": date_part,
        "bins": bins,
        "window": window,
        "bank_size": bank_size,
        "min_memes": min_memes,
        **({"views": views} if views else {}),
        "topk": topk,
        "weights": weights,
        "bootstrap_samples": bootstrap_samples,
        "seed": seed,
    }
    settings = load_settings(StalenessSettings, values, "staleness")
    command = command_line()
    result = staleness(checkpoint, bank, output, queries=queries or (), settings=settings, final=final, command=command)
    print_notes(result["notes"])
    return Outcome(result, [output / "staleness.md"])


@experiments_app.command("in-context")
@from_settings
def in_context_command(
    model: LmmOptions,
    data: Annotated[str, typer.Option(help="Memes to score: file (.jsonl, ShareGPT .json), folder, or data set name.")],
    split: Annotated[str, typer.Option(help="Name of their split.")],
    output: o.Output,
    source: SourceOptions,
    examples: Annotated[str | None, typer.Option(help="Labelled memes to show, as --data; default: --data.")] = None,
    examples_split: Annotated[str, typer.Option(help="Name of the examples' split.")] = "train",
    shots: Annotated[int, typer.Option(min=0, help="Demonstrations before the question; 0: none.")] = 4,
    per_class: Annotated[bool, typer.Option("--per-class", help="Count --shots per class.")] = False,
    demonstrations: Annotated[str, typer.Option(help="retrieved (nearest by cosine) or random.")] = "retrieved",
    bank_features: Annotated[Path | None, typer.Option(help="Feature store that holds the examples.")] = None,
    query_features: Annotated[Path | None, typer.Option(help="Feature store that holds the memes to score.")] = None,
    head: Annotated[
        Path | None, typer.Option(help="Head whose embeddings are compared (a Stage 2 folder); default: the run's.")
    ] = None,
    answer: Annotated[list[str] | None, typer.Option(help="Answers of demonstrations, in class order.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of random demonstrations and of resampling.")] = 0,
    dev: Annotated[Path | None, typer.Option(help="Output of this command on dev: choose the threshold there.")] = None,
    criterion: Annotated[str, typer.Option(help="With --dev: macro_f1, accuracy, f1 or youden.")] = "macro_f1",
    final: o.Final = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts per forward pass.")] = 4,
    bootstrap_samples: o.BootstrapSamples = 1000,
) -> Outcome:
    """Classify a split by showing the LMM labelled memes first: retrieval-augmented in-context learning.

    Writes an evaluation for `ra-hmd evaluate --compare` and `ra-hmd results` (docs/studies.md). Can be resumed.
    """
    from ra_hmd.core.config import load_settings
    from ra_hmd.experiments.in_context.candidates import DemonstrationFeatures, MemeSplit
    from ra_hmd.experiments.in_context.demonstrations import DemonstrationSettings
    from ra_hmd.experiments.in_context.run import in_context
    from ra_hmd.scoring.thresholds import Criterion

    if shots and examples is None and Path(data).is_file():
        raise UserError(f"--data {data} is one file; give with --examples the labelled memes to show.")
    features = _demonstration_features(bank_features, query_features, head)
    run = model.open()
    memes, described = source.read(data, split, run.settings, run.media_dir)
    shown = MemeSplit(*source.read(examples or data, examples_split, run.settings, run.media_dir)) if shots else None
    selection = {"shots": shots, "kind": demonstrations, "per_class": per_class, "seed": seed}
    done = in_context(
        run,
        MemeSplit(memes[: source.limit], described),
        shown,
        output,
        load_settings(DemonstrationSettings, selection, "in-context"),
        stores=None if features is None else DemonstrationFeatures(*features),
        answers=answer or (),
        final=final,
        dev=dev,
        criterion=checked("--criterion", criterion, Criterion),
        bootstrap_samples=bootstrap_samples,
        batch_size=batch_size,
        dtype=model.dtype,
        command=command_line(),
    )
    return Outcome(done or {}, [output / "report.md"] if done else [])  # without, another rank measures


def _demonstration_features(
    bank: Path | None, queries: Path | None, head: Path | None
) -> tuple[Path, Path, Path | None] | None:
    """The feature stores of retrieved demonstrations and the head that embeds them, if the run's own are not used."""
    if (bank is None) != (queries is None):
        raise UserError("Give both --bank-features and --query-features, or neither.")
    if bank is not None and queries is not None:
        return bank, queries, head
    if head is not None:
        raise UserError(f"--head {head} embeds feature stores: give --bank-features and --query-features with it.")
    return None


@experiments_app.command("judge")
def judge_command(
    rationales: Annotated[Path, typer.Option(help="Rows with id, rationale, verdict (`ra-hmd explain --output`).")],
    references: Annotated[Path, typer.Option(help="Rows with id, reference (text or list), perhaps label.")],
    endpoint: Annotated[str, typer.Option(help="Base URL of an OpenAI-compatible API: http://127.0.0.1:8000/v1.")],
    model: Annotated[str, typer.Option(help="Name of the judging model at the endpoint.")],
    output: o.Output,
    api_key_env: Annotated[str, typer.Option(help="Environment variable with the API's key.")] = "OPENAI_API_KEY",
    rubric: Annotated[Path | None, typer.Option(help="Text file with another rubric (docs/judge.md).")] = None,
    temperature: Annotated[float, typer.Option(min=0, help="Temperature of the judge's sampling.")] = 0.0,
    max_tokens: Annotated[int, typer.Option(min=1, help="Length limit of an answer, in tokens.")] = 500,
    retries: Annotated[int, typer.Option(min=0, help="Retries of a request without a grade.")] = 3,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds until a request counts as failed.")] = 60.0,
    concurrency: Annotated[int, typer.Option(min=1, help="Concurrent requests.")] = 8,
    cache: Annotated[Path | None, typer.Option(help="Folder of answers; default: cache/ in --output.")] = None,
    price_input: Annotated[float | None, typer.Option(min=0, help="Price of a million input tokens.")] = None,
    price_output: Annotated[float | None, typer.Option(min=0, help="Price of a million output tokens.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Grade the first rationales only.")] = None,
    partial: Annotated[bool, typer.Option("--partial", help="Leave out ids that only one file has.")] = False,
    compare: Annotated[
        Path | None, typer.Option(help="Output of another judge on the same rationales: do they agree?")
    ] = None,
    bootstrap_samples: o.BootstrapSamples = 1000,
    seed: Annotated[int, typer.Option(help="Seed of the resampling.")] = 0,
) -> Outcome:
    """Grade rationales against human references, 0 to 10, by a language model (docs/judge.md).

    An interrupted command that is started again asks only what was not answered.
    """
    check_extra("judge", "Judging")
    from ra_hmd.experiments.judge.client import JudgeSettings
    from ra_hmd.experiments.judge.run import Prices, judge
    from ra_hmd.models.generation.endpoint import api_key

    done = judge(
        rationales,
        references,
        output,
        JudgeSettings(
            endpoint=endpoint,
            model=model,
            temperature=temperature,
            max_tokens=max_tokens,
            retries=retries,
            timeout=timeout,
        ),
        key=api_key(api_key_env),
        rubric=rubric,
        cache=cache,
        concurrency=concurrency,
        prices=Prices(tokens_in=price_input, tokens_out=price_output),
        limit=limit,
        partial=partial,
        compare=compare,
        bootstrap_samples=bootstrap_samples,
        seed=seed,
        command=command_line(),
    )
    print_notes(done.notes)
    return Outcome(done.to_json(), [output / "report.md"])


@experiments_app.command("demo")
def demo_command(
    output: o.Output,
    quick: Annotated[bool, typer.Option("--quick", help="Train briefly, as a functional check.")] = False,
) -> Outcome:
    """Run the whole pipeline on synthetic memes and a tiny Qwen2-VL: ten to fifteen minutes on two cores."""
    from ra_hmd.experiments.demo import run_demo

    return Outcome({"report": run_demo(output, quick=quick)})


@experiments_app.command("ablate")
def ablate_command(
    output: o.Output,
    seeds: Annotated[int, typer.Option(min=1, help="Number of trainings of each variant, with seeds 42, 43, …")] = 1,
    quick: Annotated[bool, typer.Option("--quick", help="Train briefly, as a functional check.")] = False,
    topk: o.TopK = 20,
    bootstrap_samples: o.BootstrapSamples = 1000,
) -> Outcome:
    """Measure what each stage contributes: five variants under one recipe, on synthetic memes and a tiny Qwen2-VL."""
    from ra_hmd.experiments.ablation import run_ablation

    made = run_ablation(output, seeds=seeds, quick=quick, topk=topk, bootstrap_samples=bootstrap_samples)
    return Outcome({"report": made})
