"""Objects of object stores (`s3://bucket/key`, `gs://bucket/key`) behind the interface of `pathlib.Path`.

`as_path` makes a `RemotePath` of a URL and a plain path of everything else, so that code which asks a path for its
content (`open`, `read_bytes`, `is_file`, `iterdir`, …) reads both, and a local path never asks a server. What needs a
file of this machine (memory maps, locks, weights) calls `os.fspath`, which refuses a `RemotePath` with a remedy.

Credentials and endpoints are those of the environment, as the clients of the stores read them; they are in no URL.
"""

import errno
import fnmatch
import io
import os
import posixpath
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path, PosixPath, PurePath, PurePosixPath
from typing import IO, Any, TypeVar

from packaging.version import Version

from ra_hmd.core.errors import UserError, first_line
from ra_hmd.core.extras import check_extra
from ra_hmd.core.package_versions import installed_version

T = TypeVar("T")
_EXTRAS = {"s3": "s3", "gs": "gcs"}
"""Scheme of a URL to the extra that has its client."""
_CLIENTS = {"s3": "s3fs", "gs": "gcsfs"}
_OLDEST = Version("2024.12")  # of the clients
_THREADS = 16  # requests under way at a time, where many objects are asked for
_CONNECT_SECONDS, _READ_SECONDS, _ATTEMPTS = 5, 30, 2
_CONFLICTS = ("PreconditionFailed", "pre-condition", "FileExistsError", "ConditionalRequestConflict")
_BUFFER = 1 << 22  # bytes per request of a file that is read in order


def is_url(place: Any) -> bool:
    """Whether a text or path names an object of an object store.

    `pathlib` writes `s3://` as `s3:/`, which counts as well.
    """
    return isinstance(place, RemotePath) or (
        isinstance(place, str | Path) and str(place).startswith(tuple(f"{scheme}:/" for scheme in _EXTRAS))
    )


def as_path(place: str | Path) -> Path:
    """Return the path of a place: a `RemotePath` of a URL (see `is_url`), else a path of this machine.

    Raises:
        UserError: a URL without a bucket, or with a user name.
    """
    if isinstance(place, RemotePath):
        return place
    if not is_url(place):
        return Path(place)
    scheme, _, rest = str(place).partition(":")
    key = posixpath.normpath(rest.lstrip("/") or ".")
    bucket = key.partition("/")[0]
    if bucket in (".", ".."):
        raise UserError(f"{place} names no bucket; write {scheme}://bucket/path.")
    if "@" in bucket:
        raise UserError(
            f"A {scheme}:// URL has no user name or password: credentials are read from the environment "
            "(docs/cluster.md, Object stores)."
        )
    return RemotePath(f"{scheme}:/{key}")


