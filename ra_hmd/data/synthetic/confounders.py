"""Synthetic memes with benign confounders, deterministic to the byte: the label depends on image and caption together.

The construction follows the idea of the Hateful Memes challenge (Kiela et al., 2020). Memes come in groups of four:
two images that show subjects s and s', and two captions about s and about s'. Class 1 means that the caption is about
the subject of the image. Each meme of class 1 therefore has an image confounder (same caption, other image) and a text
confounder (same image, other caption) of class 0 in its split, and neither modality alone predicts the label.

There are two domains, A (animals) and B (things), with disjoint subjects, captions and colours.
"""

import json
import random
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ra_hmd.core.artifacts import new_folder, write_json, write_jsonl, write_text
from ra_hmd.core.errors import UserError
from ra_hmd.data.meme import Meme
from ra_hmd.data.prompt import IMAGE_PLACEHOLDER, PromptTemplate
from ra_hmd.data.rows import jsonl_rows
from ra_hmd.data.synthetic.pictograms import PATTERNS, SIDE, STRIP, Colour, background, draw_pictogram, write_caption
from ra_hmd.data.training_records import TrainingRecord, dataset_info_entry

if TYPE_CHECKING:
    import numpy as np

GROUP_SIZE = 4  # memes per confounder group
SPLITS = {"train": 1.0, "dev": 1 / 6, "test": 1 / 4}  # sizes in proportion to domain A's training split
CAPTION_PROMPT = (
    f'{IMAGE_PLACEHOLDER} This is an image with: "{{text}}" written on it. Describe the picture and the text.'
)


@dataclass(frozen=True)
class Domain:
    """One domain: its subjects, colours and captions.

    Attributes:
        name: `a` or `b`: name of the folder, and first letter of every id.
        pairs: Pairs of subjects; each group of four uses one pair.
        nouns: Words for each subject: a caption is about the subject whose noun it holds.
        wordings: Caption templates; `{noun}` takes the noun.
        bodies: Colours of a pictogram's body.
        backgrounds: Pairs of colours of the background and its pattern.
    """

    name: str
    pairs: tuple[tuple[str, str], ...]
    nouns: dict[str, tuple[str, ...]]
    wordings: tuple[str, ...]
    bodies: dict[str, Colour]
    backgrounds: dict[str, tuple[Colour, Colour]]


DOMAINS = (
    Domain(
        name="a",
        pairs=(("cat", "dog"), ("fish", "rabbit"), ("bird", "snail")),
        nouns={
            "cat": ("cat", "kitten"),
            "dog": ("dog", "puppy"),
            "fish": ("fish", "goldfish"),
            "bird": ("bird", "sparrow"),
            "snail": ("snail", "slug"),
            "rabbit": ("rabbit", "bunny"),
        },
        wordings=(
            "when the {noun} wakes up early",
            "my {noun} on a monday",
            "the {noun} knows best",
            "nobody asked the {noun}",
            "a {noun} has other plans",
            "be like this {noun}",
        ),
        bodies={"red": (196, 52, 44), "orange": (222, 124, 28), "brown": (134, 84, 50), "violet": (128, 62, 150)},
        backgrounds={
            "sky": ((204, 226, 246), (176, 206, 234)),
            "mint": ((206, 240, 220), (176, 222, 196)),
            "ice": ((226, 238, 242), (198, 216, 224)),
            "lilac": ((222, 214, 244), (200, 190, 230)),
        },
    ),
    Domain(
        name="b",
        pairs=(("house", "car"), ("tree", "cup"), ("boat", "umbrella")),
        nouns={
            "house": ("house", "cottage"),
            "car": ("car", "taxi"),
            "tree": ("tree", "oak"),
            "cup": ("cup", "mug"),
            "boat": ("boat", "ship"),
            "umbrella": ("umbrella", "parasol"),
        },
        wordings=(
            "waiting for some new {noun}",
            "found one perfect {noun}",
            "is that your {noun} again",
            "every {noun} tells stories",
            "old {noun} still good",
            "guess where our {noun} went",
        ),
        bodies={"blue": (40, 84, 180), "green": (38, 130, 70), "teal": (20, 126, 136), "navy": (52, 56, 120)},
        backgrounds={
            "cream": ((246, 232, 196), (232, 210, 160)),
            "rose": ((244, 208, 206), (232, 182, 182)),
            "sand": ((226, 212, 184), (208, 190, 156)),
            "lemon": ((246, 240, 170), (232, 222, 136)),
        },
    ),
)


@dataclass(frozen=True)
class Scene:
    """Content of an image without its caption. Lengths and positions are in pixels."""

    subject: str
    body: str
    background: str
    pattern: str
    scale: int
    x: int
    y: int
    caption_place: str


