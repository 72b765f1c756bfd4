"""The lines for nginx of docs/howto/behind-a-proxy.md, in front of a running desk; where nginx is installed."""

import os
import re
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from engines import ROOT
from servers import drawn, encoded, in_process

from ra_hmd.serve.auth import make_key

pytestmark = pytest.mark.slow

HOST = "memes.example.org"
CONF = """
pid {folder}/nginx.pid;
error_log {folder}/error.log;
daemon off;
{user}
events {{ }}
http {{
    access_log off;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
{block}
}}
"""


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def certificate(folder: Path) -> tuple[Path, Path]:
    made, key = folder / "certificate.pem", folder / "key.pem"
    words = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
             "-subj", f"/CN={HOST}", "-addext", f"subjectAltName=DNS:{HOST}", "-out", made, "-keyout", key]  # fmt: skip
    subprocess.run(words, check=True, capture_output=True)
    return made, key


@contextmanager
def proxy(folder: Path, service: str) -> Iterator[tuple[int, ssl.SSLContext]]:
    """nginx with the page's lines: its port, and a context that trusts its certificate."""
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if program is None:
        pytest.skip("the program nginx is not installed")
    (block,) = re.findall(r"^```nginx\n(.*?)^```", (ROOT / "docs/howto/behind-a-proxy.md").read_text(), re.S | re.M)
    made, key = certificate(folder)
    port = free_port()
    changes = {"listen 443 ssl": f"listen 127.0.0.1:{port} ssl", "http://127.0.0.1:8000": service,
               "/etc/ssl/memes.example.org.pem": str(made), "/etc/ssl/memes.example.org.key": str(key)}  # fmt: skip
    for printed, here in changes.items():
        assert printed in block
        block = block.replace(printed, here)
    user = "user root;" if os.geteuid() == 0 else ""  # its workers write to the test's folder
    (folder / "nginx.conf").write_text(CONF.format(folder=folder, block=block, user=user))
    with subprocess.Popen([program, "-p", str(folder), "-c", str(folder / "nginx.conf")]) as process:
        try:
            for _ in range(100):
                with socket.socket() as asked:
                    if asked.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.1)
            yield port, ssl.create_default_context(cafile=str(made))
        finally:
            process.terminate()
            process.wait(20)


def test_api_and_desk_behind_nginx(served_clip: Path, clip_bank: Path, tmp_path: Path) -> None:
    key = make_key(tmp_path / "keys.json", "ana", "moderator")
    words = (
        "console",
        served_clip / "head",
        "--bank",
        clip_bank,
        "--keys",
        tmp_path / "keys.json",
        "--allowed-host",
        HOST,
    )
    with (
        in_process(*words, log=tmp_path / "log", cwd=tmp_path) as (_, direct),
        proxy(tmp_path, str(direct.base_url).removesuffix("/").removesuffix("/console")) as (port, trusted),
        httpx.Client(
            base_url=f"https://127.0.0.1:{port}", verify=trusted, headers={"Host": HOST}, timeout=60
        ) as client,
    ):
        named = {"sni_hostname": HOST}  # what a browser takes from the address
        assert client.get("/health", extensions=named).json()["status"] == "alive"
        assert client.get("/v1/info", extensions=named).status_code == 401
        meme = {"memes": [{"image": encoded(drawn()), "text": "a cake"}]}
        with_key = {"X-API-Key": key}
        assert client.post("/v1/classify", json=meme, headers=with_key, extensions=named).status_code == 200
        elsewhere = client.get("/v1/info", headers={"Host": "other.example.org", **with_key}, extensions=named)
        assert elsewhere.json()["code"] == "host_not_allowed"
        form, origin = {"name": "ana", "key": key}, {"Origin": f"https://{HOST}"}
        answer = client.post("/console/login", data=form, headers=origin, extensions=named)
        assert answer.status_code == 303
        assert "secure" in answer.headers["set-cookie"].lower()
