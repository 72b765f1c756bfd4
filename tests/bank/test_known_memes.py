"""Known memes first: copies of labelled rows are found by their hashes."""

from dataclasses import replace

import pyarrow.parquet as pq
import pytest
from small_banks import SAID, bank_of, make_rows, points

from ra_hmd.bank.bank import Bank


@pytest.mark.parametrize("name", ["bank", "bank.db"])
def test_a_bank_keeps_hashes_of_images_and_captions(tmp_path, name):
    rows = replace(make_rows(["x", "y"], [1, 0]), pdqs=["0f" * 32, ""], caption_digests=["ab" * 16, ""])
    with bank_of(tmp_path / name) as bank:
        bank.add(rows, points(2), **SAID)
    with Bank.open(tmp_path / name) as bank:
        kept = bank.state_at().rows
        assert list(kept.pdqs[-2:]) == rows.pdqs
        assert list(kept.caption_digests[-2:]) == rows.caption_digests
        assert not any(kept.pdqs[:-2])


def test_a_bank_of_an_earlier_release_has_no_such_hashes(tmp_path):
    bank_of(tmp_path / "bank").close()
    (path,) = (tmp_path / "bank" / "versions").glob("*.parquet")
    pq.write_table(pq.read_table(path).drop_columns(["pdq", "caption_digest"]), path)
    with Bank.open(tmp_path / "bank") as bank:
        rows = bank.state_at().rows
        assert len(rows) == len(bank)
        assert {*rows.pdqs, *rows.caption_digests} == {""}
