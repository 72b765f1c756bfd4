"""Combinations of package versions that can be installed but do not work."""

import importlib.metadata
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from packaging.specifiers import SpecifierSet


@dataclass(frozen=True)
class BadPair:
    """A combination of packages that fails.

    Attributes:
        package: Distribution whose versions fail.
        versions: Specifier of the versions that fail.
        beside: Distribution that must be installed as well for the failure; None: no other one.
        options: Model arguments of LLaMA-Factory for which it fails; empty: all.
        effect: The failure, as a clause.
        remedy: The remedy, as a sentence.
    """

    package: str
    versions: str
    effect: str
    remedy: str
    beside: str | None = None
    options: Mapping[str, str] = field(default_factory=dict)

    def sentence(self, version: str) -> str:
        """Installed version, failure and remedy."""
        pair = f"{self.package} {version}" + (f" with {self.beside}" if self.beside else "")
        return f"{pair}: {self.effect}. {self.remedy}"


KNOWN_BAD = (
    BadPair(
        "transformers",
        "==5.6.0",
        effect="its FlashAttention 2 expects attention sinks, which no supported LMM has: the first forward pass fails",
        remedy="Run `pip install 'transformers>=5.5.4,<5.6'`, or add flash_attn=sdpa to the command.",
        beside="flash-attn",
        options={"flash_attn": "fa2"},
    ),
    BadPair(
        "torch",
        "==2.9.*",
        effect="LLaMA-Factory refuses it for models with Conv3d, which every Qwen-VL is",
        remedy="Install torch 2.8 or 2.10 onward.",
    ),
)


def installed_version(name: str) -> str | None:
    """Version of an installed distribution, or None."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def bad_pairs(
    options: Mapping[str, object] | None = None, version_of: Callable[[str], str | None] = installed_version
) -> list[str]:
    """Sentences on the known bad combinations that are installed.

    Args:
        options: Model arguments of a run; combinations that fail only for other values are left out. None: all
            combinations.
        version_of: Returns the installed version of a distribution, or None.
    """
    found = []
    for pair in KNOWN_BAD:
        version = version_of(pair.package)
        if version is None or not SpecifierSet(pair.versions).contains(version, prereleases=True):
            continue
        if pair.beside is not None and version_of(pair.beside) is None:
            continue
        if options is None or all(options.get(name) == value for name, value in pair.options.items()):
            found.append(pair.sentence(version))
    return found
