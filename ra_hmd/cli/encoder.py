"""The commands of the encoders: features, and the two baselines that train nothing or one layer."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from ra_hmd.cli.options import Output
from ra_hmd.core.errors import UserError

encoder_app = typer.Typer()


@encoder_app.command("tiny-encoder")
def tiny_encoder(
    output: Output,
    family: Annotated[str, typer.Option(help="clip, altclip, align, siglip or siglip2.")] = "clip",
    seed: Annotated[int, typer.Option(help="Of the random weights.")] = 0,
) -> None:
    """Build a CPU-sized image–text encoder from its config, with tokenizer and image processor."""
    from ra_hmd.models.tiny_clip import make_tiny_encoder

    print(make_tiny_encoder(family, output, seed=seed))


@encoder_app.command("encode")
def encode_command(
    encoder: Annotated[str, typer.Option(help="Preset (docs/encoders.md), folder, or name on the Hugging Face hub.")],
    data: Annotated[str, typer.Option(help="File (.jsonl, ShareGPT .json), folder, or data set name.")],
    output: Output,
    split: Annotated[str, typer.Option(help="Name of the split.")] = "train",
    features: Annotated[str, typer.Option(help="pooled, or projected into the space of both modalities.")] = "pooled",
    long_text: Annotated[str, typer.Option(help="Captions past the model's limit: truncate, or average.")] = "truncate",
    revision: Annotated[str | None, typer.Option(help="Of the model on the hub.")] = None,
    task: Annotated[str | None, typer.Option(help="Imported folder: the task whose labels to keep.")] = None,
    dataset_dir: Annotated[Path, typer.Option(help="Folder of dataset_info.json.")] = Path("data"),
    media_dir: Annotated[Path | None, typer.Option(help="Where relative image paths start.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many memes.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Memes per call of the model.")] = 32,
    shard_size: Annotated[int, typer.Option(min=1, help="Rows per file.")] = 512,
    workers: Annotated[int, typer.Option(min=0, help="Processes that decode images.")] = 2,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
) -> None:
    """Image and text features of memes by a frozen CLIP-like encoder. Continues like extract; also under torchrun."""
    from ra_hmd.core.manifests import StoreManifest, read_manifest
    from ra_hmd.data.prompt import Answers, PromptTemplate
    from ra_hmd.data.resolve import describe_source, imported_task, resolve_memes
    from ra_hmd.features.extract_clip import describe_captions, encode
    from ra_hmd.features.store import STORE_MANIFEST
    from ra_hmd.models.clip_encoder import Encoder, EncoderSettings

    opened = Encoder(
        EncoderSettings(path=encoder, revision=revision, features=features, long_text=long_text, dtype=dtype)
    )
    labelling = None if task is None else imported_task(data, task)
    memes = resolve_memes(data, split, PromptTemplate(), Answers(), dataset_dir, media_dir, task=labelling)[:limit]
    folder = encode(
        opened,
        memes,
        output,
        split=split,
        source=describe_source(data, split, task),
        label_classes=len(labelling.classes) if labelling is not None and labelling.multi_label else None,
        batch_size=batch_size,
        shard_size=shard_size,
        num_workers=workers,
    )
    print(f"{folder}: {len(memes)} memes")
    captions = read_manifest(folder / STORE_MANIFEST, StoreManifest).captions
    note = "" if captions is None else describe_captions(captions, long_text)
    if note:
        typer.echo(note, err=True)


@encoder_app.command("zero-shot")
def zero_shot_command(
    encoder: Annotated[str, typer.Option(help="As of `ra-hmd encode`: preset, folder, or name on the hub.")],
    output: Output,
    prompts: Annotated[Path | None, typer.Option(help="YAML file of sentences, also for several classes.")] = None,
    positive: Annotated[list[str] | None, typer.Option(help="Sentence for class 1; several are averaged.")] = None,
    negative: Annotated[list[str] | None, typer.Option(help="Sentence for class 0; several are averaged.")] = None,
    modality: Annotated[str, typer.Option(help="What is compared with them: image, text (caption) or both.")] = "image",
    revision: Annotated[str | None, typer.Option(help="Of the model on the hub.")] = None,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
) -> None:
    """A head that compares memes with sentences, untrained, for stores of `encode --features projected`."""
    from ra_hmd.models.clip_encoder import Encoder, EncoderSettings
    from ra_hmd.training.zero_shot import zero_shot
    from ra_hmd.training.zero_shot_prompts import NEGATIVE, POSITIVE, Prompts

    if prompts is not None and (positive or negative):
        raise UserError("--prompts has all sentences; leave out --positive and --negative.")
    read = Prompts.binary(positive or POSITIVE, negative or NEGATIVE) if prompts is None else Prompts.read(prompts)
    opened = Encoder(EncoderSettings(path=encoder, revision=revision, features="projected", dtype=dtype))
    print(zero_shot(opened, read, output, modality=modality, command=shlex.join(["ra-hmd", *sys.argv[1:]])))


@encoder_app.command("linear-probe")
def linear_probe_command(
    train: Annotated[Path, typer.Option(help="Feature store of `ra-hmd encode`, to be fitted.")],
    output: Output,
    dev: Annotated[Path | None, typer.Option(help="Feature store that chooses the penalty, by AUROC.")] = None,
    modality: Annotated[str, typer.Option(help="Features that are used: image, text or both.")] = "both",
    c: Annotated[float | None, typer.Option("--c", help="Inverse of the penalty, without --dev; 1 unless set.")] = None,
    standardise: Annotated[
        bool, typer.Option("--standardise", help="Penalise features as if all varied alike.")
    ] = False,
    k_shot: Annotated[Path | None, typer.Option(help="Fit the memes of a list only (`ra-hmd data k-shot`).")] = None,
    shots: Annotated[int | None, typer.Option(help="With --k-shot: which size of list.")] = None,
    shot_seed: Annotated[int, typer.Option(help="With --k-shot: which list of that size.")] = 0,
) -> None:
    """Logistic regression on an encoder's features, saved as a head."""
    from ra_hmd.training.linear_probe import ShotList, linear_probe

    if (k_shot is None) != (shots is None):
        raise UserError("--k-shot FILE and --shots K belong together; give both or neither.")
    shot_list = None if k_shot is None or shots is None else ShotList(k_shot, shots, shot_seed)
    made = linear_probe(
        train,
        output,
        dev=dev,
        modality=modality,
        c=c,
        standardise=standardise,
        shot_list=shot_list,
        command=shlex.join(["ra-hmd", *sys.argv[1:]]),
    )
    for note in made["notes"]:
        typer.echo(note, err=True)
    print(output)
