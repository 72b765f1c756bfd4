"""`ra-hmd attack`: the data sets that it writes, how they pair with the clean one, and that they can be made again."""

import json
from pathlib import Path
from typing import Any

import pytest
from meme_files import imported
from typer.testing import CliRunner

from ra_hmd.attacks import chunks, run
from ra_hmd.attacks.pairing import clean_id, pair_rows
from ra_hmd.attacks.run import attack_data
from ra_hmd.attacks.settings import AttackSettings
from ra_hmd.cli.app import app
from ra_hmd.core.errors import UserError
from ra_hmd.core.manifests import AttackManifest, read_manifest
from ra_hmd.data.images import load_image
from ra_hmd.data.meme import Meme
from ra_hmd.data.meme_dataset import open_data

FEW = AttackSettings(attacks=["typos", "benign_after", "colour", "jpeg", "zero_width", "border"], severities=[2])
TIMED = ("dataset.json", "attack.json")


@pytest.fixture(scope="module")
def clean(memes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An import of drawn memes."""
    folder = tmp_path_factory.mktemp("clean") / "data"
    imported("generic", memes / "a" / "test.jsonl", folder)
    return folder


@pytest.fixture(scope="module")
def made(clean: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "attacked"
    attack_data(clean, folder, FEW)
    return folder


def memes_of(folder: Path, split: str = "test") -> list[Meme]:
    return list(open_data(folder).memes(split))


def contents(folder: Path) -> dict[str, bytes]:
    """Relative path to content of every file that holds no time; `FOLDER` stands for the folder's own path."""
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    own = str(folder).encode()
    return {
        name: path.read_bytes().replace(own, b"FOLDER")
        for name, path in files.items()
        if path.name not in TIMED and path.suffix != ".parquet"
    }


def test_each_variant_is_a_data_set_that_pairs_one_to_one_and_keeps_the_labels(clean: Path, made: Path) -> None:
    stated = read_manifest(made / "attack.json", AttackManifest)
    assert {one.name for one in stated.variants} == {path.name for path in made.iterdir() if path.is_dir()}
    originals = memes_of(clean)
    for variant in stated.variants:
        attacked = memes_of(made / variant.folder)
        assert [one.id for one in attacked] == [f"{meme.id}@{variant.name}" for meme in originals]
        assert pair_rows([meme.id for meme in originals], [one.id for one in attacked]) == list(range(len(originals)))
        assert [one.label for one in attacked] == [meme.label for meme in originals]
        assert variant.rows == {"test": len(originals)}
        changed = [
            one.image != meme.image or one.text != meme.text for one, meme in zip(attacked, originals, strict=True)
        ]
        assert changed == [one.extras["attack_changed"] for one in attacked]
        assert variant.changed == {"test": sum(changed)}
        assert sum(variant.unchanged.values()) == len(originals) - sum(changed)


def test_a_channel_carries_the_change_where_its_name_says(clean: Path, tmp_path: Path) -> None:
    attack_data(clean, tmp_path / "out", AttackSettings(suite="full", attacks=["typos", "zero_width"], severities=[3]))
    names = sorted(path.name for path in (tmp_path / "out").iterdir() if path.is_dir())
    assert names == ["typos-3-both", "typos-3-field", "typos-3-picture", "zero_width-3"]
    read = {name: memes_of(tmp_path / "out" / name) for name in names}
    for row, meme in enumerate(memes_of(clean)):
        both, field, picture = (read[f"typos-3-{channel}"][row] for channel in ("both", "field", "picture"))
        assert both.text == field.text != meme.text == picture.text
        assert field.image == meme.image
        assert load_image(both.path).tobytes() == load_image(picture.path).tobytes() != meme.load_image().tobytes()


def test_an_attack_on_one_class_leaves_the_other_as_it_was(clean: Path, made: Path) -> None:
    attacked = memes_of(made / "benign_after-2-both")
    for meme, one in zip(memes_of(clean), attacked, strict=True):
        assert one.extras["attack_changed"] == (meme.label == 1)
        assert (one.text == meme.text) == (one.image == meme.image) == (meme.label == 0)
    variant = next(one for one in read_manifest(made / "attack.json", AttackManifest).variants if "benign" in one.name)
    assert variant.classes == [1]


@pytest.mark.parametrize("workers", [1, 2])
def test_killed_and_resumed_gives_the_same_bytes(
    workers: int, clean: Path, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "_CHUNK", 5)
    real, output = chunks.save_picture, tmp_path / "attacked"

    def dies(image: Any, folder: Path, row: int) -> Path:
        if row == 7:
            raise KeyboardInterrupt
        return real(image, folder, row)

    monkeypatch.setattr(chunks, "save_picture", dies)
    with pytest.raises(KeyboardInterrupt):
        attack_data(clean, output, FEW)
    assert read_manifest(output / "attack.json", AttackManifest).variants == []
    monkeypatch.setattr(chunks, "save_picture", real)
    attack_data(clean, output, FEW, workers=workers)
    assert contents(output) == contents(made)
    done = read_manifest(output / "attack.json", AttackManifest)
    assert done.variants == read_manifest(made / "attack.json", AttackManifest).variants


def test_further_variants_are_added_and_earlier_ones_kept(clean: Path, tmp_path: Path) -> None:
    attack_data(clean, tmp_path / "out", AttackSettings(attacks=["jpeg"], severities=[1]))
    before = contents(tmp_path / "out")
    stated = attack_data(clean, tmp_path / "out", AttackSettings(attacks=["jpeg"], severities=[1, 2]))
    assert [one.name for one in stated.variants] == ["jpeg-1-picture", "jpeg-2-picture"]
    assert before.items() <= contents(tmp_path / "out").items()


def test_further_splits_are_added_to_the_same_variants(memes: Path, tmp_path: Path) -> None:
    imported("generic", memes / "a", tmp_path / "data")
    chosen = AttackSettings(attacks=["typos", "benign_after"], severities=[1])
    attack_data(tmp_path / "data", tmp_path / "out", chosen, splits=["test"])
    before = contents(tmp_path / "out")
    stated = attack_data(tmp_path / "data", tmp_path / "out", chosen, splits=["dev"])
    assert before.items() <= contents(tmp_path / "out").items()
    attack_data(tmp_path / "data", tmp_path / "once", chosen, splits=["test", "dev"])
    assert contents(tmp_path / "out") == contents(tmp_path / "once")
    assert stated.variants == read_manifest(tmp_path / "once" / "attack.json", AttackManifest).variants
    for variant in stated.variants:
        assert variant.rows == {"test": 24, "dev": 16}
        assert set(open_data(tmp_path / "out" / variant.folder).splits) == {"test", "dev"}


def test_a_train_split_is_attacked_where_it_is_named_alone(memes: Path, tmp_path: Path) -> None:
    imported("generic", memes / "a", tmp_path / "data")
    chosen = AttackSettings(attacks=["jpeg"], severities=[1])
    assert set(attack_data(tmp_path / "data", tmp_path / "out", chosen).clean.splits) == {"dev", "test"}
    stated = attack_data(tmp_path / "data", tmp_path / "train", chosen, splits=["train"])
    assert list(stated.variants[0].rows) == ["train"]
    with pytest.raises(UserError, match=r"has no split 'val'; it has"):
        attack_data(tmp_path / "data", tmp_path / "val", chosen, splits=["val"])


def test_another_seed_makes_other_memes_and_is_refused_in_the_same_folder(
    clean: Path, made: Path, tmp_path: Path
) -> None:
    other = FEW.replace(seed=1)
    with pytest.raises(UserError, match=r"seed 0, not 1; give another --output"):
        attack_data(clean, made, other)
    attack_data(clean, tmp_path / "out", other)
    before, after = memes_of(made / "typos-2-both"), memes_of(tmp_path / "out" / "typos-2-both")
    assert sum(one.text != two.text for one, two in zip(before, after, strict=True)) > len(before) / 2


def test_other_memes_are_refused(memes: Path, made: Path, tmp_path: Path) -> None:
    imported("generic", memes / "b" / "test.jsonl", tmp_path / "b")
    with pytest.raises(UserError, match="holds attacks on other memes"):
        attack_data(tmp_path / "b", made, FEW)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").touch()
    with pytest.raises(UserError, match="is not empty and holds no attacks"):
        attack_data(tmp_path / "b", tmp_path / "full", FEW)


def test_the_command_says_what_it_changed(clean: Path, tmp_path: Path) -> None:
    arguments = ["attack", str(clean), "--output", str(tmp_path / "out"), "--suite", "smoke", "--splits", "test"]
    done = CliRunner().invoke(app, [*arguments, "--families", "words", "picture"])
    assert done.exit_code == 0, done.output
    stated = json.loads((tmp_path / "out" / "attack.json").read_text())
    assert [one["name"] for one in stated["variants"]] == ["benign_after-2-both", "jpeg-2-picture"]
    assert "of a class that the attack is not applied to" in done.output
    assert "2 attacked data sets" in done.output


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"suite": "none"}, r"There is no suite 'none'; there are standard, quick"),
        ({"attacks": ["jepg"]}, r"There is no attack 'jepg'; there are typos"),
        ({"severities": [4]}, r"There is no severity 4; there are 1, 2, 3"),
        ({"attacks": ["rephrase"]}, r"needs a teacher that rephrases captions; give --endpoint and --model"),
        ({"attacks": ["bidi"], "channels": ["picture"]}, r"has no such attack, severity and channel"),
    ],
)
def test_an_unknown_choice_is_named_with_the_known_ones(chosen: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        AttackSettings(**chosen).variants()


def test_ids_lose_the_suffix_of_an_attack_alone() -> None:
    assert clean_id("12@jpeg-2-picture") == clean_id("12@zero_width-3") == clean_id("12") == "12"
    assert clean_id("me@example.org") == "me@example.org"
    assert clean_id("12@jpeg-2-picture@typos-1-both") == "12@jpeg-2-picture"


def test_memes_that_do_not_pair_are_refused() -> None:
    with pytest.raises(UserError, match="'c@jpeg-1-picture' has no clean meme"):
        pair_rows(["a", "b"], ["a@jpeg-1-picture", "c@jpeg-1-picture"])
    with pytest.raises(UserError, match="give the whole split of both"):
        pair_rows(["a", "b"], ["a@jpeg-1-picture"])
    with pytest.raises(UserError, match="give the whole split of both"):
        pair_rows(["a", "b"], ["a@jpeg-1-picture", "a@jpeg-2-picture"])
