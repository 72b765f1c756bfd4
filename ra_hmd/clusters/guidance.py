"""Guidance of clusters: written by a teacher, or read from a file (`ra-hmd guidance`)."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch

from ra_hmd.clusters.describe import describe, described_by, open_describer
from ra_hmd.clusters.guidance_files import digest_of, read_texts
from ra_hmd.clusters.guidance_members import Data, choose_members, descriptions_of, fitted_split, open_members
from ra_hmd.clusters.guidance_settings import MemberSettings, PictureSettings, TeacherSettings
from ra_hmd.clusters.teacher import (
    INSTRUCTION,
    ClusterQuestion,
    GuidanceFormat,
    Member,
    TeacherText,
)
from ra_hmd.core.artifacts import plain, sha256_bytes
from ra_hmd.core.errors import UserError, raise_all
from ra_hmd.core.manifests import ClusterGuidance, GuidanceManifest, TeacherDescription
from ra_hmd.core.progress import track
from ra_hmd.data.guidance import GUIDANCE_FILE, Guidance, clean_guidance
from ra_hmd.data.meme import Meme
from ra_hmd.models.cluster_assignment import Clusters
from ra_hmd.models.generation.openai_client import Answer, OpenAIClient, SilentEndpoint, ask_all

_REJECTED = ("HTTP 400", "HTTP 415", "HTTP 422", "HTTP 500")  # what servers of text models say of a picture
_Answers = Mapping[int, tuple[ClusterQuestion, Answer[TeacherText]]]
"""Cluster to its question and answer."""


def ask_teacher(
    folder: str | Path,
    output: str | Path,
    settings: TeacherSettings,
    *,
    data: Data | None = None,
    members: MemberSettings | None = None,
    pictures: PictureSettings | None = None,
    device: torch.device | None = None,
    key: str | None = None,
    cache: str | Path | None = None,
    concurrency: int = 4,
    partial: bool = False,
    show: bool = True,
    command: str = "",
) -> Guidance:
    """Let a teacher write the guidance of each cluster, and write it to a file. **Memes are sent to the endpoint.**

    Stored answers are not requested again, as long as clusters, members and settings are the same.

    Args:
        folder: Folder of the clusters (`ra-hmd cluster`).
        output: The file.
        settings: Teacher and endpoint.
        data: Where the memes are that they were fitted on.
        members: Choice of the memes that stand for a cluster.
        pictures: How the teacher sees images.
        device: Device of a model that describes images; default: the CPU.
        key: API key.
        cache: Folder of the answers; default: a folder beside `output`.
        concurrency: Number of concurrent questions.
        partial: Leave the text of a cluster empty where the teacher gives none.
        show: Whether to show progress bars.
        command: Command line for the manifest.

    Raises:
        UserError: clusters of a test split, data that do not fit, an endpoint that fails or refuses.
    """
    members, pictures, output = members or MemberSettings(), pictures or PictureSettings(), Path(output)
    if concurrency < 1:
        raise UserError(f"concurrency is {concurrency}, it must be at least 1.")
    _check_output(output)
    clusters = Clusters.open(folder)
    place = Path(cache) if cache is not None else output.with_name(f"{output.stem}_cache")
    chosen = choose_members(folder, clusters.count, members)
    memes, described_data = open_members(clusters, data or Data(), chosen)
    seen, describer = _seen(memes, pictures, place, device, show)
    questions = _questions(clusters, [tuple(seen[name] for name in names) for names in chosen], pictures)
    with OpenAIClient(settings, key, place, GuidanceFormat()) as client:
        answers = _ask_all(client, questions, concurrency, partial, show)
    entries = [_entry(cluster, names, answers.get(cluster)) for cluster, names in enumerate(chosen)]
    described = {
        "teacher": _teacher(settings, answers, describer),
        "settings": _settings(settings, members, pictures),
        "data": described_data,
    }
    return _write(output, clusters, entries, command=command, notes=_notes(entries, answers), **described)


def take_texts(folder: str | Path, texts: str | Path, output: str | Path, *, command: str = "") -> Guidance:
    """Write guidance of clusters from texts that somebody wrote; see `read_texts`.

    Raises:
        UserError: no clusters, clusters of a test split, or not one text for each of them.
    """
    clusters, output = Clusters.open(folder), Path(output)
    fitted_split(clusters.manifest, folder)
    _check_output(output)
    entries = []
    for cluster, text in enumerate(read_texts(texts, clusters.count)):
        clean = clean_guidance(text)
        entries.append(_described(cluster, clean, cut=len(clean.split()) < len(text.split())))
    teacher = TeacherDescription(kind="file", file=Path(texts).name, file_sha256=digest_of(texts))
    return _write(output, clusters, entries, command=command, teacher=teacher, notes=_notes(entries, {}))


def _check_output(output: Path) -> None:
    """Raise `UserError` where something would be lost: another kind of file, or texts that were edited by hand."""
    if output.is_dir():
        raise UserError(f"{output} is a folder; give the name of a file, such as {output / GUIDANCE_FILE}.")
    if not output.is_file():
        return
    there = Guidance.open(output)
    edited = [str(cluster) for cluster in range(there.count) if there.edited(cluster)]
    if edited:
        raise UserError(
            f"{output} holds texts that were edited by hand (clusters {', '.join(edited)}), which would be lost; give "
            "another --output, or remove it."
        )


def _seen(
    memes: Mapping[str, Meme], pictures: PictureSettings, cache: Path, device: torch.device | None, show: bool
) -> tuple[dict[str, Member], dict[str, Any] | None]:
    """The memes as the teacher sees them, and the model that described images."""
    if pictures.images:
        return {name: Member(meme) for name, meme in memes.items()}, None
    found, describer = descriptions_of(memes), None
    rest = [meme for name, meme in memes.items() if name not in found]
    if rest and pictures.describe_with is None:
        raise_all(
            [f"{meme.id!r}" for meme in rest],
            "These memes have no `description`, and images are not sent; let a model describe them (--describe-with)",
        )
    if rest and pictures.describe_with is not None:
        run = open_describer(pictures.describe_with, pictures.describe_template)
        device = device or torch.device("cpu")
        found |= describe(run, rest, cache, device=device, engine=pictures.engine, show=show)
        describer = described_by(run)
    return {name: Member(meme, found[name]) for name, meme in memes.items()}, describer


def _questions(
    clusters: Clusters, members: Sequence[tuple[Member, ...]], pictures: PictureSettings
) -> list[ClusterQuestion]:
    """A question about each cluster that has a meme."""
    return [
        ClusterQuestion(cluster, clusters.digest, shown, pictures.image_side)
        for cluster, shown in enumerate(members)
        if shown
    ]


def _ask_all(
    client: OpenAIClient[TeacherText],
    questions: Sequence[ClusterQuestion],
    concurrency: int,
    partial: bool,
    show: bool,
) -> dict[int, tuple[ClusterQuestion, Answer[TeacherText]]]:
    """Ask about all clusters. Raises `UserError` where an answer is missing that must not be."""
    found: dict[int, tuple[ClusterQuestion, Answer[TeacherText]]] = {}
    asked = ((1, one) for one in ask_all(questions, lambda one: _ask(client, one), concurrency))
    try:
        for number, answer in track(asked, "Asking", len(questions), "clusters", show=show):
            found[questions[number].cluster] = questions[number], answer
    except SilentEndpoint:
        _give_up(client, found, "the first questions failed")
    if not partial and any(answer.value is None for _, answer in found.values()):
        _give_up(client, found, "the same command asks again only for these; --partial leaves their texts empty")
    return found


def _ask(client: OpenAIClient[TeacherText], question: ClusterQuestion) -> Answer[TeacherText]:
    return client.ask(question.messages(), question.key())


def _give_up(client: OpenAIClient[TeacherText], found: _Answers, why: str) -> NoReturn:
    settings = client.settings
    problems = [
        f"cluster {cluster}: {answer.failure}: {answer.message}"
        for cluster, (_, answer) in sorted(found.items())
        if answer.value is None
    ]
    with_images = any(member.description is None for question, _ in found.values() for member in question.members)
    if with_images and any(answer.failure in _REJECTED for _, answer in found.values()):
        why += "; if this model sees no pictures, give --no-images"
    raise_all(problems, f"{settings.host} gave no guidance by {settings.model!r}; {why}")
    raise AssertionError


def _entry(
    cluster: int, names: Iterable[str], answered: tuple[ClusterQuestion, Answer[TeacherText]] | None
) -> ClusterGuidance:
    if answered is None:
        return _described(cluster, "")
    question, answer = answered
    text = answer.value or TeacherText("")
    asked = sha256_bytes(repr(question.key()).encode())
    return _described(cluster, text.text, members=list(names), request_sha256=asked, cut=text.cut)


def _described(cluster: int, text: str, **more: Any) -> ClusterGuidance:
    return ClusterGuidance(cluster=cluster, text=text, sha256=sha256_bytes(text.encode()), **more)


def _teacher(settings: TeacherSettings, answers: _Answers, describer: dict[str, Any] | None) -> TeacherDescription:
    served = sorted({answer.served for _, answer in answers.values()} - {""})
    return TeacherDescription(
        kind="endpoint", model=settings.model, host=settings.host, served=served, describer=describer
    )


def _settings(settings: TeacherSettings, members: MemberSettings, pictures: PictureSettings) -> dict[str, Any]:
    """The settings that texts depend on, for the manifest."""
    stated = settings.model_dump() | members.model_dump()
    stated |= {"images": pictures.images, "image_side": pictures.image_side if pictures.images else None}
    return plain(stated | {"instruction_sha256": sha256_bytes(INSTRUCTION.encode())})


def _notes(entries: Sequence[ClusterGuidance], answers: _Answers) -> list[str]:
    failed = {cluster: answer for cluster, (_, answer) in answers.items() if answer.value is None}
    notes = [
        f"Cluster {cluster} has no guidance: {answer.failure}: {answer.message}"
        for cluster, answer in sorted(failed.items())
    ]
    empty = [str(entry.cluster) for entry in entries if not entry.text and entry.cluster not in failed]
    if empty:
        notes.append(f"Clusters without a meme have no guidance: {', '.join(empty)}.")
    cut = [str(entry.cluster) for entry in entries if entry.cut]
    if cut:
        notes.append(f"Texts that were longer and have been cut: {', '.join(cut)}.")
    return notes


def _write(output: Path, clusters: Clusters, entries: list[ClusterGuidance], **described: Any) -> Guidance:
    texts = tuple(entry.text for entry in entries)
    manifest = GuidanceManifest.new(clusters=clusters.digest, guidance=entries, **described)
    guidance = Guidance(texts, clusters.digest, manifest)
    guidance.copy_to(output)
    return guidance
