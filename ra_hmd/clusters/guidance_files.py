"""Guidance texts from files that somebody wrote by hand."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from ra_hmd.core.artifacts import sha256_bytes, sha256_file
from ra_hmd.core.errors import UserError, raise_all
from ra_hmd.data.rows import read_lines

FORMS = (
    "a JSON or YAML file with a list of texts or with one text for each number of a cluster, or a folder with one "
    "text file for each cluster (0.txt, 1.txt, …)"
)


def read_texts(place: str | Path, count: int) -> list[str]:
    """Read one text for each of K clusters.

    Args:
        place: A JSON or YAML file with a list of K texts, or with a mapping from clusters to texts; or a folder with a
            file `<cluster>.txt` for each cluster.
        count: K.

    Returns:
        The texts in the order of the clusters.

    Raises:
        UserError: no such file, another form, another number of texts, unknown clusters, or empty texts.
    """
    place = Path(place)
    if place.is_dir():
        found: Any = {path.stem: "\n".join(read_lines(path)) for path in sorted(place.glob("*.txt"))}
        if not found:
            raise UserError(f"{place} holds no .txt file; needed is {FORMS}.")
    elif place.is_file():
        found = _parsed(place)
    else:
        raise UserError(f"{place} does not exist; needed is {FORMS}.")
    if isinstance(found, Mapping) and found.get("kind") == "guidance":
        raise UserError(f"{place} is guidance already; use it as it is. Its texts may be edited in place.")
    if isinstance(found, list):
        if len(found) != count:
            raise UserError(f"{place} has {len(found)} texts, and there are {count} clusters; give one for each.")
        found = dict(enumerate(found))
    if not isinstance(found, Mapping):
        raise UserError(f"{place} holds a {type(found).__name__}; needed is {FORMS}.")
    return _by_cluster(found, count, place)


def digest_of(place: str | Path) -> str:
    """SHA-256 of a file, or of the text files in a folder."""
    place = Path(place)
    if place.is_file():
        return sha256_file(place)
    files = sorted(place.glob("*.txt"))
    return sha256_bytes(*(part for path in files for part in (path.name.encode(), path.read_bytes())))


def _parsed(path: Path) -> Any:
    text = "\n".join(read_lines(path))
    try:
        if path.suffix.lower() == ".json":
            return json.loads(text, object_pairs_hook=_once)
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a safe loader
    except (ValueError, TypeError, yaml.YAMLError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {error}. Needed is {FORMS}.") from error


class _Loader(yaml.SafeLoader):
    """Refuses a mapping with equal keys, of which YAML would silently keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        return _once((self.construct_object(key, deep=True), self.construct_object(value, deep=True))
                     for key, value in node.value)  # fmt: skip


def _once(pairs: Iterable[tuple[Any, Any]]) -> dict[Any, Any]:
    """The mapping of pairs without repeated keys."""
    pairs = list(pairs)
    names = [name for name, _ in pairs]
    twice = [repr(name) for number, name in enumerate(names) if name in names[:number]]
    if twice:
        raise ValueError(f"{', '.join(twice)} stands there twice")
    return dict(pairs)


def _by_cluster(found: Mapping[Any, Any], count: int, place: Path) -> list[str]:
    texts: dict[int, str] = {}
    problems = []
    for name, text in found.items():
        number = _number(name)
        if number is None or number >= count:
            problems.append(f"{name!r} is no cluster; the clusters are 0 to {count - 1}")
        elif number in texts:
            problems.append(f"cluster {number} has several texts")
        elif not isinstance(text, str):
            problems.append(f"cluster {number} has {str(text)[:40]!r}, which is no text; put it in quotes")
        elif not text.strip():
            problems.append(f"cluster {number} has an empty text")
        else:
            texts[number] = text
    stated = {_number(name) for name in found}
    problems += [f"cluster {number} has no text" for number in range(count) if number not in stated]
    raise_all(problems, f"{place} does not give one text for each of the {count} clusters")
    return [texts[number] for number in range(count)]


def _number(name: Any) -> int | None:
    if isinstance(name, bool) or not isinstance(name, int | str):
        return None
    text = str(name).strip()
    return int(text) if text.isascii() and text.isdecimal() else None
