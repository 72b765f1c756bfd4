"""Settings of the moderators' page. The fields are options of `ra-hmd console`."""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from ra_hmd.core.config import Settings
from ra_hmd.inference.options import Flag


class ConsoleSettings(Settings):
    """Settings of the moderators' page."""

    TITLE = "console"

    queue: Path | None = Field(default=None, description="Memes to review: .jsonl, .csv, .parquet, or a folder.")
    media_dir: Path | None = Field(default=None, description="With --queue: base folder of relative image paths.")
    suggestions: Path | None = Field(
        default=None, description="With --queue: file of `ra-hmd bank suggest`, whose memes come first, in its order."
    )
    reviews: Path | None = Field(
        default=None,
        description="File of decisions; default: BANK.reviews.jsonl, or beside the run if the bank is no folder.",
    )
    database: str | None = Field(
        default=None,
        description="With --queue: database of its claims, a SQLite file or a URL that all processes which show the "
        "queue share; default: a file beside the reviews.",
    )
    author: str | None = Field(
        default=None, description="Author of changes where there are no --keys; default: the login name."
    )
    class_names: Annotated[list[str], Flag("--class-name")] = Field(
        default_factory=list, description="Name of each class, in the order of the labels; several times."
    )
    open_browser: Annotated[bool, Flag("--open")] = Field(default=False, description="Open the page in a browser.")
