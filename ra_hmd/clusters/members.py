"""Members of clusters that a report shows, and the montage of their images.

Shapes: N memes, K clusters.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from ra_hmd.core.artifacts import atomic_path
from ra_hmd.core.errors import UserError
from ra_hmd.data.images import content_hash
from ra_hmd.data.meme import Meme
from ra_hmd.data.prompt import Answers, PromptTemplate
from ra_hmd.data.resolve import resolve_memes
from ra_hmd.features.store import Features
from ra_hmd.models.cluster_assignment import Assignment

NEAREST, DRAWN = 8, 4
"""Members of each cluster that are shown: those nearest to the centroid, and others drawn at random."""
_SIDE, _COLUMNS, _GAP = 160, 6, 6  # pixels of a thumbnail, thumbnails of a row, pixels between them


@dataclass(frozen=True)
class Members:
    """Members of a cluster that are shown.

    Attributes:
        rows: Rows of the store, the nearest to the centroid first, then those drawn.
        nearest: How many of them are the nearest.
    """

    rows: list[int]
    nearest: int


def choose_members(assigned: Assignment, count: int, seed: int) -> list[Members]:
    """Choose the shown members of each of K clusters."""
    chosen = []
    for cluster in range(count):
        rows = np.flatnonzero(assigned.cluster == cluster)
        rows = rows[np.argsort(assigned.distance[rows], kind="stable")]
        near, rest = rows[:NEAREST], rows[NEAREST:]
        drawn = np.random.default_rng([seed, cluster]).permutation(len(rest))[:DRAWN]
        chosen.append(Members([*near.tolist(), *rest[np.sort(drawn)].tolist()], len(near)))
    return chosen


def find_memes(
    features: Features,
    data: str | None = None,
    split: str | None = None,
    *,
    dataset_dir: str | Path = "data",
    media_dir: str | Path | None = None,
) -> tuple[list[Meme], str]:
    """Read the memes of a store again, for their images.

    Args:
        features: The store's content.
        data: Their place; None: the one that the store states.
        split: Their split; None: the one that the store states.
        dataset_dir: Folder of dataset_info.json.
        media_dir: Folder that relative image paths start from.

    Returns:
        The memes, and a note for the user where there are none.

    Raises:
        UserError: there is nothing at `data`.
    """
    source = features.manifest.source
    place = data or (None if source is None else source.place)
    if place is None:
        return [], "The store does not state the place of its memes: the report has no images; give --data."
    stated = split or features.manifest.dataset_split or "train"
    try:
        memes = resolve_memes(place, stated, PromptTemplate(), Answers(), dataset_dir, media_dir)
    except UserError as error:
        if data is not None:
            raise
        return [], f"The report has no images, give their place as --data: {error}"
    known = set(features.ids)
    found = [meme for meme in memes if meme.id in known]
    return found, "" if found else f"None of the store's memes is in {place}: the report has no images; give --data."


def montage(features: Features, members: Members, memes: dict[str, Meme]) -> Image.Image | None:
    """Draw the images of members in rows of six; None where there is no image.

    An image that cannot be decoded, or that is no longer that of the features, is left out.
    """
    images = [image for row in members.rows if (image := _image(features, row, memes)) is not None]
    if not images:
        return None
    lines = -(-len(images) // _COLUMNS)
    step = _SIDE + _GAP
    sheet = Image.new("RGB", (min(len(images), _COLUMNS) * step - _GAP, lines * step - _GAP), "white")
    for place, image in enumerate(images):
        thumbnail = ImageOps.pad(image, (_SIDE, _SIDE), color="white")
        sheet.paste(thumbnail, (place % _COLUMNS * step, place // _COLUMNS * step))
    return sheet


def _image(features: Features, row: int, memes: dict[str, Meme]) -> Image.Image | None:
    meme = memes.get(features.ids[row])
    try:
        image = None if meme is None else meme.load_image()
    except UserError:
        return None
    content = features.contents[row] if features.contents else ""
    if meme is None or image is None or (content and content != content_hash(image, meme.caption)):
        return None
    return image


def write_montage(path: Path, sheet: Image.Image | None) -> bool:
    """Write a montage as a PNG, or remove an earlier one where there is none; return whether there is one."""
    if sheet is None:
        path.unlink(missing_ok=True)
        return False
    with atomic_path(path) as temporary:
        sheet.save(temporary, "PNG")
    return True


def by_id(memes: Sequence[Meme]) -> dict[str, Meme]:
    """Memes by their ids."""
    return {meme.id: meme for meme in memes}
