"""The record formats that LLaMA-Factory trains on: where a row has its question, its answer and its picture.

An entry of `dataset_info.json` names columns and tags, with the host's own defaults. Rows of a file that is read
without its entry are known by their columns.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ra_hmd.core.artifacts import sha256_bytes

_COLUMNS = ("prompt", "query", "response", "history", "messages", "system", "images", "videos", "audios")
_TAGS = ("role_tag", "content_tag", "user_tag", "assistant_tag", "system_tag")


@dataclass(frozen=True)
class Layout:
    """Names of columns and tags, as in `dataset_info.json`; None: the data have none. The defaults are the host's."""

    formatting: str = "alpaca"
    prompt: str | None = "instruction"
    query: str | None = "input"
    response: str | None = "output"
    history: str | None = None
    messages: str | None = "conversations"
    system: str | None = None
    images: str | None = None
    videos: str | None = None
    audios: str | None = None
    role_tag: str | None = "from"
    content_tag: str | None = "value"
    user_tag: str | None = "human"
    assistant_tag: str | None = "gpt"
    system_tag: str | None = "system"

    @classmethod
    def of_entry(cls, entry: Mapping[str, Any]) -> "Layout":
        """From an entry of `dataset_info.json`. As for the host, `columns` and `tags` count as a whole: what they leave
        out is not there.
        """
        given = {"formatting": entry.get("formatting", "alpaca")}
        for key, names in (("columns", _COLUMNS), ("tags", _TAGS)):
            if key in entry:
                given |= {name: entry[key].get(name) for name in names}
        return cls(**given)

    def read(self, row: Mapping[str, Any]) -> tuple[str, str, Any]:
        """Question, answer and picture (a path, or an embedded file as `bytes` and `path`) of a row.

        Raises:
            KeyError: a column that is not there.
            ValueError: another number of turns or pictures than one.
        """
        question, answer = self._alpaca(row) if self.formatting == "alpaca" else self._turn(row)
        if self.images is None:
            raise ValueError("its data set's `columns` name no `images`; a meme is exactly one image")
        images = row[self.images]
        images = images if isinstance(images, list) else [] if images is None else [images]
        if len(images) != 1:
            raise ValueError(f"it has {len(images)} images; a meme is exactly one image")
        return question, answer, images[0]

    def _alpaca(self, row: Mapping[str, Any]) -> tuple[str, str]:
        if self.history is not None and row[self.history]:
            raise ValueError("it has a history; a meme's record is one question and one answer")
        asked = [row[name] for name in (self.prompt, self.query) if name is not None and row[name]]
        return "\n".join(asked), row[self.response or "output"]

    def _turn(self, row: Mapping[str, Any]) -> tuple[str, str]:
        turns = row[self.messages or "messages"]
        if len(turns) < 2:
            raise ValueError(f"it has {len(turns)} messages; a meme's record is one question and one answer")
        roles = tuple(turn.get(self.role_tag) for turn in turns[-2:])
        if self.role_tag is not None and roles != (self.user_tag, self.assistant_tag):
            raise ValueError(f"its messages are of {roles[0]!r} and {roles[1]!r}, needed are {self.user_tag!r} and "
                             f"{self.assistant_tag!r} (`tags` of its data set)")  # fmt: skip
        question, answer = (turn[self.content_tag or "content"] for turn in turns[-2:])
        return question, answer


def layout_of(row: Mapping[str, Any]) -> Layout | None:
    """The layout of a row that is read without an entry; None: it is no record of LLaMA-Factory."""
    if "text" in row and ("image" in row or "img" in row):
        return None  # a caption beside its picture
    images = "images" if "images" in row else "image"
    messages = next((name for name in ("messages", "conversations") if name in row), None)
    if messages is not None:
        turns = row[messages]
        first = turns[0] if isinstance(turns, list) and turns and isinstance(turns[0], Mapping) else {}
        content = "value" if "value" in first else "content"
        # Roles are not compared: without an entry nobody says what they are called.
        return Layout("sharegpt", messages=messages, images=images, role_tag=None, content_tag=content)
    if {"instruction", "output"} <= row.keys():
        return Layout(query="input" if "input" in row else None, images=images)
    return None


def picture_name(picture: Any) -> str:
    """What a picture without an id is called: its path, or for an embedded one without a path its content's hash."""
    if not isinstance(picture, Mapping):
        return str(picture)
    return str(picture.get("path") or sha256_bytes(picture["bytes"])[:16])
