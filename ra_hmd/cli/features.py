"""Commands that make models and features: `tiny-lmm`, `tiny-encoder`, `extract`, `encode`, `import-official`, and
`features`.
"""

from pathlib import Path
from typing import Annotated, Literal

import typer

from ra_hmd.cli.finish import Outcome
from ra_hmd.cli.options import (
    GROUP,
    Output,
    Precision,
    SourceOptions,
    checked,
    command_line,
    from_settings,
    print_notes,
)
from ra_hmd.core.errors import UserError
from ra_hmd.core.workers import WorkerSettings
from ra_hmd.inference.options import ExtractionOptions, LmmOptions
from ra_hmd.models.families import FAMILIES

models_app = typer.Typer()
features_app = typer.Typer(help="Feature stores.", **GROUP)

Data = Annotated[str, typer.Option(help="File (.jsonl, ShareGPT .json), folder, or data set name.")]
Split = Annotated[str, typer.Option(help="Name of the split.")]
ShardSize = Annotated[int, typer.Option(min=1, help="Rows per file.")]
DecodingWorkers = Annotated[int, typer.Option(min=0, help="Processes that decode images, beside each worker.")]
Views = Annotated[
    list[str] | None,
    typer.Option(help="Further vector of each meme: NAME=ENCODER, of an LMM also untuned; several times."),
]
FoldCaptions = Annotated[bool, typer.Option(help=LmmOptions.model_fields["fold_captions"].description)]
Seed = Annotated[int, typer.Option(help="Seed of the random weights.")]


@models_app.command("tiny-lmm")
def tiny_lmm_command(
    output: Output,
    family: Annotated[str, typer.Option(help=f"{', '.join(FAMILIES)}.")] = "qwen2_vl",
    seed: Seed = 0,
) -> Outcome:
    """Build a CPU-sized LMM of a family from its config, with tokenizer and processor."""
    from ra_hmd.models.tiny import make_tiny_lmm

    return Outcome.of(output=make_tiny_lmm(family, output, seed=seed))


@models_app.command("tiny-encoder")
def tiny_encoder_command(
    output: Output,
    family: Annotated[
        str, typer.Option(help="clip, altclip, align, siglip, siglip2, or qwen3_vl_embedding: an LMM embedder.")
    ] = "clip",
    seed: Seed = 0,
    train_on: Annotated[
        Path | None, typer.Option(help="Train it on pictures and sentences of `ra-hmd data make-confounders`, minutes.")
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="With --train-on: passes over the pictures.")] = 3,
    batch_size: Annotated[int, typer.Option(min=2, help="With --train-on: pairs at once.")] = 64,
    lr: Annotated[float, typer.Option(help="With --train-on: highest learning rate.")] = 1e-3,
) -> Outcome:
    """Build a CPU-sized image–text encoder with tokenizer and image processor. Its weights are random, or trained."""
    from ra_hmd.models.tiny import EMBEDDER_FAMILY, make_tiny_embedder
    from ra_hmd.models.tiny_clip import EncoderFamily, make_tiny_encoder

    if family == EMBEDDER_FAMILY:
        if train_on is not None:
            raise UserError(f"--train-on {train_on}: an LMM embedder is not trained; give another --family.")
        return Outcome.of(output=make_tiny_embedder(output, seed=seed))
    known = checked("--family", family, EncoderFamily)
    if train_on is None:
        return Outcome.of(output=make_tiny_encoder(known, output, seed=seed))
    from ra_hmd.training.tiny_encoder import PretrainSettings, pretrain

    settings = PretrainSettings(epochs=epochs, batch_size=batch_size, lr=lr, seed=seed)
    return Outcome.of(output=pretrain(known, train_on, output, settings))


@models_app.command("extract")
@from_settings
def extract_command(
    model: ExtractionOptions,
    data: Data,
    output: Output,
    source: SourceOptions,
    split: Split = "train",
    batch_size: Annotated[int, typer.Option(min=1, help="Memes per forward pass.")] = 16,
    shard_size: ShardSize = 512,
    workers: DecodingWorkers = 2,
    padding_side: Annotated[str, typer.Option(help="left or right.")] = "left",
    views: Views = None,
    *,
    engine: WorkerSettings,
) -> Outcome:
    """Extract features of memes by an LMM. An interrupted command continues when started again; also under torchrun,
    or on a Ray cluster.
    """
    from ra_hmd.features.extract_lmm import extract_hidden_states

    run = model.open()
    memes, described = source.read(data, split, run.settings, run.media_dir)
    memes = memes[: source.limit]
    folder = extract_hidden_states(
        run,
        memes,
        output,
        split=split,
        source=described,
        views=views or (),
        label_classes=source.label_classes(data),
        batch_size=batch_size,
        shard_size=shard_size,
        num_workers=workers,
        dtype=model.dtype,
        padding_side=checked("--padding-side", padding_side, Literal["left", "right"]),
        engine=engine,
        backend=model.backend_settings,
    )
    return Outcome.of(f"{folder}: {len(memes)} memes", output=folder, memes=len(memes))


