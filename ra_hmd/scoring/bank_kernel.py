"""The kernel head of an example bank, which follows the versions of the bank.

Widths, noise and view weights are chosen at an anchor version, which follows from the log alone: so every process
that opens the bank has the same ones, whichever versions it has seen. Between anchors the linear system is updated.
"""

from collections.abc import Sequence
from dataclasses import replace

from ra_hmd.bank.bank import Bank
from ra_hmd.bank.planned_change import PreviewedBank
from ra_hmd.bank.versions import VersionEntry
from ra_hmd.core.problem import Problem
from ra_hmd.retrieval.embeddings import Embeddings
from ra_hmd.retrieval.kernel_ridge.settings import KernelSettings
from ra_hmd.scoring.kernel_classifier import KernelClassifier, fit_kernel_classifier

_CHANGED = ("added", "removed", "restored", "relabelled")
_SHARE = 4  # an anchor is left when a quarter of its rows has changed


def kernel_classifier_of(examples: Embeddings | Bank, problem: Problem, settings: KernelSettings) -> KernelClassifier:
    """The kernel head of labelled examples: in memory, or an example bank at the version that it shows.

    Raises:
        UserError: see `fit_kernel_classifier`.
    """
    if isinstance(examples, Embeddings):
        return fit_kernel_classifier(examples, problem, settings)
    anchor, _ = _anchor(examples.log)
    basis = None if anchor == examples.version else examples.to_embeddings(anchor)
    return _marked(fit_kernel_classifier(examples, problem, settings, basis), anchor)


def refreshed_kernel(classifier: KernelClassifier, bank: Bank) -> KernelClassifier:
    """The kernel head of an example bank that has moved to another version, from that of an earlier version."""
    if _anchor(bank.log)[0] != classifier.parameters.version:
        return kernel_classifier_of(bank, classifier.problem, classifier.settings)
    return classifier.with_rows(bank)


def previewed_kernel(classifier: KernelClassifier, bank: Bank, preview: PreviewedBank) -> KernelClassifier:
    """The kernel head of a bank as a planned change would make it, from that of the bank as it is."""
    anchor, changed = _anchor(bank.log)
    if _is_left(bank.log[anchor - 1], changed + preview.changed):
        return fit_kernel_classifier(preview, classifier.problem, classifier.settings)
    return classifier.with_rows(preview)


def _anchor(log: Sequence[VersionEntry]) -> tuple[int, int]:
    """The anchor version, and the number of rows that were changed since."""
    anchor, changed = log[0], 0
    for entry in log[1:]:
        changed += sum(entry.counts[name] for name in _CHANGED)
        if _is_left(anchor, changed):
            anchor, changed = entry, 0
    return anchor.version, changed


def _is_left(anchor: VersionEntry, changed: int) -> bool:
    return changed * _SHARE >= max(anchor.counts["rows"], 1)


def _marked(classifier: KernelClassifier, version: int) -> KernelClassifier:
    classifier.parameters = replace(classifier.parameters, version=version)
    return classifier
