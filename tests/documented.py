"""The code blocks of the repository's pages, and the commands in them as a shell would expand them."""

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from engines import ROOT

PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "CHANGELOG.md",
    "data/README.md",
    # Tutorials are run as a whole by tests/docs/test_tutorials.py.
    *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md") if path.parent.name != "tutorials"),
)
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.DOTALL | re.MULTILINE)
# Programs that a block may really run while it is expanded: they only write to standard output or into `work`.
_HARMLESS = ("base64", "cat", "date", "mkdir", "openssl")
_RECORD = """
command_not_found_handle() { printf '%s\\0' "$@" >> "$RECORD"; printf '\\n\\0' >> "$RECORD"; }
"""


@dataclass(frozen=True)
class Block:
    """A fenced code block.

    Attributes:
        page: File, relative to the repository root.
        line: Line of the opening fence.
        language: Its language.
        text: Its content.
    """

    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(language: str, pages: tuple[str, ...] = PAGES) -> list[Block]:
    """The blocks of a language, in order."""
    return [block for page in pages for block in page_blocks(page) if block.language == language]


def page_blocks(page: str) -> list[Block]:
    """The blocks of a page that name their language, in order."""
    content = (ROOT / page).read_text(encoding="utf-8")
    return [
        Block(page, content.count("\n", 0, match.start()) + 1, match[1], match[2]) for match in _BLOCK.finditer(content)
    ]


def expanded(script: str, work: Path, variables: Mapping[str, str] | None = None) -> list[list[str]]:
    """The commands of a Bash script with loops, variables and quotes resolved by Bash, without running any of them.

    Args:
        script: The script.
        work: Folder to expand it in.
        variables: Variables that earlier blocks of the page set.

    Returns:
        The words of each command, in order.
    """
    programs = work / ".programs"
    programs.mkdir(exist_ok=True)
    for name in _HARMLESS:
        program = shutil.which(name)
        assert program is not None, name
        if not (programs / name).exists():
            (programs / name).symlink_to(program)
    record = work / ".record"
    record.unlink(missing_ok=True)
    environment = {"PATH": str(programs), "HOME": str(work), "RECORD": str(record), "LANG": "C.UTF-8"}
    bash = shutil.which("bash")
    assert bash is not None
    # `$BASH_ENV` would be read by Bash alone; sudo and `VAR=value command` reach the same function.
    done = subprocess.run(
        [bash, "-u", "-c", _RECORD + script],
        cwd=work,
        env=environment | dict(variables or {}),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert not done.stderr, f"{script}\n{done.stderr}"
    if not record.exists():
        return []
    return [
        [os.fsdecode(word) for word in command.split(b"\0") if word]
        for command in record.read_bytes().split(b"\n\0")
        if command
    ]
