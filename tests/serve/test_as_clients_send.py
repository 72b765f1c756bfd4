"""Requests as clients, proxies and probes send them: over real sockets, as the command starts it."""

import gzip
import json
import re
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import httpx
import pytest
from servers import as_json, drawn, encoded, in_process, queries

from ra_hmd.core.errors import UserError
from ra_hmd.serve.hosts import normalize_host, normalize_root_path
from ra_hmd.serve.limits import KEEP_ALIVE_SECONDS
from ra_hmd.serve.options import AddressOptions

pytestmark = pytest.mark.slow

LIMIT = 100_000
JSON = {"Content-Type": "application/json"}
HALF = "\ud83d"


@pytest.fixture(scope="module")
def client(served_clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """Of a service under `/memes` that was started at 127.0.0.2."""
    folder = tmp_path_factory.mktemp("as-sent")
    words = ("serve", served_clip / "head", "--bank", served_clip / "bank", "--host", "127.0.0.2", "--root-path",
             "/memes/", "--max-bytes", str(LIMIT), "--allowed-host", "https://Memes.Example.org:8443/")  # fmt: skip
    with in_process(*words, log=folder / "log") as (_, client):
        yield client


def _score(answer: httpx.Response) -> Any:
    assert answer.status_code == 200, answer.text
    (result,) = answer.json()["results"]
    return result["text"], result["scores"]


# ---------------------------------------------------------------------------------------------------- forms


def test_a_caption_sent_as_a_file_is_read(client: httpx.Client) -> None:
    """`requests.post(…, files={"images": …, "texts": "…"})` sends the string as a file."""
    plain = _score(client.post("/v1/classify", files={"images": drawn()}, data={"texts": "bücher and cakes"}))
    assert plain[0] == "bücher and cakes"
    for sent in ("bücher and cakes".encode(), b"\xef\xbb\xbf" + "bücher and cakes".encode()):
        files = {"images": drawn(), "texts": ("texts", sent), "ids": ("ids", b"cake")}
        answer = client.post("/v1/classify", files=files)
        assert _score(answer) == plain
        assert answer.json()["results"][0]["id"] == "cake"
    files = [("images", drawn()), ("images", drawn()), ("texts", b"one"), ("texts", b"two")]
    assert [one["text"] for one in client.post("/v1/classify", files=files).json()["results"]] == ["one", "two"]
    mixed = client.post("/v1/classify", files=[*files[:3]], data={"texts": "two"})
    assert sorted(one["text"] for one in mixed.json()["results"]) == ["one", "two"]


def test_parts_that_are_no_text_or_no_file_are_refused(client: httpx.Client) -> None:
    for name in ("texts", "ids"):
        answer = client.post("/v1/classify", files={"images": drawn(), name: "bücher".encode("latin-1")})
        assert (answer.status_code, "UTF-8" in answer.json()["detail"]) == (422, True)
    field = [("images", ("a.png", drawn())), ("images", (None, "no file")), ("texts", (None, "x"))]
    answer = client.post("/v1/classify", files=field)
    assert (answer.status_code, answer.json()["problems"][0]["where"]) == (422, "images")


# ---------------------------------------------------------------------------------------------------- JSON


def test_half_an_emoji_refuses_its_meme_alone(client: httpx.Client) -> None:
    memes = [
        {"id": "before", "image": encoded(drawn()), "text": "a cake"},
        {"id": "cut", "image": encoded(drawn()), "text": f"a cake {HALF}"},
        {"id": "after", "image": encoded(drawn()), "text": "a cake \U0001f382"},
    ]
    answer = client.post("/v1/classify", content=json.dumps({"memes": memes}), headers=JSON)
    assert answer.status_code == 200, answer.text
    results = {one["id"]: one for one in answer.json()["results"]}
    assert "meme 'cut'" in results["cut"]["error"]
    assert "U+D83D" in results["cut"]["error"]
    assert results["after"]["text"] == "a cake \U0001f382"
    for route, body in (
        ("classify", {"memes": memes[1:2]}),
        ("bank/search", {"meme": memes[1]}),
        ("bank/effect", {"add": [memes[1] | {"label": 1}]}),
    ):
        answer = client.post(f"/v1/{route}", content=json.dumps(body), headers=JSON)
        assert (answer.status_code, "meme 'cut'" in answer.json()["detail"]) == (422, True), route


@pytest.mark.parametrize(
    ("body", "where"),
    [
        ({"memes": [{"image": encoded(drawn()), "id": HALF}]}, "memes.0.id"),
        ({"memes": [{"image": HALF}]}, "memes.0.image"),
        ({"memes": [{"image": encoded(drawn()), HALF: 1}]}, "memes.0"),
        ({HALF: []}, "body"),
    ],
)
def test_half_an_emoji_elsewhere_is_refused_by_its_place(client: httpx.Client, body: Any, where: str) -> None:
    answer = client.post("/v1/classify", content=json.dumps(body), headers=JSON)
    assert answer.status_code == 422
    assert where in [one["where"] for one in answer.json()["problems"]]


def test_pictures_as_data_urls(client: httpx.Client) -> None:
    def post(image: str) -> httpx.Response:
        return client.post("/v1/classify", json={"memes": [{"image": image, "text": "a cake"}]})

    plain = _score(post(encoded(drawn())))
    for head in ("data:image/png;base64,", "DATA:;BASE64,", "data:image/png;charset=utf-8;base64,"):
        assert _score(post(head + encoded(drawn()))) == plain
    assert _score(post("data:image/png;base64," + encoded(drawn()).replace("+", "%2B").replace("/", "%2F"))) == plain
    for image, words in (
        ("data:image/svg+xml,<svg/>", ";base64"),
        ("data:image/png;base64,§", "base64"),
        ("data:", ";base64"),
        ("HTTPS://example.org/a.png", "not fetched"),
    ):
        answer = post(image)
        assert (answer.status_code, words in answer.json()["problems"][0]["what"]) == (422, True), image


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le"])
def test_bodies_of_windows_programs(client: httpx.Client, encoding: str) -> None:
    meme = {"memes": [{"image": encoded(drawn()), "text": "bücher"}]}
    plain = _score(client.post("/v1/classify", json=meme))
    assert _score(client.post("/v1/classify", content=json.dumps(meme).encode(encoding), headers=JSON)) == plain


@pytest.mark.parametrize(
    "body", [b"", b"{", b'{"memes": [' + b"[" * 50_000, b'{"memes": \xff}', b"1" * 5000, b"\xef\xbb\xbf"]
)
def test_what_is_no_json_is_told(client: httpx.Client, body: bytes) -> None:
    answer = client.post("/v1/classify", content=body, headers=JSON)
    assert (answer.status_code, answer.json()["problems"][0]["where"]) == (422, "body")


def test_bodies_in_gzip(client: httpx.Client) -> None:
    meme = json.dumps({"memes": [{"image": encoded(drawn()), "text": "a cake"}]}).encode()
    packed = JSON | {"Content-Encoding": "gzip"}
    plain = _score(client.post("/v1/classify", content=meme, headers=JSON))
    members = gzip.compress(meme[:40]) + gzip.compress(meme[40:])
    for body in (gzip.compress(meme), members, (members[at : at + 7] for at in range(0, len(members), 7))):
        assert _score(client.post("/v1/classify", content=body, headers=packed)) == plain
    form = httpx.Request("POST", "http://x", files={"images": drawn()}, data={"texts": "a cake"})
    kind = {"Content-Type": form.headers["content-type"], "Content-Encoding": "GZIP"}
    assert _score(client.post("/v1/classify", content=gzip.compress(form.read()), headers=kind)) == plain

    def status(body: bytes, coding: str = "gzip") -> int:
        return client.post("/v1/classify", content=body, headers=JSON | {"Content-Encoding": coding}).status_code

    assert status(gzip.compress(b'{"memes": [' + b" " * 100 * LIMIT)) == 413, "weighed by what it holds"
    assert status(gzip.compress(meme)[:-9]) == 422
    assert status(meme) == 422
    assert status(b"") == 422
    assert status(meme, "br") == 415
    assert status(meme, "identity") == 200
    refused = client.post("/v1/classify", content=meme, headers=JSON | {"Content-Encoding": "zstd"})
    assert refused.headers["accept-encoding"] == "gzip"


# ---------------------------------------------------------------------------------------------------- hosts and proxies


def test_a_host_is_known_by_every_spelling(client: httpx.Client) -> None:
    assert client.base_url.host == "127.0.0.2"
    port = client.base_url.port
    for host in (f"127.0.0.2:{port}", "127.0.0.1", "localhost:9", "LOCALHOST", "[::1]:8000", "memes.example.org",
                 "MEMES.example.org.", "memes.example.org:8443"):  # fmt: skip
        assert client.get("/v1/bank", headers={"Host": host}).status_code == 200, host
    for host in ("example.org", "10.1.2.3", "memes.example.org.evil.org", "127.0.0.1.evil.org", "[::2]", "", "a b"):
        answer = client.get("/v1/bank", headers={"Host": host})
        assert answer.status_code == 400, host
        assert "--allowed-host" in answer.json()["detail"]
        for probe in ("/memes/health", "/health", "/ready"):
            asked = client.base_url.copy_with(path=probe)
            assert client.get(asked, headers={"Host": host}).status_code == 200, (probe, host)


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("Memes.Example.org", "memes.example.org"),
        ("memes.example.org:8443", "memes.example.org"),
        ("https://memes.example.org", "memes.example.org"),
        ("https://memes.example.org:8443/", "memes.example.org"),
        ("memes.example.org.", "memes.example.org"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("*.Example.org", "*.example.org"),
        ("*", "*"),
        ("192.0.2.7:80", "192.0.2.7"),
        ("[2001:DB8:0::1]:8443", "2001:db8::1"),
        ("2001:db8::1", "2001:db8::1"),
        ("detector_gpu", "detector_gpu"),
    ],
)
def test_names_in_one_spelling(given: str, name: str, tmp_path: Path) -> None:
    assert normalize_host(given) == name
    assert name in AddressOptions(allowed_hosts=[given]).host_names


