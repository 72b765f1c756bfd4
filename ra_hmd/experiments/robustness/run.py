"""Robustness study (`ra-hmd robustness`): the heads of systems on clean and attacked memes, and what defences give.

Thresholds, calibration and the limit of abstention are chosen on clean dev memes and stay as they are under attack.
Features, scores and finished cells are kept, so that a study that is started again makes only what is missing.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from ra_hmd.core.artifacts import MANIFEST_NAME, plain, read_json, sha256_bytes, sha256_file, write_json
from ra_hmd.core.errors import UserError
from ra_hmd.core.heads import Head
from ra_hmd.core.manifests import RobustnessManifest, write_manifest
from ra_hmd.core.progress import track
from ra_hmd.evaluation.provenance import describe_head
from ra_hmd.experiments.robustness.cells import Estimates, HeadUnderAttack, defence_results, head_results
from ra_hmd.experiments.robustness.config import RobustnessSettings
from ra_hmd.experiments.robustness.extraction import FeatureMaker, makers_of
from ra_hmd.experiments.robustness.report import write_robustness_report
from ra_hmd.experiments.robustness.scores import SystemScores
from ra_hmd.experiments.robustness.scoring import SystemScorer
from ra_hmd.experiments.robustness.suite import ATTACK_MANIFEST, Suite
from ra_hmd.experiments.robustness.summary import summary_line
from ra_hmd.features.compatibility import check_output
from ra_hmd.features.test_lock import is_test_split

_FORMAT = 1


@dataclass
class _Clock:
    """Seconds that the steps of a run take."""

    seconds: dict[str, float] = field(default_factory=dict)
    _start: float = field(default_factory=time.monotonic)

    def stop(self, step: str) -> None:
        """End a step, and begin the next."""
        now = time.monotonic()
        self.seconds[step], self._start = round(now - self._start, 1), now


def robustness(settings: RobustnessSettings, *, final: bool = False, command: str = "") -> dict[str, Any]:
    """Run the study; write robustness.json, .md, figures and a manifest into the output folder.

    Args:
        settings: Settings.
        final: Score a test split, which is recorded beside each head.
        command: Command line for the records.

    Returns:
        Content of robustness.json: `suite`, `memes`, `systems` (name → `bank`, `base`, `defences`, `heads`, and
        `against_base` for a system with a base), `summary`.

    Raises:
        UserError: a test split without `final`; attacked sets, features, heads and banks that do not fit together.
    """
    output, clock = settings.output_dir, _Clock()
    if is_test_split(settings.split) and not final:
        raise UserError(
            f"`split` is {settings.split!r}, which is scored only with `--final`, when everything is decided. Set "
            "another split (`split=dev dev_split=…`) while something is still to be chosen."
        )
    check_output(output, "robustness")
    suite = Suite.open(settings)
    makers = makers_of(suite)
    for maker in dict.fromkeys(makers.values()):
        maker.make()
    clock.stop("features")
    scores = {
        name: SystemScorer(suite, name, maker)(final=final, command=command) for name, maker in makers.items()
    }  # fmt: skip
    clock.stop("scores")
    systems = _systems(suite, scores)
    clock.stop("estimates")
    first = next(iter(scores.values()))
    result: dict[str, Any] = {
        "suite": {
            "name": suite.manifest.suite,
            "seed": suite.manifest.seed,
            "variants": [one.to_json() for one in suite.variants],
        },
        "split": settings.split,
        "memes": len(first.ids),
        "positives": int(first.labels.sum()),
        "systems": systems,
    }
    result["summary"] = summary_line(result)
    write_json(output / "robustness.json", plain(result))
    write_robustness_report(result, settings, command, output)
    clock.stop("report")
    manifest = _manifest(suite, makers, scores, result["summary"], clock, final=final, command=command)
    write_manifest(output / MANIFEST_NAME, manifest)
    return result


def _manifest(
    suite: Suite,
    makers: Mapping[str, FeatureMaker],
    scores: Mapping[str, SystemScores],
    summary: str,
    clock: _Clock,
    *,
    final: bool,
    command: str,
) -> RobustnessManifest:
    settings = suite.settings
    systems = {name: settings.system(name) for name in settings.systems}
    return RobustnessManifest.new(
        command=command,
        arguments=plain(settings.model_dump()),
        seed=settings.seed,
        final=final,
        test={name: dict(found.opened) for name, found in scores.items()},
        systems={name: describe_head(one.head or one.checkpoint or "") for name, one in systems.items()},
        attacked={
            "suite": suite.manifest.suite,
            "seed": suite.manifest.seed,
            "sha256": sha256_file(settings.attacked / ATTACK_MANIFEST),
        },
        stores={name: str(maker.folder) for name, maker in makers.items()},
        seconds=clock.seconds,
        summary=summary,
    )


def groups_of(suite: Suite) -> dict[str, dict[str, list[str]]]:
    """Kind of group → group → its variants, in the order of the suite."""
    kinds: dict[str, Callable[[Any], str]] = {
        "variants": lambda one: one.name,
        "attacks": lambda one: one.attack,
        "families": lambda one: one.family,
        "severities": lambda one: str(one.severity),
        "family_severities": lambda one: f"{one.family} {one.severity}",
    }
    groups: dict[str, dict[str, list[str]]] = {}
    for kind, key in kinds.items():
        groups[kind] = {}
        for variant in suite.variants:
            groups[kind].setdefault(key(variant), []).append(variant.name)
    return groups


def _systems(suite: Suite, scores: Mapping[str, SystemScores]) -> dict[str, Any]:
    """Results of every system, head by head."""
    settings = suite.settings
    results: dict[str, Any] = {}
    for name, found in scores.items():
        system = settings.systems[name]
        changed = sorted(system.model_fields_set - {"base"}) if system.base else []
        results[name] = {"bank": dict(found.bank), "base": system.base, "changed": changed, "heads": {}}
        if system.base is not None:
            results[name]["against_base"] = {}
    tasks = list(_tasks(suite, scores))
    for place, compute in track(((1, task) for task in tasks), "Estimates", len(tasks), "cells"):
        name, part, head = place
        results[name][part][head] = compute()
    return results


def _tasks(
    suite: Suite, scores: Mapping[str, SystemScores]
) -> Iterator[tuple[tuple[str, str, Head], Callable[[], Estimates]]]:
    """Where each cell belongs, and what computes it or reads it from an earlier run."""
    settings, groups = suite.settings, groups_of(suite)
    classes = {one.name: one.classes if one.classes is not None else [0, 1] for one in suite.variants}
    resamples = settings.coverage, settings.bootstrap_samples, settings.seed
    heads = {
        (name, head): HeadUnderAttack(found, head, classes, *resamples)
        for name, found in scores.items()
        for head in found.heads
    }
    key: dict[str, Any] = {"groups": groups, "classes": classes}
    for (name, head), one in heads.items():
        yield (name, "heads", head), _kept(settings, [one], key, partial(head_results, one, groups))
        base = heads.get((settings.systems[name].base or "", head))
        if base is not None:
            attacks = settings.system(name).bank_attacks
            seen = [variant.name for variant in suite.variants if variant.attack in attacks]
            compute = partial(defence_results, one, base, groups["families"], seen)
            yield (name, "against_base", head), _kept(settings, [one, base], {**key, "seen": seen}, compute)


def _kept(
    settings: RobustnessSettings,
    heads: Sequence[HeadUnderAttack],
    key: Mapping[str, Any],
    compute: Callable[[], Estimates],
) -> Callable[[], Estimates]:
    """`compute`, whose result is kept in the folder `cells` under a key of everything that it depends on."""
    stated = {
        "format": _FORMAT,
        "scores": [one.found.digest for one in heads],
        "head": heads[0].head,
        "coverage": settings.coverage,
        "bootstrap": [settings.bootstrap_samples, settings.seed],
        **key,
    }
    digest = sha256_bytes(json.dumps(plain(stated), sort_keys=True).encode())
    path = settings.output_dir / "cells" / f"{digest}.json"

    def read_or_compute() -> Estimates:
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, plain(compute()))
        return read_json(path)

    return read_or_compute
