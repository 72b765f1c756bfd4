"""What a hostile or broken client may send: no server error, nothing written, memory bounded, logs that quote nobody.

One server in a process of its own, as it is started in earnest.
"""

import json
import socket
import struct
import time
import zipfile
import zlib
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from PIL import Image
from servers import drawn, encoded, in_process

from ra_hmd.data.meme import Meme
from ra_hmd.inference.detector import Detector

pytestmark = pytest.mark.slow

MARK = "zebracake"
LIMIT = 4_000_000


@pytest.fixture(scope="module")
def served(served_clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """Client and process of a server, the folder where it runs, its temporary folder, and its log."""
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "tmp").mkdir()
    limits = ("--max-bytes", str(LIMIT), "--max-pixels", "1000000", "--time-limit", "5")
    words = ("serve", served_clip / "head", "--bank", served_clip / "bank", "--cases", folder / "cases.sqlite", *limits)
    environment = {"TMPDIR": str(folder / "tmp"), "MALLOC_ARENA_MAX": "2"}
    with in_process(*words, log=folder / "log", cwd=folder, **environment) as (process, client):
        yield {"client": client, "process": psutil.Process(process.pid), "folder": folder, "log": folder / "log"}


@pytest.fixture
def client(served: dict[str, Any]) -> Iterator[httpx.Client]:
    """Nothing may appear on disk, and no answer may be a server's error."""
    before = _files(served["folder"])
    seen: list[int] = []
    served["client"].event_hooks = {"response": [lambda response: seen.append(response.status_code)]}
    yield served["client"]
    assert not [status for status in seen if status >= 500]
    assert _files(served["folder"]) == before
    assert served["client"].get("/ready").status_code == 200


