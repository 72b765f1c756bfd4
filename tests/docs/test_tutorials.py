"""The tutorials run as they are printed, and print what they say.

Each block of a tutorial runs in its order, in a folder that is empty before: Bash by `bash -euo pipefail`, Python by a
new interpreter. A `text` block shows what the block before it prints.
"""

import json
import os
import re
import subprocess
import time
from itertools import pairwise
from pathlib import Path

import pytest
from documented import Block, page_blocks
from engines import ROOT, child_env
from PIL import Image, ImageChops, ImageStat

from ra_hmd.bank.bank import Bank

TUTORIALS = "docs/tutorials"
_NUMBER = re.compile(r"-?\d+\.\d+")
_TOLERANCE = 0.15  # of numbers with decimals, which depend on the processor


def run_tutorial(name: str, folder: Path) -> dict[int, str]:
    """Run every block of a tutorial.

    Returns:
        Line of each block to what it printed.
    """
    found = page_blocks(f"{TUTORIALS}/{name}")
    assert {block.language for block in found} <= {"bash", "python", "text"}
    printed = {}
    for block, after in pairwise([*found, None]):
        if block is None or block.language == "text":
            continue
        shown = after.text if after is not None and after.language == "text" else ""
        printed[block.line] = run_block(block, folder, fails="Error: " in shown)
        not_printed = missing_lines(shown, printed[block.line])
        assert not not_printed, f"{block}: not printed: {not_printed}\n{printed[block.line]}"
    return printed


def run_block(block: Block, folder: Path, *, fails: bool) -> str:
    """Run a block, and return what it printed, stderr too."""
    words = {"bash": ["bash", "-euo", "pipefail", "-c"], "python": ["python", "-c"]}[block.language]
    began, spent = time.monotonic(), os.times()
    done = subprocess.run(
        [*words, block.text],
        cwd=folder,
        env=child_env(PYTHONPATH=str(ROOT), COLUMNS="120", HF_HUB_OFFLINE="1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=1800,
    )
    used = sum(os.times()[2:4]) - sum(spent[2:4])  # of the children, whatever else the machine does
    print(f"{block}: {time.monotonic() - began:.1f} s, of CPU time {used:.1f} s\n{done.stdout}", flush=True)
    assert (done.returncode != 0) == fails, f"{block}\n{done.stdout[-5000:]}"
    return done.stdout


def missing_lines(shown: str, printed: str) -> list[str]:
    """The lines that a page shows and a block did not print, in their order; `…` stands for anything."""
    given = iter(printed.splitlines())
    return [line for line in shown.splitlines() if line != "…" and not any(same(line, one) for one in given)]


def same(shown: str, printed: str) -> bool:
    """Whether a line is as shown, up to blanks at its end and to decimals within the tolerance."""
    parts = re.split(r"(…|-?\d+\.\d+)", shown.rstrip())
    pattern = "".join(
        ".*" if part == "…" else f"({_NUMBER.pattern})" if _NUMBER.fullmatch(part) else re.escape(part)
        for part in parts
    )
    match = re.fullmatch(pattern, printed.rstrip())
    numbers = [float(part) for part in parts if _NUMBER.fullmatch(part)]
    return match is not None and all(
        abs(float(found) - number) <= _TOLERANCE for found, number in zip(match.groups(), numbers, strict=True)
    )


def areas(report: Path, split: str) -> dict[str, float]:
    """Head to its AUROC."""
    metrics = json.loads((report / "metrics.json").read_text(encoding="utf-8"))[split]
    return {head: values["auroc"]["value"] for head, values in metrics.items()}


def test_shown_lines_are_compared_in_order_and_numbers_within_limits() -> None:
    printed = "first 10\nAUROC 0.91 of 3\nlast\n"
    assert missing_lines("first 10\n…\nAUROC 0.95 of 3\n", printed) == []
    assert missing_lines("AUROC … of 3\nlast", printed) == []
    assert missing_lines("AUROC 0.65 of 3", printed) == ["AUROC 0.65 of 3"]
    assert missing_lines("AUROC 0.91 of 4", printed) == ["AUROC 0.91 of 4"]
    assert missing_lines("last\nfirst 10", printed) == ["first 10"]


@pytest.mark.slow
@pytest.mark.timeout(5400)
def test_first_detector_then_a_new_trend(tmp_path: Path) -> None:
    run_tutorial("first_detector.md", tmp_path)
    assert min(areas(tmp_path / "report", "test").values()) > 0.85
    with Image.open(tmp_path / "group.png") as made, Image.open(ROOT / TUTORIALS / "group.png") as shown:
        # Versions of Pillow draw the edges of letters a little differently.
        assert max(ImageStat.Stat(ImageChops.difference(made.convert("RGB"), shown.convert("RGB"))).mean) < 2
    run_tutorial("new_trend.md", tmp_path)
    before, after = areas(tmp_path / "before", "later"), areas(tmp_path / "after", "later")
    assert before["krr"] < 0.75
    assert after["krr"] > 0.9
    assert after["krr"] - before["krr"] > 0.2
    assert abs(after["rkc"] - before["rkc"]) < 0.1
    assert areas(tmp_path / "after_animals", "test")["krr"] > 0.9
    assert areas(tmp_path / "restored", "later") == before
    with Bank.open(tmp_path / "bank") as bank:
        assert [entry.counts["rows"] for entry in bank.log] == [1000, 1010, 1000]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_own_files(tmp_path: Path) -> None:
    run_tutorial("own_files.md", tmp_path)
    assert min(areas(tmp_path / "reports" / "test", "test").values()) > 0.9
    assert len((tmp_path / "faulty" / "rejected.jsonl").read_text(encoding="utf-8").splitlines()) == 3


def test_every_tutorial_is_run_here_and_listed() -> None:
    pages = {path.name for path in (ROOT / TUTORIALS).glob("*.md")} - {"index.md"}
    assert pages == {"first_detector.md", "own_files.md", "new_trend.md"}
    listed = (ROOT / TUTORIALS / "index.md").read_text(encoding="utf-8")
    assert all(f"]({page})" in listed for page in pages)
    assert not page_blocks(f"{TUTORIALS}/index.md")
