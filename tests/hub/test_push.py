"""`ra-hmd push` and `Detector.from_pretrained`: what is published opens elsewhere, and says nothing of this machine."""

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from engines import BIN, run
from hub_server import COMMIT, hub
from typer.testing import CliRunner, Result

from ra_hmd.bank.bank import Bank
from ra_hmd.cli.app import app
from ra_hmd.core.errors import UserError
from ra_hmd.data.meme import Meme
from ra_hmd.data.meme_files import read_memes
from ra_hmd.inference.detector import Detector

TEXTS = (".json", ".md", ".jinja", ".txt")


@pytest.fixture(scope="module")
def some(memes: Path) -> list[Meme]:
    return list(read_memes(memes / "a" / "dev.jsonl"))[:6]


@pytest.fixture
def clip(served_clip: Path, tmp_path: Path) -> Path:
    """A system on a tiny CLIP whose encoder lies in a folder; a bank of three versions, one row removed."""
    made = Path(shutil.copytree(served_clip, tmp_path / "lab"))
    stated = json.loads((made / "head" / "ra_hmd.json").read_text().replace(str(served_clip), str(made)))
    stated["host"] = {"hub_token": "hf_secret_one", "deeper": [{"api_key": "secret_two"}]}
    (made / "head" / "ra_hmd.json").write_text(json.dumps(stated))
    (made / "head" / "optimizer.pt").write_bytes(b"a pickle")
    with Bank.open(made / "bank") as bank:
        bank.remove([bank.ids[0]], author="Jo Doe", reason="private reason")
        bank.relabel({bank.ids[1]: 1 - int(bank.labels[1])}, author="Jo Doe", reason="another one")
    return made


def push(*words: str | Path) -> Result:
    return CliRunner().invoke(app, ["push", *map(str, words)])


def pushed(*words: str | Path) -> dict:
    done = push(*words, "--dry-run", "--json")
    assert done.exit_code == 0, f"{done.output}\n{done.exception!r}"
    return json.loads(done.stdout)


def same_verdicts(first: Detector, second: Detector, some: list[Meme]) -> None:
    for one, other in zip(first(some), second(some), strict=True):
        assert (one.verdict, one.head) == (other.verdict, other.head)
        assert one.scores == other.scores


def test_a_head_on_an_encoder_opens_where_nothing_of_the_lab_is_left(
    clip: Path, some: list[Meme], tmp_path: Path
) -> None:
    before = Detector.from_run(clip / "head", clip / "bank")
    said = pushed(
        clip / "head", "--repo", "ana/memes", "--include-base", "--bank", clip / "bank", "--output", tmp_path / "out"
    )
    assert {"README.md", "hub.json", "head.safetensors", "ra_hmd.json", "base/model.safetensors"} <= said[
        "files"
    ].keys()
    expected = before(some)
    shutil.rmtree(clip)
    moved = Path(shutil.move(tmp_path / "out", tmp_path / "elsewhere"))
    after = Detector.from_pretrained(moved)
    for one, other in zip(after(some), expected, strict=True):
        assert one.verdict == other.verdict
        assert {head: one.scores[head] for head in ("lrc", "rkc")} == {
            head: other.scores[head] for head in ("lrc", "rkc")
        }
        assert one.scores["krr"] == pytest.approx(other.scores["krr"], abs=1e-3)  # tuned anew, on the present rows
    assert after.head == "rkc"