class RemotePath(PosixPath):
    """Path of an object, or of the objects below a prefix, which stand for a folder. `as_path` makes it.

    What reads works as for files; a method raises `FileNotFoundError` for a missing object, and `UserError` for a
    missing bucket, denied access, a missing extra and a store that does not answer. Writing is `atomic_path`'s.
    """

    __slots__ = ()

    def __str__(self) -> str:
        return f"{self.parts[0]}//{'/'.join(self.parts[1:])}"

    def __eq__(self, other: object) -> bool:  # to a path that `pathlib` made of the URL as well
        return isinstance(other, PurePath) and self.parts == other.parts

    def __hash__(self) -> int:
        return hash(PurePosixPath(*self.parts))

    def __fspath__(self) -> str:
        raise UserError(
            f"{self} is an object of an object store, and this step needs a file or folder of this machine; copy it "
            "here first, for example with `aws s3 cp --recursive` (docs/cluster.md, Object stores)."
        )

    @property
    def key(self) -> str:
        """Bucket and key, as `fsspec` wants them."""
        return "/".join(self.parts[1:])

    @property
    def scheme(self) -> str:
        """`s3` or `gs`."""
        return self.parts[0].rstrip(":")

    def info(self) -> dict[str, Any] | None:
        """What the store says of the object (`type` is file or directory), in one or two requests; None: nothing."""
        try:
            with asked(self) as store:
                return dict(store.info(self.key))
        except FileNotFoundError:
            return None

    def is_file(self, **_: Any) -> bool:
        return (self.info() or {}).get("type") == "file"

    def is_dir(self, **_: Any) -> bool:
        return (self.info() or {}).get("type") == "directory"

    def exists(self, **_: Any) -> bool:
        return self.info() is not None

    def is_symlink(self) -> bool:
        return False

    def absolute(self) -> "RemotePath":
        return self

    def resolve(self, strict: bool = False) -> "RemotePath":
        return self

    def expanduser(self) -> "RemotePath":
        return self

    def mkdir(self, *_: Any, **__: Any) -> None:
        """Do nothing: there are no folders to make."""

    def stat(self, **_: Any) -> os.stat_result:
        """Kind and size."""
        found = self._found()
        kind = stat.S_IFREG if found["type"] == "file" else stat.S_IFDIR
        return os.stat_result((kind, 0, 0, 1, 0, 0, int(found["size"] or 0), 0, 0, 0))

    def version(self) -> str:
        """Size and checksum of an object as its store states them, which differ where the object was replaced."""
        found = self._found()
        marks = (found.get(name) for name in ("ETag", "md5Hash", "crc32c", "etag"))
        return f"{found['size']} {next(filter(None, marks), '')}"

    def _found(self) -> dict[str, Any]:
        found = self.info()
        if found is None:
            raise _no_object(self)
        return found

    def samefile(self, other: Any) -> bool:
        return str(self) == str(as_path(other))

    def iterdir(self) -> Iterator["RemotePath"]:  # type: ignore[override]
        """What is directly below the prefix, 1,000 objects per request."""
        with asked(self) as store:
            names = store.ls(self.key, detail=False, refresh=True)
        yield from (
            self / name for name in sorted({posixpath.basename(one.rstrip("/")) for one in names} - {self.name})
        )

    def glob(self, pattern: str, **_: Any) -> Iterator["RemotePath"]:  # type: ignore[override]
        """Those directly below the prefix whose name fits; `pattern` has no slash."""
        if "/" in pattern:
            raise ValueError(f"{pattern!r}: of objects only names directly below are matched")
        try:
            yield from (path for path in self.iterdir() if fnmatch.fnmatch(path.name, pattern))
        except FileNotFoundError:
            return

    def files_below(self) -> list[str]:
        """Names of all objects below the prefix, as paths from it, in order; 1,000 objects per request."""
        with asked(self) as store:
            names = store.find(self.key)
        return sorted(posixpath.relpath(name, self.key) for name in names if not name.endswith("/"))

    def read_bytes(self, start: int | None = None, end: int | None = None) -> bytes:
        """The content, or the bytes from `start` to before `end`, in one request."""
        with asked(self) as store:
            return bytes(store.cat_file(self.key, start=start, end=end))

    def read_text(self, encoding: str | None = None, errors: str | None = None, *_: Any) -> str:
        return self.read_bytes().decode(encoding or "utf-8", errors or "strict")

    def open(  # type: ignore[override]
        self, mode: str = "r", buffering: int = -1, encoding: str | None = None, errors: str | None = None,
        newline: str | None = None,
    ) -> IO[Any]:  # fmt: skip
        """Open for reading; an object that is replaced while it is read is an error."""
        if set(mode) - set("rbt"):
            self.__fspath__()
        with asked(self) as store:
            file = store.open(self.key, "rb", block_size=_BUFFER, cache_type="readahead")
        binary = io.BufferedReader(_Reading(self, file), _BUFFER)
        return binary if "b" in mode else io.TextIOWrapper(binary, encoding or "utf-8", errors, newline)

    def upload(self, file: str | Path, *, exclusive: bool = False) -> None:
        """Store the content of a local file as this object, in one step.

        Args:
            file: The local file.
            exclusive: Whether an object that is there stays (`If-None-Match: *`). Not for `gs://`.

        Raises:
            FileExistsError: it is there, and is another one than this file; with `exclusive`.
        """
        if not exclusive:
            with asked(self) as store:
                store.put_file(str(file), self.key)
            return
        if self.scheme != "s3":
            raise UserError(f"{self}: objects that may not replace others are written to s3:// only.")
        try:
            with asked(self) as store:
                try:
                    store.put_file(str(file), self.key, mode="create")
                except OSError as error:
                    if not any(name in _causes(error) for name in _CONFLICTS):
                        raise
                    raise _ConflictError from error
        except _ConflictError as error:
            # A client that had no answer sends again, and then meets its own object.
            if not (self.is_file() and self.read_bytes() == Path(file).read_bytes()):
                raise FileExistsError(errno.EEXIST, "Another process wrote the object", str(self)) from error

    def size_below(self) -> int:
        """Bytes of all objects below the prefix."""
        with asked(self) as store:
            return int(store.du(self.key))

    def unlink(self, missing_ok: bool = False) -> None:
        if not missing_ok:
            self._found()
        with asked(self) as store:
            store.rm_file(self.key)

    def remove_below(self) -> None:
        """Remove all objects below the prefix."""
        with suppress(FileNotFoundError), asked(self) as store:
            store.rm(self.key, recursive=True)


