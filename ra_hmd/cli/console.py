"""`ra-hmd console`: the service with the moderators' page."""

import getpass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ra_hmd.cli import options as shared
from ra_hmd.cli import serve_options as o

if TYPE_CHECKING:
    from fastapi import FastAPI

    from ra_hmd.console.controller import ConsoleSettings

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
    own = {name: given.pop(name) for name in ("queue", "media_dir", "reviews", "author", "class_names", "open_browser")}
    serve_console(given, own)


def serve_console(serving: dict[str, Any], own: dict[str, Any]) -> None:
    """Serve API and page until a signal ends it.

    Args:
        serving: Options of `ra-hmd serve`, by name.
        own: Those of the page alone.

    Raises:
        UserError: something is not installed, missing, or does not go together.
    """
    from ra_hmd.cli.serve import served

    asked = served(**serving)
    check_gradio()
    from ra_hmd.console.controller import ConsoleSettings
    from ra_hmd.serve.middleware import CONSOLE
    from ra_hmd.serve.server import serve

    options = ConsoleSettings(
        author=own["author"] or getpass.getuser(),
        queue=own["queue"],
        media_dir=own["media_dir"],
        reviews=own["reviews"],
        class_names=own["class_names"] or [],
    )

    def announce(address: str) -> None:
        print(f"{address}{CONSOLE}", flush=True)
        if own["open_browser"]:
            typer.launch(f"{address}{CONSOLE}")

    serve(asked, partial(_mounted, options), announce)


def _mounted(options: "ConsoleSettings", app: "FastAPI", *parts: Any) -> "FastAPI":
    from ra_hmd.console.controller import Console
    from ra_hmd.console.mount import mount

    return mount(app, Console(*parts, options=options))


def check_gradio() -> None:
    """Raise `UserError` unless Gradio is there, in a version that the page was made for."""
    from importlib.metadata import PackageNotFoundError, version

    from ra_hmd.core.errors import UserError

    try:
        found = version("gradio")
    except PackageNotFoundError:
        found = "none"
    if found.split(".")[0] != "5":
        raise UserError(f"The console needs Gradio 5, {found} is installed: pip install 'gradio>=5.40,<6'.")
