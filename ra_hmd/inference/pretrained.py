"""Opening a published system: a folder that `ra-hmd push` wrote, or its repository on the Hugging Face hub."""

from dataclasses import dataclass
from pathlib import Path

from ra_hmd.core.artifacts import MANIFEST_NAME, sha256_file
from ra_hmd.core.errors import UserError, raise_all
from ra_hmd.core.hub import HUB_FILES, download
from ra_hmd.core.manifests import PUBLISHED_NAME, PublishedBase, PublishedManifest, read_manifest

_PATTERNS = (*HUB_FILES, "*.safetensors", "*.parquet")
"""Files that are downloaded: no pickle, and no code."""


@dataclass(frozen=True)
class PretrainedSystem:
    """Where the parts of a system are on this machine.

    Attributes:
        run: Folder with the head.
        backbone: The Stage 1 run, or the encoder, where the run does not say.
        base_model: The LMM, where the run does not say.
        bank: The example bank that was published with it.
    """

    run: Path
    backbone: Path | str | None = None
    base_model: str | None = None
    bank: Path | None = None


def find_pretrained(place: str | Path, revision: str | None = None, base_model: str | None = None) -> PretrainedSystem:
    """Find a published system; from the hub it is downloaded, and so is the model underneath where it is named.

    Args:
        place: Folder, or name of a repository.
        revision: Branch, tag or commit there.
        base_model: The model underneath: folder, or name on the hub; default: what was published or named.

    Raises:
        UserError: nothing there, a file that is not the one that was published, a model underneath that nobody named.
    """
    folder = _folder(place, revision)
    if not (folder / PUBLISHED_NAME).is_file() and (folder / MANIFEST_NAME).is_file():
        return PretrainedSystem(folder, base_model=base_model)  # a run of this machine
    manifest = read_manifest(folder / PUBLISHED_NAME, PublishedManifest)
    _check_files(folder, manifest)
    below = base_model or _base(folder, manifest.base)
    if below is None:
        raise UserError(
            f"{place} does not say which model is underneath; give it as `base_model`: a folder, or a name."
        )
    bank = None if manifest.bank is None else folder / manifest.bank
    if manifest.encoder:
        return PretrainedSystem(folder, backbone=below, bank=bank)
    stage1 = None if manifest.stage1 is None else folder / manifest.stage1
    return PretrainedSystem(folder, backbone=stage1, base_model=below, bank=bank)


def _folder(place: str | Path, revision: str | None) -> Path:
    folder = Path(place)
    if folder.is_dir():
        if revision is not None:
            raise UserError(f"{folder} is a folder; a revision is for names on the hub.")
        return folder
    return _downloaded(str(place), revision, "a folder, or the name of a repository that `ra-hmd push` wrote")


def _downloaded(name: str, revision: str | None, wanted: str) -> Path:
    try:
        return download(name, revision, _PATTERNS)
    except (OSError, ValueError) as error:
        at = f" at revision {revision}" if revision else ""
        raise UserError(f"{name}{at} is no folder, and cannot be had from the hub: {error}\nGive {wanted}.") from error


def _base(folder: Path, base: PublishedBase) -> str | None:
    """The model underneath: its copy, or its name or files on the hub."""
    if base.folder is not None:
        return str(folder / base.folder)
    if base.name is None or base.fingerprint.startswith("hub:"):
        return base.name
    # Training had it in a folder, whose fingerprint is of files: compare with these files.
    return str(_downloaded(base.name, base.revision, "as `base_model` the folder of the model underneath"))


def _check_files(folder: Path, manifest: PublishedManifest) -> None:
    """Raise `UserError` unless all files are those that were published."""
    problems = []
    for name, digest in manifest.files.items():
        path = folder / name
        if not path.is_file():
            problems.append(f"{name} is missing")
        elif sha256_file(path) != digest:
            problems.append(f"{name} has another SHA-256 than {PUBLISHED_NAME} says")
    raise_all(problems, f"{folder} is not what was published; download it again")
