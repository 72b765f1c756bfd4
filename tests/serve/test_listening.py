"""`ra-hmd serve` on a Unix socket and over TLS, with its options in a file."""

import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from servers import drawn, encoded
from typer.testing import CliRunner

from ra_hmd.cli.app import app
from ra_hmd.core.errors import UserError
from ra_hmd.serve.listening import check_certificate, listen
from ra_hmd.serve.options import AddressOptions

MEME = {"memes": [{"image": encoded(drawn()), "text": "a cake"}]}


@contextmanager
def serving(file: Path, *words: str) -> Iterator[str]:
    """The address that `ra-hmd serve --config FILE WORDS` prints; the process ends by a signal, with code 0."""
    command = [sys.executable, "-m", "ra_hmd", "serve", "--config", str(file), *words]
    settings = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=settings) as process:
        assert process.stdout is not None
        try:
            address = next((line for line in process.stdout if line.startswith(("http", "unix:"))), "").strip()
            assert address
            yield address
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
        finally:
            process.kill()


@pytest.mark.slow
def test_a_unix_socket_and_the_options_of_a_file(served_clip: Path, tmp_path: Path) -> None:
    path = tmp_path / "s"
    (tmp_path / "serve.yaml").write_text(
        f"run: {served_clip / 'head'}\nbank: {served_clip / 'bank'}\nuds: {path}\nmax-images: 1\nmax_text: 50\n"
        "class-name: [fine, cruel]\ncheck-captions: null\n"
    )
    with serving(tmp_path / "serve.yaml", "--max-text", "60") as address:
        assert address == f"unix:{path}"
        assert path.stat().st_mode & 0o777 == 0o660
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://any.example") as client:
            info = client.get("/v1/info").json()
            assert (info["limits"]["max_images"], info["limits"]["max_text"]) == (1, 60)
            assert info["task"]["classes"] == ["fine", "cruel"]
            assert client.post("/v1/classify", json=MEME).status_code == 200
    assert not path.exists()


@pytest.mark.slow
def test_over_tls(served_clip: Path, tmp_path: Path) -> None:
    certificate, key = _certificate(tmp_path)
    (tmp_path / "serve.yaml").write_text(
        f"run: {served_clip / 'head'}\nport: 0\nssl-certfile: {certificate}\nssl-keyfile: {key}\n"
    )
    with serving(tmp_path / "serve.yaml") as address:
        assert address.startswith("https://127.0.0.1:")
        trusting = ssl.create_default_context(cafile=certificate)
        assert httpx.post(f"{address}/v1/classify", json=MEME, verify=trusting).status_code == 200
        with pytest.raises(httpx.HTTPError):
            httpx.get(address.replace("https", "http") + "/health")


def _certificate(folder: Path) -> tuple[Path, Path]:
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
         "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-out", certificate, "-keyout", key],
        check=True, capture_output=True,
    )  # fmt: skip
    return certificate, key


def test_certificates_that_cannot_be_used(tmp_path: Path) -> None:
    certificate, key = _certificate(tmp_path)
    check_certificate(AddressOptions(ssl_certfile=certificate, ssl_keyfile=key))
    (tmp_path / "other").mkdir()
    _, other = _certificate(tmp_path / "other")
    locked = tmp_path / "locked.pem"
    subprocess.run(["openssl", "ec", "-in", key, "-aes256", "-passout", "pass:cake", "-out", locked], check=True,
                   capture_output=True)  # fmt: skip
    for file, words in ((None, "private key"), (other, "private key"), (tmp_path / "none", "No such file"),
                        (locked, "passphrase")):  # fmt: skip
        with pytest.raises(UserError, match=words):
            check_certificate(AddressOptions(ssl_certfile=certificate, ssl_keyfile=file))


def test_sockets_that_are_taken_or_left_behind(tmp_path: Path) -> None:
    address = AddressOptions(uds=tmp_path / "s")
    with listen(address), pytest.raises(UserError, match=r"--uds .* in use"), listen(address):
        pass
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / "s"))
    with listen(address):
        pass
    (tmp_path / "s").write_text("a file of somebody's")
    with pytest.raises(UserError, match="--uds"), listen(address):
        pass
    assert (tmp_path / "s").read_text() == "a file of somebody's"
    with pytest.raises(UserError, match="No such file"), listen(AddressOptions(uds=tmp_path / "none" / "s")):
        pass


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("run: r\nmax_batsh: 3\n", "did you mean `max_batch`"),
        ("run: r\nmax-batch: yes\n", "no text or number"),
        ("run: r\nmax-batch: cake\n", "--max-batch"),
        ("run: r\nmax-batch: [1, 2]\n", "single value"),
        ("run: r\nallowed-host: memes.example.org\n", "no list"),
        ("run: r\nprior-correction: 1\n", "not true or false"),
        ("run: r\nmax-images: 0\n", "max_images"),
        ("- run\n", "holds a list"),
        ("run: [\n", "not valid YAML"),
        ("max-batch: 3\n", "Missing argument"),
        (None, "does not exist"),
    ],
)
def test_options_of_a_file_that_do_not_fit(text: str | None, words: str, tmp_path: Path) -> None:
    file = tmp_path / "serve.yaml"
    if text is not None:
        file.write_text(text)
    start = time.monotonic()
    done = CliRunner().invoke(app, ["serve", "--config", str(file)])
    assert done.exit_code == 2
    assert words in done.stderr, done.stderr
    assert time.monotonic() - start < 30