def test_nothing_of_this_machine_and_no_secret_is_published(clip: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    pushed(clip / "head", "--repo", "ana/memes", "--include-base", "--bank", clip / "bank", "--output", out)
    for path in out.rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        for private in (str(tmp_path), "hf_secret_one", "secret_two", "Jo Doe", "private reason"):
            assert private.encode() not in content, (path, private)
        assert not path.is_file() or path.suffix in (*TEXTS, ".safetensors", ".parquet"), path


def test_a_bank_goes_along_as_its_present_rows_alone(clip: Path, tmp_path: Path) -> None:
    pushed(clip / "head", "--repo", "memes", "--include-base", "--bank", clip / "bank", "--output", tmp_path / "out")
    with Bank.open(clip / "bank") as kept, Bank.open(tmp_path / "out" / "bank") as published:
        assert (kept.version, published.version) == (3, 1)
        assert published.ids == kept.ids
        np.testing.assert_array_equal(published.labels, kept.labels)
        assert {entry.author for entry in published.log} == {"ra-hmd push"}


def test_without_a_bank_none_goes_along(clip: Path, tmp_path: Path) -> None:
    said = pushed(clip / "head", "--repo", "memes", "--include-base", "--output", tmp_path / "out")
    assert not any(name.startswith("bank/") for name in said["files"])
    assert Detector.from_pretrained(tmp_path / "out").head == "lrc"
    assert Detector.from_pretrained(tmp_path / "out", clip / "bank").head == "rkc"


@pytest.mark.slow
def test_a_refined_head_opens_with_its_stage_1_run(served_lmm: Path, some: list[Meme], tmp_path: Path) -> None:
    lab = Path(shutil.copytree(served_lmm, tmp_path / "lab"))
    (lab / "s2.yaml").write_text(
        f"init_head: {lab}/run\ntrain: {lab}/features/train\ndev: {lab}/features/dev\nepochs: 1\noutput_dir: {lab}/s2\n"
    )
    trained = CliRunner().invoke(app, ["stage2", str(lab / "s2.yaml")])
    assert trained.exit_code == 0, trained.output
    report = [
        "evaluate",
        "--checkpoint",
        lab / "s2",
        "--bank",
        lab / "features/train",
        "--queries",
        lab / "features/dev",
    ]
    measured = CliRunner().invoke(
        app, [*map(str, report), "--output", str(lab / "report"), "--bootstrap-samples", "100"]
    )
    assert measured.exit_code == 0, measured.output
    out = tmp_path / "out"
    said = pushed(lab / "s2", "--repo", "ana/memes", "--include-base", "--report", lab / "report", "--output", out)
    assert {"stage1/adapter_model.safetensors", "stage1/adapter_config.json", "stage1/ra_hmd.json"} <= said[
        "files"
    ].keys()
    auroc = json.loads((lab / "report" / "metrics.json").read_text())["dev"]["lrc"]["auroc"]["value"]
    card = (out / "README.md").read_text()
    assert f"{auroc:.3f}" in card
    assert 'Detector.from_pretrained("ana/memes")' in card
    before = Detector.from_run(lab / "s2")
    expected = [one.scores for one in before(some)]
    (lab / "run").rename(tmp_path / "gone")
    assert [one.scores for one in Detector.from_pretrained(out)(some)] == expected


def test_a_file_that_is_not_the_published_one_is_refused(clip: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    pushed(clip / "head", "--repo", "memes", "--include-base", "--output", out)
    (out / "head.json").write_text((out / "head.json").read_text() + " ")
    (out / "history.json").unlink()
    with pytest.raises(UserError, match=r"(?s)history.json is missing.*|head.json has another SHA-256") as error:
        Detector.from_pretrained(out)
    assert "head.json has another SHA-256" in str(error.value)


def test_a_published_place_outside_its_folder_is_refused(clip: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    pushed(clip / "head", "--repo", "memes", "--include-base", "--output", out)
    stated = json.loads((out / "hub.json").read_text())
    (out / "hub.json").write_text(json.dumps(stated | {"bank": "../lab/bank"}))
    with pytest.raises(UserError, match="leads out of the folder"):
        Detector.from_pretrained(out)


def test_a_model_underneath_that_others_cannot_get_is_refused(clip: Path, tmp_path: Path) -> None:
    done = push(clip / "head", "--repo", "memes", "--output", tmp_path / "out", "--dry-run")
    assert done.exit_code == 2
    assert "a folder of this machine" in done.output
    assert "--include-base" in done.output
    assert not (tmp_path / "out").exists()


def test_an_earlier_folder_is_replaced_only_on_request_and_others_never(clip: Path, tmp_path: Path) -> None:
    words = (clip / "head", "--repo", "memes", "--include-base", "--output")
    pushed(*words, tmp_path / "out")
    assert push(*words, tmp_path / "out", "--dry-run").exit_code == 2
    pushed(*words, tmp_path / "out", "--overwrite")
    assert push(*words, clip / "features", "--dry-run", "--overwrite").exit_code == 2
    assert (clip / "features" / "train").is_dir()


def test_nothing_is_uploaded_unasked(clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ra_hmd.hub.upload.upload", lambda *words, **more: pytest.fail("uploaded"))
    done = push(clip / "head", "--repo", "memes", "--include-base", "--output", tmp_path / "out")
    assert done.exit_code == 2
    assert "Nothing was uploaded to memes" in done.output


def test_a_run_of_this_machine_opens_too(clip: Path, some: list[Meme]) -> None:
    same_verdicts(
        Detector.from_pretrained(clip / "head", clip / "bank"), Detector.from_run(clip / "head", clip / "bank"), some
    )


def test_what_is_nowhere_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nobody/nothing at revision v1 is no folder, and cannot be had from the hub"):
        Detector.from_pretrained("nobody/nothing", revision="v1")
    with pytest.raises(UserError, match="a revision is for names on the hub"):
        Detector.from_pretrained(tmp_path, revision="v1")


@pytest.fixture
def online(tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Runs commands whose hub is on this machine; they print what they say."""
    with hub() as state:
        env = {"HF_ENDPOINT": state.address, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": "hf_x"}

        def call(*words: str | Path, code: int = 0) -> str:
            done = run([str(word) for word in words], tmp_path, **env, HF_HUB_DISABLE_XET="1")
            assert done.returncode == code, f"{done.stdout}\n{state.requests}"
            return done.stdout

        call.state = state  # type: ignore[attr-defined]
        yield call


@pytest.mark.slow
def test_what_was_uploaded_is_downloaded_and_judges(
    clip: Path, some: list[Meme], online: Callable[..., str], tmp_path: Path
) -> None:
    words = ("push", clip / "head", "--repo", "ana/memes", "--include-base", "--bank", clip / "bank")
    state = online.state  # type: ignore[attr-defined]
    online(BIN / "ra-hmd", *words, "--output", tmp_path / "out", "--dry-run")
    assert state.requests == []
    said = online(BIN / "ra-hmd", *words, "--output", tmp_path / "out", "--overwrite", "--yes")
    assert f"ana/memes/commit/{COMMIT}" in said
    assert state.private is True
    assert state.files["head.safetensors"] == (clip / "head" / "head.safetensors").read_bytes()
    state.files["adapter_model.bin"] = b"a pickle that somebody put there later"
    script = (
        "import json, sys; from ra_hmd import Detector, Meme\n"
        "detector = Detector.from_pretrained('ana/memes', revision='main')\n"
        "print(json.dumps([one.scores for one in detector([Meme(id='1', image=sys.argv[1], text=sys.argv[2])])]))"
    )
    shown = online(sys.executable, "-c", script, some[0].image, some[0].text).strip().splitlines()[-1]
    (expected,) = Detector.from_run(clip / "head", clip / "bank")(some[:1])
    assert json.loads(shown) == [pytest.approx(expected.scores, abs=1e-3)]
    assert not any("adapter_model.bin" in request for request in state.requests)
