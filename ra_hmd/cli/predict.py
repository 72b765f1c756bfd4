"""`ra-hmd predict` and `ra-hmd explain`: verdicts on memes, and words for them."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from ra_hmd.cli import options as o

prediction_app = typer.Typer()

Images = Annotated[list[Path] | None, typer.Argument(help="Pictures to judge, and to print what was found.")]
Text = Annotated[list[str] | None, typer.Option(help="Caption of each IMAGE, in order; or it is read.")]
Source = Annotated[
    Path | None, typer.Option("--input", help="Memes: .jsonl, .csv or .parquet file, or folder of pictures.")
]
Abstain = Annotated[
    float | None, typer.Option(help="Leave memes to a person whose probability is this near to the threshold's.")
]
BatchSize = Annotated[int | None, typer.Option(min=1, help="Memes per forward pass; 16 unless set.")]
MediaDir = Annotated[Path | None, typer.Option(help="Of --input: where relative image paths start.")]
Json = Annotated[bool, typer.Option("--json", help="Of IMAGE: a JSON object per line, not a table.")]


@prediction_app.command("predict")
def predict_command(
    checkpoint: Annotated[Path, typer.Option(help="Folder with a head: whose verdict is asked.")],
    images: Images = None,
    text: Text = None,
    source: Source = None,
    queries: Annotated[Path | None, typer.Option(help="Or a feature store; labels are not looked at.")] = None,
    output: Annotated[Path | None, typer.Option("--output", help="With --input, --queries: where to write.")] = None,
    head: Annotated[
        str | None, typer.Option(help="Who decides: lrc, rkc (needs --bank) or lmh; of memes rkc with a bank.")
    ] = None,
    style: Annotated[
        str | None,
        typer.Option("--format", help="jsonl, csv, parquet or hateclipper-csv (id, prob_hate, pred_label)."),
    ] = None,
    bank: o.Bank = None,
    thresholds: o.Thresholds = "stored",
    topk: o.TopK = 20,
    weights: o.Weights = "arithmetic",
    min_similarity: o.MinSimilarity = None,
    prior_correction: o.Prior = False,
    abstain: Abstain = None,
    backbone: o.Backbone = None,
    base_model: o.BaseModel = None,
    batch_size: BatchSize = None,
    dtype: o.DType = None,
    media_dir: MediaDir = None,
    as_json: Json = False,
) -> None:
    """Verdicts on pictures, on a file of memes, or on a feature store, labelled or not (docs/evaluation.md).

    With --input, stopped and started again, it continues; also under torchrun.
    """
    from ra_hmd.inference.request import Request
    from ra_hmd.retrieval.voting import Voting

    request = Request(
        checkpoint, images or [], text or [], source, queries, output, head, style, bank, thresholds,
        Voting(topk, weights, min_similarity, prior_correction), abstain, backbone, base_model, batch_size, dtype,
        media_dir, as_json,
    )  # fmt: skip
    for note in request.answer(shlex.join(["ra-hmd", *sys.argv[1:]])):
        typer.echo(note, err=True)


@prediction_app.command("explain")
def explain_command(
    checkpoint: Annotated[Path, typer.Option(help="Run with a language model: whose verdict is explained.")],
    images: Images = None,
    text: Text = None,
    source: Source = None,
    output: Annotated[Path | None, typer.Option("--output", help="With --input: the .jsonl file to write.")] = None,
    policy: o.Policy = None,
    question: Annotated[Path | None, typer.Option(help="Text file with another question (docs/explain.md).")] = None,
    neighbours: o.Neighbours = 0,
    memes: o.Memes = None,
    engine: Annotated[str, typer.Option(help="auto, transformers or vllm.")] = "auto",
    without_adapter: Annotated[
        bool, typer.Option("--without-adapter", help="Let the base model speak; the verdict stays the run's.")
    ] = False,
    max_new_tokens: o.MaxNewTokens = 256,
    tensor_parallel_size: Annotated[int, typer.Option(min=1, help="GPUs that share the model (vllm).")] = 1,
    head: Annotated[str | None, typer.Option(help="Whose verdict: lrc, rkc (needs --bank) or lmh.")] = None,
    bank: o.Bank = None,
    thresholds: o.Thresholds = "stored",
    topk: o.TopK = 20,
    abstain: Abstain = None,
    backbone: o.Backbone = None,
    base_model: o.BaseModel = None,
    batch_size: BatchSize = None,
    dtype: o.DType = None,
    media_dir: MediaDir = None,
    as_json: Json = False,
) -> None:
    """Verdicts with rationales by the language model. A rationale is generated, and not the verdict's cause.

    With --input, stopped and started again, it continues; also under torchrun.
    """
    from ra_hmd.inference.explainer import read_operator_text
    from ra_hmd.inference.request import Explaining, Request
    from ra_hmd.retrieval.voting import Voting

    explaining = Explaining(
        read_operator_text(policy), read_operator_text(question), neighbours, memes or [], engine, not without_adapter,
        max_new_tokens, tensor_parallel_size,
    )  # fmt: skip
    request = Request(
        checkpoint, images or [], text or [], source, None, output, head, None, bank, thresholds,
        Voting(topk), abstain, backbone, base_model, batch_size, dtype, media_dir, as_json, explaining,
    )  # fmt: skip
    for note in request.answer(shlex.join(["ra-hmd", *sys.argv[1:]])):
        typer.echo(note, err=True)
