"""Choice of the card for a folder."""

from collections.abc import Sequence
from pathlib import Path

from ra_hmd.bank.backends.base import is_bank
from ra_hmd.cards.render import Card, CardMetadata, write_card
from ra_hmd.core.artifacts import MANIFEST_NAME
from ra_hmd.core.errors import UserError
from ra_hmd.core.manifests import SeedsManifest, SweepManifest, read_folder_manifest
from ra_hmd.data.meme_dataset import DATASET_MANIFEST
from ra_hmd.models.head import has_head


def make_card(
    source: str | Path,
    output: str | Path | None = None,
    *,
    reports: Sequence[str | Path] = (),
    stated: CardMetadata | None = None,
    overwrite: bool = False,
) -> Card:
    """Write the card of a folder with a head, of an imported data set, or of an example bank.

    Captions, images, authors' names and reasons of changes are not printed, and of absolute paths only the last part.

    Args:
        source: The folder, or a bank's URI.
        output: Folder of README.md; default is `source`.
        reports: For a head: folders of `ra-hmd evaluate` with evaluations of it.
        stated: Metadata from the publisher.
        overwrite: Replace an existing card.

    Raises:
        UserError: none of the three, a report of another head, an existing card.
    """
    stated = stated or CardMetadata()
    bank = is_bank(source)
    folder = Path(source)
    if bank and not folder.is_dir() and output is None:
        raise UserError(f"{source} is no folder that could take its card; give --output.")
    kind = "bank" if bank else "model" if has_head(folder) else _data_kind(folder)
    if reports and kind != "model":
        raise UserError(f"--report is for a folder with a head, and {source} is a {kind.replace('_', ' ')}.")
    if kind == "model":
        from ra_hmd.cards.model_card import model_facts

        facts = model_facts(folder, reports, stated)
    elif bank:
        from ra_hmd.cards.bank_card import bank_facts

        facts = bank_facts(source, stated)
    else:
        from ra_hmd.cards.dataset_card import data_facts

        facts = data_facts(folder, stated)
    template = f"{kind.replace('_', '')}_card.md.j2"
    return write_card(template, facts, folder if output is None else output, overwrite=overwrite)


def _data_kind(folder: Path) -> str:
    """Kind of card for a folder without a head.

    Raises:
        UserError: the folder holds no imported data set.
    """
    if (folder / DATASET_MANIFEST).is_file():
        return "data_set"
    known = "a folder with a head (Stage 1, Stage 2, head on an encoder), an imported data set, or an example bank"
    if not folder.is_dir():
        raise UserError(f"{folder} does not exist; give {known}.")
    manifest = read_folder_manifest(folder)
    if isinstance(manifest, SeedsManifest | SweepManifest):
        raise UserError(f"{folder} holds several runs ({manifest.kind}); give the folder of one of them.")
    found = f"holds {manifest.kind!r}" if manifest else f"has neither {MANIFEST_NAME} nor {DATASET_MANIFEST}"
    raise UserError(f"{folder} {found}: no card is written of that; give {known}.")
