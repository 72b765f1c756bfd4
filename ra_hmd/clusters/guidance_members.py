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
from ra_hmd.data.meme_dataset import MemeData, open_data
from ra_hmd.data.readers import READERS
from ra_hmd.data.readers.generic import Generic
from ra_hmd.features.test_lock import is_test_split
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
        UserError: a test split, or one that is not stated.
    """
    name = manifest.split_name or manifest.dataset_split
    if name is None:
        raise UserError(f"The clusters in {place} do not state their split; make them again with `ra-hmd cluster`.")
    tests = [one for one in (name, manifest.dataset_split or name) if is_test_split(one)]
    if tests:
        raise UserError(
            f"The clusters in {place} were fitted on split {tests[0]!r}, which is test data or named neither train nor "
            "dev; a teacher must not see it. Fit clusters on a training split."
        )
    return name


def open_members(
    clusters: Clusters, folder: str | Path, members: Sequence[Mapping[str, str]]
) -> tuple[dict[str, Meme], GuidanceData]:
    """The chosen memes by id, from the split of an imported data set that the clusters were fitted on.

    Raises:
        UserError: another data set, a test split, or memes that it does not have, or has with another content.
    """
    manifest, data = clusters.manifest, open_data(folder)
    fitted = fitted_split(manifest, clusters.folder)
    split = _split_of(data, [fitted, manifest.dataset_split or fitted])
    stated, found = manifest.dataset, data.manifest.dataset
    public = set(READERS) - {Generic.name}  # names of other data are those of their folders, which may be moved
    if stated is not None and stated != found and {stated, found} & public:
        raise UserError(f"{folder} is data set {found!r}, the clusters were fitted on {stated!r}; give that one.")
    wanted = {name: content for chosen in members for name, content in chosen.items()}
    memes = {meme.id: meme for meme in data.memes(split) if meme.id in wanted}
    problems = [f"{name!r} is not there" for name in sorted(set(wanted) - set(memes))]
    problems += [
        f"{name!r} has another image or caption"
        for name, meme in sorted(memes.items())
        if wanted[name] and content_hash(meme.load_image(), meme.text or "") != wanted[name]
    ]
    raise_all(problems, f"{folder}, split {split!r}, has not the memes that the clusters were fitted on")
    return memes, GuidanceData(place=str(folder), dataset=found, split=split)


def _split_of(data: MemeData, names: Sequence[str]) -> str:
    known = [name for name in names if name in data.splits]
    if not known:
        raise UserError(
            f"{data.folder} has no split {names[0]!r}, which the clusters were fitted on; it has "
            f"{', '.join(data.splits)}."
        )
    return known[0]


def descriptions_of(memes: Mapping[str, Meme]) -> dict[str, str]:
    """Id to the description of the image in the extras of a record (`description`), where there is one."""
    found = {name: meme.extras.get("description") for name, meme in memes.items()}
    return {name: text.strip() for name, text in found.items() if isinstance(text, str) and text.strip()}
