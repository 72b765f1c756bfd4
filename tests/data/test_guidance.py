"""Guidance texts: cleaning, files, shuffling, and the clusters that they belong to."""

import json
import random
from pathlib import Path

import pytest

from ra_hmd.core.errors import UserError
from ra_hmd.core.manifests import GuidanceManifest, TeacherDescription, read_manifest
from ra_hmd.data.guidance import MOST_WORDS, Guidance, clean_guidance

TEXTS = ("Look at the cake.", "", "Look at the sky, and at the irony.")


@pytest.fixture
def guidance() -> Guidance:
    return Guidance(TEXTS, clusters="c" * 64)


# --- cleaning ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("  Look at the cake.\n\n- And\tat the sky. ", "Look at the cake. - And\tat the sky."),
        ("Look <image> here <|im_end|>", "Look < image > here < |im_end| >"),
        ("a \ud800 b", "a \ufffd b"),
        ("\n \n", ""),
    ],
)
def test_texts_are_cleaned_as_captions_are_and_stand_on_one_line(text: str, clean: str) -> None:
    assert clean_guidance(text) == clean


def test_a_text_of_the_most_words_is_kept() -> None:
    text = " ".join(["word"] * MOST_WORDS)
    assert clean_guidance(text) == text


def test_a_long_text_is_cut_after_the_last_whole_sentence() -> None:
    sentence = "Compare the picture with its caption (both matter). "
    assert clean_guidance(sentence * 100) == (sentence * (MOST_WORDS // 8)).strip()


def test_a_numbered_list_is_not_cut_behind_a_number() -> None:
    sentences = [f"{number}. Look at point {'very ' * 20}closely." for number in range(1, 20)]
    assert clean_guidance("\n".join(sentences)).endswith(" closely.")


@pytest.mark.parametrize("start", ["", "Sure! "])
def test_a_text_without_a_sentence_in_reach_is_cut_between_words(start: str) -> None:
    cut = clean_guidance(start + "word " * 9000)
    assert cut.endswith("word…")
    assert len(cut.split()) == MOST_WORDS


def test_scripts_without_blanks_are_cut_too() -> None:
    assert len(clean_guidance("图" * 9000)) == MOST_WORDS + 1
    assert clean_guidance("看图。" * 9000) == "看图。" * (MOST_WORDS // 3)
    assert len(clean_guidance("x" * 9000)) == 20 * MOST_WORDS + 1


def test_cleaning_twice_changes_nothing() -> None:
    generator = random.Random(0)
    parts = ["word", "<image>", "e.g.", "1.", "\n\n", "。", "图", "…", "!", "<|x|>", "a" * 50, "end.)", "\u3000", "<"]
    for _ in range(3000):
        text = generator.choice(["", " "]).join(generator.choices(parts, k=generator.randrange(300)))
        once = clean_guidance(text)
        assert clean_guidance(once) == once
        assert "\n" not in once


# --- the object -------------------------------------------------------------------------------------------------------


def test_the_text_of_a_cluster_and_none_for_an_unknown_one(guidance: Guidance) -> None:
    assert [guidance.text_of(cluster) for cluster in (-1, 0, 1, 2)] == ["", *TEXTS]
    for cluster in (-2, 3):
        with pytest.raises(ValueError, match=f"no cluster {cluster}"):
            guidance.text_of(cluster)


def test_the_digest_is_of_the_texts_in_order(guidance: Guidance) -> None:
    assert guidance.digest == Guidance(TEXTS, "other").digest
    assert guidance.digest != Guidance(TEXTS[::-1], guidance.clusters).digest
    assert Guidance(("ab", "c"), "c").digest != Guidance(("a", "bc"), "c").digest


def test_texts_are_clean_however_the_guidance_is_made() -> None:
    assert Guidance(("a\n\n<image>",), "c").texts == ("a < image >",)


@pytest.mark.parametrize("count", [2, 3, 8, 64])
def test_shuffling_leaves_no_cluster_its_own_text(count: int) -> None:
    texts = tuple(f"Text {number}." for number in range(count))
    seen = set()
    for seed in range(20):
        shuffled = Guidance(texts, "c").shuffled(seed)
        assert sorted(shuffled.texts) == sorted(texts)
        assert all(one != other for one, other in zip(texts, shuffled.texts, strict=True))
        assert shuffled == Guidance(texts, "c").shuffled(seed)
        seen.add(shuffled.texts)
    assert len(seen) > 1 or count == 2


def test_one_text_cannot_be_shuffled() -> None:
    with pytest.raises(UserError, match="1 cluster"):
        Guidance(("a",), "c").shuffled(0)


def test_guidance_for_other_clusters_is_refused(guidance: Guidance) -> None:
    guidance.check("c" * 64, 3)
    with pytest.raises(UserError, match="other clusters"):
        guidance.check("d" * 64, 3)
    with pytest.raises(UserError, match="3 clusters, and there are 4"):
        guidance.check("c" * 64, 4)


# --- files ------------------------------------------------------------------------------------------------------------


def test_a_file_gives_the_same_guidance(guidance: Guidance, tmp_path: Path) -> None:
    guidance.copy_to(tmp_path)
    guidance.copy_to(tmp_path / "deep" / "own.json")
    assert Guidance.open(tmp_path) == Guidance.open(tmp_path / "deep" / "own.json") == guidance


def test_copies_keep_where_the_texts_come_from(guidance: Guidance, tmp_path: Path) -> None:
    manifest = read_written(guidance, tmp_path).model_copy(update={"teacher": TeacherDescription(model="teacher")})
    Guidance(TEXTS, guidance.clusters, manifest).copy_to(tmp_path / "a.json")
    Guidance.open(tmp_path / "a.json").copy_to(tmp_path / "b.json")
    assert (tmp_path / "b.json").read_text() == (tmp_path / "a.json").read_text()


def test_a_shuffled_copy_says_so_and_stays_shuffled(guidance: Guidance, tmp_path: Path) -> None:
    shuffled = guidance.shuffled(3)
    shuffled.copy_to(tmp_path)
    again = Guidance.open(tmp_path)
    assert again.texts == shuffled.texts
    assert again.manifest is not None
    assert again.manifest.shuffled == 3


def test_an_edited_text_counts_and_is_cleaned(guidance: Guidance, tmp_path: Path) -> None:
    values = read_written(guidance, tmp_path).to_json()
    values["guidance"][0]["text"] = "Edited\n<image>"
    (tmp_path / "edited.json").write_text(json.dumps(values))
    edited = Guidance.open(tmp_path / "edited.json")
    assert edited.texts[0] == "Edited < image >"
    assert edited.digest != guidance.digest


@pytest.mark.parametrize(
    ("numbers", "named"),
    [([0, 0, 1], "cluster 0 has several texts"), ([0, 2], "cluster 1 has no entry"), ([], "holds no text")],
)
def test_a_file_without_one_text_per_cluster_is_refused(
    guidance: Guidance, tmp_path: Path, numbers: list[int], named: str
) -> None:
    values = read_written(guidance, tmp_path).to_json()
    values["guidance"] = [{"cluster": number, "text": "a"} for number in numbers]
    (tmp_path / "odd.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=named):
        Guidance.open(tmp_path / "odd.json")


def test_another_kind_of_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text('{"kind": "judge"}')
    with pytest.raises(UserError, match="ra-hmd guidance"):
        Guidance.open(tmp_path / "other.json")
    with pytest.raises(UserError, match="does not exist"):
        Guidance.open(tmp_path / "none.json")


def read_written(guidance: Guidance, folder: Path) -> GuidanceManifest:
    guidance.copy_to(folder / "written.json")
    return read_manifest(folder / "written.json", GuidanceManifest)
