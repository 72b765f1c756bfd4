"""Runs a server with the moderators' page."""

import webbrowser
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from ra_hmd.console.settings import ConsoleSettings
from ra_hmd.core.errors import UserError
from ra_hmd.serve.options import ServerSettings
from ra_hmd.serve.server import check_installed, serve

if TYPE_CHECKING:
    from fastapi import FastAPI

    from ra_hmd.inference.meme_lookup import MemeLookup
    from ra_hmd.serve.context import AppContext


def serve_console(server: ServerSettings, console: ConsoleSettings) -> None:
    """Serve the API and the page until a signal ends it, and print the address of the page.

    Args:
        server: Settings of the server.
        console: Settings of the page.

    Raises:
        UserError: something is not installed, missing, or does not fit.
    """
    check_installed()
    check_gradio()
    from ra_hmd.serve.middleware import CONSOLE

    def announce(address: str) -> None:
        print(f"{address}{CONSOLE}", flush=True)
        if console.open_browser:
            webbrowser.open(f"{address}{CONSOLE}")

    serve(server, partial(_mount, console), announce)


def _mount(settings: ConsoleSettings, app: "FastAPI", lookup: "MemeLookup") -> "FastAPI":
    from ra_hmd.console.controller import Console
    from ra_hmd.console.mount import mount

    context: AppContext = app.state.context
    console = Console(
        context.service, context.bank_service, context.explainer, context.keys, context.limits, lookup, settings
    )
    return mount(app, console)


def check_gradio() -> None:
    """Raise `UserError` unless Gradio is installed in the version that the page was made for."""
    try:
        installed = version("gradio")
    except PackageNotFoundError:
        installed = "none"
    if installed.split(".")[0] != "5":
        raise UserError(f"The console needs Gradio 5, {installed} is installed: pip install 'gradio>=5.40,<6'.")
