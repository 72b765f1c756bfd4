"""Attack `rephrase`, against a real server of the protocol."""

from pathlib import Path
from typing import Any

import pytest
from meme_files import imported
from openai_server import Reply, completion, error, serve
from typer.testing import CliRunner

from ra_hmd.attacks.pairing import clean_id
from ra_hmd.attacks.run import attack_data
from ra_hmd.attacks.settings import AttackSettings, RephraseSettings
from ra_hmd.attacks.teacher import Teacher
from ra_hmd.cli.app import app
from ra_hmd.core.errors import UserError
from ra_hmd.core.manifests import AttackManifest
from ra_hmd.data.meme_dataset import open_data

CHOSEN = AttackSettings(attacks=["rephrase"], severities=[2], channels=["field", "both"])


@pytest.fixture(scope="module")
def clean(memes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clean") / "data"
    imported("generic", memes / "a" / "test.jsonl", folder)
    return folder


def captions(body: dict[str, Any]) -> list[str]:
    """The captions between the tags of a question."""
    return [line for line in body["messages"][1]["content"].splitlines() if not line.startswith("<")]


def teach(body: dict[str, Any], before: int) -> Reply:
    """Says it the other way round; what is about a sparrow means something else then, and monday it will not touch."""
    found = captions(body)
    if len(found) == 2:
        return completion("No." if "sparrow" in found[0] else "Yes.")
    if "monday" in found[0]:
        return completion("I'm sorry, I can't help with that.")
    return completion(f'"{" ".join(reversed(found[0].split()))}"')


def ask(clean: Path, output: Path, url: str) -> AttackManifest:
    settings = RephraseSettings(endpoint=url, model="teacher", retries=0, timeout=20)
    return attack_data(clean, output, CHOSEN, teacher=Teacher(settings, key="secret-of-the-tests"))


def test_captions_that_mean_the_same_take_their_place(clean: Path, tmp_path: Path) -> None:
    with serve(teach) as endpoint:
        stated = ask(clean, tmp_path / "out", endpoint.url)
    originals = {meme.id: meme for meme in open_data(clean).memes("test")}
    assert {"sparrow", "monday"} <= {word for meme in originals.values() for word in meme.caption.split()}
    for channel in ("field", "both"):
        for meme in open_data(tmp_path / "out" / f"rephrase-2-{channel}").memes("test"):
            before = originals[clean_id(meme.id)]
            kept = "sparrow" in before.caption or "monday" in before.caption
            turned = " ".join(reversed(before.caption.split()))
            assert meme.caption == (before.caption if kept else turned)
            assert (meme.image == before.image) == (kept or channel == "field")
    [one, _] = stated.variants
    assert one.unchanged == {
        "the teacher gave no other words": sum("monday" in meme.caption for meme in originals.values()),
        "the teacher's words do not mean the same": sum("sparrow" in meme.caption for meme in originals.values()),
    }
    assert stated.teacher is not None
    assert (stated.teacher["model"], stated.teacher["served"]) == ("teacher", ["served"])
    assert "secret" not in (tmp_path / "out" / "attack.json").read_text()


def test_captions_alone_are_sent_and_each_is_asked_for_once(clean: Path, tmp_path: Path) -> None:
    different = {meme.caption for meme in open_data(clean).memes("test")}
    with serve(teach) as endpoint:
        ask(clean, tmp_path / "out", endpoint.url)
        asked = len(endpoint.requests)
        assert sorted(
            caption for body in endpoint.requests if len(found := captions(body)) == 1 for caption in found
        ) == (sorted(different))
        for body in endpoint.requests:
            assert isinstance(body["messages"][1]["content"], str)  # no picture
            assert not any(meme.id in str(body) for meme in open_data(clean).memes("test"))
        (tmp_path / "out" / "attack.json").unlink()
        (tmp_path / "out" / "teacher").rename(tmp_path / "kept")
        settings = RephraseSettings(endpoint=endpoint.url, model="teacher", retries=0)
        attack_data(clean, tmp_path / "again", CHOSEN, teacher=Teacher(settings, cache=tmp_path / "kept"))
        repeated = endpoint.requests[asked:]
    assert all("monday" in captions(body)[0] for body in repeated)  # refusals are not stored


def test_an_endpoint_that_fails_leaves_nothing_half_done(clean: Path, tmp_path: Path) -> None:
    def fails_later(body: dict[str, Any], before: int) -> Reply:
        return error(503, "busy") if "bunny" in captions(body)[0] else teach(body, before)

    with serve(lambda body, before: error(503, "busy")) as endpoint, pytest.raises(UserError, match="HTTP 503: .*busy"):
        ask(clean, tmp_path / "out", endpoint.url)
    with serve(fails_later) as endpoint, pytest.raises(UserError, match="asks again for what is missing"):
        ask(clean, tmp_path / "out", endpoint.url)
    assert not list((tmp_path / "out").glob("rephrase*"))
    with serve(teach) as endpoint:
        assert len(ask(clean, tmp_path / "out", endpoint.url).variants) == 2


def test_the_command_needs_both_endpoint_and_model(clean: Path, tmp_path: Path) -> None:
    arguments = ["attack", str(clean), "--output", str(tmp_path / "out"), "--endpoint", "http://127.0.0.1:1/v1"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 2
    assert "give both --endpoint and --model" in done.output
    with serve(teach) as endpoint:
        chosen = ["--attacks", "rephrase", "--severities", "1", "--model", "teacher"]
        done = CliRunner().invoke(app, [*arguments[:-1], endpoint.url, *chosen])
    assert done.exit_code == 0, done.output
    assert "rephrase-1-both" in done.output
