"""Settings as editors leave them."""

from pathlib import Path

import pytest

from ra_hmd.core.config import load_yaml
from ra_hmd.core.errors import UserError
from ra_hmd.training.classification import TrainHeadArguments
from ra_hmd.training.zero_shot_prompts import Prompts

_GOOD = "train: a\ndev: b\noutput_dir: c\nlr: 0.5\n"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (_GOOD.encode("utf-16"), "UTF-8"),
        ("train: Größe\n".encode("cp1252"), "UTF-8"),
        (b"train:\n\ta: b\n", "line 2"),
        (b"lr: 0.1\nlr: 0.2\n", "duplicate key lr"),
        (b'train: "C:\\data"\n', "line 1"),
        (b"train: 'a\n", "line"),
        (b"just words\n", "just words"),
        (b"3\n", "not valid YAML"),
        (b"- a\n- b\n", "list"),
        (b"train: ${nothing}\n", "nothing"),
    ],
)
def test_what_is_no_settings_file_is_told_with_its_name(tmp_path: Path, content: bytes, told: str) -> None:
    path = tmp_path / "head.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        load_yaml(TrainHeadArguments, path, [])
    assert str(path) in str(error.value)
    assert told in str(error.value)


def test_a_byte_order_mark_and_line_ends_of_windows_are_no_fault(tmp_path: Path) -> None:
    (tmp_path / "head.yaml").write_bytes(b"\xef\xbb\xbf" + _GOOD.replace("\n", "\r\n").encode())
    assert load_yaml(TrainHeadArguments, tmp_path / "head.yaml", []).lr == 0.5


def test_an_override_that_is_no_yaml_is_told(tmp_path: Path) -> None:
    (tmp_path / "head.yaml").write_text(_GOOD)
    with pytest.raises(UserError, match="lr="):
        load_yaml(TrainHeadArguments, tmp_path / "head.yaml", ["lr={a"])


def test_prompts_in_another_encoding_are_told(tmp_path: Path) -> None:
    (tmp_path / "prompts.yaml").write_bytes("0: Größe".encode("cp1252"))
    with pytest.raises(UserError, match="prompts.yaml"):
        Prompts.read(tmp_path / "prompts.yaml")