@pytest.mark.parametrize(
    "given",
    ["", " ", "a.org,b.org", "a.org b.org", "https://a.org/memes", "me@a.org", "*a.org", "a.*.org", "https://",
     "a..org", "a.org:http", "https://[::1", "/memes", "-a.org"],
)  # fmt: skip
def test_what_is_no_host_is_refused_at_the_start(given: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=re.escape(repr(given))):
        AddressOptions(allowed_hosts=[given])


def test_every_address_that_is_printed_may_be_asked(tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    for host in ("127.0.0.2", "::1", "0.0.0.0", "192.0.2.7"):
        assert host in AddressOptions(host=host, keys=keys, allowed_hosts=["memes.example.org"]).host_names


def test_head_is_answered_wherever_get_is(client: httpx.Client) -> None:
    for path in ("/health", "/ready", "/metrics", "/docs", "/openapi.json", "/v1/bank", "/v1/bank/log?limit=1"):
        got, asked = client.get(path), client.head(path)
        assert (asked.status_code, asked.content) == (200, b""), path
        assert asked.headers["content-type"] == got.headers["content-type"]
        if path not in ("/metrics", "/ready"):  # these measure seconds
            assert asked.headers["content-length"] == got.headers["content-length"]
    assert client.head("/v1/classify").status_code == 405
    assert not any("head" in item for item in client.get("/openapi.json").json()["paths"].values())


def test_under_the_path_of_a_proxy_that_takes_it_off_or_not(client: httpx.Client, memes: Path) -> None:
    bare = str(client.base_url).rstrip("/").removesuffix("/memes")
    assert bare != str(client.base_url).rstrip("/"), "the address that is printed has the path"
    meme = {"memes": [as_json(queries(memes)[0])]}
    answers = [httpx.post(f"{place}/v1/classify", json=meme) for place in (bare, f"{bare}/memes")]
    assert answers[0].json()["results"] == answers[1].json()["results"]
    for place in (bare, f"{bare}/memes"):
        page = httpx.get(f"{place}/docs").text
        assert "'/memes/openapi.json'" in page.replace('"', "'")
        for file in re.findall(r'(?:src|href)="([^"]+)"', page):
            assert file.startswith("/memes/"), file
            assert httpx.get(place.removesuffix("/memes") + file).status_code == 200
        assert httpx.get(f"{place}/openapi.json").json()["servers"] == [{"url": "/memes"}]
        assert httpx.get(f"{place}/v1/bank").headers["cache-control"] == "no-store"
        assert httpx.get(f"{place}/memes/health").status_code == (200 if place == bare else 404)
    log = httpx.get(f"{bare}/metrics").text
    assert 'route="/v1/classify",status="200"' in log


@pytest.mark.parametrize("given", ["memes", "https://a.org/memes", "/a/../b", "/a b", "//a", "/v1", "/console/"])
def test_what_is_no_path_is_refused_at_the_start(given: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--root-path"):
        AddressOptions(root_path=given)


def test_paths_without_a_slash_at_their_end() -> None:
    assert [normalize_root_path(given) for given in ("", "/", "/a/", "/a/b")] == ["", "", "/a", "/a/b"]


def test_a_connection_outlives_the_pause_of_a_proxy(client: httpx.Client) -> None:
    """With uvicorn's own 5 seconds, nginx with its 60 would send into a connection that is being closed."""
    assert KEEP_ALIVE_SECONDS > 600
    connection = HTTPConnection(client.base_url.host, client.base_url.port or 0, timeout=10)
    connection.connect()
    connection.auto_open = 0  # a connection that was closed is an error, not another connection
    for pause in (6, 0):
        connection.request("GET", "/health")
        assert connection.getresponse().read() == b'{"status":"alive"}'
        time.sleep(pause)
    connection.close()
