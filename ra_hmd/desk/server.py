"""Runs a server with the moderators' desk."""

import getpass
import logging
import webbrowser
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ra_hmd.core.errors import UserError
from ra_hmd.desk.settings import ConsoleSettings, beside
from ra_hmd.serve.options import ServerSettings
from ra_hmd.serve.server import serve

if TYPE_CHECKING:
    from fastapi import FastAPI

    from ra_hmd.inference.meme_lookup import MemeLookup
    from ra_hmd.serve.case_service import CaseService

_log = logging.getLogger("ra_hmd.serve")


def serve_console(server: ServerSettings, console: ConsoleSettings) -> None:
    """Serve the API and the desk until a signal ends it, and print the address of the desk.

    Args:
        server: Settings of the server, with a case database.
        console: Settings of the desk.

    Raises:
        UserError: Something is not installed, missing, or does not fit.
    """
    from ra_hmd.serve.middleware import CONSOLE

    def announce(address: str) -> None:
        print(f"{address}{CONSOLE}", flush=True)
        if console.open_browser:
            webbrowser.open(f"{address}{CONSOLE}")

    reviews = console.reviews or beside(server.run, server.detector.bank, ".reviews.jsonl")
    if console.reviews is not None and not reviews.is_file():
        raise UserError(
            f"--reviews {reviews} does not exist. It names decisions of an earlier version; new ones are kept in "
            f"{server.cases.cases} (--cases). Leave it out."
        )
    serve(server, partial(_mount, console, reviews), announce)


def _mount(settings: ConsoleSettings, reviews: Path, app: "FastAPI", lookup: "MemeLookup") -> "FastAPI":
    from ra_hmd.desk.class_names import ClassNames
    from ra_hmd.desk.desk import Desk
    from ra_hmd.desk.mount import mount
    from ra_hmd.desk.sessions import Sessions
    from ra_hmd.serve.context import AppContext

    context: AppContext = app.state.context
    cases = context.cases
    assert cases is not None, "the console has a case database"
    names = ClassNames(context.service.detector.problem, settings.class_names)
    sessions = Sessions(cases.store.database, context.keys, settings.author or getpass.getuser())
    _feed(cases, settings, reviews)
    return mount(app, Desk(cases, names, sessions, lookup, context.explainer, context.limits))


def _feed(cases: "CaseService", settings: ConsoleSettings, reviews: Path) -> None:
    """Let the cases be fed from the file of memes, from the start of the service to its end."""
    from ra_hmd.bank_review.suggestion_files import read_suggestions
    from ra_hmd.serve.old_reviews import decided_before
    from ra_hmd.serve.queue_file import QueueFile

    order = None if settings.suggestions is None else read_suggestions(settings.suggestions)
    if settings.queue is None:
        return
    decided = decided_before(reviews) if reviews.is_file() else {}
    if decided:
        _log.warning("%s: people decided on %d memes before; these are not asked again", reviews, len(decided))
    cases.background.append(QueueFile(cases, settings.queue, settings.media_dir, order, decided))
