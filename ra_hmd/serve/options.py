"""The options of the commands that serve: `ra-hmd serve` and `ra-hmd console`."""

from pathlib import Path
from typing import Annotated

import typer

Run = Annotated[Path, typer.Argument(help="Folder with a head: whose verdicts are served.")]
Bank = Annotated[str | None, typer.Option(help="Labelled examples: an example bank (folder or URI), or a store.")]
Host = Annotated[str, typer.Option(help="Address to listen at; another than loopback needs --keys.")]
Port = Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")]
Keys = Annotated[Path | None, typer.Option(help="File of keys, made by `ra-hmd serve-key`.")]
AllowedHost = Annotated[list[str] | None, typer.Option(help="A name by which the service is called, as in a proxy.")]
Head = Annotated[str | None, typer.Option(help="Who decides: lrc, rkc (needs --bank) or lmh; rkc with a bank.")]
Thresholds = Annotated[str, typer.Option(help="stored (beside the head, if there) or official.")]
TopK = Annotated[int, typer.Option(min=1, help="K, neighbours that vote.")]
Weights = Annotated[str, typer.Option(help="Vote weights: arithmetic, mean or similarity.")]
MinSimilarity = Annotated[float | None, typer.Option(help="Abstain without a neighbour as similar as this.")]
Prior = Annotated[bool, typer.Option("--prior-correction", help="Let the bank's classes weigh the same.")]
Abstain = Annotated[float, typer.Option(help="Leave memes to a person this near to the threshold's probability.")]
Backbone = Annotated[str | None, typer.Option(help="Stage 1 run or encoder, if not where the head says.")]
BaseModel = Annotated[str | None, typer.Option(help="Where the base model lies now.")]
Dtype = Annotated[str | None, typer.Option(help="auto, float32, bfloat16 or float16.")]
MaxBatch = Annotated[int, typer.Option(help="Most memes of a forward pass.")]
MaxWait = Annotated[float, typer.Option("--max-wait-ms", help="A batch waits so long for more memes.")]
MaxQueue = Annotated[int, typer.Option(help="Most memes accepted and not answered; past it 429.")]
TimeLimit = Annotated[float, typer.Option(help="Seconds for a request.")]
MaxBytes = Annotated[int, typer.Option(help="Of the body of a request.")]
MaxPixels = Annotated[int, typer.Option(help="Of a picture.")]
MaxImages = Annotated[int, typer.Option(help="Memes of a request.")]
MaxText = Annotated[int, typer.Option(help="Characters of a caption.")]
Policy = Annotated[Path | None, typer.Option(help="Text file with your rules, for rationales (docs/explain.md).")]
Neighbours = Annotated[int, typer.Option(min=0, help="So many of the nearest examples are in a rationale's question.")]
Memes = Annotated[list[Path] | None, typer.Option(help="Data of the bank's memes, for captions and pictures.")]
MaxNewTokens = Annotated[int, typer.Option(min=1, help="Longest rationale, in tokens.")]
Reference = Annotated[Path | None, typer.Option(help="Feature store, no test split, to show effects of changes on.")]
