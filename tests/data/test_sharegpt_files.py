"""The files for LLaMA-Factory: official names to the byte, image paths, tasks, and what is left out."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from data_copies import COPIES
from meme_files import imported, jsonl, picture, table
from typer.testing import CliRunner

from ra_hmd.cli.app import app
from ra_hmd.core.errors import UserError
from ra_hmd.data.import_dataset import ImportOptions
from ra_hmd.data.meme_files import read_memes
from ra_hmd.data.prompt import PromptTemplate
from ra_hmd.data.sharegpt_export import ORIGINS, ShareGptFile, write_sharegpt

QUESTION = '<image> This is an image with: "{}" written on it. Is it hateful?'
NO, YES = "No. It is not a hateful meme.", "Yes. It is a hateful meme."
OFFICIAL = {
    "hateful_memes": {
        "hatefulmemes": "gt/FB/sharegpt_FB_train_instructblip.json",
        "hatefulmemes_dev": "gt/FB/sharegpt_FB_dev_seen_instructblip.json",
        "hatefulmemes_test": "gt/FB/sharegpt_FB_test_seen_instructblip.json",
    },
    "harm_c": {
        "harmc": "gt/HarMeme/sharegpt_Harmeme_train_instructblip.json",
        "harmc_dev": "gt/HarMeme/sharegpt_Harmeme_val_instructblip.json",
        "harmc_test": "gt/HarMeme/sharegpt_Harmeme_test_instructblip.json",
    },
    "harm_p": {
        "harmp": "gt/HarmP/sharegpt_HarmP_train_instructblip.json",
        "harmp_dev": "gt/HarmP/sharegpt_HarmP_val_instructblip.json",
        "harmp_test": "gt/HarmP/sharegpt_HarmP_test_instructblip.json",
    },
    "mami": {
        "mami": "gt/MAMI/sharegpt_MAMI_train_instructblip.json",
        "mami_dev": "gt/MAMI/sharegpt_MAMI_val_instructblip.json",
        "mami_test": "gt/MAMI/sharegpt_MAMI_test_instructblip.json",
    },
    "multioff": {
        "multioff": "gt/MultiOFF/sharegpt_MultiOFF_train_instructblip.json",
        "multioff_dev": "gt/MultiOFF/sharegpt_MultiOFF_dev_instructblip.json",
        "multioff_test": "gt/MultiOFF/sharegpt_MultiOFF_test_instructblip.json",
    },
    "pridemm": {
        "pridemm": "gt/PrideMM/sharegpt_PrideMM_train_instructblip.json",
        "pridemm_dev": "gt/PrideMM/sharegpt_PrideMM_val_instructblip.json",
        "pridemm_test": "gt/PrideMM/sharegpt_PrideMM_test_instructblip.json",
    },
}
# (id, image below the copy, caption, label) of the first two records of train
FIRST = {
    "hateful_memes": [
        ("00001", "img/00001.png", "coffee is ready 1", 1),
        ("00002", "img/00002.png", "rain again on monday 2", 0),
    ],
    "harm_c": [
        ("covid_memes_1", "images/covid_memes_1.png", "coffee is ready 1", 0),
        ("covid_memes_2", "images/covid_memes_2.png", "rain again on monday 2", 1),
    ],
    "harm_p": [
        ("memes_1", "images/memes_1.png", "coffee is ready 1", 0),
        ("memes_2", "images/memes_2.png", "rain again on monday 2", 1),
    ],
    "mami": [
        ("train_1", "TRAINING/1.jpg", "COFFEE IS READY 1", 1),
        ("train_2", "TRAINING/2.jpg", "RAIN AGAIN ON MONDAY 2", 0),
    ],
    "multioff": [
        ("x1.jpg.png", "Labelled Images/x1.jpg.png", "coffee is ready , 1", 1),
        ("x2.jpg.png", "Labelled Images/x2.jpg.png", "rain again on monday , 2", 0),
    ],
    "pridemm": [
        ("img_1", "Images/img_1.png", "coffee is ready 1", 1),
        ("img_2", "Images/img_2.png", "rain again on monday 2", 0),
    ],
}
ENTRY = {
    "formatting": "sharegpt",
    "columns": {"messages": "messages", "images": "images"},
    "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folder with an imported copy of a data set (`out`) beside the copy (`data`), made once."""
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            # With this seed, one of the four training memes of MAMI becomes its dev split.
            options = ImportOptions(val_fraction=0.5, seed=1) if name == "mami" else None
            imported(name, COPIES[name](made[name] / "data"), made[name] / "out", options=options)
        return made[name]

    return make


