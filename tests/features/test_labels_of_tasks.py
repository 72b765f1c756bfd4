"""Labels of every task read back: from answers, from training files, from imported folders into feature stores."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from meme_files import imported, jsonl, picture
from typer.testing import CliRunner, Result

from ra_hmd.cli.app import app
from ra_hmd.core.errors import UserError
from ra_hmd.data.k_shot import write_k_shot
from ra_hmd.data.meme import Meme
from ra_hmd.data.meme_files import read_memes
from ra_hmd.data.prompt import Answers, PromptTemplate
from ra_hmd.data.readers import READERS
from ra_hmd.data.readers.tasks import Task
from ra_hmd.data.resolve import imported_task, resolve_memes
from ra_hmd.data.sharegpt_export import write_sharegpt
from ra_hmd.data.training_records import TrainingRecord
from ra_hmd.features.extract_lmm import extract_hidden_states
from ra_hmd.features.store import read_features
from ra_hmd.models.checkpoint import open_backbone

TASKS = {(name, task.name): task for name, reader in READERS.items() for task in reader.tasks}
INTENSITIES = ["not harmful", "very harmful", "somewhat harmful", "not harmful", "very harmful", "not harmful"]
TARGETS = [[], ["society", "individual"], ["community"], [], ["organization"], []]


def answers_of(task: Task) -> Answers:
    return Answers(task.classes, several=True) if task.multi_label else Answers(task.answers)


@pytest.mark.parametrize("key", TASKS, ids="/".join)
def test_every_answer_of_every_task_says_its_class(key: tuple[str, str]) -> None:
    task = TASKS[key]
    answers = answers_of(task)
    if task.multi_label:
        everything = tuple(range(len(task.classes)))
        assert answers.label_of(", ".join(task.classes)) == everything
        assert answers.label_of("None.") == ()
        assert [answers.label_of(name.upper()) for name in task.classes] == [(index,) for index in everything]
    else:
        assert [answers.label_of(f" «{text}» …") for text in task.answers] == list(range(len(task.answers)))
        first = {text.casefold().split()[0].strip(".") for text in task.answers}
        assert len(first) == len(task.answers), "the LM head could not tell these apart"


@given(st.data())
def test_any_list_of_names_is_read_back(data: st.DataObject) -> None:
    task = TASKS["propaganda", "techniques"]  # names with commas, slashes and brackets, some alike
    chosen = data.draw(st.lists(st.integers(0, len(task.classes) - 1), unique=True, min_size=1))
    text = data.draw(st.sampled_from([", ", ",", " ,  "])).join(task.classes[index] for index in chosen)
    assert answers_of(task).label_of(text) == tuple(sorted(chosen))


def test_the_longest_answer_that_fits_counts_and_words_stay_whole() -> None:
    answers = Answers(("very", "very harmful", "harm"))
    found = [answers.label_of(text) for text in ("Very.", "very  HARMFUL indeed", "very harmfully", "harm")]
    assert found == [0, 1, 0, 2]
    for text in ("harmful", "", "a very"):
        with pytest.raises(ValueError, match="begins with neither"):
            answers.label_of(text)
    several = Answers(("shaming", "violence"), several=True)
    for text in ("shaming and violence", "shaming,", "violences", "", "none, shaming"):
        with pytest.raises(ValueError, match="is no list of"):
            several.label_of(text)


@pytest.mark.parametrize(
    ("words", "several"), [(("a",), False), (("a", "A "), False), (("a", "!"), False), (("none",), True), ((), True)]
)
def test_answers_that_say_nothing_are_refused(words: tuple[str, ...], several: bool) -> None:
    with pytest.raises(UserError, match="Answers"):
        Answers(words, several)


@pytest.fixture(scope="module")
def harm_c(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An imported copy of Harm-C with invented content."""
    root = tmp_path_factory.mktemp("harm_c")
    rows = []
    for number, (intensity, targets) in enumerate(zip(INTENSITIES, TARGETS, strict=True)):
        name = f"covid_memes_{number}"
        picture(root / "images" / f"{name}.png")
        text = f"the cat is number {number}"
        rows.append({"id": name, "image": f"{name}.png", "labels": [intensity, *targets], "text": text})
    for split in ("train", "val", "test"):
        jsonl(root / "annotations" / f"{split}.jsonl", rows)
    imported("harm_c", root, root / "imported")
    return root / "imported"


