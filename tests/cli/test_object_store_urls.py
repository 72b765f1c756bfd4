"""Options that take no URLs of object stores refuse them before anything is done."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from ra_hmd.cli.app import app
from ra_hmd.cli.object_stores import ACCEPTED

REFUSED = [
    (["tiny-lmm", "--output", "s3://box/model"], "--output"),
    (["evaluate", "--checkpoint", "s3://box/head"], "--checkpoint"),
    (["evaluate", "--output=s3://box/report"], "--output"),
    (["features", "export", "s3://box/store", "--output", "x.pt"], "this argument"),
    (["data", "import", "s3://box/data"], "this argument"),
    (["predict", "--checkpoint", "gs://box/head"], "--checkpoint"),
]


@pytest.mark.parametrize(("words", "named"), REFUSED)
def test_a_url_where_a_path_is_needed_is_refused_with_a_remedy(
    words: list[str], named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 2
    assert f"{named} of `ra-hmd {words[0]}` takes a path of this machine; copy the files" in done.output
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("key", "settings"), [("output_dir", "train=a"), ("init_head", "train=a output_dir=b")])
def test_a_key_of_a_yaml_file_that_takes_no_url_says_so(key: str, settings: str, tmp_path: Path) -> None:
    (tmp_path / "head.yaml").write_text("epochs: 1\n")
    done = CliRunner().invoke(app, ["train-head", str(tmp_path / "head.yaml"), *settings.split(), f"{key}=s3://box/a"])
    assert done.exit_code == 2
    assert f"`{key}`: s3://box/a is in an object store, and a path of this machine is needed" in done.output


def test_a_secret_in_a_url_is_not_repeated() -> None:
    done = CliRunner().invoke(app, ["extract", "--data", "s3://name:secret@box/a"])
    assert done.exit_code == 2
    assert "no user name" in done.output
    assert "secret" not in done.output


def test_the_commands_that_take_urls_are_in_the_documentation() -> None:
    page = (Path(__file__).parents[2] / "docs" / "cluster.md").read_text()
    section = page.partition("## Object stores")[2].partition("\n## ")[0]
    for command, options in ACCEPTED.items():
        for name in [command.split()[-1], *filter(None, options)]:
            assert name in section, (command, name)