def records(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text(encoding="utf-8"))


def registry(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "dataset_info.json").read_text(encoding="utf-8"))


def answers(path: Path) -> dict[str, tuple[str, int | list[int]]]:
    """Id → answer and label."""
    return {record["id"]: (record["messages"][1]["content"], record["label"]) for record in records(path)}


@pytest.mark.parametrize("name", OFFICIAL)
def test_official_names_prompt_answers_and_keys(tmp_path: Path, data: Callable[[str], Path], name: str) -> None:
    folder = data(name)
    files, prompt = write_sharegpt(folder / "out", tmp_path)
    assert registry(tmp_path) == {entry: {"file_name": file, **ENTRY} for entry, file in OFFICIAL[name].items()}
    assert {file.name: str(file.path.relative_to(tmp_path)) for file in files} == OFFICIAL[name]
    assert files[0].name == next(iter(OFFICIAL[name]))
    assert prompt.template == QUESTION.format("{text}")
    written = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert written == {"dataset_info.json", "sharegpt_origins.json", *OFFICIAL[name].values()}
    train = records(files[0].path)
    assert train[:2] == [
        {
            "id": identity,
            "messages": [
                {"role": "user", "content": QUESTION.format(caption)},
                {"role": "assistant", "content": (NO, YES)[label]},
            ],
            "images": [str(folder / "data" / image)],
            "label": label,
        }
        for identity, image, caption, label in FIRST[name]
    ]
    for file in files:
        rows = records(file.path)
        assert len(rows) == file.rows > 0
        assert file.unlabelled == 0
        assert all([*row] == ["id", "messages", "images", "label"] for row in rows)


def test_a_file_to_the_byte(tmp_path: Path) -> None:
    picture(tmp_path / "data" / "a.png")
    jsonl(
        tmp_path / "data" / "train.jsonl",
        [{"id": 7, "image": "a.png", "text": 'Ça "va" \\ <image> 猫\u2028', "label": 1}],
    )
    imported("generic", tmp_path / "data", tmp_path / "out", options=ImportOptions("raw"))
    (file,), _ = write_sharegpt(tmp_path / "out", tmp_path / "lf")
    assert file.path.read_bytes().decode() == (
        '[\n{"id": "7", "messages": [{"role": "user", "content": "<image> This is an image with: '
        '\\"Ça \\"va\\" \\\\ < image > 猫\\" written on it. Is it hateful?"}, '
        '{"role": "assistant", "content": "Yes. It is a hateful meme."}], '
        f'"images": ["{tmp_path}/data/a.png"], "label": 1}}\n]\n'
    )
    assert file == ShareGptFile("generic", tmp_path / "lf/gt/generic/sharegpt_generic_train_instructblip.json", 1, 0)


def test_the_registry_is_what_llama_factory_reads(tmp_path: Path, data: Callable[[str], Path]) -> None:
    from llamafactory.data.parser import get_dataset_list

    write_sharegpt(data("multioff") / "out", tmp_path)
    names = ["multioff", "multioff_dev", "multioff_test"]
    found = get_dataset_list(names, str(tmp_path))
    assert [one.dataset_name for one in found] == [OFFICIAL["multioff"][name] for name in names]
    assert {(one.load_from, one.formatting, one.messages, one.images) for one in found} == {
        ("file", "sharegpt", "messages", "images")
    }
    assert {(one.role_tag, one.content_tag, one.user_tag, one.assistant_tag) for one in found} == {
        ("role", "content", "user", "assistant")
    }
    assert all((tmp_path / one.dataset_name).is_file() for one in found)


