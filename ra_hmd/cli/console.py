"""`ra-hmd console`."""

import typer

from ra_hmd.cli.options import from_settings
from ra_hmd.cli.serve import Batching, Detector, Limits, Rationale, Reference, Run
from ra_hmd.console.settings import ConsoleSettings
from ra_hmd.serve.options import AddressOptions, ServerSettings

console_app = typer.Typer()


@console_app.command("console")
@from_settings
def console_command(
    run: Run,
    console: ConsoleSettings,
    address: AddressOptions,
    detector: Detector,
    batching: Batching,
    limits: Limits,
    rationale: Rationale,
    reference: Reference = None,
) -> None:
    """The moderators' page, in the same app as the API: check a meme, review a queue, correct the bank
    (docs/console.md). Prints its address.
    """
    from ra_hmd.console.server import serve_console

    server = ServerSettings(
        run=run,
        detector=detector,
        address=address,
        batching=batching,
        limits=limits,
        rationale=rationale,
        reference=reference,
    )
    serve_console(server, console)
