"""The routes of the desk."""

from fastapi import APIRouter, Depends

from ra_hmd.desk.access_routes import add_access_routes, add_picture_routes
from ra_hmd.desk.bank_routes import add_bank_routes
from ra_hmd.desk.case_routes import add_case_routes
from ra_hmd.desk.check_routes import add_check_routes
from ra_hmd.desk.conflict_routes import add_conflict_routes
from ra_hmd.desk.desk import Desk
from ra_hmd.desk.review_routes import add_review_routes
from ra_hmd.desk.settings_routes import add_settings_routes
from ra_hmd.desk.team_routes import add_team_routes
from ra_hmd.desk.visits import check_same_site


def desk_routes(desk: Desk) -> APIRouter:
    """`/console` and the routes below it."""
    router = APIRouter(prefix="/console", include_in_schema=False, dependencies=[Depends(check_same_site)])
    add_access_routes(router, desk)
    add_review_routes(router, desk)
    add_picture_routes(router, desk)
    add_conflict_routes(router, desk)
    add_bank_routes(router, desk)
    add_case_routes(router, desk)
    add_check_routes(router, desk)
    add_team_routes(router, desk)
    add_settings_routes(router, desk)
    return router
