"""LMM families, one module each, and their registry.

Every module of this package is imported, and its family registers itself with `register_family`: a new family is one
new file here.
"""

from importlib import import_module
from pkgutil import iter_modules

from ra_hmd.models.families.base import (
    FAMILIES,
    Family,
    Published,
    described,
    family_of,
    named_family,
    register_family,
    tokenizer_of,
)

__all__ = [
    "FAMILIES",
    "Family",
    "Published",
    "described",
    "family_of",
    "named_family",
    "register_family",
    "tokenizer_of",
]

# Order of `ra-hmd tiny-lmm --help` and of the documentation. Other families follow by name.
_ORDER = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "llava", "internvl", "gemma3")

for _module in sorted(
    (module.name for module in iter_modules(__path__)),
    key=lambda name: (_ORDER.index(name) if name in _ORDER else len(_ORDER), name),
):
    import_module(f"{__name__}.{_module}")
