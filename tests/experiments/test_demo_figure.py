"""The figure of the demo."""

from pathlib import Path
from typing import Any

import pytest

from ra_hmd.experiments.demo_figure import write_bank_update_figure


def curve(*values: tuple[float, float]) -> list[dict[str, Any]]:
    """An update curve with AUROCs of the vote and of the kernel head."""

    def around(value: float) -> dict[str, Any]:
        return {"auroc": {"value": value, "low": value - 0.03, "high": value + 0.02}}

    return [{"added": 8 * place, **around(vote), "krr": around(kernel)} for place, (vote, kernel) in enumerate(values)]


@pytest.mark.renders
def test_the_same_values_give_the_same_file_and_others_another(tmp_path: Path) -> None:
    first = {"a_test": curve((0.9, 0.9), (0.9, 0.9)), "b_test": curve((0.5, 0.5), (0.6, 0.8))}
    other = first | {"b_test": curve((0.5, 0.5), (0.6, 0.9))}
    files = []
    for number, curves in enumerate((first, first, other)):
        (tmp_path / str(number)).mkdir()
        files.append(write_bank_update_figure(curves, tmp_path / str(number)).read_bytes())
    assert files[0] == files[1] != files[2]
