"""Routes of the desk that need no case: log-in, files of the pages, pictures."""

from collections.abc import Callable
from functools import partial
from typing import Annotated

from anyio.to_thread import run_sync
from fastapi import APIRouter, Depends, Form, HTTPException, Query, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from ra_hmd.cases.steps import NoSuchCase
from ra_hmd.core.errors import UserError
from ra_hmd.desk.desk import Desk
from ra_hmd.desk.pages import STATIC, Viewer, render, static_response
from ra_hmd.desk.pictures import SIDES, jpeg
from ra_hmd.desk.sessions import COOKIE, HOURS
from ra_hmd.desk.visits import root, visits


def add_access_routes(router: APIRouter, desk: Desk) -> None:
    """Add the start page, the log-in and the files of the pages."""

    @router.get("")
    async def start(request: Request) -> Response:
        return RedirectResponse(root(request) + "/review", 303)

    @router.get("/static/{name}")
    async def static(name: str) -> Response:
        if name not in STATIC:
            raise HTTPException(404, "There is no such file.")
        return static_response(name)

    @router.get("/login")
    async def login_page(request: Request) -> HTMLResponse:
        return render(request, desk, Viewer.of(request, desk, None), "login.html", problem="")

    @router.post("/login")
    async def log_in(request: Request, name: str = Form(""), key: str = Form("")) -> Response:
        try:
            token = await run_sync(desk.sessions.log_in, name, key)
        except UserError as error:
            return render(request, desk, Viewer.of(request, desk, None), "login.html", 403, problem=str(error))
        answer = RedirectResponse(root(request) + "/review", 303)
        secure = request.url.scheme == "https"
        answer.set_cookie(
            COOKIE, token, HOURS * 3600, path=root(request), secure=secure, httponly=True, samesite="strict"
        )
        return answer

    @router.post("/logout")
    async def log_out(request: Request) -> Response:
        await run_sync(desk.sessions.log_out, request.cookies.get(COOKIE, ""))
        answer = RedirectResponse(root(request) + "/login", 303)
        answer.delete_cookie(COOKIE, path=root(request))
        return answer


def add_picture_routes(router: APIRouter, desk: Desk) -> None:
    """Add the pictures of cases and of the bank's memes."""
    visit = visits(desk)

    async def send(call: Callable[[], bytes | None]) -> Response:
        content = await run_sync(call)
        if content is None:
            raise HTTPException(404, "The picture cannot be read.")
        return Response(content, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=3600"})

    @router.get("/cases/{case_id}/picture", dependencies=[Depends(visit)])
    async def case_picture(case_id: str, size: str = "small") -> Response:
        try:
            case = await run_sync(desk.cases.store.get, case_id)
        except NoSuchCase as error:
            raise HTTPException(404, str(error)) from None
        return await send(partial(jpeg, case.picture, size if size in SIDES else "small"))

    @router.get("/bank/picture", dependencies=[Depends(visit)])
    async def row_picture(name: Annotated[str, Query(alias="id")] = "") -> Response:
        meme = await run_sync(desk.row_meme, name)
        if meme is None:
            raise HTTPException(404, "There is no picture of this row.")
        return await send(partial(jpeg, meme.image, "thumbnail"))
