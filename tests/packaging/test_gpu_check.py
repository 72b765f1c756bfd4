"""`scripts/gpu_check.sh`: what it lists without a GPU, what runs on a CPU, and that checks are independent."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from engines import BIN, ROOT, run

pytestmark = pytest.mark.slow

SCRIPTS = ROOT / "scripts"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPTS))
        spec = importlib.util.spec_from_file_location("gpu_check", SCRIPTS / "gpu_check.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module


@pytest.mark.skipif(torch.cuda.is_available(), reason="of machines without a GPU")
def test_without_a_gpu_it_says_what_it_would_run(script: ModuleType, tmp_path: Path) -> None:
    done = run(["sh", str(SCRIPTS / "gpu_check.sh")], tmp_path, PYTHON=sys.executable)
    assert done.returncode == script.NO_GPU == 3
    assert [line.split()[0] for line in done.stdout.splitlines()[1:]] == list(script.CHECKS)
    assert list(tmp_path.iterdir()) == []


def test_what_needs_no_gpu_runs_on_a_cpu(tmp_path: Path) -> None:
    names = ["flash_attention_2", "liger", "bf16", "nf4", "faiss_gpu", "stage2", "extraction", "stage1", "vllm_pooling"]
    names += ["ray_actor", "two_processes"]
    command = [str(BIN / "python"), str(SCRIPTS / "gpu_check.py"), "--device", "cpu", "--output", "out", "--only"]
    done = run([*command, *names], tmp_path)
    assert done.returncode == 0, done.stdout
    found = json.loads((tmp_path / "out" / "gpu_check.json").read_text())
    checks = found["checks"]
    assert found["machine"]["device"] == "cpu"
    assert list(checks) == names
    unfit = {name for name, check in checks.items() if check["status"] == "not run"}
    assert unfit == {"flash_attention_2", "liger", "faiss_gpu", "vllm_pooling"}
    assert all(checks[name]["reason"] == "needs a GPU" for name in unfit - {"vllm_pooling"})
    assert "vLLM is not installed" in checks["vllm_pooling"]["reason"]
    assert checks["ray_actor"]["values"]["difference"] < 1e-5
    assert checks["two_processes"]["values"]["difference"] < 1e-5
    assert all(checks[name]["status"] == "passed" for name in names if name not in unfit)
    bf16, nf4 = checks["bf16"]["values"], checks["nf4"]["values"]
    assert bf16["loss"] == pytest.approx(bf16["plain_loss"], rel=0.02)
    assert bf16["loss"] != bf16["plain_loss"]
    assert nf4["loss"] == pytest.approx(nf4["plain_loss"], rel=0.1)
    stage2 = checks["stage2"]["values"]
    assert stage2["ratio"] == pytest.approx(stage2["epoch_s"] / stage2["bare_products_s"])
    table = (tmp_path / "out" / "gpu_check.md").read_text().splitlines()
    assert [line.split("|")[1].strip() for line in table if line.startswith("| ")][1:] == names


def test_a_check_that_fails_or_hangs_stops_nothing(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(bench: object) -> dict[str, float]:
        raise RuntimeError("no kernel image")

    monkeypatch.setitem(script.CHECKS, "broken", (broken, 5))
    result = script.run_check("broken", "cpu", tmp_path)
    assert (result["status"], result["reason"]) == ("failed", "RuntimeError: no kernel image")
    late = script.run_apart("bf16", "cpu", tmp_path, tmp_path / "bf16.log", 0.2)
    assert (late["status"], late["seconds"]) == ("failed", 0.2)
    monkeypatch.setattr(script, "TOTAL", -1)
    assert script.run_all(["bf16"], "cpu", tmp_path)["bf16"]["status"] == "not run"
