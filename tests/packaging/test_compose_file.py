"""compose.yaml, without an engine: valid by the specification's schema, and nothing open that should not be."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from engines import BIN, ROOT, run

from ra_hmd.serve.limits import KEEP_ALIVE_SECONDS, RequestLimits

COMPOSE = (ROOT / "compose.yaml").read_text()
SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSWORD", re.IGNORECASE)


def valid(text: str, folder: Path) -> bool:
    """Whether the schema of the Compose specification, as check-jsonschema brings it along, holds."""
    path = folder / "compose.yaml"
    path.write_text(text)
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(path)]
    return run(command, folder).returncode == 0


def broken_rules(text: str) -> Iterator[str]:
    """What the schema leaves open."""
    content = yaml.safe_load(text)
    for name, service in content["services"].items():
        image = service["image"]
        own = "build" in service
        if not own and not re.search(r":[^/]*\d+[.-]\d+", image):
            yield f"{name}: image {image} is not pinned"
        for port in service.get("ports", []):
            if not str(port).startswith("127.0.0.1:"):
                yield f"{name}: port {port} is open to others"
        if not own and "healthcheck" not in service:
            yield f"{name}: no health check"
        if service.get("privileged") or service.get("network_mode") == "host":
            yield f"{name}: too many rights"
        if not service.get("profiles"):
            yield f"{name}: no profile"
        yield from (f"{name}: secret {key}" for key in service.get("environment", {}) if SECRET.search(key))
        yield from (f"{name}: {other} is no service" for other in service.get("depends_on", {})
                    if other not in content["services"])  # fmt: skip
        yield from (
            f"{name}: {key} is no secret" for key in service.get("secrets", []) if key not in content["secrets"]
        )
        yield from _bad_volumes(name, service, content)
        if own:
            yield from _bad_detector(name, service)


def _bad_volumes(name: str, service: dict[str, Any], content: dict[str, Any]) -> Iterator[str]:
    for volume in service.get("volumes", []):
        kind = volume["type"] if isinstance(volume, dict) else "volume"
        source = volume["source"] if isinstance(volume, dict) else volume.partition(":")[0]
        if kind == "volume" and source not in content["volumes"]:
            yield f"{name}: {source} is no volume"


def _bad_detector(name: str, service: dict[str, Any]) -> Iterator[str]:
    mounts = {volume["target"]: volume for volume in service["volumes"]}
    if not mounts["/model"].get("read_only") or mounts["/bank"].get("read_only"):
        yield f"{name}: the model is read, the bank written"
    if not (service.get("read_only") and service.get("cap_drop") == ["ALL"] and service.get("security_opt")):
        yield f"{name}: too many rights"
    words = service["command"]
    if words[:2] not in (["serve", "/model"], ["console", "/model"]) or words[words.index("--host") + 1] != "0.0.0.0":
        yield f"{name}: nobody outside the container reaches it"
    if words[words.index("--keys") + 1] != f"/run/secrets/{service['secrets'][0]}":
        yield f"{name}: the keys are elsewhere"
    if "--cases" in words and mounts.get("/cases", {"read_only": True}).get("read_only"):
        yield f"{name}: the cases are written nowhere"


def test_schema_and_rules_hold(tmp_path: Path) -> None:
    assert valid(COMPOSE, tmp_path)
    assert list(broken_rules(COMPOSE)) == []
    services = yaml.safe_load(COMPOSE)["services"]
    assert {name: service["profiles"] for name, service in services.items()} == {
        "detector": ["cpu"], "detector-gpu": ["gpu"], "desk": ["desk"], "database": ["postgresql"],
        "replica": ["replicas"], "proxy": ["replicas"],
        "milvus": ["milvus"], "etcd": ["milvus"], "minio": ["milvus"],
    }  # fmt: skip
    (device,) = services["detector-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]
    assert "deploy" not in services["detector"]


def test_the_proxy_finds_the_replicas() -> None:
    services = yaml.safe_load(COMPOSE)["services"]
    (mount,) = services["proxy"]["volumes"]
    lines = (ROOT / mount["source"]).read_text().splitlines()
    settings = [line.split("#")[0].split() for line in lines if line.split("#")[0].strip()]
    templates = [words for words in settings if words[0] == "server-template"]
    assert [words[-1] for words in templates] == ["replica:8000"]
    assert [words for words in settings if words[:3] == ["http-check", "send", "meth"]] == [
        ["http-check", "send", "meth", "GET", "uri", "/ready"]
    ]
    published = services["proxy"]["ports"][0].rpartition(":")[2]
    assert ["bind", f":{published}"] in settings
    assert services["replica"]["command"] == services["detector"]["command"]
    assert services["replica"]["ports"] == []
    keep = int(next(words[2] for words in settings if words[:2] == ["timeout", "http-keep-alive"]).removesuffix("s"))
    server = int(next(words[2] for words in settings if words[:2] == ["timeout", "server"]).removesuffix("s"))
    assert keep < KEEP_ALIVE_SECONDS
    assert server > RequestLimits().time_limit


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("profiles: [cpu]", "profile: [cpu]"),
        ("restart: unless-stopped", "restart: [always]"),
        ("capabilities: [gpu]", "capabilities: gpu"),
        ("services:", "service:"),
    ],
)
def test_schema_finds_a_defect(old: str, new: str, tmp_path: Path) -> None:
    assert old in COMPOSE
    assert not valid(COMPOSE.replace(old, new), tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("milvusdb/milvus:v3.0.0", "milvusdb/milvus:latest", "not pinned"),
        ("etcd:v3.5.25", "etcd", "not pinned"),
        ("- 127.0.0.1:19530:19530", "- 19530:19530", "open to others"),
        ("- 127.0.0.1:${RA_HMD_PORT:-8000}:8000", "- 0.0.0.0:8000:8000", "open to others"),
        ("ETCD_ENDPOINTS: etcd:2379", "MINIO_SECRET_KEY: minioadmin", "secret MINIO_SECRET_KEY"),
        ("- api_keys", "- other_keys", "is no secret"),
        ("source: huggingface", "source: hub", "is no volume"),
        ("target: /model\n      read_only: true", "target: /model", "the model is read"),
        ("  cap_drop: [ALL]\n", "", "too many rights"),
        ("profiles: [cpu]", "privileged: true\n    profiles: [cpu]", "too many rights"),
        ("- 0.0.0.0 #", "- 127.0.0.1 #", "nobody outside"),
        ("etcd: {condition", "etcdd: {condition", "is no service"),
        ("target: /cases", "target: /case", "written nowhere"),
        ("postgres:17.6-alpine", "postgres", "not pinned"),
        ("POSTGRES_DB: ra_hmd", "POSTGRES_PASSWORD: ra_hmd", "secret POSTGRES_PASSWORD"),
    ],
)
def test_rules_find_a_defect(old: str, new: str, problem: str) -> None:
    assert old in COMPOSE
    assert any(problem in found for found in broken_rules(COMPOSE.replace(old, new)))


@pytest.mark.parametrize(
    ("service", "expected"),
    [
        ("detector", ["--bank", "--host", "--port", "--keys", "--allowed-host"]),
        ("desk", ["--bank", "--cases", "--case-pictures", "--host", "--port", "--keys", "--allowed-host"]),
    ],
)
def test_options_are_those_of_the_command(service: str, expected: list[str]) -> None:
    words = yaml.safe_load(COMPOSE)["services"][service]["command"]
    done = run([str(BIN / "ra-hmd"), words[0], "--help"], ROOT, COLUMNS="200", TERM="dumb")
    assert done.returncode == 0, done.stdout
    options = [word for word in words if str(word).startswith("--")]
    assert options == expected
    assert [option for option in options if not re.search(rf"{option}\b", done.stdout)] == []


def test_the_desk_finds_its_database() -> None:
    """The URL that the file names leads to the server that it starts, as its user, with its password from one file."""
    content = yaml.safe_load(COMPOSE)["services"]
    (url,) = re.findall(r"postgresql\+psycopg://\S+", COMPOSE)
    user, host, name = re.fullmatch(r"postgresql\+psycopg://(\w+)@(\w+)/(\w+)", url).groups()
    database = content[host]
    assert database["environment"] == {"POSTGRES_USER": user, "POSTGRES_DB": name}
    assert database["env_file"] == content["desk"]["env_file"][0]["path"]
    assert "ports" not in database
    assert database["volumes"][0].endswith(":/var/lib/postgresql/data")


def test_compose_itself_reads_it(tmp_path: Path) -> None:
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "compose", "version"], check=False, capture_output=True).returncode:
        pytest.skip("docker compose is not installed")
    shutil.copy(ROOT / "compose.yaml", tmp_path)
    for name in ("cases.env", "milvus.env"):
        (tmp_path / name).write_text("")
    done = run([docker, "compose", "--profile", "*", "config", "--quiet"], tmp_path)
    assert done.returncode == 0, done.stdout
