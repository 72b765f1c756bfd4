"""Adds the desk to an app of the API."""

from fastapi import FastAPI

from ra_hmd.desk.desk import Desk
from ra_hmd.desk.error_pages import show_errors
from ra_hmd.desk.routes import desk_routes


def mount(app: FastAPI, desk: Desk) -> FastAPI:
    """Add the pages of the desk to an app of `create_app`, which has the same cases, before it is served."""
    app.include_router(desk_routes(desk))
    show_errors(app, desk)
    app.state.desk = desk
    return app
