"""A typed client that is generated from the OpenAPI document judges a meme and adds it to the bank."""

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from jsonschema import Draft202012Validator
from servers import drawn, encoded, in_thread

from ra_hmd.inference.detector import Detector
from ra_hmd.serve.app import create_app
from ra_hmd.serve.auth import KeyRing, make_key
from ra_hmd.serve.bank_service import BankService
from ra_hmd.serve.batching import BatchingService
from ra_hmd.serve.examples import ANSWERS, REQUESTS

OPERATIONS = {
    "memes_classify", "memes_explain", "memes_moderate", "bank_info", "bank_log", "bank_search", "bank_effect",
    "bank_add", "bank_remove", "bank_relabel", "bank_rollback", "bank_rows", "bank_row", "bank_diff", "cases_add",
    "cases_list", "cases_get", "cases_appeal", "cases_decide", "cases_undo", "cases_audit",
    "service_info", "service_health", "service_ready",
    "service_metrics", "jobs_send", "jobs_list", "jobs_get", "jobs_result", "jobs_remove",
}  # fmt: skip
"""Names that generated clients have for the routes; they stay."""


@pytest.fixture
def served(served_clip: Path, clip_bank: Path, tmp_path: Path) -> Any:
    key = make_key(tmp_path / "keys.json", "ana", "moderator")
    service = BatchingService(Detector.from_run(served_clip / "head", clip_bank))
    app = create_app(service, BankService.open(service), keys=KeyRing.open(tmp_path / "keys.json"))
    with in_thread(app) as client:
        yield client, key


def test_a_generated_client_judges_and_adds(
    served: tuple[httpx.Client, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, key = served
    document = client.get("/openapi.json").json()
    (tmp_path / "openapi.json").write_text(json.dumps(document))
    (tmp_path / "config.yaml").write_text("post_hooks: []\n")  # which would format the code
    done = subprocess.run(
        [sys.executable, "-m", "openapi_python_client", "generate", "--path", tmp_path / "openapi.json",
         "--meta", "none", "--config", tmp_path / "config.yaml", "--output-path", tmp_path / "generated_ra_hmd"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    for route in ("memes/memes_classify", "jobs/jobs_send", "cases/cases_add"):
        # openapi-python-client 0.29.1 forgets an import where a route takes bodies of several kinds.
        file = tmp_path / "generated_ra_hmd" / "api" / f"{route}.py"
        file.write_text(file.read_text().replace("import Response, UNSET\n", "import Response, UNSET, Unset\n"))
    monkeypatch.syspath_prepend(tmp_path)
    made: Any = importlib.import_module("generated_ra_hmd")
    models: Any = importlib.import_module("generated_ra_hmd.models")

    def call(name: str, **arguments: Any) -> Any:
        operation = importlib.import_module(f"generated_ra_hmd.api.{name.partition('_')[0]}.{name}")
        return operation.sync(client=made.AuthenticatedClient(str(client.base_url), key), **arguments)

    picture = encoded(drawn())
    judged = call("memes_classify", body=models.ClassifyRequest([models.MemeIn(picture, "a cake", "a")])).results[0]
    assert isinstance(judged, models.Judged)
    assert judged.verdict in (0, 1)
    label = 1 - judged.verdict
    added = call("bank_add", body=models.AddRequest([models.LabelledMeme("a", picture, label, "a cake")], "wrong"))
    assert (added.version, added.author) == (2, "ana")
    again = call("bank_add", body=models.AddRequest([models.LabelledMeme("a", picture, label, "a cake")], "wrong"))
    assert isinstance(again, models.Refused)
    assert (again.code, again.bank_version) == ("already_applied", 2)
    assert call("service_info").bank.version == 2
    for name in OPERATIONS:
        importlib.import_module(f"generated_ra_hmd.api.{name.partition('_')[0]}.{name}")


def test_operations_have_stable_names_and_examples_that_hold(served: tuple[httpx.Client, str]) -> None:
    client, key = served
    document = client.get("/openapi.json").json()
    operations = {
        one["operationId"]: (method, path, one)
        for path, item in document["paths"].items()
        for method, one in item.items()
    }
    assert operations.keys() >= OPERATIONS
    assert ANSWERS.keys() >= OPERATIONS - {"jobs_remove", "cases_audit"}, "which are no JSON"
    for name, (method, path, operation) in operations.items():
        assert operation["tags"], name
        assert operation["description"], name
        for status, response in operation["responses"].items():
            assert "content" in response or status == "204", (name, status)
            for content in response.get("content", {}).values():
                assert "example" in content, (name, status)
                _check(content["example"], content["schema"], document)
        if name in REQUESTS:
            content = operation["requestBody"]["content"]["application/json"]
            _check(content["example"], content["schema"], document)
        query = {one["name"]: 1 for one in operation.get("parameters", ()) if one["in"] == "query" and one["required"]}
        answer = client.request(
            method, re.sub(r"\{\w+\}", "1", path), json=REQUESTS.get(name), params=query, headers={"X-API-Key": key}
        )
        assert answer.status_code in (200, 404, 409), (name, answer.text)


def _check(example: Any, schema: dict[str, Any], document: dict[str, Any]) -> None:
    Draft202012Validator({**schema, "components": document["components"]}).validate(example)
