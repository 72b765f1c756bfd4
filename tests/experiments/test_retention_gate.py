"""The non-inferiority gate of `ra-hmd retention`: verdicts, exit codes, intervals."""

import numpy as np
import pytest

from ra_hmd.core.errors import UserError
from ra_hmd.experiments.retention.gate import POOLED, Margins, PairedDifferences, non_inferiority

ONE = Margins(pooled=None)


def _differences(lost: int, gained: int, items: int) -> np.ndarray:
    values = np.zeros(items)
    values[:lost], values[lost : lost + gained] = -1, 1
    return values


@pytest.mark.parametrize(
    ("lost", "gained", "items", "verdict", "code"),
    [
        (0, 0, 1000, "pass", 0),
        (30, 30, 3000, "pass", 0),
        (400, 20, 3000, "fail", 1),
        (20, 10, 300, "undecided", 2),
        (0, 0, 20, "undecided", 2),  # twenty equal answers do not show that 3 points are kept
    ],
)
def test_the_interval_decides_the_verdict(lost: int, gained: int, items: int, verdict: str, code: int) -> None:
    result = non_inferiority({"task": _differences(lost, gained, items)}, ONE)
    assert (result.verdict, result.exit_code) == (verdict, code)


def test_one_task_that_fails_decides_over_those_that_pass() -> None:
    kept, lost, open_ = np.zeros(2000), _differences(300, 0, 2000), np.zeros(20)
    assert non_inferiority({"a": kept, "b": lost, "c": open_}, ONE).verdict == "fail"
    assert non_inferiority({"a": kept, "c": open_}, ONE).verdict == "undecided"


def test_the_pooled_row_has_a_margin_of_its_own_and_weighs_items_equally() -> None:
    small, large = _differences(60, 0, 3000), np.zeros(9000)
    result = non_inferiority({"small": small, "large": large})
    assert [row.task for row in result.rows] == ["small", "large", POOLED]
    pooled = result.rows[-1]
    assert pooled.difference.value == pytest.approx(-60 / 12000)
    assert (pooled.margin, pooled.items, result.verdict) == (0.01, 12000, "pass")
    assert non_inferiority({"small": small, "large": large}, Margins(pooled=0.001)).verdict == "fail"


def test_a_margin_can_be_stated_for_one_task() -> None:
    values = _differences(100, 0, 2000)  # 5 points
    assert non_inferiority({"task": values}, ONE).verdict == "fail"
    assert non_inferiority({"task": values}, Margins(pooled=None, tasks={"task": 0.08})).verdict == "pass"


def test_items_of_a_group_are_resampled_together() -> None:
    values = np.repeat(_differences(10, 10, 100), 20)  # twenty copies of each item tell nothing new
    alone = non_inferiority({"task": values}, ONE).rows[0].difference
    groups = [str(number // 20) for number in range(len(values))]
    grouped = non_inferiority({"task": PairedDifferences(values, groups=groups)}, ONE).rows[0]
    single = non_inferiority({"task": values[::20]}, ONE).rows[0].difference
    width = grouped.difference.high - grouped.difference.low
    assert grouped.groups == 100
    assert width == pytest.approx(single.high - single.low, rel=0.1)
    assert width > 3 * (alone.high - alone.low)


def test_groups_of_two_tasks_are_different_ones() -> None:
    task = PairedDifferences([0.0] * 40, groups=[str(number // 2) for number in range(40)])
    rows = non_inferiority({"a": task, "b": task, "c": [0.0] * 10}).rows
    assert [row.groups for row in rows] == [20, 20, 10, 50]


def test_the_interval_agrees_with_a_plain_paired_bootstrap() -> None:
    generator = np.random.default_rng(1)
    values = generator.choice([-1, 0, 1], size=1500, p=[0.09, 0.84, 0.07])
    found = non_inferiority({"task": values}, ONE).rows[0].difference
    means = generator.choice(values, size=(4000, len(values))).mean(axis=1)
    assert [found.low, found.high] == pytest.approx(np.quantile(means, [0.025, 0.975]).tolist(), abs=2e-3)


def test_a_verdict_is_wrong_no_oftener_than_stated() -> None:
    generator = np.random.default_rng(2)
    # The true loss is the margin itself: a pass happens in 2.5 % of the samples, and so does a fail.
    verdicts = [
        non_inferiority(
            {"task": generator.choice([-1, 0, 1], size=800, p=[0.08, 0.87, 0.05])}, ONE, samples=500, seed=number
        ).verdict
        for number in range(300)
    ]
    assert verdicts.count("pass") <= 16
    assert verdicts.count("fail") <= 16


def test_order_of_items_and_of_tasks_does_not_matter() -> None:
    values = _differences(13, 5, 400)
    groups = [str(number // 3) for number in range(400)]
    turned = PairedDifferences(values[::-1], groups=groups[::-1])
    first = non_inferiority({"a": PairedDifferences(values, groups=groups)}, ONE).rows[0]
    assert non_inferiority({"a": turned}, ONE).rows[0].difference.as_dict() == first.difference.as_dict()


def test_unbounded_differences_take_the_bounds_that_occur() -> None:
    identical = PairedDifferences([0.0] * 50, bounds=None, unit="nats")
    assert non_inferiority({"kl": identical}, Margins(each=0.05, pooled=None)).verdict == "pass"
    far = PairedDifferences([-2.0] * 50, bounds=None, unit="nats")
    assert non_inferiority({"kl": far}, Margins(each=0.05, pooled=None)).verdict == "fail"


@pytest.mark.parametrize(
    ("differences", "margins", "words"),
    [
        ({}, ONE, "there is no task"),
        ({"a": []}, ONE, "'a' has no items"),
        ({"a": [0.0, float("nan")]}, ONE, "'a', item 1"),
        ({"a": [0.0, -3.0]}, ONE, "outside its bounds"),
        ({"a": PairedDifferences([0.0, 0.0], groups=["x"])}, ONE, "2 items and 1 groups"),
        ({"a": [0.0]}, Margins(pooled=None, tasks={"b": 0.1}), "margins for b"),
        ({"a": [0.0], "b": PairedDifferences([0.0], unit="nats")}, Margins(), "cannot be pooled"),
    ],
)
def test_what_cannot_be_decided_is_a_sentence(differences: dict, margins: Margins, words: str) -> None:
    with pytest.raises(UserError, match=words):
        non_inferiority(differences, margins)


def test_table_and_summary_name_what_decided() -> None:
    result = non_inferiority({"kept": np.zeros(3000), "lost": _differences(900, 0, 3000)}, ONE)
    assert result.summary() == "Retention: fail: lost -0.300 (margin 0.03)."
    assert result.table().count("\n") == 4
    assert result.as_dict()["rows"][1]["verdict"] == "fail"
