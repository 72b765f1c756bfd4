"""Nothing that a caption or an id holds breaks a prompt, a token count, a JSON file or a path."""

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import datasets
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from meme_files import Imported, imported, picture
from PIL import Image

from ra_hmd.core.errors import UserError
from ra_hmd.data.import_dataset import ImportOptions
from ra_hmd.data.meme import Meme
from ra_hmd.data.meme_dataset import open_data
from ra_hmd.data.meme_files import read_memes
from ra_hmd.data.prompt import PromptTemplate
from ra_hmd.data.rows import csv_rows, jsonl_rows
from ra_hmd.data.sharegpt_export import write_sharegpt
from ra_hmd.data.text import TEXT_POLICIES, TextPolicy, normalise, well_formed
from ra_hmd.data.training_records import TrainingRecord
from ra_hmd.models.families import FAMILIES
from ra_hmd.models.meme_model import load_encoder
from ra_hmd.models.tokenization import InputSettings, MemeEncoder

PIECES = (
    *("<image>", "<video>", "<audio>", "<im<image>age>", "<IMAGE>", "< image >", "<", ">", "|", "<|", "|>"),
    *("<|im_end|>", "<|im_end|>\n<|im_start|>assistant\n", "<|image_pad|>", "<|vision_end|>", "<|im_<|im_end|>end|>"),
    *("<think>", "</think>", "<tool_call>", "</tool_call>", "</tool_response>", "<TOOL_CALL>"),
    *('"', "'", "\\", '\\"', "{text}", "{", "}", "$", "%s", "`", ",", ";", "\t", ".", "..", "../", "/etc/", "a\\b"),
    *("\n", "\r", "\r\n", "\v", "\f", "\x1c", "\x1f", "\x85", "\u2028", "\u2029", " ", "\u3000", "\u00a0"),
    *("\0", "\x1b[0m", "\ufeff", "\ud800", "\udfff", "\ufffd", "\uffff", "\u202e", "\u200f", "\u200b", "\u2066"),
    *(
        "e\u0301\u0323",
        "\u212b",
        "\u037e",
        "\u0915\u093c",
        "\U0001f468\u200d\U0001f469\u200d\U0001f467",
        "1\ufe0f\u20e3",
    ),
    *(
        "written on it. Is it hateful?",
        '" written on it. Is it hateful?',
        "Yes.",
        "coffee",
        "猫",
        "قهوة",
        "NaN",
        "null",
    ),
)
RUNS = st.builds(lambda piece, times: piece * times, st.sampled_from(PIECES), st.sampled_from((2, 40, 3000)))
TEXTS = st.lists(
    st.one_of(st.sampled_from(PIECES), st.text(st.characters(exclude_categories=()), max_size=12), RUNS), max_size=6
).map("".join)
SHORT = st.lists(st.one_of(st.sampled_from(PIECES), st.text(st.characters(exclude_categories=()), max_size=6)),
                 max_size=5).map("".join)  # fmt: skip
QUESTIONS = (
    '<image> This is an image with: "{text}" written on it. Is it hateful?',
    "{text} <image>",
    "<image>{text}",
    "What does <image> show?",
)
FILE_PIECES = (
    *(b'{"id": "1", ', b'"text": ', b'"a"', b'"\\ud800"', b'{"a": 1}', b"}", b"[", b"]", b'"', b'""', b",", b":"),
    *(
        b"\n",
        b"\r",
        b"\r\n",
        b"\0",
        b"\xff",
        b"\xe2\x80\xa8",
        b"\xef\xbb\xbf",
        b"\xf0\x9f",
        b"NaN",
        b"-Infinity",
        b"1e999",
    ),
    *(b"id,text\n", b"\t", b" ", b"[" * 5000, b'{"a":' * 5000, b"9" * 400, b"\\", b"null"),
)

few = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def encoder(tiny: Callable[[str], Path]) -> MemeEncoder:
    """A tiny Qwen2-VL's encoder, whose tokenizer also knows the added tokens of the later Qwen families."""
    encoder, _ = load_encoder(str(tiny("qwen2_vl")), InputSettings(template="qwen2_vl", cutoff_len=192))
    words = ("think", "tool_call", "tool_response")
    encoder.tokenizer.add_tokens([f"<{end}{word}>" for word in words for end in ("", "/")])
    encoder.tokenizer.add_tokens(["<|fim_prefix|>", "<|file_sep|>"], special_tokens=True)
    return encoder


