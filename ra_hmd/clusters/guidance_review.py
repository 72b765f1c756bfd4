"""Table of guidance texts with the memes that the teacher saw, for review."""

from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ra_hmd.core.errors import UserError
from ra_hmd.data.guidance import Guidance, count_words
from ra_hmd.data.meme_dataset import open_data

_CAPTION = 100


def print_guidance(guidance: Guidance, data: str | Path | None = None, console: Console | None = None) -> None:
    """Print each cluster's text with its members.

    Args:
        guidance: The guidance.
        data: Imported data set that the members are from, for their captions.
        console: Where to print; default: standard output.
    """
    console = console or Console()
    captions = _captions(guidance, data)
    table = Table(show_lines=True)
    table.add_column("cluster", justify="right")
    table.add_column("guidance", ratio=3, overflow="fold")
    table.add_column("members", ratio=2, overflow="fold")
    entries = {entry.cluster: entry for entry in guidance.manifest.guidance} if guidance.manifest else {}
    for cluster, text in enumerate(guidance.texts):
        entry = entries.get(cluster)
        members = [f"{name}: {captions[name]}" if name in captions else name for name in entry.members] if entry else []
        remarks = [f"{count_words(text)} words"]
        remarks += ["cut"] if entry and entry.cut else []
        remarks += ["edited"] if guidance.edited(cluster) else []
        shown = f"{text}\n({', '.join(remarks)})" if text else "(none)"
        table.add_row(str(cluster), Text(shown), Text("\n".join(members)))  # no markup of texts is read
    console.print(table)


def _captions(guidance: Guidance, data: str | Path | None) -> Mapping[str, str]:
    """Id to the beginning of the caption of each member."""
    if data is None or guidance.manifest is None or guidance.manifest.data is None:
        return {}
    split, opened = guidance.manifest.data.split, open_data(data)
    if split not in opened.splits:
        raise UserError(f"{data} has no split {split!r}; it has {', '.join(opened.splits)}.")
    wanted = {name for entry in guidance.manifest.guidance for name in entry.members}
    texts = {meme.id: " ".join((meme.text or "").split()) for meme in opened.memes(split) if meme.id in wanted}
    return {name: text if len(text) <= _CAPTION else f"{text[:_CAPTION]}…" for name, text in texts.items()}
