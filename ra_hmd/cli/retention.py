"""Commands of `ra-hmd retention`: what tuning costs a model. Their exit code is that of the gate."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from ra_hmd.cli import options as o
from ra_hmd.cli.finish import Outcome
from ra_hmd.cli.options import GROUP, command_line, from_settings, print_notes
from ra_hmd.experiments.retention.config import BenchmarkSettings, PolicySettings, RetentionSettings

retention_app = typer.Typer(
    help="Measure what tuning cost a model; ends with 0 (pass), 1 (fail) or 2 (undecided).", **GROUP
)


@retention_app.command("drawn")
@from_settings
def drawn_command(
    checkpoint: Annotated[str, typer.Option(help="Stage 1 run with an adapter, or one of its checkpoints.")],
    output: o.Output,
    settings: RetentionSettings,
    base_model: Annotated[str | None, typer.Option(help="Where the base model is now.")] = None,
    dtype: o.Precision = "auto",
) -> Outcome:
    """Ask a model general questions about drawn pictures, with its adapter and without. Can be resumed."""
    from ra_hmd.core.choices import DType
    from ra_hmd.experiments.retention.run import retention
    from ra_hmd.models.checkpoint import open_run

    precision = o.checked("--dtype", dtype, DType)
    run = open_run(checkpoint, base_model)
    result = retention(run, output, settings, dtype=precision, command=command_line())
    if not result:  # another rank writes
        return Outcome({})
    print_notes(result["notes"])
    return measured(result, output / "retention.md")


@retention_app.command("policy")
@from_settings
def policy_command(
    before: Annotated[Path, typer.Option(help="Evaluation of the earlier run: output of `ra-hmd evaluate`.")],
    after: Annotated[Path, typer.Option(help="Evaluation of the run that was tuned again, on the same memes.")],
    output: o.Output,
    settings: PolicySettings,
    query_set: Annotated[str | None, typer.Option("--set", help="Query set, where an evaluation has several.")] = None,
    head: Annotated[list[str] | None, typer.Option(help="Head that is judged; several; default: all.")] = None,
) -> Outcome:
    """Compare two evaluations of the memes of an earlier policy: before and after tuning on a later one."""
    from ra_hmd.core.choices import Head
    from ra_hmd.experiments.retention.policy import policy_retention

    heads = [o.checked("--head", one, Head) for one in head or ()]
    result = policy_retention(before, after, output, settings, query_set=query_set, heads=heads, command=command_line())
    print_notes(result["notes"])
    return measured(result, output / "policy.md")


@retention_app.command("benchmarks")
@from_settings
def benchmarks_command(
    base: Annotated[Path, typer.Argument(help="Folder that lmms-eval wrote of the base model, with --log_samples.")],
    tuned: Annotated[Path, typer.Argument(help="The same of the tuned model.")],
    output: o.Output,
    settings: BenchmarkSettings,
    metric: Annotated[list[str] | None, typer.Option(help="TASK=METRIC that counts for a task; several.")] = None,
) -> Outcome:
    """Compare the logged samples of two models on the same benchmarks, question by question."""
    from ra_hmd.core.errors import UserError
    from ra_hmd.experiments.retention.benchmarks import benchmark_retention

    pairs = [one.partition("=") for one in metric or ()]
    if not all(name and value for name, _, value in pairs):
        raise UserError(f"--metric is {' '.join(metric or ())!r}; write TASK=METRIC, such as seedbench=seed_all.")
    metrics = {name: value for name, _, value in pairs}
    result = benchmark_retention(base, tuned, output, settings, metrics=metrics, command=command_line())
    return measured(result, output / "benchmarks.md")


def measured(result: Mapping[str, Any], report: Path) -> Outcome:
    """Where the report is, the verdict, and the gate's exit code."""
    from ra_hmd.experiments.retention.gate import EXIT_CODES, gate_summary

    gate = result["gate"]
    return Outcome(result, [report, gate_summary(gate)], EXIT_CODES[gate["verdict"]])
