"""Rendering of the pages: templates, languages and the settings of the person who looks."""

import hashlib
import json
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from fastapi import Request
from fastapi.responses import HTMLResponse, Response
from jinja2 import Environment

from ra_hmd.core.templates import template_environment
from ra_hmd.desk.desk import REASONS, Desk
from ra_hmd.desk.people import User
from ra_hmd.desk.preferences import Preferences, read_preferences
from ra_hmd.desk.texts import LANGUAGES, Texts, preferred_language
from ra_hmd.serve.errors import public_source

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
STATIC = {
    "desk.css": "text/css",
    "desk.js": "text/javascript",
    "figures.css": "text/css",
    "lists.css": "text/css",
    "lists.js": "text/javascript",
}


@cache
def _environment() -> Environment:
    environment = template_environment("ra_hmd.desk")
    environment.filters["percent"] = lambda value: f"{100 * value:.0f}"
    environment.filters["public"] = public_source
    environment.filters["minute"] = lambda time: time.strftime("%Y-%m-%d %H:%M")
    environment.filters["json"] = lambda value: json.dumps(value, ensure_ascii=False, sort_keys=True)
    return environment


@cache
def static_file(name: str) -> bytes:
    """A file of the pages. Raises `KeyError` for names that are none."""
    return (resources.files("ra_hmd.desk") / "static" / name).read_bytes() if STATIC[name] else b""


@cache
def _version() -> str:
    return hashlib.sha256(b"".join(map(static_file, sorted(STATIC)))).hexdigest()[:12]


@dataclass(frozen=True)
class Viewer:
    """Who looks at a page, and how.

    Attributes:
        user: The person; None before the log-in.
        preferences: Settings of the person.
        text: Sentences of the person's language.
    """

    user: User | None
    preferences: Preferences
    text: Texts

    @classmethod
    def of(cls, request: Request, desk: Desk, user: User | None) -> "Viewer":
        """The viewer of a request."""
        preferences = Preferences() if user is None else read_preferences(desk.cases.store.database, user.name)
        language = preferences.language or preferred_language(request.headers.get("accept-language", ""))
        return cls(user, preferences, Texts(language))


def render(request: Request, desk: Desk, viewer: Viewer, name: str, status: int = 200, **values: Any) -> HTMLResponse:
    """Render a page, or, with a template whose name begins with `_` a part of one."""
    content = (
        _environment()
        .get_template(name)
        .render(
            _=viewer.text,
            viewer=viewer,
            user=viewer.user,
            preferences=viewer.preferences,
            languages=LANGUAGES,
            locked=desk.sessions.locked,
            reasons=REASONS,
            root=request.scope.get("root_path", "").rstrip("/") + "/console",
            here=request.scope["path"].partition("/console")[2].strip("/").partition("/")[0],
            static=_version(),
            **values,
        )
    )
    headers = {"Content-Security-Policy": POLICY, "Cache-Control": "no-store", "Referrer-Policy": "same-origin"}
    return HTMLResponse(content, status, headers)


def static_response(name: str) -> Response:
    """A file of the pages, which browsers may keep: its address changes with its content."""
    headers = {"Cache-Control": "public, max-age=31536000, immutable"}
    return Response(static_file(name), media_type=STATIC[name], headers=headers)