def make_confounders(output: Path, size: int = 4000, seed: int = 0) -> dict[str, int]:
    """Draw both domains into `output`, which is complete or does not exist afterwards.

    `a/` and `b/` hold `train.jsonl`, `dev.jsonl`, `test.jsonl` (id, img, label, text), `attributes.jsonl` (the true
    content of each image and caption) and `img/`. Beside them lie LLaMA-Factory's `dataset_info.json` and the ShareGPT
    files of `confounders_a`, `confounders_a_dev`, `confounders_a_test`, the same for b, and `confounders_captions`: the
    training images of both domains with a description of image and text, and no labels (`dataset_dir: OUTPUT`).

    Args:
        output: Folder to create.
        size: Number of training memes of each domain; dev has a sixth and test a quarter of it (each rounded to whole
            groups of four).
        seed: Random seed of images and captions.

    Returns:
        Number of records of each data set in `dataset_info.json`.

    Raises:
        UserError: `size` is too small, or `output` is not empty.
    """
    if size < GROUP_SIZE:
        raise UserError(f"--size {size} is too small: memes come in groups of {GROUP_SIZE}; give {GROUP_SIZE} or more.")
    prompt, describe = PromptTemplate(), PromptTemplate(CAPTION_PROMPT)
    files: dict[str, list[dict[str, Any]]] = {}
    described: list[dict[str, Any]] = []
    with new_folder(output) as folder:
        for domain in DOMAINS:
            taken: set[Scene] = set()
            attributes: list[dict[str, Any]] = []
            for split, share in SPLITS.items():
                rng = random.Random(f"{seed}/{domain.name}/{split}")
                groups = max(round(size * share / GROUP_SIZE), 1)
                where = folder / domain.name
                rows = _draw_split(domain, split, groups, rng=rng, taken=taken, first=len(attributes), folder=where)
                attributes += [row["attributes"] for row in rows]
                write_jsonl(where / f"{split}.jsonl", [row["record"] for row in rows])
                memes = [_meme(domain, row["record"]) for row in rows]
                suffix = "" if split == "train" else f"_{split}"
                files[f"confounders_{domain.name}{suffix}"] = [
                    TrainingRecord.of_meme(meme, prompt).to_row() for meme in memes
                ]
                if split == "train":
                    described += [_describe(m, row, describe, rng) for m, row in zip(memes, rows, strict=True)]
            write_jsonl(folder / domain.name / "attributes.jsonl", attributes)
        files["confounders_captions"] = described
        for name, records in files.items():
            _write_records(folder / f"{name}.json", records)
        write_json(folder / "dataset_info.json", {name: dataset_info_entry(f"{name}.json") for name in files})
    return {name: len(records) for name, records in files.items()}


def caption_corpus() -> list[str]:
    """Return every caption of both domains in a fixed order, to train the tokenizers of the tiny models on."""
    return [
        wording.format(noun=noun)
        for domain in DOMAINS
        for subject in sorted(domain.nouns)
        for noun in domain.nouns[subject]
        for wording in domain.wordings
    ]


def descriptions(shown: str, body: str, topic: str, caption: str) -> list[str]:
    """Return the possible descriptions of a meme, of which `confounders_captions` draws one for each meme.

    They differ in length and order: from a single frame, a model would learn to count words instead of reading them.
    """
    return [
        f"The picture shows the {shown}. The text talks about the {topic}.",
        f"The text talks about the {topic}. The picture shows the {shown}.",
        f"{shown.capitalize()} in the picture, {topic} in the text.",
        f"{topic.capitalize()} in the text, {shown} in the picture.",
        f'It is a meme: the {shown} is {body}, and the text is "{caption}".',
    ]


def unimodal_oracle(folder: Path) -> dict[str, float]:
    """Return the test AUROC of the best classifier that knows one modality perfectly, for each modality.

    Classifiers (logistic regression, random forest, frequency table) are trained on the true attributes of one
    modality. The highest of their test AUROCs counts, which is an upper bound in favour of the oracle.

    Args:
        folder: A domain's folder (`OUTPUT/a` or `OUTPUT/b`).

    Returns:
        `{"image": AUROC, "text": AUROC}`; 0.5 is chance.

    Raises:
        UserError: `folder` was not written by `make_confounders`.
    """
    import numpy as np
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.feature_extraction import DictVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score

    result = {}
    for modality in ("image", "text"):
        (seen, y_seen), (new, y_new) = (_load_attributes(Path(folder), split, modality) for split in ("train", "test"))
        vectorizer = DictVectorizer(sparse=False)
        x_seen, x_new = vectorizer.fit_transform(seen), vectorizer.transform(new)
        scores = [_frequency_table(seen, y_seen, new)]
        for model in (LogisticRegression(max_iter=500), RandomForestClassifier(100, random_state=0, n_jobs=1)):
            scores.append(np.asarray(model.fit(x_seen, y_seen).predict_proba(x_new))[:, 1])
        result[modality] = max(float(roc_auc_score(y_new, score)) for score in scores)
    return result


