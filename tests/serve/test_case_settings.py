"""Options of cases: what they need of each other, the webhooks' secret, and what runs beside requests."""

import threading
import time
from pathlib import Path

import pytest

from ra_hmd.cases.policy import CasePolicy
from ra_hmd.core.errors import UserError
from ra_hmd.inference.options import RationaleOptions, ServedDetectorOptions
from ra_hmd.serve.background import Periodic
from ra_hmd.serve.case_settings import CaseSettings, read_secret
from ra_hmd.serve.limits import BatchingSettings, RequestLimits
from ra_hmd.serve.options import AddressOptions, ReplicaOptions, ServerSettings


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"cases": "c.sqlite", "webhook_hosts": ["a.example"]}, "give --webhook-secret FILE"),
        ({"cases": "c.sqlite", "alert_url": "file:///etc/passwd", "webhook_secret": Path("s")}, "no http or https URL"),
        ({"cases": "postgresql+psycopg://h/n"}, "give --case-pictures FOLDER"),
    ],
)
def test_options_that_need_others_name_them(values, said):
    with pytest.raises(UserError, match=said):
        CaseSettings(**values)


def test_pictures_lie_beside_the_database_of_this_machine():
    assert CaseSettings(cases="data/desk.sqlite").pictures == Path("data/desk.pictures")


def test_the_secret_is_made_once_and_is_this_users_alone(tmp_path):
    path = tmp_path / "new" / "secret"
    secret = read_secret(path)
    assert (read_secret(path), len(secret), path.stat().st_mode & 0o777) == (secret, 32, 0o600)


@pytest.mark.parametrize("text", ["", "whsec_", "whsec_c2hvcnQ=", "whsec_no base64 at all", "c" * 44])
def test_another_file_is_no_secret(tmp_path, text):
    (tmp_path / "secret").write_text(text)
    with pytest.raises(UserError, match=r"secret does not hold whsec_"):
        read_secret(tmp_path / "secret")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"policy": CasePolicy(abstained=True)}, "needs --cases FILE"),
        ({"cases": CaseSettings(case_pictures=Path("pictures"))}, "needs --cases FILE"),
        (
            {
                "cases": CaseSettings(cases="c.sqlite"),
                "replicas": ReplicaOptions(replicas=2, ray_address="auto"),
            },
            "cannot share a SQLite file",
        ),
    ],
)
def test_a_server_refuses_what_does_not_go_together(values, said):
    parts = {"detector": ServedDetectorOptions(), "address": AddressOptions(), "batching": BatchingSettings()}
    with pytest.raises(UserError, match=said):
        ServerSettings(run=Path("run"), limits=RequestLimits(), rationale=RationaleOptions(), **parts, **values)


def test_what_fails_is_tried_again_until_the_end():
    calls, enough = [], threading.Event()

    def call(_: threading.Event) -> None:
        calls.append(1)
        if len(calls) == 3:
            enough.set()
        raise RuntimeError("away")

    work = Periodic("test", 0.01, call)
    work.start()
    assert enough.wait(10)
    work.close()
    done = len(calls)
    time.sleep(0.05)
    assert len(calls) == done
