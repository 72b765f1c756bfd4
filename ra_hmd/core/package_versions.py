"""Versions of packages that install together and do not work together."""

import importlib.metadata
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from packaging.specifiers import SpecifierSet


@dataclass(frozen=True)
class BadPair:
    """One combination that fails.

    Attributes:
        package: Distribution whose versions fail.
        versions: Which of them, as a specifier.
        beside: Distribution that must be installed too for the failure, or None.
        options: Model arguments of LLaMA-Factory with which it fails; empty: with any.
        effect: What fails, as a clause.
        remedy: What to do, as a sentence.
    """

    package: str
    versions: str
    effect: str
    remedy: str
    beside: str | None = None
    options: Mapping[str, str] = field(default_factory=dict)

    def sentence(self, version: str) -> str:
        """What is installed, what fails and what to do."""
        pair = f"{self.package} {version}" + (f" with {self.beside}" if self.beside else "")
        return f"{pair}: {self.effect}. {self.remedy}"


KNOWN_BAD = (
    BadPair(
        "transformers",
        "==5.6.0",
        effect="its FlashAttention 2 expects attention sinks, which no Qwen-VL has: the first forward pass fails",
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
    """The version of an installed distribution, or None."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def bad_pairs(
    options: Mapping[str, object] | None = None, version_of: Callable[[str], str | None] = installed_version
) -> list[str]:
    """One sentence for each known bad combination that is installed.

    Args:
        options: Model arguments of a run; a combination that fails with other values only is left out. None: of any
            run.
        version_of: The installed version of a distribution, or None.
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
