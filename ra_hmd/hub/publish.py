"""The folder that `ra-hmd push` publishes: what judging needs, as safetensors, JSON and Parquet, and a model card.

Left behind: checkpoints, optimiser states, features, predictions, pictures. Of every JSON file absolute paths are cut
to their last part, and tokens and keys are taken out. A bank goes along only where it is asked for, as its present rows
alone: no history, no authors, no notes, nothing that was removed. KRR is tuned anew on these rows.
"""

import re
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ra_hmd.cards.build import make_card
from ra_hmd.cards.render import CardMetadata, short
from ra_hmd.core.artifacts import MANIFEST_NAME, new_folder, read_json, sha256_file, write_json
from ra_hmd.core.errors import UserError
from ra_hmd.core.hub import HUB_FILES
from ra_hmd.core.manifests import (
    PUBLISHED_NAME,
    HeadRunManifest,
    PublishedBase,
    PublishedManifest,
    Stage1Manifest,
    read_manifest,
    write_manifest,
)
from ra_hmd.data.guidance import GUIDANCE_FILE
from ra_hmd.models.checkpoint import ADAPTER_CONFIG, CLUSTERS_FOLDER
from ra_hmd.models.head import has_head

if TYPE_CHECKING:
    from ra_hmd.bank.versions import BankRows

STAGE1, BANK, BASE = "stage1", "bank", "base"
_MODEL_FILES = (*HUB_FILES, "*.safetensors")
_LEFT_BEHIND = ("trainer_state.json", "trainer_log*", "*_results.json", "predict*", PUBLISHED_NAME)
_SECRET = re.compile(r"(^|_)(token|api_key|secret|password)$")
_CLEANED = (MANIFEST_NAME, ADAPTER_CONFIG, GUIDANCE_FILE, "decision.json", "clusters.json", "manifest.json")


@dataclass(frozen=True)
class Published:
    """A folder that was written.

    Attributes:
        folder: The folder.
        manifest: Its manifest.
        open_questions: Lines of the card that are to be filled in.
        files: Every file, relative to the folder, with its size in bytes.
    """

    folder: Path
    manifest: PublishedManifest
    open_questions: int
    files: dict[str, int]


def publish(
    run: str | Path,
    output: str | Path,
    *,
    repo: str,
    bank: str | Path | None = None,
    base_model: str | None = None,
    include_base: bool = False,
    reports: Sequence[str | Path] = (),
    stated: CardMetadata | None = None,
    overwrite: bool = False,
) -> Published:
    """Write the folder of a trained system that can be uploaded, and opened by `Detector.from_pretrained`.

    Args:
        run: Folder with a head: Stage 1 run, Stage 2 folder, or a head on an encoder's features.
        output: The folder to write.
        repo: Name of the repository, for the card.
        bank: Example bank that goes along.
        base_model: Name on the hub of the model underneath, where training had it in a folder.
        include_base: Copy that folder instead.
        reports: Evaluations of the head, for the card.
        stated: What only the publisher knows.
        overwrite: Replace an `output` that an earlier call wrote.

    Raises:
        UserError: no head, a Stage 1 run that is gone, a model underneath that others cannot get, weights that are no
            safetensors, a report of another head, an `output` that is there already.
    """
    run, output = Path(run), Path(output)
    if not has_head(run):
        raise UserError(f"{run} has no head; give a Stage 1 run, a Stage 2 folder, or a head on an encoder.")
    manifest = read_manifest(run / MANIFEST_NAME, HeadRunManifest)
    stage1 = _stage1_of(run, manifest)
    base = _base(manifest if stage1 is None else read_manifest(stage1 / MANIFEST_NAME, Stage1Manifest), base_model)
    if base.name is None and not include_base:
        raise UserError(
            f"{run} stands on {manifest.model_path}, a folder of this machine, which others do not have. Name it on "
            "the hub (--base-model ORG/NAME), or publish a copy of it (--include-base)."
        )
    if overwrite and (output / PUBLISHED_NAME).is_file():  # nothing else is ever removed
        shutil.rmtree(output)
    with new_folder(output) as folder:
        _copy_run(run, folder)
        if stage1 is not None:
            _copy_run(stage1, folder / STAGE1)
        if include_base and base.name is None:
            _copy_base(manifest.model_path, folder / BASE)
            base = base.model_copy(update={"folder": BASE})
        if bank is not None:
            _copy_bank(bank, folder / BANK)
        files = {_name(path, folder): sha256_file(path) for path in _files(folder) if BASE not in path.parts}
        made = PublishedManifest.new(
            base=base.model_dump(),
            encoder=manifest.encoder is not None,
            stage1=None if stage1 is None else STAGE1,
            bank=None if bank is None else BANK,
            files=files,
        )
        write_manifest(folder / PUBLISHED_NAME, made)
        shown = replace(stated or CardMetadata(), base=base.name, repo=repo, bank=bank is not None)
        card = make_card(run, folder, reports=reports, stated=shown, overwrite=True)
    sizes = {_name(path, output): path.stat().st_size for path in _files(output)}
    return Published(output, made, card.open_questions, sizes)


