"""Checks of `ra-hmd doctor` that read package metadata: required packages, extras, and versions that do not fit."""

import importlib.metadata
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement

from ra_hmd.core.extras import EXTRAS
from ra_hmd.core.package_versions import bad_pairs, installed_version

DISTRIBUTION = "ra-hmd"


_INSTEAD = {"faiss-gpu": "faiss-cpu"}
"""Package to another one that does its work."""
_IN_THE_REPOSITORY = f"`{Path(sys.executable).name} -m pip install -e .` in the repository"


@dataclass(frozen=True)
class Check:
    """The result of one check.

    Attributes:
        name: Name of the check.
        status: `ok`; `note`: nothing is broken, but worth knowing; `problem`: something will fail.
        found: The finding.
        remedy: Remedy of a note or problem.
    """

    name: str
    status: Literal["ok", "note", "problem"]
    found: str
    remedy: str = ""

    def __post_init__(self) -> None:
        if self.status == "problem" and not self.remedy:
            raise ValueError(f"check {self.name!r} reports a problem without a remedy")


def pip_install(words: str) -> str:
    """Command that installs `words` into this environment."""
    return f"{Path(sys.executable).name} -m pip install {words}"


@cache
def reinstall() -> str:
    """Command that installs this package again, the way it was installed, in backticks."""
    try:
        origin = importlib.metadata.distribution(DISTRIBUTION).read_text("direct_url.json")
    except importlib.metadata.PackageNotFoundError:
        return _IN_THE_REPOSITORY
    if origin is not None and json.loads(origin).get("dir_info", {}).get("editable"):
        return _IN_THE_REPOSITORY
    return f"`{pip_install('--force-reinstall --no-deps ra-hmd')}`"


def check_packages() -> list[Check]:
    """Check the versions of all required packages against the ranges in the package metadata."""
    try:
        version = importlib.metadata.version(DISTRIBUTION)
        needed = list(_requirements(""))
    except importlib.metadata.PackageNotFoundError:
        remedy = f"Run {_IN_THE_REPOSITORY}; a source tree alone has no plugin and no known ranges."
        return [Check(DISTRIBUTION, "problem", "not installed in this environment", remedy)]
    return [Check(DISTRIBUTION, "ok", version), *(_package(requirement) for requirement in needed)]


def _requirements(extra: str) -> Iterator[Requirement]:
    """Requirements of an extra on this platform; of "": those of the base."""
    for text in importlib.metadata.requires(DISTRIBUTION) or []:
        requirement = Requirement(text)
        marker = requirement.marker
        of_base = marker is None or marker.evaluate({"extra": ""})
        if (of_base and not extra) or (marker is not None and not of_base and marker.evaluate({"extra": extra})):
            yield requirement


def _package(requirement: Requirement) -> Check:
    name, wanted = requirement.name, str(requirement.specifier) or "any version"
    substitute = _INSTEAD.get(name)
    if substitute is not None and installed_version(name) is None and installed_version(substitute):
        return Check(name, "ok", f"{substitute} {installed_version(substitute)} is in its place")
    install = pip_install(f'"{name}{requirement.specifier}"')
    remedy = f"Run `{install}`."
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Check(name, "problem", f"missing ({wanted} is needed)", remedy)
    if not requirement.specifier.contains(version, prereleases=True):
        return Check(name, "problem", f"{version} ({wanted} is needed)", remedy)
    return Check(name, "ok", f"{version} ({wanted})")


def check_extras() -> list[Check]:
    """List the extras: installed, or what is missing; a package of one in a version that does not fit is a problem."""
    rows: list[Check] = []
    try:
        importlib.metadata.version(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        return rows  # check_packages says so
    versions: dict[str, Check] = {}
    for name, extra in EXTRAS.items():
        missing = extra.missing()
        if missing:
            install = pip_install(f"'ra-hmd[{name}]'")
            found = f"not installed: {', '.join(missing)} missing"
            rows.append(Check(f"extra {name}", "note", found, f"For {extra.purpose}: `{install}`."))
            continue
        rows.append(Check(f"extra {name}", "ok", f"installed: {extra.purpose}"))
        versions |= {requirement.name: _package(requirement) for requirement in _requirements(name)}
    return [*rows, *versions.values()]


def check_bad_pairs() -> list[Check]:
    """Check for versions that can be installed together but do not work together."""
    found = bad_pairs()
    if found:
        return [Check("versions together", "problem", "they do not fit", " ".join(found))]
    return [Check("versions together", "ok", "none is known that would not work")]
