"""Which backend a place of a bank belongs to."""

from pathlib import Path
from typing import Any

from ra_hmd.core.artifacts import MANIFEST_NAME, read_json


def is_bank(place: str | Path) -> bool:
    """Whether a path or URI names a bank, as far as can be told without opening it: a bank's folder, a file
    `….db`, or the address of a Milvus cluster.
    """
    if "://" in str(place):
        return True
    path = Path(place)
    if path.suffix == ".db":
        return path.is_file()
    manifest = path / MANIFEST_NAME
    return manifest.is_file() and read_json(manifest).get("kind") == "bank"


def backend_of(place: str | Path) -> str:
    """`milvus` for a URI or a file `….db`, else `faiss`."""
    return "milvus" if "://" in str(place) or str(place).endswith(".db") else "faiss"


def backend_class(backend: str) -> Any:
    if backend == "milvus":
        from ra_hmd.bank.backends.milvus import MilvusBackend

        return MilvusBackend
    from ra_hmd.bank.backends.parquet import ParquetBackend

    return ParquetBackend