def task_of(folder: Path, name: str) -> tuple[Task, PromptTemplate]:
    task = imported_task(str(folder), name)
    return task, PromptTemplate(task.prompt)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("hate", [0, 1, 1, 0, 1, 0]), ("intensity", [0, 2, 1, 0, 2, 0]), ("target", [(), (0, 3), (2,), (), (1,), ()])],
)
def test_folder_and_training_file_give_the_same_labels(
    harm_c: Path, tmp_path: Path, name: str, expected: list[Any]
) -> None:
    task, prompt = task_of(harm_c, name)
    memes = resolve_memes(str(harm_c), "train", prompt, answers_of(task), task=task)
    assert [meme.label for meme in memes] == expected
    (file, *_), _ = write_sharegpt(harm_c, tmp_path, task=name, splits=["train"])
    again = read_memes(file.path, prompt=prompt, answers=answers_of(task))
    assert [(m.id, m.label) for m in again] == [(m.id, m.label) for m in memes]
    # Also where the file has no labels, and as `TrainingRecord` writes a single meme.
    records = json.loads(file.path.read_text())
    texts = task.classes if task.multi_label else task.answers
    assert [TrainingRecord.of_meme(meme, prompt, texts).to_row() for meme in again] == records
    for record in records:
        del record["label"]
    (tmp_path / "bare.json").write_text(json.dumps(records))
    assert [m.label for m in read_memes(tmp_path / "bare.json", prompt=prompt, answers=answers_of(task))] == expected


def test_label_lists_are_told_from_class_indices(harm_c: Path, tmp_path: Path) -> None:
    task, prompt = task_of(harm_c, "target")
    (file, *_), _ = write_sharegpt(harm_c, tmp_path, task="target", splits=["train"])
    with pytest.raises(UserError, match=r"label \[\] is not a class index"):
        read_memes(file.path, prompt=prompt)
    for label in (2, [4], [0, 0], [True], "0", [[1]]):
        records = json.loads(file.path.read_text())
        records[3]["label"] = label
        (tmp_path / "x.json").write_text(json.dumps(records))
        with pytest.raises(UserError, match="record 3: label .* is not a list of different class indices from 0 to 3"):
            read_memes(tmp_path / "x.json", prompt=prompt, answers=answers_of(task))


def test_k_shot_lists_of_the_folder_are_as_before(harm_c: Path, tmp_path: Path) -> None:
    lists = json.loads(write_k_shot(harm_c, [1], seeds=1, task="intensity", output=tmp_path / "k.json").read_text())
    assert lists["pool"] == {"not harmful": 3, "somewhat harmful": 1, "very harmful": 2}


def test_extraction_of_a_task_of_a_folder(harm_c: Path, tiny: Any, tmp_path: Path) -> None:
    def extract_command(task: str, output: str, data: Path = harm_c) -> Result:
        words = ["extract", "--backbone-only", "--checkpoint", str(tiny("qwen2_vl")), "--workers", "0"]
        words += ["--data", str(data), "--task", task, "--output", str(tmp_path / output)]
        return CliRunner().invoke(app, words)

    for name in ("target", "intensity"):
        assert extract_command(name, name).exit_code == 0
    sets, grades = (read_features(tmp_path / name) for name in ("target", "intensity"))
    expected = [[int(index in labels) for index in range(4)] for labels in ((), (0, 3), (2,), (), (1,), ())]
    assert sets.labels.tolist() == expected
    assert grades.labels.tolist() == [0, 2, 1, 0, 2, 0]
    assert np.array_equal(sets.hidden, grades.hidden)
    for done, message in (
        (extract_command("intensity", "target"), "was made from something else"),
        (extract_command("hat", "x"), "has no task 'hat'; it has hate, intensity, target"),
        (extract_command("hate", "x", tmp_path / "x.json"), "x.json is not an imported folder"),
    ):
        assert done.exit_code == 2
        assert message in done.output


def test_labels_of_another_kind_are_refused_before_the_model_is_loaded(tiny: Any, tmp_path: Path) -> None:
    run = open_backbone(str(tiny("qwen2_vl")))
    image = picture(tmp_path / "a.png")
    single, several, none = (Meme(str(n), image, "a", label) for n, label in enumerate((1, (0, 2), None)))
    with pytest.raises(UserError, match=r"Meme '1' has the label \(0, 2\), one class index is expected.*--task"):
        extract_hidden_states(run, [none, single, several], tmp_path / "f")
    with pytest.raises(UserError, match="Meme '0' has the label 1, a list of some of 3 class indices is expected"):
        extract_hidden_states(run, [none, several, single], tmp_path / "f", label_classes=3)
    with pytest.raises(UserError, match=r"Labels that are not among 2 classes(?s:.*)'1': \(0, 2\)"):
        extract_hidden_states(run, [several], tmp_path / "f", label_classes=2)
    assert not (tmp_path / "f").exists()
    extract_hidden_states(run, [several, none], tmp_path / "f", label_classes=3, num_workers=0)
    assert read_features(tmp_path / "f").labels.tolist() == [[1, 0, 1], [-1, -1, -1]]
