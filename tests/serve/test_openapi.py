"""schemathesis asks every route of the OpenAPI page, with sense and with nonsense, with keys and without."""

import contextlib
import shutil
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from servers import drawn, encoded, in_thread

from ra_hmd.cases.database import Database
from ra_hmd.cases.pictures import CasePictures
from ra_hmd.cases.store import CaseStore
from ra_hmd.inference.detector import Detector
from ra_hmd.serve.app import create_app
from ra_hmd.serve.auth import KeyRing, make_key
from ra_hmd.serve.bank_service import BankService
from ra_hmd.serve.batching import BatchingService
from ra_hmd.serve.case_service import CaseService
from ra_hmd.serve.jobs_runner import open_jobs
from ra_hmd.serve.jobs_settings import JobSettings
from ra_hmd.serve.limits import RequestLimits

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
PICTURE = drawn((32, 32))
ROUTES = {
    "/v1/classify", "/v1/explain", "/v1/moderations", "/v1/info",
    "/v1/bank", "/v1/bank/log", "/v1/bank/rows", "/v1/bank/rows/{row}", "/v1/bank/diff",
    "/v1/bank/search", "/v1/bank/effect", "/v1/bank/add",
    "/v1/bank/remove", "/v1/bank/relabel", "/v1/bank/rollback", "/health", "/ready", "/metrics",
    "/v1/jobs", "/v1/jobs/{job}", "/v1/jobs/{job}/result",
    "/v1/cases", "/v1/cases/{case}", "/v1/cases/{case}/appeal", "/v1/cases/{case}/decisions",
    "/v1/cases/{case}/decisions/{number}/undo", "/v1/audit",
}  # fmt: skip

ANSWERED = {
    "/v1/classify",
    "/v1/moderations",
    "/v1/info",
    "/v1/bank",
    "/v1/bank/log",
    "/v1/bank/rows",
    "/v1/bank/rows/{row}",
    "/v1/bank/search",
    "/v1/cases",
    "/v1/cases/{case}",
    "/v1/audit",
    "/health",
    "/ready",
    "/metrics",
}
CHANGED = {"/v1/bank/remove", "/v1/bank/relabel", "/v1/cases/{case}/decisions"}


@dataclass(frozen=True)
class Known:
    """Ids of the bank's rows, and of cases."""

    ids: list[str]
    cases: list[str]


@pytest.fixture(scope="module", params=["locked", "open"])
def served(
    request: pytest.FixtureRequest, served_clip: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[httpx.Client, dict[str, str], Known]]:
    """A client, a moderator's headers (none where there are no keys), and what is there."""
    folder = tmp_path_factory.mktemp("described")
    bank = Path(shutil.copytree(served_clip / "bank", folder / "bank"))
    keys, headers = None, {}
    if request.param == "locked":
        headers = {"X-API-Key": make_key(folder / "keys.json", "ana", "moderator")}
        keys = KeyRing.open(folder / "keys.json")
    service = BatchingService(Detector.from_run(served_clip / "head", bank))
    bank_service = BankService.open(service, served_clip / "features" / "dev")
    jobs = open_jobs(JobSettings(jobs=folder / "jobs"), service)
    store = CaseStore(Database(folder / "cases.sqlite"))
    cases = CaseService(service, store, CasePictures(folder / "pictures"), bank_service)
    app = create_app(service, bank_service, keys=keys, limits=RequestLimits(max_images=4), jobs=jobs, cases=cases)
    with in_thread(app) as client:
        sent = {"cases": [{"image": encoded(PICTURE), "text": f"cake {number}"} for number in range(4)]}
        waiting = [client.post("/v1/cases", json=sent, headers=headers).json()["results"] for _ in range(10)]
        yield client, headers, Known(bank_service.bank.ids, [one["case"] for answer in waiting for one in answer])


def sensible(value: Any, ids: list[str], turn: int) -> Any:
    """What was generated, with real pictures, and every other time real ids: drawn text is hardly ever either."""
    if isinstance(value, list):
        return [sensible(one, ids, turn + place) for place, one in enumerate(value)]
    if isinstance(value, dict):
        known = {name: sensible(one, ids, turn) for name, one in value.items()}
        if isinstance(known.get("image"), str):
            known |= {"image": encoded(PICTURE), "text": "a cake"}
        if known.get("type") == "image_url":
            known["image_url"] = {"url": f"data:image/png;base64,{encoded(PICTURE)}"}
        if turn % 2 and "input" in known:
            known["input"] = [{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{encoded(PICTURE)}"}}]
            known["input"].append({"type": "text", "text": "a cake"})
        if turn % 2 and isinstance(known.get("ids"), list):
            known["ids"] = ids[turn % 50 : turn % 50 + 2]
        if turn % 2 and isinstance(known.get("labels"), dict):
            known["labels"] = {ids[-1 - turn % 50]: turn // 2 % 2}  # not those that are removed
        if turn % 2 and "reason" in known:
            known["reason"] = "seen"
        if turn % 2 and known.get("callback"):
            known["callback"] = ""
        if turn % 2 and isinstance(known.get("label"), int):
            known["label"] = turn // 2 % 2
        return known
    return value


def statuses(operation: Any, mode: GenerationMode, headers: dict[str, str], known: Known, examples: int) -> set[int]:
    """Of the answers to what is generated for a route, each of them checked."""
    seen: set[int] = set()
    turns = count()

    @settings(max_examples=examples, deadline=None, derandomize=True, database=None,
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(case=operation.as_strategy(generation_mode=mode))
    def ask(case: Case) -> None:
        if mode == GenerationMode.POSITIVE:
            turn = next(turns)
            case.body = sensible(case.body, known.ids, turn)
            if turn % 2 and case.path_parameters:
                real = {"case": known.cases[turn % len(known.cases)], "row": known.ids[turn % 50]}
                case.path_parameters |= {name: real[name] for name in real.keys() & case.path_parameters.keys()}
        response = case.call(headers=dict(headers))
        case.validate_response(response, checks=CHECKS)
        seen.add(response.status_code)

    with contextlib.suppress(Unsatisfiable):  # no nonsense can be sent to what takes nothing
        ask()
    return seen


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
@pytest.mark.parametrize("with_key", [True, False])
def test_every_answer_is_as_described(
    served: tuple[httpx.Client, dict[str, str], Known], mode: GenerationMode, with_key: bool
) -> None:
    client, headers, known = served
    if not headers and not with_key:
        pytest.skip("there are no keys")
    schema = schemathesis.openapi.from_url(str(client.base_url.join("/openapi.json")), headers=dict(headers))
    operations = [found.ok() for found in schema.get_all_operations()]
    seen: dict[str, set[int]] = defaultdict(set)
    for one in operations:
        seen[one.path] |= statuses(one, mode, headers if with_key else {}, known, 14 if with_key else 4)
    assert seen.keys() == ROUTES
    if with_key and mode == GenerationMode.POSITIVE:
        answered = {path for path, found in seen.items() if 200 in found}
        assert 201 in seen["/v1/cases"]
        assert answered >= ANSWERED | (CHANGED if headers else set()), seen
    if not with_key:
        assert {path for path, found in seen.items() if found != {401}} <= {"/health", "/ready"}