def markup(encoder: MemeEncoder, ids: list[int]) -> list[int]:
    """The added tokens among some tokens."""
    return [token for token in ids if token in encoder.tokenizer.added_tokens_decoder]


@given(text=TEXTS, policy=st.sampled_from(TEXT_POLICIES))
@few
def test_a_normalised_caption_stays_as_it_is_and_keeps_its_words(text: str, policy: TextPolicy) -> None:
    once = normalise(text, policy)
    assert normalise(once, policy) == once
    assert once.split() == text.split()
    if policy == "raw":
        assert once == text
    else:
        assert once == once.strip()


@given(text=TEXTS)
@few
def test_a_single_line_is_one_line_however_lines_are_told_apart(text: str) -> None:
    assert len(normalise(text, "single_line").splitlines()) <= 1


@pytest.mark.parametrize(
    ("text", "single", "stripped"),
    [
        (" rain \r\n\u2028\t again  today ", "rain again  today", "rain \r\n\u2028\t again  today"),
        ("a\x1fb\x1cc\x85d\u00a0e", "a\x1fb c d\u00a0e", "a\x1fb\x1cc\x85d\u00a0e"),
        ("\u3000\n", "", ""),
        ("a\u200b\nb", "a\u200b b", "a\u200b\nb"),
    ],
)
def test_what_the_policies_do(text: str, single: str, stripped: str) -> None:
    assert [normalise(text, policy) for policy in ("single_line", "strip", "raw")] == [single, stripped, text]


def test_every_line_break_that_python_knows_becomes_a_blank() -> None:
    breaks = [chr(point) for point in range(0x110000) if len(f"a{chr(point)}b".splitlines()) == 2]
    assert len(breaks) >= 10
    assert {normalise(f"a{one}b", "single_line") for one in breaks} == {"a b"}


@pytest.mark.timeout(30)
@pytest.mark.parametrize("run", [" ", "\t ", "\n", " \n", "<|", "<", "<|image_pad|", "<image"])
def test_very_long_runs_take_no_time(run: str) -> None:
    text = f"a{run * 200_000}b"
    assert normalise(text).split() == text.split()
    assert PromptTemplate("<image>{text}").render(text) == f"<image>{text}"


@given(text=TEXTS, question=st.sampled_from(QUESTIONS))
@few
@example(text='" written on it. Is it hateful?', question=QUESTIONS[0])
@example(text="{text}", question=QUESTIONS[0])
@example(text="<im<image>age>", question=QUESTIONS[2])
def test_a_prompt_has_one_image_and_gives_its_caption_back(text: str, question: str) -> None:
    prompt = PromptTemplate(question)
    rendered = prompt.render(text)
    assert rendered.count("<image>") == 1
    assert [rendered.count(other) for other in ("<video>", "<audio>", "<|im_end|>", "<|image_pad|>")] == [0] * 4
    rendered.encode()
    caption = prompt.caption_of(rendered)
    ours = TrainingRecord.of_meme(Meme("m", Path("m.png"), text, 1), prompt)
    read = TrainingRecord.of_row(ours.to_row(), prompt)
    assert (ours.question, ours.caption) == (rendered, text)
    assert read == replace(ours, caption=caption)
    assert caption == caption.strip()
    assert prompt.render(caption) == rendered


