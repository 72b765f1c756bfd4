"""Memes that stand for a cluster: those nearest its centroid, and some drawn at random."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from ra_hmd.clusters.assignments import ASSIGNMENTS
from ra_hmd.clusters.guidance_settings import MemberSettings
from ra_hmd.core.errors import UserError, raise_all
from ra_hmd.core.manifests import ClustersManifest, GuidanceData
from ra_hmd.data.images import content_hash
from ra_hmd.data.meme import Meme
from ra_hmd.data.prompt import Answers, PromptTemplate
from ra_hmd.data.resolve import resolve_memes
from ra_hmd.features.test_lock import check_training
from ra_hmd.models.cluster_assignment import Clusters


@dataclass(frozen=True, order=True)
class _Row:
    """A meme of a cluster, ordered by its distance to the centroid; `content` is its `content_hash`, if it is known."""

    distance: float
    id: str
    content: str


def choose_members(folder: str | Path, count: int, settings: MemberSettings) -> list[dict[str, str]]:
    """Choose the memes that stand for each cluster, from the split that the clusters were fitted on.

    Args:
        folder: Folder of the clusters, with `assignments.parquet`.
        count: K, the number of clusters.
        settings: How many.

    Returns:
        Per cluster id to content (`content_hash`, or "" where it is not known): the nearest first, of equally near ones
        by id, then the drawn ones. A cluster with too few memes has all of them.

    Raises:
        UserError: no assignments there.
    """
    path = Path(folder) / ASSIGNMENTS
    if not path.is_file():
        raise UserError(f"{path} does not exist; give the folder that `ra-hmd cluster` wrote, not a copy in a run.")
    table = pq.read_table(path).to_pydict()
    contents = table.get("content") or [""] * len(table["id"])
    rows: list[list[_Row]] = [[] for _ in range(count)]
    for name, cluster, distance, content in zip(
        table["id"], table["cluster"], table["distance"], contents, strict=True
    ):
        if 0 <= cluster < count:
            rows[cluster].append(_Row(distance, name, content))
    return [_chosen(sorted(row), cluster, settings) for cluster, row in enumerate(rows)]


def _chosen(rows: Sequence[_Row], cluster: int, settings: MemberSettings) -> dict[str, str]:
    rest = sorted(rows[settings.nearest :], key=lambda row: row.id)
    generator = random.Random(f"{settings.seed} {cluster}")
    drawn = generator.sample(rest, min(settings.random, len(rest)))
    return {row.id: row.content for row in [*rows[: settings.nearest], *drawn]}


def fitted_split(manifest: ClustersManifest, place: str | Path) -> str:
    """The split that clusters were fitted on.

    Raises:
        UserError: it is no training split, or it is not stated.
    """
    name = manifest.split_name
    if name is None:
        raise UserError(f"The clusters in {place} do not state their split; make them again with `ra-hmd cluster`.")
    source = manifest.source.split if manifest.source else None
    check_training({str(place): name, f"data of {place}": source or name}, "Guidance is written for clusters")
    return name


@dataclass(frozen=True)
class Data:
    """Place of the memes that clusters were fitted on.

    Attributes:
        place: File, folder, or name of a data set; None: what the clusters state.
        dataset_dir: Folder of dataset_info.json.
        media_dir: Folder that relative image paths start from.
    """

    place: str | None = None
    dataset_dir: str | Path = "data"
    media_dir: str | Path | None = None


def open_members(
    clusters: Clusters, data: Data, members: Sequence[Mapping[str, str]]
) -> tuple[dict[str, Meme], GuidanceData]:
    """The chosen memes by id, from the split that the clusters were fitted on.

    Raises:
        UserError: no training split, no such data, or memes that are not there, or have another content.
    """
    manifest = clusters.manifest
    split = fitted_split(manifest, clusters.folder)
    place = data.place or (manifest.source.place if manifest.source else None)
    if place is None:
        raise UserError(f"The clusters in {clusters.folder} do not state the place of their memes; give it as --data.")
    found = resolve_memes(place, split, PromptTemplate(), Answers(), data.dataset_dir, data.media_dir)
    wanted = {name: content for chosen in members for name, content in chosen.items()}
    memes = {meme.id: meme for meme in found if meme.id in wanted}
    problems = [f"{name!r} is not there" for name in sorted(set(wanted) - set(memes))]
    problems += [
        f"{name!r} has another image or caption"
        for name, meme in sorted(memes.items())
        if wanted[name] and content_hash(meme.load_image(), meme.text or "") != wanted[name]
    ]
    raise_all(problems, f"{place}, split {split!r}, has not the memes that the clusters were fitted on; give --data")
    return memes, GuidanceData(place=place, dataset=manifest.dataset, split=split)


def descriptions_of(memes: Mapping[str, Meme]) -> dict[str, str]:
    """Id to the description of the image in the extras of a record (`description`), where there is one."""
    found = {name: meme.extras.get("description") for name, meme in memes.items()}
    return {name: text.strip() for name, text in found.items() if isinstance(text, str) and text.strip()}
