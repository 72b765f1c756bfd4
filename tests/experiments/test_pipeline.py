"""Steps are done once, and again when the files that they name were replaced."""

import sys
from pathlib import Path

from json_files import read_json
from rich.console import Console

from ra_hmd.core.artifacts import write_json
from ra_hmd.experiments.pipeline import Step, run_steps

_COPY = "import sys, pathlib as p; a, b = map(p.Path, sys.argv[1:]); b.mkdir(exist_ok=True); " \
        "(b / 'out.jsonl').write_text((a / 'in.jsonl').read_text()); (b / 'log.txt').write_text('x')"  # fmt: skip


def test_a_step_is_done_again_when_what_it_names_was_replaced(tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    data.mkdir()
    (data / "in.jsonl").write_text("one\n")
    step = Step("Copy", [Path(sys.executable).name, "-c", _COPY, str(data), str(out)])

    def run() -> tuple[bool, str]:
        (tmp_path / "run" / "logs").mkdir(parents=True, exist_ok=True)
        console = Console(record=True, width=200)
        run_steps("demo", [step], tmp_path / "run", console=console)
        return "already done" in console.export_text(), (out / "out.jsonl").read_text()

    assert run() == (False, "one\n")
    assert run() == (True, "one\n")
    (out / "final_evaluations.jsonl").write_text("{}\n")  # what a later step leaves there
    (out / "decision.json").write_text("{}")
    assert run() == (True, "one\n")
    (data / "in.jsonl").write_text("two\n")
    assert run() == (False, "two\n")
    assert run() == (True, "two\n")
    (out / "out.jsonl").unlink()
    assert run() == (False, "two\n"), "its own output is gone"
    record = tmp_path / "run" / "demo.json"
    old = read_json(record)
    del old["files"]
    write_json(record, old)
    assert run() == (True, "two\n"), "an earlier version knew no files"
