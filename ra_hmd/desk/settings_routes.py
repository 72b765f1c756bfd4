"""Routes of the settings page: what a person sets for their own eyes and hands."""

from functools import partial
from typing import Annotated, Any

from anyio.to_thread import run_sync
from fastapi import APIRouter, Depends
from fastapi.responses import Response

from ra_hmd.core.errors import UserError
from ra_hmd.desk.desk import Desk
from ra_hmd.desk.preferences import KEYS, KeyClash, Preferences, check_keys, write_preferences
from ra_hmd.desk.texts import LANGUAGES, Texts
from ra_hmd.desk.visits import Visit, visits

ACTIONS = {
    "show": "Show and blur the picture",
    "near": "Show and blur the similar memes",
    "escalate": "To a colleague",
    "skip": "Skip for me",
    "next": "Another one",
    "undo": "Take the last decision back",
    "note": "Write a note, then keep it",
    "effect": "Open the effect of a correction",
}
"""Action to its name on the page."""
SIZES = {"small": "Small until asked for", "large": "Large"}
THEMES = {"system": "As the system has it", "light": "Light", "dark": "Dark"}
_RESET = "reset"


def add_settings_routes(router: APIRouter, desk: Desk) -> None:
    """Add the settings page."""
    visit = visits(desk)
    Visited = Annotated[Visit, Depends(visit)]

    def show(visit: Visit, values: dict[str, Any], said: str = "", problem: str = "") -> Response:
        return visit.page("settings.html", 422 if problem else 200, values=values, said=said, problem=problem,
                          actions=ACTIONS, sizes=SIZES, themes=THEMES)  # fmt: skip

    @router.get("/settings")
    async def settings(visit: Visited, saved: str = "") -> Response:
        preferences = visit.viewer.preferences
        return show(visit, preferences.model_dump() | {"keys": preferences.bindings}, said="Saved." if saved else "")

    @router.post("/settings")
    async def save(visit: Visited) -> Response:
        form = {name: values[-1].strip() for name, values in (await visit.form()).items() if values}
        values = {} if _RESET in form else _values(form)
        try:
            preferences = _preferences(values, visit.viewer.text)
        except UserError as error:
            return show(visit, values, problem=str(error))
        database = desk.cases.store.database
        await run_sync(partial(write_preferences, database, visit.user.name, preferences))
        return visit.redirect("/settings?saved=yes")


def _values(form: dict[str, str]) -> dict[str, Any]:
    """The settings of a form, not checked yet; what is missing has its default."""
    default = Preferences().model_dump()
    values = {name: form.get(name, kept) for name, kept in default.items() if name not in ("grey", "keys")}
    keys = {action: form.get(f"key-{action}") or key for action, key in KEYS.items()}
    return values | {"grey": "grey" in form, "keys": keys}


def _preferences(values: dict[str, Any], text: Texts) -> Preferences:
    """The settings. Raises `UserError` for values out of range and for keys that cannot be, or that clash."""
    if not values:
        return Preferences()
    try:
        keys = check_keys(values["keys"])
    except KeyClash as clash:
        first, second = text(ACTIONS[clash.first]), text(ACTIONS[clash.second])
        sentence = "The key {key} has two actions: “{first}” and “{second}”. Give one of them another key."
        raise UserError(text(sentence, key=clash.key.upper(), first=first, second=second)) from None
    language = values["language"] if values["language"] in LANGUAGES else ""
    return Preferences(**values | {"keys": keys, "language": language})
