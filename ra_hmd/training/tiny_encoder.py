"""Train a tiny encoder contrastively on synthetic memes: images against sentences about their content.

The loss is the family's own: softmax over the batch (CLIP, AltCLIP, ALIGN), or a sigmoid for each pair (SigLIP).

What supervises it: each training picture, of both domains, goes with a sentence about its subject. Half of the time
this is a description ("The picture shows the cat."), else the caption of any training meme that talks about that
subject. A meme's own caption cannot be its sentence: half of them talk about something else. Read from
`attributes.jsonl` are the subjects of picture and text of training memes, which the descriptions in
`confounders_captions` tell as well. Labels, dev and test memes are not read. Yet a label follows from the
two subjects: the encoder is taught what the label is about, as web data has taught published ones what things are
called. Scores on these memes show that the steps work, not how good an encoder is.
"""

import math
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from accelerate import Accelerator
from pydantic import Field
from torch import Tensor, nn

from ra_hmd.core.artifacts import MANIFEST_NAME, new_folder, plain, sha256_file
from ra_hmd.core.config import Settings
from ra_hmd.core.errors import UserError
from ra_hmd.core.manifests import TinyEncoderManifest, write_manifest
from ra_hmd.core.progress import track
from ra_hmd.data.images import load_image
from ra_hmd.data.rows import jsonl_rows
from ra_hmd.data.synthetic.confounders import DOMAINS
from ra_hmd.models.clip_encoder import Encoder
from ra_hmd.models.encoder_files import EncoderSettings
from ra_hmd.models.tiny_clip import EncoderFamily, make_tiny_encoder


class PretrainSettings(Settings):
    """How a tiny encoder is trained."""

    TITLE: ClassVar[str] = "training"

    epochs: int = Field(3, ge=1, description="Passes over the training pictures.")
    batch_size: int = Field(64, ge=2, description="Pairs of picture and sentence that are told apart at once.")
    lr: float = Field(1e-3, gt=0, description="Highest learning rate of the one cycle.")
    seed: int = Field(0, description="Seed of the weights, the order and the choice of sentences.")


@dataclass(frozen=True)
class Lesson:
    """What there is to learn from.

    Attributes:
        images: Paths of N training pictures.
        subjects: What each shows.
        captions: Subject → captions of training memes about it.
        fingerprint: Domain → SHA-256 of its attributes.
    """

    images: list[Path]
    subjects: list[str]
    captions: dict[str, list[str]]
    fingerprint: dict[str, str]

    def sentence(self, row: int, rng: random.Random) -> str:
        """A sentence about picture `row`."""
        subject = self.subjects[row]
        described = f"The picture shows the {subject}."
        about = self.captions.get(subject)
        return rng.choice(about) if about and rng.random() < 0.5 else described


def read_lesson(data: Path) -> Lesson:
    """The training memes of both domains in the folder that `ra-hmd data make-confounders` made."""
    lesson = Lesson([], [], {}, {})
    for domain in DOMAINS:
        path = data / domain.name / "attributes.jsonl"
        if not path.is_file():
            raise UserError(f"{path} does not exist; give the output of `ra-hmd data make-confounders`.")
        lesson.fingerprint[domain.name] = sha256_file(path)
        for row in (read.values for read in jsonl_rows(path)):
            if row["split"] == "train":
                text = row["text"]
                lesson.images.append(path.parent / "img" / f"{row['id']}.png")
                lesson.subjects.append(row["image"]["subject"])
                lesson.captions.setdefault(text["topic"], []).append(text["wording"].format(noun=text["noun"]))
    return lesson


def decode(encoder: Encoder, paths: list[Path]) -> dict[str, Tensor]:
    """What the vision tower takes, [N, …] each; half precision is finer than the 8 bits that it comes from."""
    shown = track(((1, path) for path in paths), "Decoding", len(paths), "pictures")
    rows = [encoder.pixels(load_image(path)) for path in shown]
    columns = {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
    return {name: column.half() if column.is_floating_point() else column for name, column in columns.items()}


def loaded(encoder: Encoder) -> Any:
    """The transformers model of an encoder, of a class that has these names."""
    assert encoder.model is not None
    return encoder.model


def set_start(model: Any) -> None:
    """Temperature and bias to begin with, where a family's config has none that learns in minutes."""
    with torch.no_grad():
        if hasattr(model, "temperature"):  # ALIGN: its factor itself, 1 in the config
            model.temperature.fill_(0.1)
        elif hasattr(model, "logit_bias"):  # SigLIP (arXiv 2303.15343, section 3.2)
            model.logit_scale.fill_(math.log(10))
            model.logit_bias.fill_(-10)


def train(encoder: Encoder, lesson: Lesson, settings: PretrainSettings) -> list[dict[str, float]]:
    """Train `encoder.model`; returns the mean loss and the seconds of each epoch."""
    pictures = decode(encoder, lesson.images)
    model = loaded(encoder).requires_grad_(True).train()
    set_start(model)
    rows = list(range(len(lesson.images)))
    size = min(settings.batch_size, len(rows))
    steps = len(rows) // size  # a last batch of few pairs would be easier than the others
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.lr, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.lr, total_steps=settings.epochs * steps)
    rng = random.Random(settings.seed)
    torch.manual_seed(settings.seed)
    history = []
    for epoch in range(1, settings.epochs + 1):
        began = time.monotonic()
        rng.shuffle(rows)
        batches = [rows[step * size : (step + 1) * size] for step in range(steps)]
        total = torch.zeros((), device=model.device)
        for batch in track(((size, batch) for batch in batches), f"Epoch {epoch}", steps * size, "pairs"):
            tokens = encoder.collate_text([encoder.pieces(lesson.sentence(row, rng)) for row in batch])
            del tokens["shares"]
            inputs = {name: value[batch] for name, value in pictures.items()} | tokens
            inputs = {name: value.float() if value.is_floating_point() else value for name, value in inputs.items()}
            inputs = {name: value.to(model.device) for name, value in inputs.items()}
            loss = model(**inputs, return_loss=True).loss
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            total += loss.detach()
        history.append({"epoch": epoch, "loss": total.item() / steps, "seconds": time.monotonic() - began})
        print(f"epoch {epoch}: loss {history[-1]['loss']:.3f}, {history[-1]['seconds']:.0f} s", flush=True)
    return history


def pretrain(family: EncoderFamily, data: Path, output: Path, settings: PretrainSettings) -> Path:
    """Make the folder of a tiny encoder and train it; the folder is complete or absent.

    Args:
        family: Which architecture.
        data: Folder that `ra-hmd data make-confounders` made.
        output: Folder to make.
        settings: How it is trained.

    Returns:
        `output`.

    Raises:
        UserError: unknown family, `data` holds no synthetic memes, `output` exists and is not empty.
    """
    lesson = read_lesson(data)
    with new_folder(output) as folder:
        make_tiny_encoder(family, folder, seed=settings.seed)
        encoder = Encoder(EncoderSettings(path=str(folder))).load(Accelerator().device)
        history = train(encoder, lesson, settings)
        loaded(encoder).save_pretrained(folder)
        arguments: dict[str, Any] = plain({"family": family, "data": data, "output": output, **settings.model_dump()})
        read = {"pictures": len(lesson.images), "attributes": lesson.fingerprint}
        manifest = TinyEncoderManifest.new(arguments=arguments, data=read, history=history)
        write_manifest(folder / MANIFEST_NAME, manifest)
    return output
