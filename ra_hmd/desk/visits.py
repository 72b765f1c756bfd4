"""A request for a page of the desk: who sent it, and how that person wants to see pages."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from anyio.to_thread import run_sync
from fastapi import HTTPException, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from ra_hmd.desk.desk import Desk
from ra_hmd.desk.pages import Viewer, render
from ra_hmd.desk.people import User
from ra_hmd.desk.sessions import COOKIE

FRAGMENT = "x-desk-fragment"
"""Header of requests that the pages' script makes: the answer is the part of the page that changes."""
_MISSING = {"cases": ("Not found", "All cases"), "bank": ("The example bank", "All rows")}
"""Path of a list to the heading of a page of which something is missing, and the link to the list."""


def root(request: Request) -> str:
    """Path of the desk, as the browser sees it."""
    return request.scope.get("root_path", "").rstrip("/") + "/console"


def check_same_site(request: Request) -> None:
    """Refuse requests that another site's page makes in the name of whoever is logged in."""
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
    if site in ("same-origin", "none"):  # no script can set this header
        return
    followed = request.method == "GET" and request.headers.get("sec-fetch-mode") == "navigate"
    other = origin is not None and urlsplit(origin).netloc.lower() != request.headers.get("host", "").lower()
    if (site is not None and not followed) or other:
        raise HTTPException(403, "Another site asked this; only the desk's own pages may.")


@dataclass(frozen=True)
class Visit:
    """A request of somebody who is logged in."""

    request: Request
    desk: Desk
    user: User
    viewer: Viewer

    def page(self, name: str, status: int = 200, **values: Any) -> HTMLResponse:
        """Render a template for this person."""
        return render(self.request, self.desk, self.viewer, name, status, **values)

    def missing(self, error: Exception, place: str = "cases") -> HTMLResponse:
        """The page that says why there is nothing to show, with a link to a list that is there."""
        title, link = _MISSING[place]
        problem = self.viewer.text(str(error))
        return self.page("missing.html", 404, title=title, problem=problem, back=place, link=link)

    @property
    def fragment(self) -> bool:
        """Whether a part of a page is asked for."""
        return bool(self.request.headers.get(FRAGMENT))

    def redirect(self, path: str) -> Response:
        """Send the browser to another page of the desk, with the query of this one."""
        query = f"?{self.request.url.query}" if self.request.url.query else ""
        return RedirectResponse(root(self.request) + path + query, 303)

    def go(self, path: str, query: Mapping[str, str] | None = None) -> Response:
        """Send the browser to another page of the desk."""
        return RedirectResponse(root(self.request) + quote(path) + (f"?{urlencode(query)}" if query else ""), 303)

    async def form(self) -> dict[str, list[str]]:
        """The text fields of the form that was sent."""
        sent = await self.request.form(max_fields=200, max_files=1)
        return {name: [value for value in sent.getlist(name) if isinstance(value, str)] for name in sent}


def first(form: Mapping[str, list[str]], name: str) -> str:
    """The first value of a form's field without blanks around it; empty where there is none."""
    return form[name][0].strip() if form.get(name) else ""


def visits(desk: Desk) -> Callable[[Request], Any]:
    """The dependency of routes that need somebody who is logged in; others are sent to the log-in."""

    async def visit(request: Request) -> Visit:
        user = await run_sync(desk.sessions.user, request.cookies.get(COOKIE, ""))
        if user is None and request.headers.get(FRAGMENT):
            raise HTTPException(401, "The session has ended; load the page again.")
        if user is None:
            raise HTTPException(303, "Log in first.", {"Location": root(request) + "/login"})
        return Visit(request, desk, user, await run_sync(Viewer.of, request, desk, user))

    return visit
