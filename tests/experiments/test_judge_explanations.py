"""From verdicts with rationales to their grades: what one command writes the other reads."""

import json
from pathlib import Path

from judge_server import completion, explanation, grade, serve
from typer.testing import CliRunner

from ra_hmd.cli.app import app


def ra_hmd(*words: str | Path) -> None:
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 0, f"{words}\n{done.output}\n{done.exception!r}"


def test_what_explain_writes_is_judged(stage1_run: Path, memes: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (memes / "a" / "dev.jsonl").read_text().splitlines()[:4]]
    for row in rows:
        row["img"] = str(memes / "a" / row["img"])
    (tmp_path / "memes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    ra_hmd("explain", "--checkpoint", stage1_run, "--input", tmp_path / "memes.jsonl", "--output",
           tmp_path / "said.jsonl", "--max-new-tokens", "4")  # fmt: skip
    said = {row["id"]: row for row in map(json.loads, (tmp_path / "said.jsonl").read_text().splitlines())}
    known = [{"id": row["id"], "reference": f"It is about cake {row['id']}.", "label": 1} for row in rows]
    (tmp_path / "known.jsonl").write_text("".join(json.dumps(row) + "\n" for row in known))
    with serve(lambda body, before: completion(grade(6))) as endpoint:
        ra_hmd("judge", "--rationales", tmp_path / "said.jsonl", "--references", tmp_path / "known.jsonl", "--endpoint",
               endpoint.url, "--model", "m", "--output", tmp_path / "judged")  # fmt: skip
        assert sorted(map(explanation, endpoint.requests)) == sorted(row["rationale"] for row in said.values())
    graded = [json.loads(line) for line in (tmp_path / "judged" / "results.jsonl").read_text().splitlines()]
    assert {row["id"]: row["score"] for row in graded} == {
        name: 2 if row["verdict"] == 0 else 6 for name, row in said.items()
    }
    assert json.loads((tmp_path / "judged" / "ra_hmd.json").read_text())["capped"] == sum(
        row["verdict"] == 0 for row in said.values()
    )