@pytest.mark.parametrize("name", OFFICIAL)
def test_written_files_read_back_from_any_directory(
    tmp_path: Path, data: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    files, prompt = write_sharegpt(data(name) / "out", tmp_path / "lf")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    split = json.loads((data(name) / "out/dataset.json").read_text())["splits"]
    assert sum(file.rows for file in files) == sum(split.values())
    for file in files:
        images = [Path(image) for record in records(file.path) for image in record["images"]]
        assert all(image.is_absolute() and image.is_file() for image in images)
    again = read_memes(files[0].path, prompt=prompt)
    before = read_memes(data(name) / "out/train.jsonl")
    assert [(meme.id, meme.image, meme.text, meme.label) for meme in again] == [
        (meme.id, meme.image, meme.text, meme.label) for meme in before
    ]


def test_images_are_absolute_also_of_a_relative_folder_of_jsonl_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture(tmp_path / "mine" / "img" / "a.png")
    jsonl(tmp_path / "mine" / "train.jsonl", [{"id": 1, "img": "img/a.png", "text": "Tea", "label": 0}])
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    (file,), _ = write_sharegpt("../mine", "lf")
    assert records(file.path)[0]["images"] == [str(tmp_path / "mine/img/a.png")]
    write_sharegpt("../mine", "lf", media_dir="../mine")
    assert records(file.path)[0]["images"] == ["img/a.png"]


def test_media_dir_makes_paths_relative(tmp_path: Path, data: Callable[[str], Path]) -> None:
    folder = data("multioff")
    files, prompt = write_sharegpt(folder / "out", tmp_path, media_dir=folder / "data")
    assert records(files[0].path)[0]["images"] == ["Labelled Images/x1.jpg.png"]
    (meme, *_) = read_memes(files[0].path, prompt=prompt, media_dir=folder / "data")
    assert meme.image == folder / "data/Labelled Images/x1.jpg.png"


def test_an_image_outside_media_dir_is_an_error_and_nothing_is_left(
    tmp_path: Path, data: Callable[[str], Path]
) -> None:
    folder = data("mami")
    with pytest.raises(UserError, match="not below --media-dir") as caught:
        write_sharegpt(folder / "out", tmp_path / "lf", media_dir=folder / "data" / "test")
    assert "(3)" in str(caught.value)
    assert f"train_1: {folder}/data/TRAINING/1.jpg" in str(caught.value)
    assert [path for path in (tmp_path / "lf").rglob("*") if path.is_file()] == []


def test_a_name_that_begins_with_two_dots_lies_inside(tmp_path: Path) -> None:
    picture(tmp_path / "data" / "..a.png")
    jsonl(tmp_path / "data" / "train.jsonl", [{"id": 1, "image": "..a.png", "text": "Tea", "label": 0}])
    imported("generic", tmp_path / "data", tmp_path / "out")
    (file,), _ = write_sharegpt(tmp_path / "out", tmp_path / "lf", media_dir=tmp_path / "data")
    assert records(file.path)[0]["images"] == ["..a.png"]


def test_another_prompt(tmp_path: Path, data: Callable[[str], Path]) -> None:
    asked = "<image>\nIt says {text}. Would a neighbour mind?"
    files, prompt = write_sharegpt(data("pridemm") / "out", tmp_path, prompt=asked)
    assert prompt == PromptTemplate(asked)
    messages = [record["messages"] for record in records(files[0].path)]
    assert messages[0] == [
        {"role": "user", "content": "<image>\nIt says coffee is ready 1. Would a neighbour mind?"},
        {"role": "assistant", "content": YES},
    ]
    assert read_memes(files[0].path, prompt=prompt)[0].text == "coffee is ready 1"
    with pytest.raises(UserError, match="was not made by the prompt"):
        read_memes(files[0].path)


@pytest.mark.parametrize("prompt", ["{text}?", "<image> <image> {text}", "<image> {text} {text}"])
def test_a_prompt_that_cannot_be_asked(tmp_path: Path, data: Callable[[str], Path], prompt: str) -> None:
    with pytest.raises(UserError, match="must hold <image> once"):
        write_sharegpt(data("pridemm") / "out", tmp_path, prompt=prompt)
    assert [*tmp_path.iterdir()] == []


SAYS = '<image> This is an image with: "{}" written on it. '
TASKS = [
    (
        "pridemm",
        "stance",
        {
            "pridemm_stance": "gt/PrideMM/sharegpt_PrideMM_train_stance_choice.json",
            "pridemm_stance_dev": "gt/PrideMM/sharegpt_PrideMM_val_stance_choice.json",
            "pridemm_stance_test": "gt/PrideMM/sharegpt_PrideMM_test_stance_choice.json",
        },
        "What stance does it take on LGBTQ+ people? Answer with one of: neutral, support, oppose.",
        {"img_1": ("support", 1), "img_2": ("oppose", 2), "img_3": ("neutral", 0), "img_4": ("support", 1)},
    ),
    (
        "pridemm",
        "target",
        {
            "pridemm_target": "gt/PrideMM/sharegpt_PrideMM_train_target_choice.json",
            "pridemm_target_dev": "gt/PrideMM/sharegpt_PrideMM_val_target_choice.json",
            "pridemm_target_test": "gt/PrideMM/sharegpt_PrideMM_test_target_choice.json",
        },
        "Whom does its hate target? Answer with one of: undirected, individual, community, organization.",
        {"img_1": ("community", 2), "img_3": ("community", 2)},
    ),
    (
        "harm_c",
        "intensity",
        {
            "harmc_intensity": "gt/HarMeme/sharegpt_Harmeme_train_intensity_choice.json",
            "harmc_intensity_dev": "gt/HarMeme/sharegpt_Harmeme_val_intensity_choice.json",
            "harmc_intensity_test": "gt/HarMeme/sharegpt_Harmeme_test_intensity_choice.json",
        },
        "How harmful is it? Answer with one of: not harmful, somewhat harmful, very harmful.",
        {
            "covid_memes_1": ("not harmful", 0),
            "covid_memes_2": ("somewhat harmful", 1),
            "covid_memes_3": ("not harmful", 0),
            "covid_memes_4": ("somewhat harmful", 1),
        },
    ),
    (
        "harm_p",
        "target",
        {
            "harmp_target": "gt/HarmP/sharegpt_HarmP_train_target_choice.json",
            "harmp_target_dev": "gt/HarmP/sharegpt_HarmP_val_target_choice.json",
            "harmp_target_test": "gt/HarmP/sharegpt_HarmP_test_target_choice.json",
        },
        "Whom does it harm? Name all of: individual, organization, community, society, none.",
        {
            "memes_1": ("none", []),
            "memes_2": ("community", [2]),
            "memes_3": ("none", []),
            "memes_4": ("community", [2]),
        },
    ),
    (
        "mami",
        "kind",
        {
            "mami_kind": "gt/MAMI/sharegpt_MAMI_train_kind_choice.json",
            "mami_kind_dev": "gt/MAMI/sharegpt_MAMI_val_kind_choice.json",
            "mami_kind_test": "gt/MAMI/sharegpt_MAMI_test_kind_choice.json",
        },
        "What kinds of misogyny does it show? Name all of: shaming, stereotype, objectification, violence, none.",
        {"train_1": ("stereotype", [1]), "train_2": ("none", []), "train_3": ("stereotype", [1])},
    ),
    (
        "mami",
        "stereotype",
        {
            "mami_stereotype": "gt/MAMI/sharegpt_MAMI_train_stereotype_choice.json",
            "mami_stereotype_dev": "gt/MAMI/sharegpt_MAMI_val_stereotype_choice.json",
            "mami_stereotype_test": "gt/MAMI/sharegpt_MAMI_test_stereotype_choice.json",
        },
        "Does it show stereotype of women?",
        {"train_1": ("Yes. It does.", 1), "train_2": ("No. It does not.", 0), "train_3": ("Yes. It does.", 1)},
    ),
    (
        "propaganda",
        "smears",
        {
            "propaganda_smears": "gt/Propaganda/sharegpt_Propaganda_train_smears_choice.json",
            "propaganda_smears_dev": "gt/Propaganda/sharegpt_Propaganda_val_smears_choice.json",
            "propaganda_smears_test": "gt/Propaganda/sharegpt_Propaganda_test_smears_choice.json",
        },
        "Does it use the propaganda technique Smears?",
        {
            "1_batch_2": ("Yes. It uses it.", 1),
            "2_batch_2": ("No. It does not use it.", 0),
            "3_batch_2": ("Yes. It uses it.", 1),
            "4_batch_2": ("No. It does not use it.", 0),
        },
    ),
]


@pytest.mark.parametrize(("name", "task", "names", "question", "expected"), TASKS)
def test_fine_grained_tasks(
    tmp_path: Path,
    data: Callable[[str], Path],
    name: str,
    task: str,
    names: dict[str, str],
    question: str,
    expected: dict[str, tuple[str, int | list[int]]],
) -> None:
    files, prompt = write_sharegpt(data(name) / "out", tmp_path, task=task)
    assert {entry: values["file_name"] for entry, values in registry(tmp_path).items()} == names
    assert prompt.template == SAYS.format("{text}") + question
    assert answers(files[0].path) == expected
    captions = {meme.id: meme.text for meme in read_memes(data(name) / "out/train.jsonl")}
    asked = {record["id"]: record["messages"][0]["content"] for record in records(files[0].path)}
    assert asked == {identity: SAYS.format(captions[identity]) + question for identity in expected}


def test_tasks_of_the_fine_grained_add_on(tmp_path: Path) -> None:
    fine = [
        {"id": 1, "gold_hate": ["hateful"], "gold_pc": ["race", "religion"], "gold_attack": ["mocking"]},
        {"id": 2, "gold_hate": ["not_hateful"], "gold_pc": ["pc_empty"], "gold_attack": ["attack_empty"]},
    ]
    jsonl(tmp_path / "fine" / "train.jsonl", [{**row, "set_name": "train"} for row in fine])
    root = COPIES["hateful_memes"](tmp_path / "data")
    imported("hateful_memes", root, tmp_path / "out", add_on=tmp_path / "fine")
    for task, name, answer, label in (
        ("target", "hatefulmemes_target", "religion, race", [0, 1]),
        ("attack", "hatefulmemes_attack", "mocking", [3]),
    ):
        files, _ = write_sharegpt(tmp_path / "out", tmp_path / "lf", task=task)
        assert files[0] == ShareGptFile(
            name, tmp_path / f"lf/gt/FB/sharegpt_FB_train_{task}_choice.json", rows=2, unlabelled=2
        )
        assert answers(files[0].path) == {"00001": (answer, label), "00002": ("none", [])}
        assert [(file.name, file.rows, file.unlabelled) for file in files[1:]] == [
            (f"{name}_dev", 0, 4),
            (f"{name}_test", 0, 4),
        ]
    assert [*registry(tmp_path / "lf")] == ["hatefulmemes_target", "hatefulmemes_attack"]


def test_propaganda_has_several_labels_a_meme(tmp_path: Path, data: Callable[[str], Path]) -> None:
    files, prompt = write_sharegpt(data("propaganda") / "out", tmp_path)
    assert {entry: values["file_name"] for entry, values in registry(tmp_path).items()} == {
        "propaganda": "gt/Propaganda/sharegpt_Propaganda_train_instructblip.json",
        "propaganda_dev": "gt/Propaganda/sharegpt_Propaganda_val_instructblip.json",
        "propaganda_test": "gt/Propaganda/sharegpt_Propaganda_test_instructblip.json",
    }
    assert answers(files[0].path) == {
        "1_batch_2": ("Slogans, Smears", [17, 18]),
        "2_batch_2": ("none", []),
        "3_batch_2": ("Slogans, Smears", [17, 18]),
        "4_batch_2": ("none", []),
    }
    assert "Which propaganda techniques does it use? Name all of: Appeal to authority, " in prompt.template
    assert prompt.template.endswith("Transfer, Whataboutism, none.")


def without_test_labels(root: Path) -> Path:
    path = COPIES["hateful_memes"](root) / "test_seen.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    jsonl(path, [{key: value for key, value in row.items() if key != "label"} for row in rows])
    return root


def test_an_unlabelled_split_is_left_out_and_said(tmp_path: Path) -> None:
    imported("hateful_memes", without_test_labels(tmp_path / "data"), tmp_path / "out")
    command = ["data", "to-sharegpt", str(tmp_path / "out"), "--output", str(tmp_path / "lf")]
    told = CliRunner().invoke(app, command)
    assert told.exit_code == 0, told.output
    assert told.output.splitlines() == [
        f"hatefulmemes: 4 records · {tmp_path}/lf/gt/FB/sharegpt_FB_train_instructblip.json",
        f"hatefulmemes_dev: 4 records · {tmp_path}/lf/gt/FB/sharegpt_FB_dev_seen_instructblip.json",
        "hatefulmemes_test: no labels",
        "",
        "For the YAML file:",
        f"  dataset_dir: {tmp_path}/lf",
        "  dataset: hatefulmemes",
    ]
    assert [*registry(tmp_path / "lf")] == ["hatefulmemes", "hatefulmemes_dev"]
    assert not (tmp_path / "lf/gt/FB/sharegpt_FB_test_seen_instructblip.json").exists()


def test_what_the_command_says_of_tasks_media_and_prompts(tmp_path: Path, data: Callable[[str], Path]) -> None:
    folder = data("pridemm")
    command = ["data", "to-sharegpt", str(folder / "out"), "--output", str(tmp_path), "--splits", "val", "--task"]
    told = CliRunner().invoke(app, [*command, "target", "--media-dir", str(folder / "data")])
    assert told.exit_code == 0, told.output
    assert told.output.splitlines() == [
        "pridemm_target_dev: 2 records, 2 without a label left out"
        f" · {tmp_path}/gt/PrideMM/sharegpt_PrideMM_val_target_choice.json",
        "",
        "For the YAML file:",
        f"  dataset_dir: {tmp_path}",
        "  dataset: pridemm_target_dev",
        f"  media_dir: {folder / 'data'}",
        "  problem_type: single_label",
        "  output_dim: 4",
        '  answers: ["undirected", "individual", "community", "organization"]',
        '  prompt_template: \'<image> This is an image with: "{text}" written on it. Whom does its hate target? '
        "Answer with one of: undirected, individual, community, organization.'",
    ]
    told = CliRunner().invoke(app, [*command, "humour", "--prompt", "<image> {text}?"])
    assert told.output.splitlines()[0].startswith("pridemm_humour_dev: 4 records · ")
    assert told.output.splitlines()[-1] == "  prompt_template: '<image> {text}?'"
    wrong = CliRunner().invoke(app, [*command, "mood"])
    assert wrong.exit_code == 2
    assert "Error: PrideMM has no task 'mood'; it has hate, target, stance, humour." in wrong.output


def test_no_label_at_all_is_an_error_that_names_other_tasks(tmp_path: Path) -> None:
    imported("hateful_memes", COPIES["hateful_memes"](tmp_path / "data"), tmp_path / "out")
    with pytest.raises(UserError, match="No meme of .* has a label in task 'target'; other tasks: hate, attack"):
        write_sharegpt(tmp_path / "out", tmp_path / "lf", task="target")
    assert not (tmp_path / "lf").exists()


def test_other_entries_of_the_registry_stay(tmp_path: Path, data: Callable[[str], Path]) -> None:
    mine = {
        "mine": {"file_name": "mine.json", "ranking": True},
        "harmc": {"file_name": "gt/HarMeme/sharegpt_Harmeme_train_instructblip.json", "num_samples": 3},
        "é": {"hf_hub_url": "x/y"},
    }
    table(tmp_path / "dataset_info.json", json.dumps(mine))
    write_sharegpt(data("harm_c") / "out", tmp_path, splits=["train"])
    write_sharegpt(data("multioff") / "out", tmp_path, splits=["test"])
    found = registry(tmp_path)
    assert [*found] == ["mine", "harmc", "é", "multioff_test"]
    assert (found["mine"], found["é"]) == (mine["mine"], mine["é"])
    assert found["harmc"] == {"file_name": "gt/HarMeme/sharegpt_Harmeme_train_instructblip.json", **ENTRY}
    table(tmp_path / "dataset_info.json", json.dumps({"harmc_test": {"file_name": "old.json"}}))
    with pytest.raises(UserError, match="'harmc_test' in .* is old.json"):
        write_sharegpt(data("harm_c") / "out", tmp_path, splits=["test"])


def test_a_broken_registry_is_left_as_it_is(tmp_path: Path, data: Callable[[str], Path]) -> None:
    table(tmp_path / "dataset_info.json", '{"mine": ')
    with pytest.raises(UserError, match="dataset_info.json is not valid JSON"):
        write_sharegpt(data("harm_c") / "out", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["dataset_info.json"]
    assert (tmp_path / "dataset_info.json").read_text() == '{"mine": '


@pytest.mark.parametrize(
    ("task", "names"),
    [
        (
            None,
            {
                "kitchen": "gt/kitchen/sharegpt_kitchen_train_instructblip.json",
                "kitchen_val": "gt/kitchen/sharegpt_kitchen_val_instructblip.json",
                "kitchen_test": "gt/kitchen/sharegpt_kitchen_test_instructblip.json",
            },
        ),
        (
            "stance",
            {
                "kitchen_stance": "gt/kitchen/sharegpt_kitchen_train_stance_choice.json",
                "kitchen_stance_val": "gt/kitchen/sharegpt_kitchen_val_stance_choice.json",
                "kitchen_stance_test": "gt/kitchen/sharegpt_kitchen_test_stance_choice.json",
            },
        ),
    ],
)
def test_a_name_of_ones_own(
    tmp_path: Path, data: Callable[[str], Path], task: str | None, names: dict[str, str]
) -> None:
    files, _ = write_sharegpt(data("pridemm") / "out", tmp_path, name="kitchen", task=task)
    found = {entry: values["file_name"] for entry, values in registry(tmp_path).items()}
    assert sorted(found.items()) == sorted(names.items())
    assert [file.name for file in files] == [next(iter(names)), *sorted([*names][1:])]
    assert all((tmp_path / name).is_file() for name in names.values())


def test_unknown_split_and_task(tmp_path: Path, data: Callable[[str], Path]) -> None:
    folder = data("harm_c") / "out"
    with pytest.raises(UserError, match="has no split dev, testing; it has test, train, val"):
        write_sharegpt(folder, tmp_path, splits=["train", "testing", "dev"])
    with pytest.raises(UserError, match=r"Harm-C .* has no task 'humour'; it has hate, intensity, target\."):
        write_sharegpt(folder, tmp_path, task="humour")
    assert [*tmp_path.iterdir()] == []


def test_a_class_without_an_answer_is_an_error(tmp_path: Path) -> None:
    picture(tmp_path / "data" / "a.png")
    rows = [{"id": label, "image": "a.png", "text": "Tea", "label": label} for label in range(3)]
    jsonl(tmp_path / "data" / "train.jsonl", rows)
    imported("generic", tmp_path / "data", tmp_path / "out")
    with pytest.raises(UserError, match=r"'hate': Meme '2' is of class 2, .* 2 answers"):
        write_sharegpt(tmp_path / "out", tmp_path / "lf")
    assert not [path for path in (tmp_path / "lf").rglob("*") if path.is_file()]


def test_writing_again_gives_the_same_bytes(tmp_path: Path, data: Callable[[str], Path]) -> None:
    def written() -> dict[str, bytes]:
        write_sharegpt(data("harm_p") / "out", tmp_path)
        return {path.name: path.read_bytes() for path in tmp_path.rglob("*.json") if path.name != ORIGINS}

    assert written() == written()


def test_the_memes_of_a_k_shot_list_are_a_file_of_their_own(tmp_path: Path, memes: Path) -> None:
    """As `few-shot` trains on them: the listed memes and no others, in the order of the split."""

    def told(*words: str) -> str:
        done = CliRunner().invoke(app, ["data", *words])
        return done.output if done.exit_code == 0 else f"refused: {done.output}"

    lists, target = tmp_path / "lists.json", tmp_path / "lf"
    told("k-shot", str(memes / "a"), "--shots", "2", "4", "--seeds", "2", "--output", str(lists))
    words = ["to-sharegpt", str(memes / "a"), "--output", str(target), "--k-shot", str(lists)]
    assert "generic_4_shot_seed_1: 8 records" in told(*words, "--shots", "4", "--shot-seed", "1")
    assert "few: 4 records" in told(*words, "--shots", "2", "--name", "few")
    registry = json.loads((target / "dataset_info.json").read_text())
    assert set(registry) == {"generic_4_shot_seed_1", "few"}
    wanted = {(one["shots"], one["seed"]): one["ids"] for one in json.loads(lists.read_text())["lists"]}
    for name, key in (("generic_4_shot_seed_1", (4, 1)), ("few", (2, 0))):
        written = [meme.id for meme in read_memes(target / registry[name]["file_name"])]
        assert written == [meme.id for meme in read_memes(memes / "a/train.jsonl") if meme.id in wanted[key]]
        assert set(written) == set(wanted[key])
    origin = json.loads((target / ORIGINS).read_text())[registry["few"]["file_name"]]
    assert (origin["shots"], origin["shot_seed"]) == (2, 0)
    assert "seeds [0, 1], not of 7" in told(*words, "--shots", "4", "--shot-seed", "7")
    assert "--shots" in told(*words)
    assert "drawn from split 'train'" in told(*words, "--shots", "2", "--splits", "dev")
    other = ["to-sharegpt", str(memes / "b"), *words[2:]]
    assert "0 of the 4 memes" in told(*other, "--shots", "2", "--name", "others")
    assert set(json.loads((target / "dataset_info.json").read_text())) == set(registry)
