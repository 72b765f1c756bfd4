"""`ra-hmd`: each command is one call into the library. Heavy modules are imported inside the commands."""

import shlex
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from ra_hmd.cli.bank import bank_app
from ra_hmd.cli.card import card_app
from ra_hmd.cli.console import console_app
from ra_hmd.cli.data import data_app
from ra_hmd.cli.encoder import encoder_app
from ra_hmd.cli.evaluate import evaluation_app
from ra_hmd.cli.in_context import in_context_app
from ra_hmd.cli.judge import judge_app
from ra_hmd.cli.options import Output, TopK
from ra_hmd.cli.predict import prediction_app
from ra_hmd.cli.serve import serve_app
from ra_hmd.core.errors import UserError


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM, with which schedulers end a command, end it as an exception does: what it has in temporary files is
    removed, and so are processes that it started.
    """
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


class _Group(TyperGroup):
    """Prints a `UserError`, or what the system says of a file, as a sentence, and ends with exit code 2."""

    def invoke(self, ctx: Any) -> Any:
        try:
            with _ended_by_sigterm():
                return super().invoke(ctx)
        except UserError as error:
            message = str(error)
        except OSError as error:
            if error.filename is None:
                raise
            message = f"{error.filename}: {error.strerror}."
        typer.secho(f"Error: {message}", fg=typer.colors.RED, err=True)
        raise typer.Exit(2)


_OPTIONS = {"no_args_is_help": True, "add_completion": False, "pretty_exceptions_enable": False}
app = typer.Typer(
    cls=_Group, help="Hateful-meme detection with retrieval-augmented large multimodal models.", **_OPTIONS
)
features_app = typer.Typer(help="Feature stores.", **_OPTIONS)
app.add_typer(data_app, name="data")
app.add_typer(bank_app, name="bank")
app.add_typer(features_app, name="features")
app.add_typer(encoder_app)
app.add_typer(evaluation_app)
app.add_typer(prediction_app)
app.add_typer(serve_app)
app.add_typer(console_app)
app.add_typer(judge_app)
app.add_typer(in_context_app)
app.add_typer(card_app)


@app.command()
def doctor() -> None:
    """Check this installation: plugin, versions, torchrun, devices, FAISS. Exit code 1 on a problem."""
    from rich.console import Console

    from ra_hmd.cli.doctor import run_doctor

    raise typer.Exit(run_doctor(Console()))


@app.command("tiny-lmm")
def tiny_lmm(
    output: Output,
    family: Annotated[str, typer.Option(help="qwen2_vl, qwen2_5_vl or qwen3_vl.")] = "qwen2_vl",
    seed: Annotated[int, typer.Option(help="Of the random weights.")] = 0,
) -> None:
    """Build a CPU-sized Qwen-VL from its config, with tokenizer and processor."""
    from ra_hmd.models.tiny import make_tiny_lmm

    print(make_tiny_lmm(family, output, seed=seed))


@app.command("extract")
def extract_command(
    checkpoint: Annotated[str, typer.Option(help="Stage 1 run, checkpoint, merged export, or (bare) a model.")],
    data: Annotated[str, typer.Option(help="File (.jsonl, ShareGPT .json), folder, or data set name.")],
    output: Output,
    split: Annotated[str, typer.Option(help="Name of the split.")] = "train",
    task: Annotated[str | None, typer.Option(help="Imported folder: the task whose labels to keep.")] = None,
    dataset_dir: Annotated[Path, typer.Option(help="Folder of dataset_info.json.")] = Path("data"),
    media_dir: Annotated[Path | None, typer.Option(help="Where relative image paths start.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many memes.")] = None,
    backbone_only: Annotated[
        bool, typer.Option("--backbone-only", help="The LMM alone, without a Stage 1 run.")
    ] = False,
    template: Annotated[str | None, typer.Option(help="With --backbone-only: LLaMA-Factory template.")] = None,
    base_model: Annotated[str | None, typer.Option(help="Where the base model lies now.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Memes per forward pass.")] = 16,
    shard_size: Annotated[int, typer.Option(min=1, help="Rows per file.")] = 512,
    workers: Annotated[int, typer.Option(min=0, help="Processes that decode images.")] = 2,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    padding_side: Annotated[str, typer.Option(help="left or right.")] = "left",
) -> None:
    """Dump an LMM's features of memes. Stopped and started again, it continues; also under torchrun."""
    from ra_hmd.core.config import choose
    from ra_hmd.data.resolve import describe_source, imported_task, resolve_memes
    from ra_hmd.features.extract_lmm import extract
    from ra_hmd.models.checkpoint import open_backbone, open_run

    choose("--dtype", dtype, ("auto", "float32", "bfloat16", "float16"))
    choose("--padding-side", padding_side, ("left", "right"))
    run = open_backbone(checkpoint, template, base_model) if backbone_only else open_run(checkpoint, base_model)
    labelling = None if task is None else imported_task(data, task)
    settings = run.settings
    memes = resolve_memes(
        data,
        split,
        settings.prompt,
        settings.expected_answers,
        dataset_dir,
        media_dir or run.media_dir,
        task=labelling,
    )
    folder = extract(
        run,
        memes[:limit],
        output,
        split=split,
        source=describe_source(data, split, task),
        label_classes=len(labelling.classes) if labelling is not None and labelling.multi_label else None,
        batch_size=batch_size,
        shard_size=shard_size,
        num_workers=workers,
        dtype=dtype,
        padding_side=padding_side,
    )
    print(f"{folder}: {len(memes[:limit])} memes")


