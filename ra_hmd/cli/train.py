"""Commands that train a head: `train-head`, `stage2`, `linear-probe`, and `zero-shot`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from ra_hmd.cli.finish import Outcome
from ra_hmd.cli.options import Output, Precision, checked, command_line, print_notes
from ra_hmd.core.choices import DType
from ra_hmd.core.errors import UserError

training_app = typer.Typer()

Config = Annotated[Path, typer.Argument(help="YAML file.")]
Overrides = Annotated[list[str] | None, typer.Argument(help="key=value …")]


@training_app.command("train-head")
def train_head_command(config: Config, overrides: Overrides = None) -> Outcome:
    """Train a head by classification on image and text features (Hate-CLIPper; docs/stage2.md)."""
    from ra_hmd.core.config import load_yaml
    from ra_hmd.training.classification import TrainHeadArguments, train_head

    return _trained(train_head(load_yaml(TrainHeadArguments, config, overrides or [])))


@training_app.command("stage2")
def stage2_command(config: Config, overrides: Overrides = None) -> Outcome:
    """Refine a head with retrieval-guided contrast (the same as `python -m stage2`)."""
    from ra_hmd.core.config import load_yaml
    from stage2.arguments import Stage2Arguments
    from stage2.trainer import run_stage2

    return _trained(run_stage2(load_yaml(Stage2Arguments, config, overrides or [])))


def _trained(result: dict[str, Any]) -> Outcome:
    """Print the notes of a training, or of the trainings with several seeds, each note once."""
    print_notes(dict.fromkeys(note for run in result.get("runs", [result]) for note in run.get("notes", [])))
    return Outcome(result)  # what was trained stands there already, line by line


@training_app.command("linear-probe")
def linear_probe_command(
    train: Annotated[Path, typer.Option(help="Feature store of `ra-hmd encode` to fit.")],
    output: Output,
    dev: Annotated[Path | None, typer.Option(help="Feature store that chooses the penalty, by AUROC.")] = None,
    modality: Annotated[str, typer.Option(help="Features to use: image, text or both.")] = "both",
    c: Annotated[float | None, typer.Option("--c", help="Inverse of the penalty, without --dev; default: 1.")] = None,
    standardise: Annotated[bool, typer.Option("--standardise", help="Standardise features before fitting.")] = False,
    k_shot: Annotated[Path | None, typer.Option(help="Fit the memes of a list only (`ra-hmd data k-shot`).")] = None,
    shots: Annotated[int | None, typer.Option(help="With --k-shot: size of the list.")] = None,
    shot_seed: Annotated[int, typer.Option(help="With --k-shot: number of the list of that size.")] = 0,
) -> Outcome:
    """Fit a logistic regression on an encoder's features and save it as a head."""
    from ra_hmd.training.linear_probe import Modality, ShotSelection, linear_probe

    if (k_shot is None) != (shots is None):
        raise UserError("--k-shot FILE and --shots K belong together; give both or neither.")
    shot_list = None if k_shot is None or shots is None else ShotSelection(k_shot, shots, shot_seed)
    done = linear_probe(
        train,
        output,
        dev=dev,
        modality=checked("--modality", modality, Modality),
        c=c,
        standardise=standardise,
        shot_list=shot_list,
        command=command_line(),
    )
    print_notes(done.notes)
    return Outcome.of(output=output, notes=done.notes)


@training_app.command("zero-shot")
def zero_shot_command(
    encoder: Annotated[str, typer.Option(help="As of `ra-hmd encode`: preset, folder, or name on the hub.")],
    output: Output,
    prompts: Annotated[Path | None, typer.Option(help="YAML file of sentences, also for several classes.")] = None,
    positive: Annotated[list[str] | None, typer.Option(help="Sentence for class 1; several are averaged.")] = None,
    negative: Annotated[list[str] | None, typer.Option(help="Sentence for class 0; several are averaged.")] = None,
    modality: Annotated[str, typer.Option(help="What is compared with them: image, text (caption) or both.")] = "image",
    revision: Annotated[str | None, typer.Option(help="Revision of the model on the hub.")] = None,
    dtype: Precision = "auto",
) -> Outcome:
    """Make an untrained head that compares memes with sentences, for stores of `encode --features projected`."""
    from ra_hmd.models.encoder_files import EncoderSettings
    from ra_hmd.models.encoders import open_two_towers
    from ra_hmd.training.zero_shot import Modality, zero_shot
    from ra_hmd.training.zero_shot_prompts import NEGATIVE, POSITIVE, Prompts

    if prompts is not None and (positive or negative):
        raise UserError("--prompts has all sentences; leave out --positive and --negative.")
    read = Prompts.binary(positive or POSITIVE, negative or NEGATIVE) if prompts is None else Prompts.read(prompts)
    chosen = EncoderSettings(
        path=encoder, revision=revision, features="projected", dtype=checked("--dtype", dtype, DType)
    )
    opened = open_two_towers(chosen, "zero-shot classification")
    made = zero_shot(opened, read, output, modality=checked("--modality", modality, Modality), command=command_line())
    return Outcome.of(output=made)
