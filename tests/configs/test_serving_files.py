"""`configs/cluster/serve.yaml`: what it starts is a command of this project, and its parts name each other."""

import shlex
from typing import Any

import pytest
import yaml
from engines import ROOT
from typer.testing import CliRunner

from ra_hmd.cli.app import app
from ra_hmd.serve.limits import RequestLimits

CLUSTER = ROOT / "configs" / "cluster"
PROBES = {"startupProbe": "/health", "livenessProbe": "/health", "readinessProbe": "/ready"}


@pytest.fixture
def parts() -> dict[str, Any]:
    found = list(yaml.safe_load_all((CLUSTER / "serve.yaml").read_text()))
    return {part["kind"]: part for part in found}


def test_the_command_is_read(parts: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    (container,) = parts["Deployment"]["spec"]["template"]["spec"]["containers"]
    served: list[Any] = []
    monkeypatch.setattr("ra_hmd.serve.server.serve", served.append)
    done = CliRunner().invoke(app, container["args"])
    assert done.exit_code == 0, done.output
    (settings,) = served
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    assert str(settings.run).startswith("/shared/")
    assert str(settings.detector.bank).startswith("/shared/")
    assert str(settings.address.keys.parent) in mounts
    assert not mounts["/shared"].get("readOnly"), "a correction is written there"
    assert settings.address.port == container["ports"][0]["containerPort"]
    assert settings.follow.max_lag == 10


def test_the_parts_fit(parts: dict[str, Any]) -> None:
    deployment = parts["Deployment"]["spec"]
    pod = deployment["template"]
    labels = pod["metadata"]["labels"]
    for selector in (
        deployment["selector"]["matchLabels"],
        parts["Service"]["spec"]["selector"],
        parts["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        pod["spec"]["topologySpreadConstraints"][0]["labelSelector"]["matchLabels"],
    ):
        assert selector.items() <= labels.items()
    assert deployment["replicas"] == 3 > parts["PodDisruptionBudget"]["spec"]["minAvailable"]
    (container,) = pod["spec"]["containers"]
    (port,) = container["ports"]
    assert {name: container[name]["httpGet"] for name in PROBES} == {
        name: {"path": path, "port": port["name"]} for name, path in PROBES.items()
    }
    assert parts["Service"]["spec"]["ports"][0]["targetPort"] == port["name"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {one["name"] for one in pod["spec"]["volumes"]}
    assert pod["spec"]["terminationGracePeriodSeconds"] > RequestLimits().time_limit
    security = container["securityContext"]
    assert security["readOnlyRootFilesystem"]
    assert not security["allowPrivilegeEscalation"]
    assert security["capabilities"] == {"drop": ["ALL"]}
    assert pod["spec"]["securityContext"]["runAsNonRoot"]


def test_the_header_names_the_secret_and_the_claim(parts: dict[str, Any]) -> None:
    text = (CLUSTER / "serve.yaml").read_text()
    volumes = {one["name"]: one for one in parts["Deployment"]["spec"]["template"]["spec"]["volumes"]}
    line = next(line for line in text.splitlines() if "kubectl create secret" in line)
    words = shlex.split(line.partition("kubectl")[2])
    assert words[:4] == ["create", "secret", "generic", volumes["keys"]["secret"]["secretName"]]
    assert words[4].removeprefix("--from-file=").partition("=")[0] == "api_keys"
    assert volumes["shared"]["persistentVolumeClaim"]["claimName"] in text[: text.index("apiVersion")]