@models_app.command("encode")
@from_settings
def encode_command(
    encoder: Annotated[str, typer.Option(help="Preset (docs/encoders.md), folder, or name on the Hugging Face hub.")],
    data: Data,
    output: Output,
    source: SourceOptions,
    split: Split = "train",
    features: Annotated[str, typer.Option(help="pooled, or projected into the space of both modalities.")] = "pooled",
    long_text: Annotated[str, typer.Option(help="Captions past the model's limit: truncate, or average.")] = "truncate",
    revision: Annotated[str | None, typer.Option(help="Revision of the model on the hub.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Memes per call of the model.")] = 32,
    shard_size: ShardSize = 512,
    workers: DecodingWorkers = 2,
    dtype: Precision = "auto",
    embedder: Annotated[str | None, typer.Option(help="Format of an LMM embedder's input (docs/encoders.md).")] = None,
    instruction: Annotated[str | None, typer.Option(help="System message of an LMM embedder.")] = None,
    max_pixels: Annotated[int | None, typer.Option(min=1, help="Most pixels of an LMM embedder's images.")] = None,
    dimensions: Annotated[int | None, typer.Option(min=1, help="Leading values of its vector that are kept.")] = None,
    views: Views = None,
    fold_captions: FoldCaptions = False,
    *,
    engine: WorkerSettings,
) -> Outcome:
    """Extract features of memes by a frozen encoder: CLIP-like, of image and text, or an LMM embedder, one vector.
    Continues like extract; also under torchrun, or on a Ray cluster.
    """
    from ra_hmd.core.config import load_settings
    from ra_hmd.core.manifests import StoreManifest, read_manifest
    from ra_hmd.features.extract_clip import describe_captions, encode
    from ra_hmd.features.store import STORE_MANIFEST
    from ra_hmd.models.encoder_files import EncoderSettings
    from ra_hmd.models.encoders import open_encoder

    chosen = {"path": encoder, "revision": revision, "features": features, "long_text": long_text, "dtype": dtype}
    of_embedders = {"embedder": embedder, "instruction": instruction, "max_pixels": max_pixels}
    of_embedders |= {"dimensions": dimensions, "fold_captions": fold_captions}
    opened = open_encoder(load_settings(EncoderSettings, chosen | of_embedders, "options"))
    memes, described = source.read(data, split)
    memes = memes[: source.limit]
    folder = encode(
        opened,
        memes,
        output,
        split=split,
        source=described,
        views=views or (),
        label_classes=source.label_classes(data),
        batch_size=batch_size,
        shard_size=shard_size,
        num_workers=workers,
        engine=engine,
    )
    stated = read_manifest(folder / STORE_MANIFEST, StoreManifest)
    if stated.captions is not None and stated.encoder is not None:
        print_notes([note] if (note := describe_captions(stated.captions, stated.encoder)) else [])
    return Outcome.of(f"{folder}: {len(memes)} memes", output=folder, memes=len(memes))


@models_app.command("import-official")
def import_official_command(
    folder: Annotated[Path, typer.Argument(help="Folder with adapter and classifier.bin.")],
    output: Output,
    base_model: Annotated[str | None, typer.Option(help="The LMM, if it is not where the adapter says.")] = None,
    quantization_bit: Annotated[int | None, typer.Option(help="Load the LMM in 4 or 8 bits.")] = None,
) -> Outcome:
    """Convert a checkpoint of the official RA-HMD code into a Stage 1 run."""
    from ra_hmd.models.convert_official import import_official

    done = import_official(folder, output, base_model, _bits(quantization_bit), command_line())
    print_notes(done.assumptions)
    return Outcome.of(output=output, assumptions=done.assumptions)


def _bits(number: int | None) -> Literal[4, 8] | None:
    if number not in (None, 4, 8):
        raise UserError(f"--quantization-bit {number}: give 4 or 8, or leave it out.")
    return number  # type: ignore[return-value] # mypy does not narrow by `in`


@features_app.command("info")
def info_command(
    store: Annotated[Path, typer.Argument(help="Feature store.")],
) -> Outcome:
    """Show what a feature store holds: origin, rows, views and their cost."""
    from rich.markup import escape
    from rich.table import Table

    from ra_hmd.features.store import read_store_manifest

    stated = read_store_manifest(store)
    table = Table(show_header=False)
    shown: dict[str, object] = {
        "data set": stated.dataset,
        "split": stated.split_name,
        "task": stated.task,
        "rows": stated.rows,
    }
    shown |= {"complete": stated.complete, "run": stated.run}
    shown |= {"encoder": stated.encoder and stated.encoder.path, "seconds per meme": stated.seconds}
    for name, view in stated.views.items():
        made = "by the LMM" if view.encoder is None else f"by {view.encoder.path}"
        shown[f"view · {name}"] = f"{view.width} values {made}, {view.seconds} seconds per meme"
    shown |= {f"fingerprint · {key}": value for key, value in stated.fingerprint.items()}
    for key, value in shown.items():
        if value is not None:
            table.add_row(key, escape(str(value)))
    return Outcome(stated.to_json(), [table])


@features_app.command("import")
def import_store_command(
    source: Annotated[Path, typer.Argument(help="Official .pt file (ids, feats, labels).")],
    output: Output,
) -> Outcome:
    """Convert the official code's feature file to a feature store."""
    from ra_hmd.features.legacy import import_pt

    import_pt(source, output)
    return Outcome.of(output=output)


@features_app.command("export")
def export_command(
    store: Annotated[Path, typer.Argument(help="Feature store.")],
    output: Output,
) -> Outcome:
    """Convert a feature store to the official code's .pt file."""
    from ra_hmd.features.legacy import export_pt

    export_pt(store, output)
    return Outcome.of(output=output)
