"""Errors of the desk as pages, for people who follow a link or send a form; their script gets problem documents."""

import json
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from ra_hmd.desk.desk import Desk
from ra_hmd.desk.pages import Viewer, render
from ra_hmd.desk.sessions import COOKIE
from ra_hmd.desk.visits import FRAGMENT
from ra_hmd.serve.middleware import CONSOLE, path_of

_SENTENCES = {
    "inference_failed": "The model or the bank failed; whoever runs the service finds in its log where.",
    "not_found": "There is no such page, or what it shows is gone.",
    "queue_full": "The model has no time now; try again in a moment.",
    "shutting_down": "The service is being ended; try again in a moment.",
    "too_large": "What was sent is too large; send a smaller picture.",
}
"""Sentences for people, by the code of the problem, in place of those for programs."""


def show_errors(app: FastAPI, desk: Desk) -> None:
    """Let the error handlers of an app answer with a page where a browser asks for one of the desk."""
    for kind, handler in list(app.exception_handlers.items()):
        app.exception_handlers[kind] = _with_page(handler, desk)


def _with_page(handler: Any, desk: Desk) -> Callable[[Request, Exception], Response]:
    def respond(request: Request, error: Exception) -> Response:
        answer: JSONResponse = handler(request, error)
        asked = "text/html" in request.headers.get("accept", "") and not request.headers.get(FRAGMENT)
        inside = f"{path_of(request.scope)}/".startswith(f"{CONSOLE}/")
        if not (asked and inside) or answer.status_code < 400:
            return answer
        user = desk.sessions.user(request.cookies.get(COOKIE, ""))
        viewer, body = Viewer.of(request, desk, user), json.loads(bytes(answer.body))
        problem = viewer.text(_SENTENCES.get(body["code"], body["detail"]))
        page = render(request, desk, viewer, "failed.html", answer.status_code, problem=problem)
        if "retry-after" in answer.headers:
            page.headers["Retry-After"] = answer.headers["retry-after"]
        return page

    return respond
