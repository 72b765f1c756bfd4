"""The review page of a task in which a meme may have several classes."""

import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from desks import MakeDesk
from served import ra_hmd
from servers import queries

pytestmark = pytest.mark.slow


def several_classes(served_clip: Path, folder: Path) -> None:
    """A head and a bank on the same features with three classes, in `head` and `bank`."""
    for split in ("train", "dev"):
        (part,) = Path(shutil.copytree(served_clip / "features" / split, folder / "features" / split)).glob("*.parquet")
        table = pq.read_table(part)
        labels = [[label or 0, row % 2, int(row % 3 == 0)] for row, label in enumerate(table["label"].to_pylist())]
        place = table.schema.get_field_index("label")
        pq.write_table(table.set_column(place, "label", pa.array(labels, pa.list_(pa.int8(), 3))), part)
    (folder / "head.yaml").write_text(
        "fusion: align\nmap_dim: 16\nproj_dim: 16\nnum_layers: 2\nepochs: 1\nproblem_type: multi_label\noutput_dim: 3\n"
    )
    ra_hmd("train-head", folder / "head.yaml", f"train={folder}/features/train", f"dev={folder}/features/dev",
           f"output_dir={folder / 'head'}")  # fmt: skip
    ra_hmd("bank", "create", folder / "bank", "--checkpoint", folder / "head", "--features",
           folder / "features" / "train", "--reason", "start")  # fmt: skip


def test_classes_are_ticked_and_decided_by_enter(
    desk: MakeDesk, browser: Any, served_clip: Path, tmp_path: Path
) -> None:
    several_classes(served_clip, tmp_path / "several")
    with desk(run=tmp_path / "several" / "head", bank=tmp_path / "several" / "bank") as served:
        served.add(3)
        page = browser.new_page()
        page.goto(f"{served.address}/review")
        first = page.get_attribute("#case", "data-case")
        page.wait_for_timeout(450)
        page.keyboard.press("Enter")
        page.wait_for_selector(f"#case:not([data-case='{first}'])")
        opinion, case = served.cases.store.opinions_of("ana")[0]
        assert (opinion.action, opinion.label) == ("agree", case.verdict["verdict"])
        second = page.get_attribute("#case", "data-case")
        page.wait_for_timeout(450)
        page.keyboard.press("2")
        page.keyboard.press("Enter")
        assert page.locator(".reasons.asked").count() == 1, "it is not as judged, so a reason is asked for"
        page.keyboard.press("1")
        page.wait_for_selector(f"#case:not([data-case='{second}'])")
        opinion, case = served.cases.store.opinions_of("ana")[0]
        assert opinion.label == [one ^ (place == 1) for place, one in enumerate(case.verdict["verdict"])]
        page.close()


def test_near_copies_get_several_classes_at_once(desk: MakeDesk, served_clip: Path, tmp_path: Path) -> None:
    several_classes(served_clip, tmp_path / "several")
    with desk(run=tmp_path / "several" / "head", bank=tmp_path / "several" / "bank") as served:
        first = served.add(len(queries(served.memes)))[0]
        (again,) = served.add(1)  # the first meme with another caption
        page = served.client.get(f"/console/cases/{first}/near").text
        assert page.count('type="checkbox" name="label"') == 3
        form = {"case": [first, again], "label": ["0", "2"], "reason": "The verdict is wrong"}
        assert served.client.post(f"/console/cases/{first}/near", data=form).status_code == 200
        assert [served.cases.store.get(name).label for name in (first, again)] == [[1, 0, 1]] * 2
