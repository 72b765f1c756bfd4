"""The options of the commands that serve, `ra-hmd serve` and `ra-hmd console`, beside those of all commands."""

from pathlib import Path
from typing import Annotated

import typer

Run = Annotated[Path, typer.Argument(help="Folder with a head: whose verdicts are served.")]
Host = Annotated[str, typer.Option(help="Address to listen at; another than loopback needs --keys.")]
Port = Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")]
Keys = Annotated[Path | None, typer.Option(help="File of keys, made by `ra-hmd serve-key`.")]
AllowedHost = Annotated[list[str] | None, typer.Option(help="A name by which the service is called, as in a proxy.")]
RootPath = Annotated[str, typer.Option(help="Path under which a proxy shows the service, as /memes.")]
Head = Annotated[str | None, typer.Option(help="Who decides: lrc, rkc (needs --bank) or lmh; rkc with a bank.")]
Abstain = Annotated[float, typer.Option(help="Leave memes to a person this near to the threshold's probability.")]
MaxBatch = Annotated[int, typer.Option(help="Most memes of a forward pass.")]
MaxWait = Annotated[float, typer.Option("--max-wait-ms", help="A batch waits so long for more memes.")]
MaxQueue = Annotated[int, typer.Option(help="Most memes accepted and not answered; past it 429.")]
TimeLimit = Annotated[float, typer.Option(help="Seconds for a request.")]
MaxBytes = Annotated[int, typer.Option(help="Of the body of a request.")]
MaxPixels = Annotated[int, typer.Option(help="Of a picture.")]
MaxImages = Annotated[int, typer.Option(help="Memes of a request.")]
MaxText = Annotated[int, typer.Option(help="Characters of a caption.")]
Reference = Annotated[Path | None, typer.Option(help="Feature store, no test split, to show effects of changes on.")]
