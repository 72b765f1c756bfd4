"""Table of guidance texts with the memes that the teacher saw, for review."""

from collections.abc import Mapping

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ra_hmd.clusters.guidance_members import Data
from ra_hmd.core.errors import UserError
from ra_hmd.data.guidance import Guidance, count_words
from ra_hmd.data.prompt import Answers, PromptTemplate
from ra_hmd.data.resolve import resolve_memes

_CAPTION = 100


def print_guidance(guidance: Guidance, data: Data | None = None, console: Console | None = None) -> None:
    """Print each cluster's text with its members.

    Args:
        guidance: The guidance.
        data: Where the members are, for their captions.
        console: Where to print; default: standard output.
    """
    console = console or Console()
    captions = _captions(guidance, data or Data())
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


def _captions(guidance: Guidance, data: Data) -> Mapping[str, str]:
    """Id to the beginning of the caption of each member; none where the memes are not found."""
    manifest = guidance.manifest
    described = manifest.data if manifest else None
    place = data.place or (described.place if described else None)
    if manifest is None or described is None or not place:
        return {}
    try:
        memes = resolve_memes(place, described.split, PromptTemplate(), Answers(), data.dataset_dir, data.media_dir)
    except UserError:
        if data.place is not None:
            raise
        return {}
    wanted = {name for entry in manifest.guidance for name in entry.members}
    texts = {meme.id: " ".join((meme.text or "").split()) for meme in memes if meme.id in wanted}
    return {name: text if len(text) <= _CAPTION else f"{text[:_CAPTION]}…" for name, text in texts.items()}
