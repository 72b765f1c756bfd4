"""One reader per public data set, and their registry.

Every module of this package is imported, and its readers register themselves with `register_reader`: a new data set is
one new file here.
"""

from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from ra_hmd.core.errors import UserError
from ra_hmd.data.readers.base import READERS, Reader

# Order of `ra-hmd data list` and of data/dataset_info.json. Other readers follow by name; the generic one is last.
_ORDER = ("hateful_memes", "harm_c", "harm_p", "mami", "multioff", "pridemm", "memotion", "mmhs150k", "propaganda")

for _module in sorted(
    (module.name for module in iter_modules(__path__)),
    key=lambda name: (name == "generic", _ORDER.index(name) if name in _ORDER else len(_ORDER), name),
):
    import_module(f"{__name__}.{_module}")


def get_reader(name: str, **options: Any) -> Reader:
    """Return the reader of a data set; `options` (columns, labels) are those of the generic reader.

    Raises:
        UserError: The name is unknown, or this reader takes no such options.
    """
    if name not in READERS:
        raise UserError(f"There is no reader {name!r}; there are {', '.join(READERS)}.")
    given = [key for key, value in options.items() if value]
    if given and name != "generic":
        raise UserError(f"--{' and --'.join(given)}: only for 'generic' data; {name} has columns of its own.")
    return READERS[name](**options) if name == "generic" else READERS[name]()
