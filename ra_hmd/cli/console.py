"""`ra-hmd console`: the service with the moderators' page."""

import getpass
from pathlib import Path
from typing import Annotated

import typer

from ra_hmd.cli import options as shared
from ra_hmd.cli import serve_options as o
from ra_hmd.cli.serve import server_settings

console_app = typer.Typer()


@console_app.command("console")
def console_command(
    run: o.Run,
    bank: shared.Bank = None,
    queue: Annotated[Path | None, typer.Option(help="Memes to review: .jsonl, .csv, .parquet, or a folder.")] = None,
    media_dir: Annotated[Path | None, typer.Option(help="Of --queue: where relative image paths start.")] = None,
    reviews: Annotated[Path | None, typer.Option(help="File of decisions; default: BANK.reviews.jsonl.")] = None,
    memes: shared.Memes = None,
    author: Annotated[
        str | None, typer.Option(help="Without --keys: who makes changes; default: the login name.")
    ] = None,
    class_names: Annotated[
        list[str] | None, typer.Option("--class-name", help="What each class is called, in the order of labels.")
    ] = None,
    open_browser: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
    host: o.Host = "127.0.0.1",
    port: o.Port = 8000,
    keys: o.Keys = None,
    allowed_host: o.AllowedHost = None,
    root_path: o.RootPath = "",
    head: o.Head = None,
    thresholds: shared.Thresholds = "stored",
    topk: shared.TopK = 20,
    weights: shared.Weights = "arithmetic",
    min_similarity: shared.MinSimilarity = None,
    prior_correction: shared.Prior = False,
    abstain: o.Abstain = 0.0,
    backbone: shared.Backbone = None,
    base_model: shared.BaseModel = None,
    dtype: shared.DType = None,
    max_batch: o.MaxBatch = 32,
    max_wait_ms: o.MaxWait = 5.0,
    max_queue: o.MaxQueue = 256,
    time_limit: o.TimeLimit = 30.0,
    max_bytes: o.MaxBytes = 32 * 1024 * 1024,
    max_pixels: o.MaxPixels = 4096 * 4096,
    max_images: o.MaxImages = 32,
    max_text: o.MaxText = 4096,
    policy: shared.Policy = None,
    neighbours: shared.Neighbours = 0,
    max_new_tokens: shared.MaxNewTokens = 256,
    reference: o.Reference = None,
) -> None:
    """The moderators' page, in the same app as the API: check a meme, review a queue, correct the bank
    (docs/console.md). Prints its address.
    """
    given = dict(locals())
    for name in ("queue", "media_dir", "reviews", "author", "class_names", "open_browser"):
        del given[name]
    server = server_settings(**given)
    from ra_hmd.console.controller import ConsoleSettings
    from ra_hmd.console.server import serve_console

    console = ConsoleSettings(
        author=author or getpass.getuser(),
        queue=queue,
        media_dir=media_dir,
        reviews=reviews,
        class_names=class_names or [],
    )
    serve_console(server, console, open_browser=open_browser)
