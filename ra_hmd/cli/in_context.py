"""`ra-hmd in-context`."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from ra_hmd.cli.options import Final, Output
from ra_hmd.core.errors import UserError

in_context_app = typer.Typer()


@in_context_app.command("in-context")
def in_context_command(
    checkpoint: Annotated[str, typer.Option(help="Stage 1 run, merged export, or (bare) a model.")],
    data: Annotated[str, typer.Option(help="What is judged: file (.jsonl, ShareGPT .json), folder, or data set name.")],
    split: Annotated[str, typer.Option(help="Its split.")],
    output: Output,
    examples: Annotated[str | None, typer.Option(help="Labelled memes to show, as --data; default: --data.")] = None,
    examples_split: Annotated[str, typer.Option(help="Their split.")] = "train",
    shots: Annotated[int, typer.Option(min=0, help="Demonstrations before the question; 0: none.")] = 4,
    per_class: Annotated[bool, typer.Option("--per-class", help="So many of each class.")] = False,
    demonstrations: Annotated[str, typer.Option(help="retrieved (nearest by cosine) or random.")] = "retrieved",
    bank_features: Annotated[Path | None, typer.Option(help="Feature store that holds the examples.")] = None,
    query_features: Annotated[Path | None, typer.Option(help="Feature store that holds what is judged.")] = None,
    head: Annotated[
        Path | None, typer.Option(help="Head whose embeddings are compared (a Stage 2 folder); default: the run's.")
    ] = None,
    answer: Annotated[
        list[str] | None, typer.Option(help="What is said of a demonstration, for each class in order.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of random demonstrations and of resampling.")] = 0,
    dev: Annotated[Path | None, typer.Option(help="Output of this command on dev: choose the threshold there.")] = None,
    criterion: Annotated[
        str, typer.Option(help="With --dev, what is best: macro_f1, accuracy, f1 or youden.")
    ] = "macro_f1",
    final: Final = False,
    task: Annotated[str | None, typer.Option(help="Imported folder: the task whose labels count.")] = None,
    dataset_dir: Annotated[Path, typer.Option(help="Folder of dataset_info.json.")] = Path("data"),
    media_dir: Annotated[Path | None, typer.Option(help="Where relative image paths start.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Judge only the first so many memes.")] = None,
    backbone_only: Annotated[
        bool, typer.Option("--backbone-only", help="The LMM alone, without a Stage 1 run.")
    ] = False,
    template: Annotated[str | None, typer.Option(help="With --backbone-only: LLaMA-Factory template.")] = None,
    base_model: Annotated[str | None, typer.Option(help="Where the base model lies now.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts per forward pass.")] = 4,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    bootstrap_samples: Annotated[int, typer.Option(min=100, help="Resamples of each interval.")] = 1000,
) -> None:
    """Judge a split by showing the LMM labelled memes first: retrieval-augmented in-context learning.

    Writes an evaluation that `ra-hmd evaluate --compare` and `ra-hmd results` read (docs/studies.md). Stopped and
    started again, it continues; also under torchrun.
    """
    from ra_hmd.core.config import choose, load_settings
    from ra_hmd.data.resolve import describe_source, imported_task, resolve_memes
    from ra_hmd.experiments.in_context.candidates import DemonstrationFeatures, MemeSplit
    from ra_hmd.experiments.in_context.demonstrations import DemonstrationSettings
    from ra_hmd.experiments.in_context.run import in_context
    from ra_hmd.models.checkpoint import open_backbone, open_run

    choose("--dtype", dtype, ("auto", "float32", "bfloat16", "float16"))
    if (bank_features is None) != (query_features is None):
        raise UserError("Give both --bank-features and --query-features, or neither.")
    if head is not None and bank_features is None:
        raise UserError("--head says by what features are compared: give --bank-features and --query-features with it.")
    if shots and examples is None and Path(data).is_file():
        raise UserError(f"--data {data} is one file; say with --examples which labelled memes may be shown.")
    run = open_backbone(checkpoint, template, base_model) if backbone_only else open_run(checkpoint, base_model)
    settings = run.settings

    def source(place: str, of: str, most: int | None = None) -> MemeSplit:
        labelling = None if task is None else imported_task(place, task)
        memes = resolve_memes(place, of, settings.prompt, settings.expected_answers, dataset_dir,
                              media_dir or run.media_dir, task=labelling)  # fmt: skip
        return MemeSplit(memes[:most], describe_source(place, of, task))

    selection = {"shots": shots, "kind": demonstrations, "per_class": per_class, "seed": seed}
    done = in_context(
        run,
        source(data, split, limit),
        source(examples or data, examples_split) if shots else None,
        output,
        load_settings(DemonstrationSettings, selection, "in-context"),
        stores=DemonstrationFeatures(bank_features, query_features, head) if bank_features and query_features else None,
        answers=answer or (),
        final=final,
        dev=dev,
        criterion=criterion,
        bootstrap_samples=bootstrap_samples,
        batch_size=batch_size,
        dtype=dtype,
        command=shlex.join(["ra-hmd", *sys.argv[1:]]),
    )
    if done:  # else another rank measures
        print(output / "report.md")