def _load_attributes(folder: Path, split: str, modality: str) -> tuple[list[dict[str, Any]], "np.ndarray"]:
    import numpy as np

    rows = {}
    for name in ("attributes.jsonl", f"{split}.jsonl"):
        if not (folder / name).is_file():
            raise UserError(f"{folder / name} does not exist; give a folder that `make-confounders` made (OUTPUT/a).")
        rows[name] = {row.values["id"]: row.values for row in jsonl_rows(folder / name)}
    memes = rows[f"{split}.jsonl"]
    return [rows["attributes.jsonl"][i][modality] for i in memes], np.array([m["label"] for m in memes.values()])


def _frequency_table(seen: list[dict[str, Any]], labels: "np.ndarray", new: list[dict[str, Any]]) -> "np.ndarray":
    """Return the smoothed share of class 1 among the training rows with the same words; numbers are ignored."""
    import numpy as np

    def key(row: dict[str, Any]) -> tuple[str, ...]:
        return tuple(value for value in row.values() if isinstance(value, str))

    counts: dict[tuple[str, ...], np.ndarray] = {}
    for row, label in zip(seen, labels, strict=True):
        counts.setdefault(key(row), np.ones(2))[label] += 1
    table = [counts.get(key(row), np.ones(2)) for row in new]
    return np.array([pair[1] / pair.sum() for pair in table])


def _draw_split(
    domain: Domain, split: str, groups: int, *, rng: random.Random, taken: set[Scene], first: int, folder: Path
) -> list[dict[str, Any]]:
    """Draw a split into the folder of its domain, in shuffled order, so that the first rows are a fair sample.

    Args:
        groups: Number of groups of four.
        taken: Scenes of the domain so far, which are not repeated.
        first: Number of the first meme.
    """
    (folder / "img").mkdir(parents=True, exist_ok=True)
    plans: list[dict[str, Any]] = []
    for group in range(groups):
        subjects = domain.pairs[group % len(domain.pairs)]
        scenes = [_new_scene(domain, subject, rng, taken) for subject in subjects]
        texts = [{"topic": topic, "noun": rng.choice(domain.nouns[topic])} for topic in subjects]
        for text in texts:
            text["wording"] = rng.choice(domain.wordings)
        for scene in scenes:
            canvas = background(*domain.backgrounds[scene.background], scene.pattern).copy()
            draw_pictogram(canvas, scene.subject, domain.bodies[scene.body], (scene.x, scene.y), scene.scale)
            plans += [{"group": group, "scene": scene, "canvas": canvas, "text": text} for text in texts]
    rng.shuffle(plans)
    rows = []
    for number, plan in enumerate(plans, first):
        name, scene, text = f"{domain.name}{number:05d}", plan["scene"], plan["text"]
        caption = text["wording"].format(noun=text["noun"])
        write_caption(plan["canvas"], caption, scene.caption_place).save(folder / f"img/{name}.png")
        label = int(scene.subject == text["topic"])
        record = {"id": name, "img": f"img/{name}.png", "label": label, "text": caption}
        attributes = {"id": name, "split": split, "group": f"{domain.name}-{split}-{plan['group']}"}
        rows.append({"record": record, "attributes": attributes | {"image": asdict(scene), "text": text}})
    return rows


def _new_scene(domain: Domain, subject: str, rng: random.Random, taken: set[Scene]) -> Scene:
    """Draw a scene with `subject` that is not in `taken`, and add it there."""
    while True:
        scale = rng.randint(56, 80)
        place = rng.choice(("top", "bottom"))
        y = rng.randint(2, SIDE - STRIP - scale - 2) + (STRIP if place == "top" else 0)
        scene = Scene(
            subject=subject,
            body=rng.choice(list(domain.bodies)),
            background=rng.choice(list(domain.backgrounds)),
            pattern=rng.choice(PATTERNS),
            scale=scale,
            x=rng.randint(2, SIDE - scale - 2),
            y=y,
            caption_place=place,
        )
        if scene not in taken:
            taken.add(scene)
            return scene


def _meme(domain: Domain, record: dict[str, Any]) -> Meme:
    image = Path(domain.name) / record["img"]
    return Meme(id=record["id"], image=image, text=record["text"], label=record["label"])


def _describe(meme: Meme, row: dict[str, Any], prompt: PromptTemplate, rng: random.Random) -> dict[str, Any]:
    """Return the ShareGPT row of a description; its id differs from that of the meme, and it has no label."""
    image, text = row["attributes"]["image"], row["attributes"]["text"]
    answer = rng.choice(descriptions(image["subject"], image["body"], text["topic"], meme.caption))
    question = prompt.render(meme.caption)
    return TrainingRecord(f"{meme.id}-description", str(meme.path), meme.caption, question, answer).to_row()


def _write_records(path: Path, records: list[dict[str, Any]]) -> None:
    lines = ",\n".join(json.dumps(record, ensure_ascii=False) for record in records)
    write_text(path, f"[\n{lines}\n]\n")
