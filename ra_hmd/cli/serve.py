"""`ra-hmd serve` and `ra-hmd serve-key`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from ra_hmd.cli import options as shared
from ra_hmd.cli import serve_options as o

serve_app = typer.Typer()


@serve_app.command("serve")
def serve_command(
    run: o.Run,
    bank: shared.Bank = None,
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
    memes: shared.Memes = None,
    max_new_tokens: shared.MaxNewTokens = 256,
    reference: o.Reference = None,
) -> None:
    """Answer over HTTP: verdicts, rationales, and changes of the example bank (docs/api.md).

    Logs go to stderr, a JSON line per request without pictures or captions. SIGTERM ends it when all that was accepted
    is answered.
    """
    from ra_hmd.serve.server import serve

    serve(server_settings(**{name: value for name, value in locals().items() if name != "serve"}))


def server_settings(
    *,
    topk: int,
    weights: str,
    min_similarity: float | None,
    prior_correction: bool,
    max_batch: int,
    max_wait_ms: float,
    max_queue: int,
    time_limit: float,
    max_bytes: int,
    max_pixels: int,
    max_images: int,
    max_text: int,
    allowed_host: list[str] | None,
    memes: list[Path] | None,
    **others: Any,
) -> Any:
    """Build the settings of a server from the options of a command."""
    from ra_hmd.retrieval.voting import Voting
    from ra_hmd.serve.limits import BatchingSettings, RequestLimits
    from ra_hmd.serve.server import ServerSettings

    return ServerSettings(
        voting=Voting(topk, weights, min_similarity, prior_correction),  # type: ignore[arg-type]
        batching=BatchingSettings(max_batch=max_batch, max_wait_ms=max_wait_ms, max_queue=max_queue),
        limits=RequestLimits(
            max_bytes=max_bytes,
            max_images=max_images,
            max_pixels=max_pixels,
            max_text=max_text,
            time_limit=time_limit,
        ),
        allowed_hosts=allowed_host or [],
        memes=memes or [],
        **others,
    )


@serve_app.command("serve-key")
def serve_key_command(
    name: Annotated[str, typer.Argument(help="Whose key it is: the author of the changes made with it.")],
    keys: Annotated[Path, typer.Option(help="File of keys; made if it is missing.")],
    role: Annotated[str, typer.Option(help="reader (asks) or moderator (also changes the bank).")] = "reader",
    remove: Annotated[bool, typer.Option("--remove", help="Take this name's key out instead.")] = False,
) -> None:
    """Make a key for the API and the console. It is shown this once; the file keeps its hash. A running service knows
    the keys that were there when it was started.
    """
    from ra_hmd.serve.auth import make_key, remove_key

    if remove:
        remove_key(keys, name)
        typer.echo(f"{keys} has no key of {name} any more; start the service anew.", err=True)
        return
    print(make_key(keys, name, role))
    typer.echo(f"The key of {name} ({role}), shown this once: keep it. {keys} has its hash.", err=True)