def _stage1_of(run: Path, manifest: HeadRunManifest) -> Path | None:
    """The Stage 1 run below a refined head; None where the head's own folder is the run, or it is on an encoder."""
    if isinstance(manifest, Stage1Manifest) or manifest.encoder is not None:
        return None
    place = None if manifest.init_head is None else Path(manifest.init_head.path)
    if place is None or not has_head(place):
        raise UserError(
            f"{run} was refined from {place or 'a head that it does not name'}, which is gone; put it back."
        )
    return place


def _base(manifest: HeadRunManifest, given: str | None) -> PublishedBase:
    """What is known of the model underneath.

    Raises:
        UserError: adapters were merged into it before training, or another name is given than it has.
    """
    lmm, encoder = manifest.base_model, manifest.encoder
    if encoder is None and lmm is not None and lmm.adapters:
        raise UserError(
            f"{', '.join(lmm.adapters)} was merged into the base model before training, and is no part of this run; "
            "export the model with it (`llamafactory-cli export`), and publish a run on that."
        )
    fingerprint = str(manifest.model_fingerprint or "")
    revision = encoder.revision if encoder is not None else (lmm.loading.get("model_revision") if lmm else None)
    named = manifest.model_path if fingerprint.startswith("hub:") or (encoder is not None and revision) else None
    if named is not None and given not in (None, named):
        raise UserError(f"--base-model {given}: this was trained on {named}; leave the option out.")
    return PublishedBase(name=named or given, revision=revision if named else None, fingerprint=fingerprint)


def _copy_run(run: Path, folder: Path) -> None:
    """Copy what judging needs of a run."""
    folder.mkdir(exist_ok=True)
    if (run / ADAPTER_CONFIG).is_file() and not (run / "adapter_model.safetensors").is_file():
        raise UserError(
            f"{run} has an adapter, and no adapter_model.safetensors; pickles are not published. Save it anew."
        )
    places = [(path, folder) for path in _matching(run, _MODEL_FILES)]
    places += [(path, folder / CLUSTERS_FOLDER) for path in _matching(run / CLUSTERS_FOLDER, _MODEL_FILES)]
    for path, place in places:
        place.mkdir(exist_ok=True)
        if path.name in _CLEANED:
            write_json(place / path.name, _cleaned(read_json(path)))
        else:
            shutil.copyfile(path, place / path.name)


def _copy_base(path: str, folder: Path) -> None:
    """Copy the model underneath. Raises `UserError` without weights as safetensors."""
    files = _matching(Path(path), (*_MODEL_FILES, "vocab*", "merges.txt"))
    if not any(file.suffix == ".safetensors" for file in files):
        raise UserError(f"{path} has no safetensors; pickles are not published. Name it on the hub with --base-model.")
    folder.mkdir()
    for file in files:
        shutil.copyfile(file, folder / file.name)


def _copy_bank(place: str | Path, folder: Path) -> None:
    """Write the present rows of a bank as the first version of a new one."""
    from ra_hmd.bank.bank import Bank
    from ra_hmd.bank.copying import copy_bank

    with Bank.open(place) as bank:
        copy_bank(bank, folder, author="ra-hmd push", edit=_without_origins).close()


def _without_origins(rows: "BankRows") -> "BankRows":
    """Rows without notes, and with the ends of their sources."""
    return replace(rows, notes=[""] * len(rows), sources=[short(source) for source in rows.sources])


def _cleaned(value: Any) -> Any:
    """A value of JSON without absolute paths, tokens and keys."""
    if isinstance(value, dict):
        return {name: None if _SECRET.search(str(name)) else _cleaned(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_cleaned(one) for one in value]
    return short(value) if isinstance(value, str) else value


def _matching(folder: Path, patterns: Iterable[str]) -> list[Path]:
    found = {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
    return sorted(path for path in found if not any(path.match(pattern) for pattern in _LEFT_BEHIND))


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _name(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()
