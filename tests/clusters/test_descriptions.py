"""Descriptions by an LMM of one's own, for a teacher that sees no pictures."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from openai_server import serve
from taught_memes import Taught, parts_of, teach

from ra_hmd.clusters import describe as describing
from ra_hmd.clusters.describe import REQUEST, describe, open_describer
from ra_hmd.clusters.guidance import ask_teacher
from ra_hmd.clusters.guidance_members import Data
from ra_hmd.clusters.guidance_settings import MemberSettings, PictureSettings, TeacherSettings
from ra_hmd.core.errors import UserError
from ra_hmd.data.guidance import Guidance
from ra_hmd.data.meme_dataset import open_data
from ra_hmd.models.generation.chat import Chat

CPU = torch.device("cpu")


class Speaker:
    """An engine that names the corner of each image, and counts what it is asked."""

    def __init__(self) -> None:
        self.asked: list[Chat] = []
        self.silent = False

    def generate(self, chats: list[Chat], max_new_tokens: int) -> list[str]:
        self.asked += chats
        return ["" if self.silent else f" A plate of {chat.images[0].getpixel((0, 0))}. " for chat in chats]


@pytest.fixture
def speaker(monkeypatch: pytest.MonkeyPatch) -> Speaker:
    speaker = Speaker()
    monkeypatch.setattr(describing, "MemeModel", lambda run, device: run)
    monkeypatch.setattr(describing, "open_engine", lambda kind, model, **options: speaker)
    return speaker


def ask(taught: Taught, url: str, model: Path) -> Guidance:
    return ask_teacher(
        taught.clusters,
        taught.data.parent / "guidance.json",
        TeacherSettings(endpoint=url, model="cake-teacher"),
        data=Data(str(taught.data)),
        members=MemberSettings(nearest=1, random=1),
        pictures=PictureSettings(images=False, describe_with=str(model), engine="transformers"),
        show=False,
    )


def test_images_without_a_description_are_described_once(
    tmp_path: Path, tiny: Callable[[str], Path], speaker: Speaker
) -> None:
    taught = Taught(tmp_path)
    taught.rows[0]["extras"]["description"] = "A cake of the record."
    taught.write_memes()
    with serve(teach) as endpoint:
        guidance = ask(taught, endpoint.url, tiny("qwen2_vl"))
        assert len(speaker.asked) == 5  # of six members one has a description
        ask(taught, endpoint.url, tiny("qwen2_vl"))
        assert len(speaker.asked) == 5
        assert len(endpoint.requests) == 3
        taught.write_clusters(seed=1)  # the teacher is asked again, the describer is not
        ask(taught, endpoint.url, tiny("qwen2_vl"))
        assert len(speaker.asked) == 5
        assert len(endpoint.requests) == 6
    assert {chat.messages[0]["content"] for chat in speaker.asked} == {REQUEST}
    sent = "\n".join(part for body in endpoint.requests for part in parts_of(body))
    assert "A cake of the record." in sent
    assert "A plate of (40, 20, 200)." not in sent
    assert "A plate of (120, 20, 140)." in sent
    describer = guidance.manifest.teacher.describer
    assert describer["model"] == str(tiny("qwen2_vl"))
    assert describer["request"] == REQUEST


def test_another_model_describes_anew(tmp_path: Path, tiny: Callable[[str], Path], speaker: Speaker) -> None:
    memes = list(open_data(Taught(tmp_path).data).memes("train"))[:2]
    for family, asked in (("qwen2_vl", 2), ("qwen2_5_vl", 4), ("qwen2_vl", 4)):
        run = open_describer(str(tiny(family)))
        assert len(describe(run, memes, tmp_path / "cache", device=CPU, engine="transformers", show=False)) == 2
        assert len(speaker.asked) == asked


def test_a_model_without_words_is_told(tmp_path: Path, tiny: Callable[[str], Path], speaker: Speaker) -> None:
    memes, run = list(open_data(Taught(tmp_path).data).memes("train"))[:2], open_describer(str(tiny("qwen2_vl")))
    speaker.silent = True
    with pytest.raises(UserError, match="'hateful-id-00'"):
        describe(run, memes, tmp_path / "cache", device=CPU, engine="transformers", show=False)
    speaker.silent = False  # and it is not remembered
    assert len(describe(run, memes, tmp_path / "cache", device=CPU, engine="transformers", show=False)) == 2


def test_what_is_no_model_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="neither a model folder"):
        open_describer(str(tmp_path))


@pytest.mark.slow
def test_a_tiny_model_describes_and_a_run_does_so_without_its_adapter(
    tmp_path: Path, tiny: Callable[[str], Path], stage1_run: Path
) -> None:
    taught, cache = Taught(tmp_path), tmp_path / "cache"
    memes = list(open_data(taught.data).memes("train"))[:2]
    found = []
    for place in (tiny("qwen2_vl"), stage1_run):
        run = open_describer(str(place))
        assert run.adapter is None
        found.append(describe(run, memes, cache, device=CPU, engine="transformers", show=False))
    assert found[0] == found[1]
    assert all(text.strip() for text in found[0].values())
