"""The kernel head of an example bank, which follows the versions of the bank.

Widths, noise and view weights are chosen at an anchor version, which follows from the log alone: so every process
that opens the bank has the same ones, whichever versions it has seen. Between anchors the linear system is updated.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ra_hmd.bank.bank import Bank
from ra_hmd.bank.planned_change import PreviewedBank
from ra_hmd.bank.versions import VersionEntry
from ra_hmd.core.problem import Problem
from ra_hmd.retrieval.embeddings import Embeddings
from ra_hmd.retrieval.kernel_ridge.settings import KernelSettings
from ra_hmd.scoring.kernel_classifier import KernelClassifier, fit_kernel_classifier

_CHANGES = ("added", "removed", "restored", "relabelled")
_FEW = 8  # changed rows after which the first anchor of a large bank is left


def kernel_classifier_of(examples: Embeddings | Bank, problem: Problem, settings: KernelSettings) -> KernelClassifier:
    """The kernel head of labelled examples: in memory, or an example bank at the version that it shows.

    Raises:
        UserError: see `fit_kernel_classifier`.
    """
    if isinstance(examples, Embeddings):
        return fit_kernel_classifier(examples, problem, settings)
    anchor = _Anchor.of(examples.log).version
    basis = None if anchor == examples.version else examples.to_embeddings(anchor)
    classifier = fit_kernel_classifier(examples, problem, settings, basis)
    classifier.parameters = replace(classifier.parameters, version=anchor)
    return classifier


def refreshed_kernel(classifier: KernelClassifier, bank: Bank) -> KernelClassifier:
    """The kernel head of an example bank that has moved to another version, from that of an earlier version."""
    if _Anchor.of(bank.log).version != classifier.parameters.version:
        return kernel_classifier_of(bank, classifier.problem, classifier.settings)
    return classifier.with_rows(bank)


def previewed_kernel(classifier: KernelClassifier, bank: Bank, preview: PreviewedBank) -> KernelClassifier:
    """The kernel head of a bank as a planned change would make it, from that of the bank as it is."""
    if _Anchor.of(bank.log).is_left(preview.changed):
        return fit_kernel_classifier(preview, classifier.problem, classifier.settings)
    return classifier.with_rows(preview)


@dataclass(frozen=True)
class _Anchor:
    """The version at which the parameters of a bank are chosen.

    It is left when as many rows have changed since as had before it (at least `_FEW`), or a quarter of the bank: so a
    few new memes count soon, and a bank whose rows are changed N times is tuned about log N times.

    Attributes:
        version: The version.
        rows: Number of rows of the bank at that version.
        before: Number of rows that were changed up to it since the first version.
        since: Number of rows that were changed after it.
    """

    version: int
    rows: int
    before: int = 0
    since: int = 0

    @classmethod
    def of(cls, log: Sequence[VersionEntry]) -> "_Anchor":
        """The anchor of the newest version of a log."""
        anchor = cls(log[0].version, log[0].counts["rows"])
        for entry in log[1:]:
            changed = sum(entry.counts[name] for name in _CHANGES)
            if anchor.is_left(changed):
                anchor = cls(entry.version, entry.counts["rows"], anchor.before + anchor.since + changed)
            else:
                anchor = replace(anchor, since=anchor.since + changed)
        return anchor

    def is_left(self, changed: int) -> bool:
        """Whether a version that changes some rows is the next anchor."""
        return self.since + changed >= min(max(self.before, _FEW), max(self.rows / 4, 1))
