"""Installed size of the package: its base, and what each extra adds.

What the base and an extra need is followed through the metadata of the packages that are installed in this environment,
for this platform; the size of a package is that of the files that pip installed for it, compiled modules included.
Nothing is downloaded or installed. An extra of which a package is not installed here has no size.

    python scripts/bench/install_size.py [--extras lmm train serve] [--largest 8] [--output R.json]
"""

import argparse
import json
import tomllib
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"
MEGABYTE = 1_000_000

Find = Callable[[str], Distribution]


def project_requirements(project: Path = PROJECT) -> tuple[list[str], dict[str, list[str]]]:
    """Requirements of the base, and of each extra."""
    stated = tomllib.loads(project.read_text(encoding="utf-8"))["project"]
    return stated["dependencies"], stated["optional-dependencies"]


def closure(
    needed: Iterable[str], own: Mapping[str, list[str]] = {}, find: Find = distribution
) -> tuple[dict[str, Distribution], set[str]]:
    """Distributions that requirements bring along, by name, and the names of those that are not installed.

    Args:
        needed: Requirements.
        own: Requirements of the extras of `ra-hmd` itself.
        find: Finds an installed distribution.
    """
    found: dict[str, Distribution] = {}
    missing: set[str] = set()
    done: set[tuple[str, str]] = set()
    waiting = [(Requirement(text), "") for text in needed]
    while waiting:
        requirement, extra = waiting.pop()
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(requirement.name)
        if name == "ra-hmd":
            waiting += [(Requirement(text), "") for part in requirement.extras for text in own[part]]
            continue
        try:
            found.setdefault(name, find(requirement.name))
        except PackageNotFoundError:
            missing.add(name)
            continue
        for part in ("", *requirement.extras):
            if (name, part) not in done:
                done.add((name, part))
                waiting += [(Requirement(text), part) for text in found[name].requires or []]
    return found, missing


def installed_bytes(package: Distribution) -> int:
    """Bytes of the files of a distribution that exist."""
    places = (Path(str(package.locate_file(file))) for file in package.files or [])
    return sum(place.stat().st_size for place in places if place.is_file())


def measure(extras: Iterable[str], find: Find = distribution, project: Path = PROJECT) -> dict[str, Any]:
    """Megabytes of the base and of what each extra adds to it, and of everything together."""
    base_needs, own = project_requirements(project)
    base, lacking = closure(base_needs, own, find)
    if lacking:
        raise SystemExit(f"Not installed here, so the base cannot be measured: {', '.join(sorted(lacking))}.")
    sizes = {name: installed_bytes(package) / MEGABYTE for name, package in base.items()}
    every = set(base)
    rows: dict[str, Any] = {}
    for extra in extras:
        added, missing = closure(own[extra], own, find)
        new = {name: package for name, package in added.items() if name not in base}
        sizes |= {name: installed_bytes(package) / MEGABYTE for name, package in new.items() if name not in sizes}
        size = None if missing else sum(sizes[name] for name in new)
        rows[extra] = {"megabytes": size, "packages": sorted(new), "missing": sorted(missing)}
        every |= set(new)
    return {
        "base": {"megabytes": sum(sizes[name] for name in base), "packages": sorted(base)},
        "extras": rows,
        "all": {"megabytes": sum(sizes[name] for name in every), "packages": sorted(every)},
        "sizes": dict(sorted(sizes.items(), key=lambda item: -item[1])),
    }


def main() -> None:
    """Print the table."""
    _, own = project_requirements()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--extras", nargs="+", choices=sorted(own), default=sorted(set(own) - {"dev"}))
    parser.add_argument("--largest", type=int, default=8, help="How many of the largest packages are listed.")
    parser.add_argument("--output", type=Path, help="JSON file of the result.")
    given = parser.parse_args()
    result = measure(given.extras)
    for name, row in {"base": result["base"], **result["extras"], "all of these": result["all"]}.items():
        size, count = row["megabytes"], len(row["packages"])
        shown = f"missing: {', '.join(row['missing'])}" if size is None else f"{size:8.0f} MB  {count:4} packages"
        print(f"{name if name in ('base', 'all of these') else '+ ' + name:16} {shown}")
    print()
    for name, size in list(result["sizes"].items())[: given.largest]:
        print(f"{name:28} {size:8.0f} MB{'' if name in result['base']['packages'] else '  (not in the base)'}")
    if given.output is not None:
        given.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
