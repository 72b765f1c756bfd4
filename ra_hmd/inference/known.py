"""Known memes at inference: where their rows come from, and the verdict on one, for which no model runs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ra_hmd.bank.embed_features import bank_rows
from ra_hmd.bank.hash_lists import read_hash_list
from ra_hmd.bank.known_memes import KnownMeme, KnownMemes, LabelledRows
from ra_hmd.core.artifacts import sha256_file
from ra_hmd.core.errors import UserError
from ra_hmd.core.heads import Head
from ra_hmd.features.store import read_features
from ra_hmd.inference.types import PreparedMeme, Verdict

if TYPE_CHECKING:
    from ra_hmd.scoring.scorer import Scorer


def open_known_memes(
    scorer: "Scorer", limit: int, *, turned: bool = False, hash_lists: Sequence[str | Path] = ()
) -> KnownMemes:
    """Open the labelled rows whose copies are known memes: those of the scorer's bank, then those of hash lists.

    Args:
        scorer: The scorer; its bank may have new versions later.
        limit: Largest distance of two copies, of PDQ's 256 bits.
        turned: Whether rotated and mirrored images are copies too.
        hash_lists: Files of `ra-hmd bank export-hashes` or `import-hashes`.

    Raises:
        UserError: no rows, or none with a hash; a hash list that cannot be read.
    """
    problem = scorer.model.config.problem
    places = []
    if (bank := scorer.bank) is not None:
        places.append(LabelledRows(bank.state_at))
    elif scorer.reference_set is not None:
        store = scorer.state["place"]
        places.append(LabelledRows.fixed(bank_rows(read_features(store), str(store), decided=False)))
    places += [LabelledRows.fixed(read_hash_list(path, problem)) for path in hash_lists]
    if not places:
        raise UserError("Known memes need labelled memes: give --bank, or a hash list with --hash-list.")
    known = KnownMemes(places, limit, turned, [sha256_file(Path(path)) for path in hash_lists])
    for place in places:
        place.follow()
    if not any(place.kinds for place in places) and scorer.bank is None:
        raise UserError(
            f"{scorer.state['place'] or hash_lists} holds no hashes of images, so no meme can be known: extract the "
            "features again from images."
        )
    return known


def known_verdict(meme: PreparedMeme, known: KnownMeme, head: Head, identical: Mapping[str, Any] | None) -> Verdict:
    """The verdict on a known meme: the label of its row, without scores.

    Args:
        meme: The meme.
        known: The row that decides.
        head: The head that decides on other memes.
        identical: The decided row that is this very meme, if there is one; its label goes first.
    """
    return Verdict(
        id=meme.id,
        text=meme.text,
        text_source=meme.text_source,
        scores={},
        probabilities={},
        verdicts={},
        head=head,
        verdict=known.label if identical is None else identical["label"],
        threshold=None,
        neighbours=None,
        identical=None if identical is None else dict(identical),
        known=known.to_dict(),
    )