class _ConflictError(UserError):
    """The store refused to replace an object. `asked` lets a `UserError` through."""

    def __init__(self) -> None:
        super().__init__("The object exists.")


def _causes(error: BaseException | None) -> str:
    """The texts of an error and of those that caused it."""
    return f"{type(error).__name__} {error} {_causes(error.__cause__)}" if error else ""


class _Reading(io.RawIOBase):
    """A file of `fsspec` whose errors are those of `asked`."""

    def __init__(self, path: RemotePath, file: Any) -> None:
        self._path, self._file = path, file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with asked(self._path):
            content = self._file.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def seek(self, offset: int, whence: int = 0) -> int:
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())


@contextmanager
def asked(path: RemotePath) -> Iterator[Any]:
    """Yield the `fsspec` file system of a path; what goes wrong there becomes a `UserError`, but for missing objects.

    File systems of other processes cannot be used after a fork, so each process makes its own.
    """
    check_extra(_EXTRAS[path.scheme], f"{path}: {path.scheme}://")
    try:
        yield _file_system(path.scheme, os.getpid())
    except UserError:
        raise
    except FileNotFoundError as error:
        if "specified bucket" in str(error).lower() or "NoSuchBucket" in str(error):
            raise UserError(f"{path}: there is no bucket {path.parts[1]!r}; make it, or correct the name.") from error
        raise _no_object(path) from error
    except PermissionError as error:
        raise UserError(
            f"{path}: access is denied ({first_line(error)}). The credentials of the environment must allow to read, "
            "list and write there; without the right to list, a missing object is denied too."
        ) from error
    except Exception as error:  # clients raise classes of four packages where they cannot connect
        if type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError"):
            raise UserError(
                f"{path}: there are no credentials. Set those of the store's client, for example AWS_ACCESS_KEY_ID "
                "and AWS_SECRET_ACCESS_KEY, AWS_PROFILE or GOOGLE_APPLICATION_CREDENTIALS."
            ) from error
        raise UserError(
            f"{path}: the object store gave no answer that helps ({type(error).__name__}: {first_line(error)}). Check "
            "the network and the endpoint (AWS_ENDPOINT_URL), and start again; what was finished before is kept."
        ) from error


@cache
def _file_system(scheme: str, process: int) -> Any:
    """The client of a scheme in a process. Listings are not kept: other processes write."""
    import fsspec.asyn

    installed = installed_version(_CLIENTS[scheme])
    if installed is not None and Version(installed) < _OLDEST:  # they overwrite where a writer asks for a new object
        raise UserError(
            f"{_CLIENTS[scheme]} {installed} is too old for object stores, {_OLDEST} or later is needed: "
            f"pip install -U 'ra-hmd[{_EXTRAS[scheme]}]'."
        )
    if fsspec.asyn.iothread[0] is not None and not fsspec.asyn.iothread[0].is_alive():
        fsspec.asyn.reset_lock()  # after a fork, the thread that would answer is the parent's
    options: dict[str, Any] = {"skip_instance_cache": True, "use_listings_cache": False}
    if scheme == "s3":
        limits = {"connect_timeout": _CONNECT_SECONDS, "read_timeout": _READ_SECONDS}
        options["config_kwargs"] = limits | {"retries": {"mode": "standard", "max_attempts": _ATTEMPTS}}
    return fsspec.filesystem(scheme, **options)


def _no_object(path: RemotePath) -> FileNotFoundError:
    return FileNotFoundError(errno.ENOENT, "No such object", str(path))


def remove_tree(folder: Path) -> None:
    """Remove a folder with its content, where there is one."""
    if isinstance(folder, RemotePath):
        folder.remove_below()
    else:
        shutil.rmtree(folder, ignore_errors=True)


def over_places(function: Callable[[Any], T], places: Iterable[Any]) -> Iterator[T]:
    """`map`, with some requests at a time where a place is a URL."""
    places = list(places)
    if not any(is_url(place) for place in places):
        yield from map(function, places)
        return
    for place in places:
        if isinstance(place, RemotePath):
            with asked(place):  # makes the client once, before the threads would each make one
                break
    with ThreadPoolExecutor(_THREADS) as pool:
        yield from pool.map(function, places)
