"""Atomic files, JSON, fingerprints and package versions."""

import errno
import fcntl
import hashlib
import json
import math
import os
import platform
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ra_hmd.core.errors import UserError
from ra_hmd.core.package_versions import installed_version
from ra_hmd.core.storage import RemotePath, as_path

STATED_IF_PRESENT = ("experts", "inputs.clusters", "inputs.guidance")
"""Parts of a fingerprint that are stated only where a run has them, so that features of other runs keep theirs."""
MANIFEST_NAME = "ra_hmd.json"
_PACKAGES = (
    *("ra-hmd", "llamafactory", "torch", "transformers", "peft", "accelerate", "deepspeed", "bitsandbytes"),
    *("datasets", "faiss-gpu", "faiss-cpu", "numpy", "pyarrow"),
)
_SAMPLE_BYTES = 1 << 20
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_ROOM = 1 << 12  # bytes


@contextmanager
def atomic_path(path: str | Path, mode: int = 0o666, *, exclusive: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it replaces `path` in one step, on failure it is removed.

    `mode` are the permissions before the process's umask is applied, as for any new file. For an object of an object
    store the temporary path is a local file, which is uploaded on success. With `exclusive` a file that another process
    made meanwhile is not replaced.

    Raises:
        FileExistsError: `exclusive`, and `path` exists.
        UserError: `path` is a folder, or there is no room for it.
    """
    path = as_path(path)
    if isinstance(path, RemotePath):
        with TemporaryDirectory(prefix="ra_hmd-upload-") as folder, _full_disk_reported(Path(folder) / path.name):
            temporary = Path(folder) / path.name
            temporary.touch()
            yield temporary
            path.upload(temporary, exclusive=exclusive)
        return
    if path.is_dir():
        raise UserError(f"{path} is a folder, and a file is to be written there; give the name of a file.")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path, path.parent)
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode))
    try:
        with _full_disk_reported(path):
            yield temporary
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
        _link(temporary, path) if exclusive else temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _link(temporary: Path, path: Path) -> None:
    """Give a file its name, unless another has it."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if path.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
        temporary.replace(path)


@contextmanager
def new_folder(output: str | Path) -> Iterator[Path]:
    """Yield a temporary folder beside `output`; on success it becomes `output` in one step, else it is removed.

    Where `output` is a link, its target is made. An existing empty folder may be a mount or the working directory,
    which cannot be replaced: the content is moved into it. To an object store the files are uploaded one by one, the
    manifests beside them last: a folder with its manifest is complete.

    Raises:
        UserError: `output` exists and is not an empty folder, or there is no room for it.
    """
    given = as_path(output)
    if isinstance(given, RemotePath):
        with _uploaded_folder(given) as folder:
            yield folder
        return
    output = Path(os.path.realpath(given))
    there = _is_empty_folder(output, given)
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(output, output if there else output.parent)
    temporary.mkdir()
    try:
        with _full_disk_reported(given):
            yield temporary
        if there:
            _is_empty_folder(output, given, but=temporary)
            for path in temporary.iterdir():
                path.replace(output / path.name)
        else:
            temporary.replace(output)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def _uploaded_folder(output: RemotePath) -> Iterator[Path]:
    _is_empty_folder(output, output)
    with TemporaryDirectory(prefix="ra_hmd-upload-") as folder, _full_disk_reported(Path(folder)):
        yield Path(folder)
        files = [path for path in Path(folder).rglob("*") if path.is_file()]
        for path in sorted(files, key=lambda path: (path.parent == Path(folder) and path.suffix == ".json", path)):
            (output / path.relative_to(folder)).upload(path)


@contextmanager
def alone_in(folder: str | Path) -> Iterator[None]:
    """Hold an exclusive lock on a folder, which is made if it is missing."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)  # released when the process ends, however it ends
        yield
    finally:
        os.close(handle)


@contextmanager
def _full_disk_reported(path: Path) -> Iterator[None]:
    """Raise `UserError` where writing `path` fails because of a full disk, a quota or a limit of the process."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # libraries have exceptions of their own for it, and torch.save does not name the cause
        number = error.errno if isinstance(error, OSError) else None
        full = number in _FULL or any(os.strerror(one) in str(error) for one in _FULL)
        if not full and shutil.disk_usage(path.parent).free >= _NO_ROOM:
            raise
        reason = os.strerror(number if number in _FULL else errno.ENOSPC)
        raise UserError(f"{path} cannot be written: {reason}. Make room, or write elsewhere, and start again; what was "
                        "finished before is kept.") from error  # fmt: skip


def _is_empty_folder(output: Path, given: Path, but: Path | None = None) -> bool:
    """Whether `output` exists. Raises `UserError`, with the name `given`, where it holds anything but `but`."""
    if output.exists() and not (output.is_dir() and all(path == but for path in output.iterdir())):
        raise UserError(f"{given} exists and is not an empty folder; remove it or give another --output.")
    return output.exists()


def _temporary(path: Path, folder: Path) -> Path:
    """An unused path in `folder` for a file or folder that becomes `path`."""
    return folder / f".{path.name}.{secrets.token_hex(8)}.tmp"


def write_text(path: str | Path, text: str) -> None:
    """Write `text` as UTF-8, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically.

    Raises:
        ValueError: NaN or infinity, which JSON does not have.
    """
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_jsonl(path: str | Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write one JSON object per line, atomically."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows))


def read_json(path: str | Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        UserError: no such file, no JSON, or no object.
    """
    path = as_path(path)
    if not path.is_file():
        raise UserError(f"{path} does not exist.")
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {error}.") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} holds a {type(value).__name__}, a JSON object is needed.")
    return value


def sha256_bytes(*chunks: bytes | memoryview) -> str:
    """Hex SHA-256 over the chunks, each preceded by its length, so that no two splits collide."""
    digest = hashlib.sha256()
    for chunk in chunks:
        size = chunk.nbytes if isinstance(chunk, memoryview) else len(chunk)
        digest.update(size.to_bytes(8, "little"))
        digest.update(chunk)
    return digest.hexdigest()


def sha256_file(path: str | Path) -> str:
    """Hex SHA-256 of a file's content."""
    with as_path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint_model(folder: str | Path) -> str:
    """Fingerprint of a model folder in seconds, whatever its size.

    `config.json` in full; of each weight file its name, its size and its first and last MiB (a safetensors file
    begins with every tensor's name, type and shape). A hub name, not a folder, is its own fingerprint.
    """
    folder = Path(folder)
    if not folder.is_dir():
        return f"hub:{folder}"
    chunks = [(folder / "config.json").read_bytes()] if (folder / "config.json").is_file() else []
    for path in sorted([*folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin")]):
        size = path.stat().st_size
        with path.open("rb") as file:
            first = file.read(_SAMPLE_BYTES)
            file.seek(max(size - _SAMPLE_BYTES, 0))
            chunks += [path.name.encode(), size.to_bytes(8, "little"), first, file.read(_SAMPLE_BYTES)]
    return sha256_bytes(*chunks)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a result."""
    found = {name: installed_version(name) for name in _PACKAGES}
    return {"python": platform.python_version(), **{name: value for name, value in found.items() if value}}


def plain(value: Any) -> Any:
    """`value` reduced to what JSON can hold: paths, enums and dtypes become strings, tuples become lists."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [plain(item) for item in value]
    return str(value)
