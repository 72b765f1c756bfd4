"""What a person sets for their own eyes and hands; kept in the database of the cases."""

from typing import Literal

from pydantic import Field

from ra_hmd.cases.database import Database
from ra_hmd.cases.tables import Person
from ra_hmd.core.config import Settings
from ra_hmd.core.errors import UserError

KEYS = {
    "show": "b",
    "escalate": "e",
    "skip": "s",
    "undo": "u",
    "note": "n",
    "next": "g",
    "effect": "f",
    "near": "v",
}
"""Action to the key that does it, unless a person chose another one. Digits choose labels and reasons."""


class KeyClash(UserError):
    """Two actions have one key. `key`, `first` and `second` say which."""

    def __init__(self, key: str, first: str, second: str) -> None:
        super().__init__(f"The key {key} is that of two actions, {first} and {second}; choose another one.")
        self.key, self.first, self.second = key, first, second


class Preferences(Settings):
    """Settings of one person."""

    TITLE = "settings"

    blur: int = Field(
        default=24, ge=0, le=60, description="Strength of the blur in pixels; 0: pictures are not blurred."
    )
    grey: bool = Field(default=True, description="Pictures without colour until they are asked for.")
    size: Literal["small", "large"] = Field(default="small", description="Size of a picture until it is asked for.")
    pause_minutes: int = Field(
        default=45, ge=0, le=480, description="Reminder of a pause after so many minutes; 0: none."
    )
    language: str = Field(default="", description="Language of the pages; empty: the browser's.")
    theme: Literal["system", "light", "dark"] = Field(default="system", description="Colours of the pages.")
    keys: dict[str, str] = Field(default_factory=dict, description="Action to the key that does it.")

    @property
    def bindings(self) -> dict[str, str]:
        """Action to its key, all actions."""
        return KEYS | self.keys


def check_keys(keys: dict[str, str]) -> dict[str, str]:
    """The keys that differ from the defaults. Raises `UserError` for keys that cannot be, or that clash."""
    unknown = sorted(set(keys) - set(KEYS))
    if unknown:
        raise UserError(f"{unknown[0]!r} is no action; there are {', '.join(KEYS)}.")
    wrong = [key for key in keys.values() if len(key) != 1 or not key.isalpha() or not key.isprintable()]
    if wrong:
        raise UserError(f"{wrong[0]!r} cannot be a key; choose one letter. Digits choose labels and reasons.")
    chosen = KEYS | {action: key.lower() for action, key in keys.items()}
    seen: dict[str, str] = {}
    for action, key in chosen.items():
        if key in seen:
            raise KeyClash(key, seen[key], action)
        seen[key] = action
    return {action: key for action, key in chosen.items() if KEYS[action] != key}


def read_preferences(database: Database, person: str) -> Preferences:
    """The settings of a person; the defaults, where none are kept or a newer release kept others."""
    with database.read() as session:
        kept = session.get(Person, person)
    try:
        return Preferences(**(kept.settings if kept is not None else {}))
    except UserError:
        return Preferences()


def write_preferences(database: Database, person: str, preferences: Preferences) -> None:
    """Keep the settings of a person."""
    values = preferences.model_dump(exclude_defaults=True)
    with database.write() as session:
        session.merge(Person(name=person, settings=values))
