"""Which options of the commands take URLs of object stores; all others refuse them before anything is done."""

from collections.abc import Sequence

from ra_hmd.core.errors import UserError
from ra_hmd.core.storage import as_path, is_url

_BATCH = frozenset({"--input", "--output", "--media-dir", ""})
_EXTRACTED = frozenset({"--data", "--media-dir", "--output"})
_BANK = frozenset({""})
ACCEPTED = {
    "extract": _EXTRACTED,
    "encode": _EXTRACTED,
    "features info": frozenset({""}),
    "predict": _BATCH | {"--queries", "--bank"},
    "explain": _BATCH | {"--bank"},
    "evaluate": frozenset({"--bank", "--queries", "--dev", "--update"}),
    "bank create": _BANK | {"--features"},
    "bank add": _BANK | {"--features"},
    **dict.fromkeys(("bank copy", "bank remove", "bank relabel", "bank rollback", "bank info", "bank log"), _BANK),
    **dict.fromkeys(("bank search", "bank effect"), _BANK | {"--queries"}),
}
"""Command to its options; "" is an argument without a name. `key=URL` is checked with the settings of a YAML file."""


def check_urls(words: Sequence[str]) -> None:
    """Check the words of a command line after `ra-hmd`.

    Raises:
        UserError: A URL of an object store where a path of this machine is needed, or one that is not valid.
    """
    command = next((name for name in ACCEPTED if list(words[: name.count(" ") + 1]) == name.split()), "")
    for number, word in enumerate(words):
        named, _, value = word.partition("=") if word.startswith("--") else ("", "", word)
        if not named and number and words[number - 1].startswith("--"):
            named = words[number - 1]
        if not is_url(value):
            continue
        as_path(value)
        if named not in ACCEPTED.get(command, ()):
            place = named or "this argument"
            raise UserError(
                f"{value}: {place} of `ra-hmd {' '.join(words[:1])}` takes a path of this machine; copy the files, for "
                "example with `aws s3 cp --recursive` (docs/cluster.md, Object stores, lists what takes URLs)."
            )
