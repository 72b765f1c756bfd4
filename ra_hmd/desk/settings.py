"""Settings of the moderators' desk. The fields are options of `ra-hmd console`."""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from ra_hmd.core.config import Settings
from ra_hmd.inference.options import Flag
from ra_hmd.serve.case_settings import CaseSettings


class ConsoleSettings(Settings):
    """Settings of the moderators' desk."""

    TITLE = "console"

    queue: Path | None = Field(
        default=None,
        description="Memes to review: .jsonl, .csv, .parquet, or a folder; read again when it changes.",
    )
    media_dir: Path | None = Field(default=None, description="With --queue: base folder of relative image paths.")
    suggestions: Path | None = Field(
        default=None, description="With --queue: file of `ra-hmd bank suggest`, whose memes come first, in its order."
    )
    reviews: Path | None = Field(
        default=None,
        description="With --queue: decisions of an earlier version, whose memes are not asked again; default: "
        "BANK.reviews.jsonl, if it is there.",
    )
    author: str | None = Field(
        default=None, description="Author of changes where there are no --keys; default: the login name."
    )
    class_names: Annotated[list[str], Flag("--class-name")] = Field(
        default_factory=list, description="Name of each class, in the order of the labels; several times."
    )
    open_browser: Annotated[bool, Flag("--open")] = Field(default=False, description="Open the page in a browser.")


def beside(run: Path, bank: str | Path | None, suffix: str) -> Path:
    """A file beside the bank, or beside the run of a bank that is no folder."""
    from ra_hmd.bank.backends.base import is_bank

    folder = Path(bank) if bank is not None and "://" not in str(bank) and is_bank(bank) else run
    return folder.with_name(folder.name + suffix)


def with_database(cases: CaseSettings, run: Path, bank: str | Path | None) -> CaseSettings:
    """The settings of the cases, with the database beside the bank where none is named."""
    return cases if cases.cases is not None else cases.replace(cases=str(beside(run, bank, ".cases.sqlite")))
