"""Guidance from files, the table for review, and the command's options."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from openai_server import serve
from taught_memes import TAUGHT, Taught, teach
from typer.testing import CliRunner, Result

from ra_hmd.cli.app import app
from ra_hmd.clusters.guidance import take_texts
from ra_hmd.clusters.guidance_files import read_texts
from ra_hmd.core.errors import UserError
from ra_hmd.data.guidance import MOST_WORDS, Guidance

TEXTS = ["Look at the cake.", "Ask who eats it.", "Read the words: all of them."]


@pytest.fixture
def taught(tmp_path: Path) -> Taught:
    return Taught(tmp_path)


def write(folder: Path, form: str, texts: Any) -> Path:
    """The texts in one of the forms that `--from` takes."""
    if form == "folder":
        place = folder / "texts"
        place.mkdir()
        for name, text in enumerate(texts) if isinstance(texts, list) else texts.items():
            (place / f"{name}.txt").write_text(f"{text}\n")
        return place
    place = folder / f"texts.{form}"
    place.write_text(json.dumps(texts) if form == "json" else yaml.safe_dump(texts))
    return place


def command(*words: Any) -> Result:
    return CliRunner().invoke(app, ["guidance", *map(str, words)], env={"COLUMNS": "200"})


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["json", "yaml", "yml", "folder"])
@pytest.mark.parametrize("keys", [None, int, str])
def test_each_form_gives_the_same_texts(taught: Taught, tmp_path: Path, form: str, keys: type | None) -> None:
    texts = TEXTS if keys is None else {keys(number): TEXTS[number] for number in (2, 0, 1)}
    place = write(tmp_path, form, texts)
    guidance = take_texts(taught.clusters, place, tmp_path / "guidance.json", command="ra-hmd guidance")
    assert guidance.texts == tuple(TEXTS)
    assert Guidance.open(tmp_path / "guidance.json") == guidance
    teacher = guidance.manifest.teacher
    assert (teacher.kind, teacher.file, teacher.model) == ("file", place.name, None)
    assert len(teacher.file_sha256) == 64


def test_texts_from_a_file_are_cleaned_and_cut(taught: Taught, tmp_path: Path) -> None:
    place = write(tmp_path, "json", ["Look\n<image>", "word " * 9000, "Read it."])
    guidance = take_texts(taught.clusters, place, tmp_path / "guidance.json")
    assert guidance.texts[0] == "Look < image >"
    assert len(guidance.texts[1].split()) == MOST_WORDS
    assert [entry.cut for entry in guidance.manifest.guidance] == [False, True, False]
    assert guidance.manifest.notes == ["Texts that were longer and have been cut: 1."]


WRONG: dict[str, tuple[Any, str]] = {
    "two of three": (TEXTS[:2], "has 2 texts, and there are 3 clusters"),
    "four of three": ([*TEXTS, "a"], "has 4 texts, and there are 3 clusters"),
    "none": ([], "has 0 texts"),
    "unknown number": (dict(enumerate([*TEXTS, "a"])), "'?3'? is no cluster; the clusters are 0 to 2"),
    "unknown word": ({"cakes": "a"} | dict(enumerate(TEXTS)), "'cakes' is no cluster"),
    "negative": ({"-1": "a"} | dict(enumerate(TEXTS)), "'-1' is no cluster"),
    "missing": ({0: "a", 2: "b"}, "cluster 1 has no text"),
    "empty": (["a", " \n", "b"], "cluster 1 has an empty text"),
    "number": (["a", 7, "b"], "cluster 1 has '7', which is no text; put it in quotes"),
    "null": (["a", None, "b"], "cluster 1 has 'None'"),
    "text alone": ("Look at the cake.", "holds a str; needed is a JSON or YAML file"),
    "guidance": ({"kind": "guidance", "guidance": []}, "is guidance already"),
}


@pytest.mark.parametrize("form", ["json", "yaml"])
@pytest.mark.parametrize(("texts", "told"), WRONG.values(), ids=WRONG)
def test_another_number_unknown_clusters_and_empty_texts_are_refused(
    tmp_path: Path, form: str, texts: Any, told: str
) -> None:
    with pytest.raises(UserError, match=told):
        read_texts(write(tmp_path, form, texts), 3)


def test_a_cluster_that_stands_there_twice_is_refused(tmp_path: Path) -> None:
    for name, content in (("a.json", '{"0": "a", "0": "b", "1": "c"}'), ("a.yaml", "0: a\n0: b\n1: c\n")):
        (tmp_path / name).write_text(content)
        with pytest.raises(UserError, match="stands there twice"):
            read_texts(tmp_path / name, 2)
    (tmp_path / "b.yaml").write_text('0: a\n"0": b\n1: c\n')
    with pytest.raises(UserError, match="cluster 0 has several texts"):
        read_texts(tmp_path / "b.yaml", 2)


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes("- caf\u00e9".encode("latin-1"))
    (tmp_path / "odd.yaml").write_text("a: [b")
    (tmp_path / "odd.json").write_text("{")
    (tmp_path / "code.yaml").write_text("!!python/object/apply:os.getcwd []")
    (tmp_path / "empty").mkdir()
    for name, told in (
        *(("latin.yaml", "is not UTF-8"), ("odd.yaml", "cannot be read"), ("odd.json", "cannot be read")),
        *(("code.yaml", "cannot be read"), ("empty", "holds no .txt file"), ("none.json", "does not exist")),
    ):
        with pytest.raises(UserError, match=told):
            read_texts(tmp_path / name, 2)


def test_texts_for_clusters_of_a_test_split_are_refused(tmp_path: Path) -> None:
    taught = Taught(tmp_path, split="test")
    with pytest.raises(UserError, match="split 'test'"):
        take_texts(taught.clusters, write(tmp_path, "json", TEXTS), tmp_path / "guidance.json")


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_asks_and_shows_the_texts_with_their_members(
    taught: Taught, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAKE_KEY", "key-of-the-tests")
    output = tmp_path / "guidance.json"
    with serve(teach) as endpoint:  # as Ollama: the base URL ends in /v1
        assert endpoint.url.endswith("/v1")
        teacher = ["--endpoint", endpoint.url, "--model", "gemma3:27b", "--api-key-env", "CAKE_KEY"]
        done = command(taught.clusters, "--data", taught.data, "--output", output, *teacher, "--show")
        assert endpoint.keys == ["Bearer key-of-the-tests"] * 3
        assert len(endpoint.requests) == 3
    assert done.exit_code == 0, done.output
    shown = " ".join(done.output.split())
    assert "hateful-id-00: cake 0 baked on day 0" in shown
    assert str(output) in shown.replace(" ", "") or str(output) in done.output
    assert "key-of-the-tests" not in output.read_text()
    assert Guidance.open(output).texts == tuple(TAUGHT.format(cluster) for cluster in range(3))


def test_show_alone_prints_the_file_and_says_which_text_was_edited(taught: Taught, tmp_path: Path) -> None:
    output = tmp_path / "guidance.json"
    take_texts(taught.clusters, write(tmp_path, "json", TEXTS), output)
    values = json.loads(output.read_text())
    values["guidance"][1]["text"] = "Edited [bold]by hand[/bold]."
    output.write_text(json.dumps(values))
    done = command(taught.clusters, "--output", output, "--show")
    assert done.exit_code == 0, done.output
    assert "Edited [bold]by hand[/bold]." in done.output
    assert done.output.count("edited") == 1
    assert json.loads(output.read_text()) == values


def test_from_takes_texts_and_sends_nothing(taught: Taught, tmp_path: Path) -> None:
    place = write(tmp_path, "yaml", TEXTS)
    done = command(taught.clusters, "--from", place, "--output", tmp_path / "guidance.json")
    assert done.exit_code == 0, done.output
    assert Guidance.open(tmp_path / "guidance.json").texts == tuple(TEXTS)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "Say where the texts come from"),
        (["--endpoint", "http://127.0.0.1:9/v1"], "both --endpoint and --model"),
        (["--endpoint", "http://127.0.0.1:9/v1", "--model", "m"], "give it as --data"),
        (["--endpoint", "http://127.0.0.1:9/v1", "--model", "m", "--from", "f"], "give one of them"),
        (["--endpoint", "localhost:9", "--model", "m", "--data", "d"], "is no URL of an API"),
        (["--endpoint", "http://me:word@localhost:9/v1", "--model", "m"], "user name or password"),
        (["--show"], "does not exist"),
    ],
)
def test_options_that_do_not_fit_are_told(taught: Taught, tmp_path: Path, words: list[str], told: str) -> None:
    done = command(taught.clusters, "--output", tmp_path / "none.json", *words)
    assert done.exit_code == 2
    assert told in " ".join(done.output.split())


def test_the_help_says_that_memes_are_sent() -> None:
    shown = " ".join(command("--help").output.replace("\u2502", " ").split())
    assert "ARE SENT TO ITS ENDPOINT" in shown
    assert "MEMES ARE SENT THERE" in shown
