"""Descriptions of images by an LMM of one's own, for a teacher that sees no pictures."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ra_hmd.core.artifacts import MANIFEST_NAME, read_json, sha256_bytes, write_json
from ra_hmd.core.choices import EngineKind
from ra_hmd.core.errors import UserError, raise_all
from ra_hmd.core.progress import track
from ra_hmd.data.images import content_hash
from ra_hmd.data.meme import Meme
from ra_hmd.data.prompt import IMAGE_PLACEHOLDER
from ra_hmd.models.checkpoint import Run, open_backbone, open_run
from ra_hmd.models.generation.chat import Chat
from ra_hmd.models.generation.engines import choose_engine, open_engine
from ra_hmd.models.head import has_head
from ra_hmd.models.meme_model import MemeModel

REQUEST = (
    f"{IMAGE_PLACEHOLDER}\nDescribe this picture in two or three sentences: who and what can be seen, what they do, "
    "and where. Leave out any words that are written on it, and do not judge it."
)
"""What the model is asked about an image."""
MAX_NEW_TOKENS = 128


def open_describer(place: str, template: str | None = None) -> Run:
    """Open the LMM that describes: a Stage 1 run without its adapter, where it has one, or a bare model.

    Raises:
        UserError: neither a run nor a model.
    """
    folder = Path(place)
    if (folder / MANIFEST_NAME).is_file() and has_head(folder):
        run = open_run(folder)
        return Run(run.folder, run.settings, run.base_model, run.base_adapters, loading=run.loading)
    return open_backbone(place, template)


def describe(
    run: Run,
    memes: Sequence[Meme],
    cache: Path,
    *,
    device: torch.device,
    engine: EngineKind = "auto",
    batch_size: int = 4,
    show: bool = True,
) -> dict[str, str]:
    """Describe the images of memes; what the cache has is not described again.

    Args:
        run: See `open_describer`.
        memes: The memes.
        cache: Folder of the descriptions, a file each.
        device: Device of the model.
        engine: Generation engine.
        batch_size: Memes per step; after each, its descriptions are stored.
        show: Whether to show a progress bar.

    Returns:
        Id to description.

    Raises:
        UserError: an image that cannot be decoded or does not fit, an empty description.
    """
    choose_engine(engine)
    asked = sha256_bytes(repr(sorted(run.fingerprint().items())).encode(), REQUEST.encode(), b"%d" % MAX_NEW_TOKENS)
    places = {}
    for meme in memes:
        name = sha256_bytes(asked.encode(), content_hash(meme.load_image(), "").encode())
        places[meme.id] = cache / "descriptions" / f"{name}.json"
    found = {name: text for name, path in places.items() if (text := _stored(path))}
    rest = [meme for meme in memes if meme.id not in found]
    if rest:
        speaker = open_engine(engine, MemeModel(run, device), batch_size=batch_size)
        parts = [rest[start : start + batch_size] for start in range(0, len(rest), batch_size)]
        for part in track(((len(part), part) for part in parts), "Describing", len(rest), "memes", show=show):
            chats = [Chat([{"role": "user", "content": REQUEST}], [meme.load_image()]) for meme in part]
            for meme, text in zip(part, speaker.generate(chats, MAX_NEW_TOKENS), strict=True):
                if text.strip():
                    found[meme.id] = text.strip()
                    write_json(places[meme.id], {"description": text.strip()})
    empty = [f"{meme.id!r}" for meme in memes if meme.id not in found]
    raise_all(empty, f"{run.base_model} has no words for some images; send the images, or describe with another model")
    return found


def described_by(run: Run) -> dict[str, Any]:
    """The describer, for records."""
    return {"model": run.base_model, "fingerprint": run.fingerprint()["model"], "request": REQUEST}


def _stored(path: Path) -> str:
    try:
        text = read_json(path).get("description")
    except UserError:  # none there, or damaged: it is described again
        return ""
    return text if isinstance(text, str) else ""
