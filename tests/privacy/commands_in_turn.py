"""Runs commands of ours in this process, in turn: standard input has a JSON list of words per line, and standard output
gets, per command, its exit code, the hosts that were asked, and the files that it wrote at home.
"""

import json
import os
import sys
from contextlib import redirect_stdout
from pathlib import Path

from ra_hmd.cli.app import app


def seen() -> tuple[list[str], list[str]]:
    """The hosts that were asked so far, and the files that lie at home."""
    asked, home = Path(os.environ["ASKED_HOSTS"]), Path.home()
    hosts = asked.read_text().splitlines() if asked.exists() else []
    return hosts, sorted(str(path.relative_to(home)) for path in home.rglob("*") if not path.is_dir())


def main() -> None:
    """Until standard input ends."""
    for line in sys.stdin:
        before = seen()
        with redirect_stdout(sys.stderr):
            try:
                code = app(json.loads(line), standalone_mode=False) or 0
            except SystemExit as error:
                code = error.code
            except Exception as error:  # told as what it is, and the next command is tried
                code = repr(error)
        after = seen()
        new = [[one for one in now if one not in then] for then, now in zip(before, after, strict=True)]
        print(json.dumps([code, *new]), flush=True)


if __name__ == "__main__":
    main()
