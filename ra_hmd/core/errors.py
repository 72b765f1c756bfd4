"""The exception for bad input."""

from collections.abc import Sequence


class UserError(ValueError):
    """Bad input that the user can correct. The message names the value, the place and the remedy; the CLI prints it
    without a traceback.

    Attributes:
        problems: The problems one by one, of a message that lists several; else the message.
    """

    def __init__(self, message: str = "", problems: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.problems = list(problems) or [message]


def raise_all(problems: list[str], heading: str, limit: int = 10) -> None:
    """Raise one `UserError` that lists the first `limit` of `problems`; do nothing when there are none."""
    if not problems:
        return
    shown = "\n".join(f"  - {problem}" for problem in problems[:limit])
    more = f"\n  … and {len(problems) - limit} more" if len(problems) > limit else ""
    raise UserError(f"{heading} ({len(problems)}):\n{shown}{more}", problems)


def first_line(error: Exception) -> str:
    """First line of an error's message; the name of its class where the message is empty, as at the end of a file."""
    return next(iter(str(error).splitlines()), type(error).__name__)