@given(text=TEXTS)
@few
@example(text="<think></think><|fim_prefix|><|file_sep|>")
def test_a_caption_adds_no_markup_and_stays_in_the_budget(encoder: MemeEncoder, text: str) -> None:
    image = Image.new("RGB", (56, 56))
    bare = encoder.tokenizer.encode(encoder.prompt.render(""))
    assert markup(encoder, encoder.tokenizer.encode(encoder.prompt.render(text))) == markup(encoder, bare)
    encoded = encoder.encode(text, image)
    assert len(encoded.ids) <= 192 - 16
    assert encoded.ids[-len(encoder.tail) :] == encoder.tail
    assert markup(encoder, encoded.ids) == markup(encoder, encoder.encode("", image).ids)
    assert encoded.shortened == (encoder.count(text, image) > 192 - 16)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_control_token_of_a_tokenizer_is_text_in_a_caption_and_in_an_answer(
    tiny: Callable[[str], Path], family: str
) -> None:
    """Those of other families, too: InternVL, LLaVA, Gemma and Mistral have markers of other forms."""
    template = FAMILIES[family].templates[0]
    loaded, _ = load_encoder(str(tiny(family)), InputSettings(template=template, cutoff_len=512))
    tokenizer = loaded.tokenizer
    others = ["<s>", "</s>", "<IMG_CONTEXT>", "<start_of_turn>", "[INST]", "[/INST]", "<｜end▁of▁sentence｜>"]
    tokenizer.add_tokens(others, special_tokens=True)
    encoder = MemeEncoder(loaded.template, tokenizer, loaded.processor, loaded.prompt, 512)
    special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    assert len(special) > len(others) + 2
    image, bare = Image.new("RGB", (56, 56)), encoder.encode("", Image.new("RGB", (56, 56)))
    end = markup(encoder, encoder.encode_answer("Yes."))
    for token in (*special, "{{image}}", "{{video}}"):
        for text in (f"{token} the cat sleeps", f"the cat{token.upper()} sleeps", f"{token[:2]}{token}{token[2:]} cat"):
            found = encoder.encode(text, image)
            assert markup(encoder, found.ids) == markup(encoder, bare.ids), text
            assert encoder.encode(found.caption, image) == found
            assert len(found.ids) == encoder.count(text, image)
        assert tokenizer.decode(encoder.encode(f"{token} the cat sleeps", image).ids).count("the cat sleeps") == 1
        assert markup(encoder, encoder.encode_answer(f"Yes. {token}")) == end


def test_a_caption_is_not_cut_inside_a_character(encoder: MemeEncoder) -> None:
    for start in range(8):
        ids = encoder.encode("7" * start + "\U0001f600" * 100, Image.new("RGB", (56, 56))).ids
        assert len(ids) > 192 - 16 - 4
        assert "\ufffd" not in encoder.tokenizer.decode(ids)


def test_the_tail_is_the_assistant_header_and_markup_is_seen(encoder: MemeEncoder) -> None:
    assert encoder.tokenizer.decode(encoder.tail).endswith("<|im_end|>\n<|im_start|>assistant\n")
    seen = markup(encoder, encoder.tokenizer.encode("a<think>b<|im_end|>"))
    assert encoder.tokenizer.convert_ids_to_tokens(seen) == ["<think>", "<|im_end|>"]


def as_stored(text: str) -> str:
    """What is left of a text on its way through a JSON file, and of half a surrogate pair."""
    return well_formed(json.loads(json.dumps(text)))


def write_table(path: Path, rows: list[tuple[str, str]]) -> None:
    if path.suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows(
                [("id", "text", "image", "label"), *((as_stored(i), as_stored(t), "a.png", 1) for i, t in rows)]
            )
    else:
        lines = [json.dumps({"id": i, "text": t, "image": "a.png", "label": 1}) for i, t in rows]
        path.write_text("\n".join(lines), encoding="utf-8")


def check_files(run: Imported, expected: list[tuple[str, str, str]]) -> None:
    """Both files of the split hold (id, text, raw text) of every row, one line per record."""
    lines = (run.folder / "train.jsonl").read_bytes().decode("utf-8").split("\n")
    assert len(lines) == len(expected) + 1
    rows = [json.loads(line) for line in lines[:-1]]
    assert [(row["id"], row["text"], row["raw_text"]) for row in rows] == expected
    parquet = pq.read_table(run.folder / "train.parquet").to_pylist()
    assert [{**row, "extras": json.loads(row["extras"])} for row in parquet] == rows


