"""`ra-hmd bank suggest`: memes of a feature store that are worth a label, as a JSONL file with a manifest."""

from pathlib import Path

import numpy as np

from ra_hmd.bank.embed_features import embed_store
from ra_hmd.bank_review.reviewed_bank import ReviewedBank
from ra_hmd.bank_review.settings import SuggestSettings
from ra_hmd.bank_review.suggest import suggest_memes
from ra_hmd.core.artifacts import plain, write_jsonl
from ra_hmd.core.errors import UserError
from ra_hmd.core.manifests import BankSuggestionsManifest, write_manifest
from ra_hmd.data.rows import jsonl_rows
from ra_hmd.features.compatibility import check_same_origin, check_same_views
from ra_hmd.features.test_lock import says_test, split_name, store_digest
from ra_hmd.scoring.bank_kernel import kernel_classifier_of


def suggest_from_store(
    reviewed: ReviewedBank, checkpoint: Path, pool: Path, settings: SuggestSettings, output: Path
) -> BankSuggestionsManifest:
    """Write the memes of a pool whose labels would teach a bank most: id, score and uncertainty, the best first.

    Memes that the bank holds, by id or by image and caption, are left out. Labels of the pool are not read.

    Args:
        reviewed: The bank.
        checkpoint: Folder of the head.
        pool: Feature store of the pool.
        settings: Settings.
        output: JSONL file; its manifest is `<output>.manifest.json`.

    Raises:
        UserError: the pool is of other models than the bank, without a view, or of a test split.
    """
    found = embed_store(checkpoint, pool, labelled=False)
    split = split_name(found.features, pool)
    if says_test(split):
        raise UserError(f"--pool {pool} is of split {split!r}: a bank is not made of test memes; give other memes.")
    place = str(reviewed.state["place"])
    check_same_origin({place: reviewed.fingerprint, str(pool): found.fingerprint})
    check_same_views({place: reviewed.views, str(pool): found.view_origins})
    memes = found.embeddings
    ids, contents = set(reviewed.table.ids), set(reviewed.table.contents) - {""}
    pairs = zip(memes.ids, memes.contents or [""] * len(memes), strict=True)
    held = np.array([name in ids or content in contents for name, content in pairs], bool)
    new = memes.select(np.flatnonzero(~held))
    classifier = kernel_classifier_of(reviewed.rows, reviewed.problem, settings.kernel)
    chosen = suggest_memes(
        classifier,
        new,
        settings.budget,
        sample=settings.sample,
        candidates=settings.candidates,
        seed=settings.seed,
    )
    lines = zip(chosen.rows.tolist(), chosen.score.tolist(), chosen.uncertainty.tolist(), strict=True)
    write_jsonl(output, ({"id": new.ids[row], "score": score, "uncertainty": own} for row, score, own in lines))
    manifest = BankSuggestionsManifest.new(
        bank=dict(reviewed.state),
        pool={"place": str(pool), "sha256": store_digest(found.features)},
        checkpoint=str(checkpoint),
        fingerprint=plain(dict(reviewed.fingerprint)),
        arguments=settings.model_dump(mode="json"),
        kernel=plain(classifier.describe()),
        pool_rows=len(held),
        left_out=int(held.sum()),
        suggested=len(chosen.rows),
    )
    write_manifest(Path(f"{output}.manifest.json"), manifest)
    return manifest


def read_suggestions(path: Path) -> dict[str, int]:
    """Id to place in the order of a file of `ra-hmd bank suggest`.

    Raises:
        UserError: no such file, or a line without an `id`.
    """
    if not path.is_file():
        raise UserError(f"--suggestions {path} does not exist; give a file of `ra-hmd bank suggest`.")
    order: dict[str, int] = {}
    for row in jsonl_rows(path):
        if not isinstance(row.values, dict) or not isinstance(row.values.get("id"), str):
            raise UserError(f"{row.place} has no `id`; give a file of `ra-hmd bank suggest`.")
        order.setdefault(row.values["id"], len(order))
    return order
