"""Training records: one question and one answer about a meme, in the ShareGPT and Alpaca formats of LLaMA-Factory.

`TrainingRecord` is the record itself, with the caption beside the rendered question. `RecordFormat` describes which
columns of a row hold the question, the answer and the image: an entry of `dataset_info.json` names them, and LLaMA-
Factory's defaults hold for what it leaves out. For a file that is read without an entry, `detect_format` recognises the
format by its columns.

The files do not hold the caption as a key of its own: they equal those of the RA-HMD release, and `datasets` refuses to
load a folder in which only some files have a column.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ra_hmd.core.artifacts import sha256_bytes
from ra_hmd.core.errors import UserError
from ra_hmd.data.meme import Meme, class_index, class_set
from ra_hmd.data.prompt import NO_CLASS, OFFICIAL_ANSWERS, Answers, PromptTemplate

_COLUMNS = ("prompt", "query", "response", "history", "messages", "system", "images", "videos", "audios")
_TAGS = ("role_tag", "content_tag", "user_tag", "assistant_tag", "system_tag")


@dataclass(frozen=True)
class RecordFormat:
    """Column and tag names of a record format, as in `dataset_info.json`.

    None means that the data have no such column. The defaults are those of LLaMA-Factory.
    """

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
    def of_entry(cls, entry: Mapping[str, Any]) -> "RecordFormat":
        """Return the format of an entry of `dataset_info.json`.

        As in LLaMA-Factory, `columns` and `tags` replace the defaults as a whole: a name that they leave out is absent.
        """
        names: dict[str, Any] = {"formatting": entry.get("formatting", "alpaca")}
        for key, fields in (("columns", _COLUMNS), ("tags", _TAGS)):
            if key in entry:
                names |= {field: entry[key].get(field) for field in fields}
        return cls(**names)

    def read(self, row: Mapping[str, Any]) -> tuple[str, str, Any]:
        """Return question, answer and image of a row; the image is a path, or an embedded file (`bytes` and `path`).

        Raises:
            KeyError: A column is missing.
            ValueError: The row has more than one turn, or not exactly one image.
        """
        question, answer = self._alpaca(row) if self.formatting == "alpaca" else self._last_turn(row)
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
        parts = [row[name] for name in (self.prompt, self.query) if name is not None and row[name]]
        return "\n".join(parts), row[self.response or "output"]

    def _last_turn(self, row: Mapping[str, Any]) -> tuple[str, str]:
        turns = row[self.messages or "messages"]
        if len(turns) < 2:
            raise ValueError(f"it has {len(turns)} messages; a meme's record is one question and one answer")
        roles = tuple(turn.get(self.role_tag) for turn in turns[-2:])
        if self.role_tag is not None and roles != (self.user_tag, self.assistant_tag):
            raise ValueError(f"its messages are of {roles[0]!r} and {roles[1]!r}, needed are {self.user_tag!r} and "
                             f"{self.assistant_tag!r} (`tags` of its data set)")  # fmt: skip
        question, answer = (turn[self.content_tag or "content"] for turn in turns[-2:])
        return question, answer


def detect_format(row: Mapping[str, Any]) -> RecordFormat | None:
    """Recognise the format of a row by its columns; None if it is no training record."""
    if "text" in row and ("image" in row or "img" in row):
        return None  # a caption beside its image
    images = "images" if "images" in row else "image"
    messages = next((name for name in ("messages", "conversations") if name in row), None)
    if messages is not None:
        turns = row[messages]
        first = turns[0] if isinstance(turns, list) and turns and isinstance(turns[0], Mapping) else {}
        content = "value" if "value" in first else "content"
        # Roles are not compared: only an entry of `dataset_info.json` could name them.
        return RecordFormat("sharegpt", messages=messages, images=images, role_tag=None, content_tag=content)
    if {"instruction", "output"} <= row.keys():
        return RecordFormat(query="input" if "input" in row else None, images=images)
    return None


@dataclass(frozen=True)
class TrainingRecord:
    """One question and one answer about a meme.

    Attributes:
        id: Id of the meme.
        image: Path of the image as the row has it, or an embedded file (`bytes` and `path`).
        caption: The caption that the question holds. It is carried along where we make the record, and read out of the
            question only for a row of a file.
        question: The prompt, rendered with the caption.
        answer: The answer sentence, or the class names that apply.
        label: Class index, or a list of them; None if the row has none.
    """

    id: str
    image: Any
    caption: str
    question: str
    answer: str
    label: Any = None

    @classmethod
    def of_meme(
        cls, meme: Meme, prompt: PromptTemplate, answers: tuple[str, ...] = OFFICIAL_ANSWERS
    ) -> "TrainingRecord":
        """Return the record of a labelled meme.

        Args:
            meme: Its label selects the answer.
            prompt: The question.
            answers: Answer sentences in class order; for a meme with several classes their names.

        Raises:
            UserError: The meme has no label, or there is no answer for it.
        """
        label = meme.label
        if label is None:
            raise UserError(f"Meme {meme.id!r} has no label: it cannot become a training record.")
        for index in label if isinstance(label, tuple) else (label,):
            if index >= len(answers):
                raise UserError(f"Meme {meme.id!r} is of class {index}, but there are {len(answers)} answers.")
        if isinstance(label, tuple):
            answer = ", ".join(answers[index] for index in label) or NO_CLASS
        else:
            answer = answers[label]
        given = list(label) if isinstance(label, tuple) else label
        return cls(meme.id, str(meme.path), meme.caption, prompt.render(meme.caption), answer, given)

    @classmethod
    def of_row(
        cls, row: Mapping[str, Any], prompt: PromptTemplate, record_format: RecordFormat | None = None
    ) -> "TrainingRecord":
        """Return the record of a row, with the caption read out of its question.

        Args:
            row: A row of a file.
            prompt: Template that the question was made with.
            record_format: Columns and tags; by default they are detected.

        Raises:
            KeyError: A column is missing.
            ValueError: The row is no single turn about one image, or `prompt` did not make its question.
        """
        known = record_format or detect_format(row) or RecordFormat("sharegpt", images="images")
        question, answer, image = known.read(row)
        caption = prompt.caption_of(question)
        name = str(row["id"]) if "id" in row else image_name(image)
        return cls(name, image, caption, question, answer, row.get("label"))

    def class_label(self, answers: Answers) -> int | tuple[int, ...] | None:
        """Return the class index or indices of the label, or of the answer where there is no label.

        Raises:
            ValueError: The label is no class (with `answers.several`: no list of classes), or the answer is unknown.
        """
        label = class_set(self.label, len(answers.words)) if answers.several else class_index(self.label)
        return answers.label_of(self.answer) if label is None else label

    def to_row(self) -> dict[str, Any]:
        """Return the ShareGPT row, in the form of the RA-HMD release."""
        messages = [{"role": "user", "content": self.question}, {"role": "assistant", "content": self.answer}]
        row = {"id": self.id, "messages": messages, "images": [self.image]}
        return row if self.label is None else row | {"label": self.label}


def image_name(image: Any) -> str:
    """Return the id of an image without one: its path, or the content hash of an embedded file without a path."""
    if not isinstance(image, Mapping):
        return str(image)
    return str(image.get("path") or sha256_bytes(image["bytes"])[:16])


def dataset_info_entry(file_name: str) -> dict[str, Any]:
    """Return the `dataset_info.json` entry of a ShareGPT file, as in the RA-HMD release."""
    return {
        "file_name": file_name,
        "formatting": "sharegpt",
        "columns": {"messages": "messages", "images": "images"},
        "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"},
    }
