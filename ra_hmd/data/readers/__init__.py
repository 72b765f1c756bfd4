"""One reader per public data set, and their registry."""

from typing import Any

from ra_hmd.core.errors import UserError
from ra_hmd.data.readers.base import Reader
from ra_hmd.data.readers.generic import Generic
from ra_hmd.data.readers.harm_c import HarmC
from ra_hmd.data.readers.harm_p import HarmP
from ra_hmd.data.readers.hateful_memes import HatefulMemes
from ra_hmd.data.readers.mami import Mami
from ra_hmd.data.readers.memotion import Memotion
from ra_hmd.data.readers.mmhs150k import Mmhs150k
from ra_hmd.data.readers.multioff import MultiOff
from ra_hmd.data.readers.pridemm import PrideMM
from ra_hmd.data.readers.propaganda import Propaganda

READERS: dict[str, type[Reader]] = {
    reader.name: reader
    for reader in (HatefulMemes, HarmC, HarmP, Mami, MultiOff, PrideMM, Memotion, Mmhs150k, Propaganda, Generic)
}


def get_reader(name: str, **options: Any) -> Reader:
    """The reader of a data set; `options` (columns, labels) are the generic reader's.

    Raises:
        UserError: an unknown name, or options that this reader has no use for.
    """
    if name not in READERS:
        raise UserError(f"There is no reader {name!r}; there are {', '.join(READERS)}.")
    given = [key for key, value in options.items() if value]
    if given and name != Generic.name:
        raise UserError(f"--{' and --'.join(given)}: only for {Generic.name!r} data; {name} has columns of its own.")
    return READERS[name](**options) if name == Generic.name else READERS[name]()
