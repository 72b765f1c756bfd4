"""The teacher of attack `rephrase`, and what it made of captions."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ra_hmd.attacks.apply import Taught
from ra_hmd.attacks.settings import RephraseSettings


@dataclass(frozen=True)
class Teacher:
    """A teacher that can be asked.

    Attributes:
        settings: Model and endpoint.
        key: API key.
        cache: Folder of the answers; None: `teacher` in the output folder.
        concurrency: Number of concurrent questions.
        show: Show a progress bar.
    """

    settings: RephraseSettings
    key: str | None = None
    cache: Path | None = None
    concurrency: int = 4
    show: bool = False


@dataclass(frozen=True)
class TaughtCaptions:
    """What a teacher made of captions.

    Attributes:
        captions: Name of the variant to caption to the answer.
        description: The teacher, for the manifest; None where none was asked.
    """

    captions: dict[str, dict[str, Taught]] = field(default_factory=dict)
    description: dict[str, Any] | None = None
