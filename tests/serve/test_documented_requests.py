"""The requests of docs/api.md in the shape of OpenAI's moderation endpoint, and its errors."""

import contextlib
import json
import re
import subprocess
from pathlib import Path

import pytest
from documented import blocks, expanded
from engines import ROOT
from servers import drawn, in_thread

from ra_hmd.inference.detector import Detector
from ra_hmd.serve.app import create_app
from ra_hmd.serve.batching import BatchingService
from ra_hmd.serve.errors import CODES

PAGE = ("docs/api.md",)
ADDRESS = "http://127.0.0.1:8000"


def test_openai_client_and_curl(served_clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "cat.png").write_bytes(drawn())
    service = BatchingService(Detector.from_run(served_clip / "head", served_clip / "bank"))
    (shell,) = (block for block in blocks("bash", PAGE) if "/v1/moderations" in block.text)
    (python,) = (block for block in blocks("python", PAGE) if "OpenAI" in block.text)
    (shown,) = blocks("json", PAGE)
    with in_thread(create_app(service)) as client, contextlib.chdir(tmp_path):
        here = str(client.base_url).rstrip("/")
        assert ADDRESS in python.text
        exec(python.text.replace(ADDRESS, here), {})
        flagged, score = capsys.readouterr().out.split()
        (command,) = expanded(shell.text.replace(ADDRESS, here), tmp_path)
        done = subprocess.run([*command, "--silent", "--fail-with-body"], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout
        (result,) = json.loads(done.stdout)["results"]
        assert (str(result["flagged"]), result["category_scores"]["hate"]) == (flagged, pytest.approx(float(score)))
        refused = client.post("/v1/classify", json={"memes": [{"text": "a cake"}]})
        assert refused.json() == json.loads(shown.text)


def test_every_code_of_an_error_is_in_the_page() -> None:
    source = "".join(path.read_text() for path in (ROOT / "ra_hmd" / "serve").glob("*.py"))
    codes = {*re.findall(r'code="([a-z_]+)"', source), *CODES.values()}
    page = (ROOT / PAGE[0]).read_text()
    assert len(codes) > 20
    assert not [code for code in codes if f"`{code}`" not in page]