@app.command("import-official")
def import_official_command(
    folder: Annotated[Path, typer.Argument(help="Folder with adapter and classifier.bin.")],
    output: Output,
    base_model: Annotated[str | None, typer.Option(help="The LMM, if it is not where the adapter says.")] = None,
    quantization_bit: Annotated[int | None, typer.Option(help="Load the LMM in 4 or 8 bits.")] = None,
) -> None:
    """Convert a checkpoint of the official RA-HMD code into a Stage 1 run."""
    from ra_hmd.models.convert_official import import_official

    command = shlex.join(["ra-hmd", *sys.argv[1:]])
    for note in import_official(folder, output, base_model, quantization_bit, command)["official"]["assumed"]:
        typer.echo(note, err=True)
    print(output)


@features_app.command("import")
def features_import(
    source: Annotated[Path, typer.Argument(help="Official .pt file (ids, feats, labels).")],
    output: Output,
) -> None:
    """Convert the official code's feature file to a feature store."""
    from ra_hmd.features.legacy import import_pt

    import_pt(source, output)
    print(output)


@features_app.command("export")
def features_export(
    store: Annotated[Path, typer.Argument(help="Feature store.")],
    output: Output,
) -> None:
    """Convert a feature store to the official code's .pt file."""
    from ra_hmd.features.legacy import export_pt

    export_pt(store, output)
    print(output)


@app.command("train-head")
def train_head_command(
    config: Annotated[Path, typer.Argument(help="YAML file.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value …")] = None,
) -> None:
    """Train a head by classification on image and text features (Hate-CLIPper; docs/stage2.md)."""
    from ra_hmd.core.config import load_yaml
    from ra_hmd.training.classification import TrainHeadArguments, train_head

    _tell_notes(train_head(load_yaml(TrainHeadArguments, config, overrides or [])))


@app.command("stage2")
def stage2_command(
    config: Annotated[Path, typer.Argument(help="YAML file.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value …")] = None,
) -> None:
    """Refine a head with retrieval-guided contrast (the same as `python -m stage2`)."""
    from ra_hmd.core.config import load_yaml
    from stage2.arguments import Stage2Arguments
    from stage2.run import run_stage2

    _tell_notes(run_stage2(load_yaml(Stage2Arguments, config, overrides or [])))


def _tell_notes(result: dict[str, Any]) -> None:
    """Print what a reader of a training, or of each of its seeds, must know; each once."""
    for note in dict.fromkeys(note for run in result.get("runs", [result]) for note in run.get("notes", [])):
        typer.echo(note, err=True)


@app.command("demo")
def demo_command(
    output: Output,
    quick: Annotated[bool, typer.Option("--quick", help="Little training: that it works, not how well.")] = False,
) -> None:
    """Run the whole pipeline on drawn memes and a tiny Qwen2-VL: ten to fifteen minutes on two cores."""
    from ra_hmd.experiments.demo import run_demo

    run_demo(output, quick=quick)


@app.command("ablate")
def ablate_command(
    output: Output,
    seeds: Annotated[int, typer.Option(min=1, help="Trainings of each variant, with seeds 42, 43, …")] = 1,
    quick: Annotated[bool, typer.Option("--quick", help="Little training: that it works, not how well.")] = False,
    topk: TopK = 20,
    bootstrap_samples: Annotated[int, typer.Option(min=100, help="Resamples of each interval.")] = 1000,
) -> None:
    """What each stage contributes: five variants under one recipe, on drawn memes and a tiny Qwen2-VL."""
    from ra_hmd.experiments.ablation import run_ablation

    run_ablation(output, seeds=seeds, quick=quick, topk=topk, bootstrap_samples=bootstrap_samples)


if __name__ == "__main__":
    app()
