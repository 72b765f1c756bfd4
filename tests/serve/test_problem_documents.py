"""Errors are problem documents with stable codes; limits per key; compression; pages of other origins."""

import gzip
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from servers import drawn, encoded, in_thread
from typer.testing import CliRunner

from ra_hmd.cli.app import app as cli
from ra_hmd.core.errors import UserError
from ra_hmd.inference.detector import Detector
from ra_hmd.serve.app import create_app
from ra_hmd.serve.auth import KeyRing, make_key
from ra_hmd.serve.bank_service import BankService
from ra_hmd.serve.batching import BatchingService
from ra_hmd.serve.limits import RequestLimits
from ra_hmd.serve.options import AddressOptions
from ra_hmd.serve.rate_limit import RateLimiter

Served = tuple[httpx.Client, dict[str, str]]
MEME = {"image": encoded(drawn()), "text": "a cake"}
ORIGIN = "https://desk.example.org"
PYDANTIC = ("function-", "constrained", "Input should", "MemeIn", "LabelledMeme", "Value error", "[key]", "int_")


@pytest.fixture(scope="module")
def served(served_clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A client of an app with keys, a bank and allowed origins, and the keys by name."""
    folder = tmp_path_factory.mktemp("problems")
    file, bank = folder / "keys.json", Path(shutil.copytree(served_clip / "bank", folder / "bank"))
    keys = {name: make_key(file, name, role) for name, role in (("ana", "moderator"), ("bo", "reader"))}
    done = CliRunner().invoke(cli, ["serve-key", "cy", "--keys", str(file), "--rate-limit", "3"])
    assert done.exit_code == 0, done.output
    keys["cy"] = done.stdout.strip()
    service = BatchingService(Detector.from_run(served_clip / "head", bank))
    app = create_app(service, BankService.open(service), keys=KeyRing.open(file), hosts=["localhost"], origins=[ORIGIN],
                     limits=RequestLimits(max_bytes=100_000, rate_limit=1000))  # fmt: skip
    with in_thread(app) as client:
        yield client, keys


@pytest.fixture
def client(served: Served) -> httpx.Client:
    """The client with a moderator's key."""
    served[0].headers["X-API-Key"] = served[1]["ana"]
    return served[0]


def test_every_error_is_a_problem_document(client: httpx.Client) -> None:
    asked: list[tuple[str, str, dict[str, Any], int, str]] = [
        ("GET", "/v1/bank", {"headers": {"Host": "evil.example"}}, 400, "host_not_allowed"),
        ("GET", "/v1/bank", {"headers": {"X-API-Key": "wrong"}}, 401, "key_required"),
        ("GET", "/nothing", {}, 404, "not_found"),
        ("POST", "/v1/bank/remove", {"json": {"ids": ["never"], "reason": "x"}}, 404, "not_in_bank"),
        ("POST", "/v1/explain", {"json": {"meme": MEME}}, 404, "no_rationales"),
        ("PUT", "/v1/classify", {}, 405, "method_not_allowed"),
        ("POST", "/v1/bank/rollback", {"json": {"version": 1, "reason": "x"}}, 409, "already_applied"),
        ("POST", "/v1/classify", {"content": b"x" * 200_000}, 413, "too_large"),
        ("POST", "/v1/classify", {"content": b"x"}, 415, "unsupported_type"),
        ("POST", "/v1/classify", {"json": {"memes": [{**MEME, "image": "aGk="}]}}, 422, "unusable_meme"),
        ("POST", "/v1/classify", {"json": {"memes": []}}, 422, "invalid_request"),
        ("POST", "/v1/classify", {"content": b"{", "headers": {"Content-Type": "application/json"}}, 422,
         "invalid_json"),
        ("GET", "/v1/bank/log?limit=x", {}, 422, "invalid_request"),
    ]  # fmt: skip
    for method, path, more, status, code in asked:
        answer = client.request(method, path, **more)
        assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json"), path
        body = answer.json()
        assert (body["status"], body["code"], body["type"]) == (status, code, f"urn:ra-hmd:problem:{code}"), path
        assert body["title"]
        assert isinstance(body["detail"], str), "as before"
        assert isinstance(body["problems"], list), "as before"
    assert "POST" in client.put("/v1/classify").headers["allow"]
    assert client.get("/v1/bank/log?limit=x").json()["problems"][0]["parameter"] == "limit"


@pytest.mark.parametrize(
    ("route", "body", "pointer"),
    [
        ("add", {"memes": [{**MEME, "id": "a", "label": True}], "reason": "x"}, "/memes/0/label"),
        ("add", {"memes": [{**MEME, "id": "a", "label": [1, True]}], "reason": "x"}, "/memes/0/label"),
        ("add", {"memes": [{**MEME, "id": "a", "label": "x"}], "reason": "x"}, "/memes/0/label"),
        ("add", {"memes": [{**MEME, "id": "a"}], "reason": "x"}, "/memes/0/label"),
        ("add", {"memes": [{**MEME, "id": "a", "label": 1, "text": 7}], "reason": "x"}, "/memes/0/text"),
        ("add", {"memes": ["cake"], "reason": "x"}, "/memes/0"),
        ("relabel", {"labels": {"a/b~c": False}, "reason": "x"}, "/labels/a~1b~0c"),
        ("relabel", {"labels": {"": 1}, "reason": "x"}, "/labels/"),
        ("relabel", {"labels": [], "reason": "x"}, "/labels"),
        ("rollback", {"version": True, "reason": "x"}, "/version"),
        ("search", {"meme": MEME, "k": True}, "/k"),
        ("search", {"meme": MEME, "k": 0}, "/k"),
        ("search", {"meme": MEME, "kk": 1}, "/kk"),
        ("search", [], ""),
    ],
)
def test_the_value_is_named_by_a_pointer_and_no_type_of_the_library(
    client: httpx.Client, route: str, body: Any, pointer: str
) -> None:
    answer = client.post(f"/v1/bank/{route}", json=body)
    assert answer.status_code == 422, answer.text
    assert [one["pointer"] for one in answer.json()["problems"]] == [pointer], answer.text
    assert not [name for name in PYDANTIC if name in answer.text], answer.text


def test_limits_of_each_key(served: Served) -> None:
    client, keys = served
    headers = {"X-API-Key": keys["cy"]}
    answers = [client.get("/v1/bank", headers=headers) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
    assert [answer.headers["ratelimit-policy"] for answer in answers] == ['"requests";q=3;w=60'] * 4
    assert [answer.headers["ratelimit"].split(";")[1] for answer in answers] == ["r=2", "r=1", "r=0", "r=0"]
    refused = answers[-1]
    assert refused.json()["code"] == "rate_limited"
    assert 0 < int(refused.headers["retry-after"]) <= 60
    assert client.get("/health", headers=headers).status_code == 200
    other = client.get("/v1/bank", headers={"X-API-Key": keys["bo"]})
    assert (other.status_code, other.headers["ratelimit-policy"]) == (200, '"requests";q=1000;w=60')


def test_windows_of_a_limit() -> None:
    now = 100.0
    limiter = RateLimiter(None, clock=lambda: now)
    assert [limiter.count("a", 2) for _ in range(4)] == [(1, 60), (0, 60), (-1, 60), (-1, 60)]
    assert limiter.count("b", 2) == (1, 60)
    now = 130.5
    assert limiter.count("a", 2) == (-1, 30)
    now = 160.0
    assert limiter.count("a", 2) == (1, 60)


def test_key_files_without_limits_stay_as_they_were(tmp_path: Path) -> None:
    make_key(tmp_path / "keys.json", "ana", "reader")
    (entry,) = json.loads((tmp_path / "keys.json").read_text())["keys"]
    assert entry.keys() == {"name", "role", "sha256", "created"}


def test_answers_are_compressed_for_who_asks(client: httpx.Client) -> None:
    plain = client.get("/openapi.json", headers={"Accept-Encoding": "identity"})
    packed = client.get("/openapi.json", headers={"Accept-Encoding": "gzip"})
    assert "content-encoding" not in plain.headers
    assert packed.headers["content-encoding"] == "gzip"
    assert packed.json() == plain.json()
    assert int(packed.headers["content-length"]) * 3 < int(plain.headers["content-length"])
    assert "content-encoding" not in client.get("/health").headers
    body = gzip.compress(json.dumps({"memes": [MEME]}).encode())
    sent = {"Content-Encoding": "gzip", "Content-Type": "application/json", "Accept-Encoding": "gzip"}
    answer = client.post("/v1/classify", content=body, headers=sent)
    assert (answer.status_code, answer.headers["content-encoding"]) == (200, "gzip")


def test_only_allowed_origins_may_read(served: Served) -> None:
    client, keys = served
    ask = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type,x-api-key"}
    allowed = client.options("/v1/classify", headers={"Origin": ORIGIN, **ask})
    assert (allowed.status_code, allowed.headers["access-control-allow-origin"]) == (200, ORIGIN)
    refused = client.options("/v1/classify", headers={"Origin": "https://evil.example", **ask})
    assert (refused.status_code, refused.json()["code"]) == (400, "origin_not_allowed")
    assert "access-control-allow-origin" not in refused.headers
    for origin, expected in ((ORIGIN, ORIGIN), ("https://evil.example", None)):
        answer = client.get("/v1/bank", headers={"Origin": origin, "X-API-Key": keys["ana"]})
        assert answer.headers.get("access-control-allow-origin") == expected
        assert "access-control-allow-credentials" not in answer.headers
    assert "RateLimit" in client.get("/v1/bank", headers={"Origin": ORIGIN}).headers["access-control-expose-headers"]


@pytest.mark.parametrize("value", ["desk.example.org", "https://a.org/desk", "ftp://a.org", "https://a b", "null", ""])
def test_what_is_no_origin_is_refused_at_the_start(value: str) -> None:
    with pytest.raises(UserError, match="--allowed-origin"):
        AddressOptions(allowed_origins=[value])


def test_options_of_the_address_that_do_not_go_together(tmp_path: Path) -> None:
    assert AddressOptions(allowed_origins=["HTTPS://Desk.example.org/"]).allowed_origins == [ORIGIN]
    assert AddressOptions(uds=tmp_path / "s").host_names == ["*"]
    with pytest.raises(UserError, match="any page"):
        AddressOptions(allowed_origins=["*"])
    with pytest.raises(UserError, match="--ssl-certfile"):
        AddressOptions(ssl_keyfile=tmp_path / "key.pem")
