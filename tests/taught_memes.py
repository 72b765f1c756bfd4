"""Three clusters of drawn memes about cakes, and a teacher that answers about them."""

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from openai_server import Reply, completion
from PIL import Image
from small_clusters import clusters_of

from ra_hmd.data.images import content_hash, load_image

PER_CLUSTER = 8
TAUGHT = "Compare what the picture shows with what the words say about cake number {}, and ask who is meant."


def colour_of(cluster: int, row: int) -> tuple[int, int, int]:
    return 40 + 80 * cluster, 20 + 25 * row, 200 - 60 * cluster


class Taught:
    """An imported data set of 24 memes in three clusters. Within each, meme `r` lies `r / 10` from the centroid.

    The clusters lie in `clusters/`, the memes in `memes/`; each meme has one colour, and a caption with both numbers.
    """

    def __init__(self, folder: Path, split: str = "train", seed: int = 0) -> None:
        self.data, self.clusters, self.split = folder / "memes", folder / "clusters", split
        self.data.mkdir(parents=True, exist_ok=True)
        self.rows = [self._row(cluster, row) for cluster in range(3) for row in range(PER_CLUSTER)]
        self.write_memes()
        self.write_clusters(seed)

    def _row(self, cluster: int, row: int) -> dict[str, Any]:
        name = f"hateful-id-{cluster}{row}"
        Image.new("RGB", (240, 160), colour_of(cluster, row)).save(self.data / f"{name}.png")
        return {"id": name, "image": f"{name}.png", "text": f"cake {cluster} baked on day {row}", "label": row % 2,
                "extras": {"target": "hateful-target"}}  # fmt: skip

    def write_memes(self) -> None:
        lines = "".join(json.dumps(row) + "\n" for row in self.rows)
        (self.data / f"{self.split}.jsonl").write_text(lines)

    def write_clusters(self, seed: int = 0, **changes: Any) -> None:
        centroids = np.random.default_rng(seed).normal(size=(3, 4)).astype(np.float32)
        stated = {"split": self.split, "fingerprint": {"model": "drawn"}} | changes
        clusters_of(centroids, (2, 2), [PER_CLUSTER] * 3, **stated).copy_to(self.clusters)
        contents = [content_hash(load_image(self.data / row["image"]), row["text"]) for row in self.rows]
        columns = {
            "id": [row["id"] for row in self.rows],
            "content": contents,
            "cluster": [number // PER_CLUSTER for number in range(len(self.rows))],
            "distance": [number % PER_CLUSTER / 10 for number in range(len(self.rows))],
        }
        order = np.random.default_rng(7).permutation(len(self.rows))
        table = pa.table({name: [values[row] for row in order] for name, values in columns.items()})
        pq.write_table(table, self.clusters / "assignments.parquet")


def parts_of(body: dict[str, Any], kind: str = "text") -> list[Any]:
    """The texts, or with `image_url` the URLs, of a question."""
    content = body["messages"][-1]["content"]
    if isinstance(content, str):
        return [content] if kind == "text" else []
    found = [part[kind] for part in content if part["type"] == kind]
    return [one["url"] for one in found] if kind == "image_url" else found


def pictures_of(body: dict[str, Any]) -> list[Image.Image]:
    """The pictures in a question, decoded."""
    found = []
    for url in parts_of(body, "image_url"):
        kind, _, data = url.partition(",")
        assert kind == "data:image/jpeg;base64"
        found.append(Image.open(io.BytesIO(base64.b64decode(data))))
    return found


def members_of(body: dict[str, Any]) -> list[tuple[int, int]]:
    """Cluster and number of each meme in a question, by its caption."""
    found = re.findall(r"cake (\d+) baked on day (\d+)", "\n".join(parts_of(body)))
    return [(int(cluster), int(row)) for cluster, row in found]


def cluster_of(body: dict[str, Any]) -> int:
    (cluster,) = {cluster for cluster, _ in members_of(body)}
    return cluster


def teach(body: dict[str, Any], before: int) -> Reply:
    """An answer that names the cluster."""
    return completion(TAUGHT.format(cluster_of(body)))