def _files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def _png(width: int, height: int) -> bytes:
    """A PNG whose header promises a size that its few bytes do not hold."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")
    )


def _bomb() -> bytes:
    """100 megapixels of one colour, whole, in about 100 kB."""
    file = BytesIO()
    Image.new("1", (10_000, 10_000)).save(file, "PNG")
    return file.getvalue()


def _animated(style: str, **how: Any) -> bytes:
    file = BytesIO()
    frames = [Image.new("RGB", (48, 48), colour) for colour in ("red", "green", "blue")]
    frames[0].save(file, style, save_all=True, append_images=frames[1:], **how)
    return file.getvalue()


def _zip() -> bytes:
    file = BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("../../escaped.txt", "cake")
    return file.getvalue()


def _rotated() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    return drawn((80, 40), style="JPEG", exif=exif)


GOOD = {
    "a GIF with a zip behind it": drawn(style="GIF") + _zip(),
    "a GIF with a script behind it": drawn(style="GIF") + b"<script>alert(1)</script>",
    "an animated GIF": _animated("GIF"),
    "an animated WebP": _animated("WEBP", lossless=True),
    "an animated PNG": _animated("PNG"),
    "a CMYK JPEG": drawn(colour=(10, 200, 30, 5), mode="CMYK", style="JPEG"),
    "a rotated JPEG": _rotated(),
    "a palette with transparency": drawn(colour=3, mode="P", transparency=0),
    "16 bits of grey": drawn(colour=9000, mode="I;16"),
    "one bit": drawn(colour=1, mode="1"),
    "grey with alpha": drawn(colour=(90, 30), mode="LA"),
    "one pixel": drawn((1, 1)),
    "a BMP": drawn(style="BMP"),
    "a TIFF": drawn(style="TIFF"),
    "a TIFF of floats": drawn(colour=0.5, mode="F", style="TIFF"),
    "an AVIF": drawn(style="AVIF"),
    "a HEIF": drawn(style="HEIF"),
    "a JPEG 2000": drawn(style="JPEG2000"),
    "a PPM": drawn(style="PPM"),
}
BAD = {
    "a truncated JPEG": drawn(style="JPEG")[:-200],
    "a truncated PNG": drawn((300, 300), colour=(1, 2, 3))[:120],
    "a truncated WebP": drawn(style="WEBP")[:40],
    "a header that lies": _png(900, 900),
    "a bomb of 100 megapixels": _bomb(),
    "a header of 4 gigapixels": _png(65_500, 65_500),
    "no pixels": _png(0, 0),
    "a line": drawn((9000, 1)),
    "words": MARK.encode(),
    "nothing": b"",
    "a zip": _zip(),
    "SVG": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
    "a truncated TIFF": drawn(style="TIFF")[:-200],
    "a truncated AVIF": drawn(style="AVIF")[:-20],
    "a truncated HEIF": drawn(style="HEIF")[:-20],
    "a truncated JPEG 2000": drawn(style="JPEG2000")[:-20],
    "a TIFF of many tags": b"II*\0\x08\0\0\0\xff\xff" + b"\0\x01\x01\0\xff\xff\xff\x7f\x08\0\0\0" * 65_535,
    "a TGA": drawn(style="TGA"),
    "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n",
    "a PDF": drawn(style="PDF"),
    "an icon": drawn(style="ICO"),
    "a GIF of comments": drawn(style="GIF")[:13] + b"!\xfe\x01a\0" * 400_000,
    "a PNG of remarks": drawn()[:33] + b"\0\0\0\x03tEXta\0b\xe3\x49\x8d\x26" * 100_000,
}


@pytest.mark.parametrize("what", GOOD)
def test_odd_pictures_are_judged_as_extraction_sees_them(
    client: httpx.Client, served_clip: Path, tmp_path: Path, what: str
) -> None:
    path = tmp_path / "picture"
    path.write_bytes(GOOD[what])
    (expected,) = _detector(served_clip)([Meme("x", path, "a cake")])
    body = {"memes": [{"id": "x", "image": encoded(GOOD[what]), "text": "a cake"}]}
    answer = client.post("/v1/classify", json=body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["results"][0]["scores"] == pytest.approx(expected.scores, abs=1e-4)


def test_of_an_animation_the_first_frame_counts_and_pictures_are_turned_upright(client: httpx.Client) -> None:
    def scores(data: bytes) -> dict[str, float]:
        body = {"memes": [{"image": encoded(data), "text": "a cake"}]}
        return dict(client.post("/v1/classify", json=body).json()["results"][0]["scores"])

    first = BytesIO()
    Image.new("RGB", (48, 48), "red").save(first, "PNG")
    assert scores(_animated("PNG")) == pytest.approx(scores(first.getvalue()), abs=1e-4)
    upright = BytesIO()
    Image.open(BytesIO(drawn((80, 40), style="JPEG"))).transpose(Image.Transpose.ROTATE_270).save(upright, "PNG")
    assert scores(_rotated()) == pytest.approx(scores(upright.getvalue()), abs=1e-6)


@pytest.mark.parametrize("what", BAD)
def test_what_is_no_picture_is_refused(client: httpx.Client, what: str) -> None:
    start = time.monotonic()
    body = {"memes": [{"id": "x", "image": encoded(BAD[what]), "text": "a cake"}]}
    alone = client.post("/v1/classify", json=body)
    assert alone.status_code == 422, alone.text
    form = client.post("/v1/classify", files={"images": BAD[what]}, data={"texts": "a cake"})
    assert form.status_code == 422, form.text
    good = {"image": encoded(drawn()), "text": "a cake"}
    batch = client.post("/v1/classify", json={"memes": [good, *body["memes"]]})
    assert batch.status_code == 200
    assert ["scores" in one for one in batch.json()["results"]] == [True, False]
    assert client.post("/v1/bank/search", json={"meme": body["memes"][0]}).status_code == 422
    assert client.post("/v1/cases", json={"cases": body["memes"]}).status_code == 422
    assert client.post("/v1/cases", files={"images": BAD[what]}, data={"texts": "a cake"}).status_code == 422
    assert client.get("/v1/cases").json()["count"] == 0
    assert time.monotonic() - start < 15, "nothing large was decoded"


@pytest.mark.parametrize("name", ["../../escape.png", "/etc/cron.d/cake", "a\0b.png", "x" * 3000, "..\\..\\c.png", ""])
def test_a_file_name_is_no_path(client: httpx.Client, name: str) -> None:
    head = f'--b\r\nContent-Disposition: form-data; name="images"; filename="{name}"\r\n\r\n'.encode()
    body = head + drawn() + b'\r\n--b\r\nContent-Disposition: form-data; name="texts"\r\n\r\na cake\r\n--b--\r\n'
    kind = {"Content-Type": "multipart/form-data; boundary=b"}
    answer = client.post("/v1/classify", content=body, headers=kind)
    assert answer.status_code in (200, 422), answer.text


def test_bodies_that_are_meant_to_hurt(client: httpx.Client) -> None:
    kind = {"Content-Type": "application/json"}
    for body, status in (
        (b"[" * 100_000, 422),
        (b'{"memes":' * 50_000, 422),
        (b'{"memes": [' + b'{"image": "aGk="},' * 50_000 + b"{}]}", 422),
        (b'{"memes": [{"image": "aGk=", "text": "\\ud800"}]}', 422),
        (b'{"memes": NaN}', 422),
        (b"\xff\xfe", 422),
        (b"", 422),
        (b"null", 422),
    ):
        assert client.post("/v1/classify", content=body, headers=kind).status_code == status, body[:20]
    assert client.post("/v1/classify", content=b"x" * (LIMIT + 1), headers=kind).status_code == 413
    chunks = (b" " * 100_000 for _ in range(200))
    assert _status(lambda: client.post("/v1/classify", content=chunks, headers=kind)) == 413
    many = b"--b\r\nContent-Disposition: form-data; name=ids\r\n\r\nx\r\n" * 5000 + b"--b--\r\n"
    form = {"Content-Type": "multipart/form-data; boundary=b"}
    assert client.post("/v1/classify", content=many, headers=form).status_code == 413
    heads = b"--b\r\n" + b"X-A: y\r\n" * 100_000
    assert client.post("/v1/classify", content=heads, headers=form).status_code in (413, 422)
    for length in (b"-1", b"1e9", b"99999999999999999999"):
        assert _raw(
            client, b"POST /v1/classify HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: " + length + b"\r\n\r\n"
        )[:12] in (b"HTTP/1.1 400", b"HTTP/1.1 413")


def test_a_body_that_dawdles_is_given_up(client: httpx.Client) -> None:
    head = b"POST /v1/classify HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    head += b"Content-Length: 90\r\n\r\n{"
    start = time.monotonic()
    assert _raw(client, head).startswith(b"HTTP/1.1 408")
    assert 4 < time.monotonic() - start < 60


def test_who_hangs_up_is_no_error(served: dict[str, Any], client: httpx.Client) -> None:
    head = b"POST /v1/classify HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 900\r\nContent-Type: "
    form = b'multipart/form-data; boundary=b\r\n\r\n--b\r\nContent-Disposition: form-data; name="images"; filename="a"'
    for rest in (b'application/json\r\n\r\n{"memes"', form + b"\r\n\r\nxx", form):
        with socket.create_connection((client.base_url.host, client.base_url.port), timeout=20) as connection:
            connection.sendall(head + rest)
            time.sleep(0.1)
    end = time.monotonic() + 10
    while (log := served["log"].read_text()).count('"status": 499') < 3:
        assert time.monotonic() < end, log[-2000:]
        time.sleep(0.02)


def test_memory_is_bounded(served: dict[str, Any], client: httpx.Client) -> None:
    def batch() -> None:
        memes = [{"image": encoded(data), "text": "a cake"} for data in (_bomb(), drawn((1000, 1000)))] * 8
        assert client.post("/v1/classify", json={"memes": memes}).status_code == 200

    batch()
    before = served["process"].memory_info().rss
    for _ in range(12):
        batch()
    grown = served["process"].memory_info().rss - before
    assert grown < 60e6, f"{grown / 1e6:.0f} MB; one of the 96 bombs decoded has 100 MB"


def test_logs_and_metrics_quote_nobody(served: dict[str, Any], client: httpx.Client) -> None:
    picture = drawn((70, 70), colour="orange")
    for body in (
        {"memes": [{"id": MARK, "image": encoded(picture), "text": f"a {MARK}"}]},
        {"memes": [{"id": MARK, "image": encoded(b"words"), "text": MARK}]},
        {"memes": [{"image": MARK, "text": MARK}], MARK: MARK},
    ):
        client.post("/v1/classify", json=body)
        client.post(f"/v1/{MARK}?text={MARK}", json=body)
    client.post("/v1/classify", files={"images": (MARK, picture)}, data={"texts": MARK, "ids": f"{MARK}\n"})
    refused = {"image": encoded(picture), "text": MARK, "key": MARK, "callback": f"http://{MARK}/", "context": MARK}
    assert client.post("/v1/cases", json={"cases": [refused]}).status_code == 422
    log = served["log"].read_text()
    assert MARK not in log
    assert MARK not in client.get("/metrics").text
    assert encoded(picture)[:40] not in log
    lines = [json.loads(line) for line in log.splitlines() if line.startswith('{"time"')]
    answered = [line for line in lines if line["event"] == "request"]
    assert {"time", "request_id", "route", "status", "ms", "memes", "key"} <= answered[-1].keys()
    known = {"/v1/classify", "/v1/cases", "/v1/bank/search", "/metrics", "/ready", "unknown"}
    assert {line["route"] for line in answered} <= known
    assert {line["event"] for line in lines if line["level"] == "error"} == set()


def _raw(client: httpx.Client, request: bytes) -> bytes:
    with socket.create_connection((client.base_url.host, client.base_url.port), timeout=20) as connection:
        connection.sendall(request)
        return connection.recv(4096)


def _status(call: Any) -> int:
    """Of an answer; a server may hang up on who goes on sending."""
    try:
        return int(call().status_code)
    except (httpx.WriteError, httpx.ReadError, httpx.RemoteProtocolError):
        return 413


_opened: dict[Path, Detector] = {}


def _detector(served_clip: Path) -> Detector:
    if served_clip not in _opened:
        _opened[served_clip] = Detector.from_run(served_clip / "head", served_clip / "bank")
    return _opened[served_clip]