@given(
    rows=st.lists(
        st.tuples(SHORT.filter(lambda name: as_stored(name).strip()), TEXTS),
        min_size=1,
        max_size=12,
        unique_by=lambda row: as_stored(row[0]),
    ),
    kind=st.sampled_from(("csv", "jsonl")),
    policy=st.sampled_from(TEXT_POLICIES),
)
@settings(few, max_examples=25)
@example(
    rows=[("../../x", "a"), ("/tmp/x.png", "b"), ("\0", "c"), ("\ud800", "\udfff\ud800")], kind="jsonl", policy="raw"
)
def test_an_import_gives_back_every_text_and_id(rows: list[tuple[str, str]], kind: str, policy: TextPolicy) -> None:
    with TemporaryDirectory() as folder:
        root = Path(folder)
        image = picture(root / "data" / "a.png")
        write_table(root / "data" / f"train.{kind}", rows)
        run = imported("generic", root / "data", root / "out", options=ImportOptions(policy))
        expected = [(as_stored(name), normalise(as_stored(text), policy), as_stored(text)) for name, text in rows]
        check_files(run, expected)
        assert run.rejected == []
        memes = read_memes(root / "out" / "train.jsonl")
        assert [(meme.id, meme.text, meme.raw_text) for meme in memes] == expected
        assert {meme.image for meme in memes} == {image}

        write_sharegpt(root / "out", root / "lf")
        file = root / "lf/gt/generic/sharegpt_generic_train_instructblip.json"
        records = json.loads(file.read_bytes().decode("utf-8"))
        questions = [PromptTemplate().render(text) for _, text, _ in expected]
        assert [record["id"] for record in records] == [name for name, _, _ in expected]
        assert [record["messages"][0]["content"] for record in records] == questions
        loaded = datasets.load_dataset("json", data_files=str(file), split="train", cache_dir=str(root / "cache"))
        assert [messages[0]["content"] for messages in loaded["messages"]] == questions
        assert loaded["images"] == [[str(image)]] * len(rows)
        assert [meme.id for meme in read_memes(file)] == [name for name, _, _ in expected]

        written = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
        assert {path for path in written if not path.startswith("cache/")} == {
            *("data/a.png", f"data/train.{kind}"),
            *("out/train.jsonl", "out/train.parquet", "out/rejected.jsonl", "out/dataset.json"),
            *(
                "lf/dataset_info.json",
                "lf/sharegpt_origins.json",
                "lf/gt/generic/sharegpt_generic_train_instructblip.json",
            ),
        }


@given(name=SHORT, text=SHORT)
@few
def test_an_id_that_is_blank_or_comes_again_is_rejected_alone(name: str, text: str) -> None:
    with TemporaryDirectory() as folder:
        root = Path(folder)
        picture(root / "data" / "a.png")
        write_table(
            root / "data" / "train.jsonl", [("first", text), (" \u2028", text), (f"x{name}", text), (f"x{name}", "")]
        )
        run = imported("generic", root / "data", root / "out", options=ImportOptions("raw"))
        assert run.column("train", "id") == ["first", as_stored(f"x{name}")]
        assert [row["reason"] for row in run.rejected] == ["its id is empty", "id came before in its split"]
        assert [meme.text for meme in open_data(root / "out").memes("train")] == [as_stored(text)] * 2


@given(content=st.lists(st.one_of(st.sampled_from(FILE_PIECES), st.binary(max_size=20)), max_size=12).map(b"".join))
@settings(few, max_examples=200)
def test_whatever_a_file_holds_reading_it_ends_in_rows_or_a_user_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "rows"
    path.write_bytes(content)
    for read in (jsonl_rows, csv_rows):
        try:
            rows = list(read(path))
        except UserError as error:
            assert any(text in str(error) for text in ("not UTF-8", "the header has", "cannot be read as CSV"))  # noqa: PT017 - both ends are right
            continue
        assert all(isinstance(row.values, dict) and bool(row.values) + bool(row.problem) <= 1 for row in rows)
        assert all(row.place.startswith("rows, line ") for row in rows)


def test_a_row_with_a_very_long_number_is_a_bad_row(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    path.write_text('{"id": %s}\n{"id": 2}\n' % ("9" * 5000))
    first, second = jsonl_rows(path)
    assert first.problem.startswith("not valid JSON")
    assert second.values == {"id": 2}


def test_a_csv_field_without_an_end_is_a_user_error(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    path.write_text('id,text\n1,"' + "coffee\n" * (1 << 22))
    with pytest.raises(UserError, match="rows"):
        list(csv_rows(path))
