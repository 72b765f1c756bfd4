"""The exception for bad input."""


class UserError(ValueError):
    """Bad input that the user can correct. The message names the value, the place and the remedy; the CLI prints it
    without a traceback.
    """


def raise_all(problems: list[str], heading: str, limit: int = 10) -> None:
    """Raise one `UserError` that lists the first `limit` of `problems`; do nothing when there are none."""
    if not problems:
        return
    shown = "\n".join(f"  - {problem}" for problem in problems[:limit])
    more = f"\n  … and {len(problems) - limit} more" if len(problems) > limit else ""
    raise UserError(f"{heading} ({len(problems)}):\n{shown}{more}")


def first_line(error: Exception) -> str:
    """First line of an error's message; the name of its class where the message is empty, as at the end of a file."""
    return next(iter(str(error).splitlines()), type(error).__name__)
