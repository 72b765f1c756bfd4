"""What a few-shot study writes before it starts, and its commands in order."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from ra_hmd.core.artifacts import fingerprint_model, plain, write_text
from ra_hmd.core.errors import UserError, raise_all
from ra_hmd.core.manifests import KShotManifest, ShotList, read_manifest
from ra_hmd.data.guidance import Guidance
from ra_hmd.data.k_shot import default_lists, write_k_shot
from ra_hmd.data.meme_dataset import MemeData, json_line, open_data
from ra_hmd.data.readers.tasks import Task
from ra_hmd.data.sharegpt_export import write_sharegpt
from ra_hmd.experiments.few_shot.arms import ARMS, ArmName, Source, arm_recipe
from ra_hmd.experiments.few_shot.config import FewShotSettings
from ra_hmd.experiments.pipeline import TRAINER, Step, overrides, ra_hmd
from ra_hmd.models.cluster_assignment import Clusters
from ra_hmd.models.tokenization import expected_answers

ZERO_SHOT: ArmName = "zero_shot"


@dataclass(frozen=True)
class Layout:
    """Places of a study's files below its output folder.

    Attributes:
        output: The output folder.
        union: Name of the memes of all lists together. A list holds the smaller one of the same seed, so that the
            largest K and the number of seeds decide which memes these are.
    """

    output: Path
    union: str

    @property
    def data(self) -> Path:
        """LLaMA-Factory's `dataset_dir` with the training file of each list."""
        return self.output / "data"

    @property
    def shots(self) -> Path:
        """All memes of the lists, once each. Not in `data`: a further list makes no training out of date."""
        return self.output / "shots" / f"{self.union}.jsonl"

    @property
    def shot_features(self) -> Path:
        """Features of these by the untuned model."""
        return self.output / "features" / ZERO_SHOT / self.union

    def recipe(self, arm: str) -> Path:
        """Stage 1 recipe of an arm, or the `base` of all."""
        return self.output / "recipes" / f"{arm}.yaml"

    def run(self, arm: ArmName, shots: int, seed: int) -> Path:
        """Folder of a training."""
        return self.output / "runs" / arm / f"{shots}-shot-seed-{seed}"

    def features(self, arm: ArmName, shots: int = 0, seed: int = 0) -> Path:
        """Features of the scored split by a training; of an arm without training the same for all K."""
        name = f"{shots}-shot-seed-{seed}" if ARMS[arm].tuning else "untuned"
        return self.output / "features" / arm / name

    def clusters(self, seed: int) -> Path:
        """Clusters whose ids are drawn."""
        return self.output / "shuffled" / f"clusters-{seed}"

    def guidance(self, of: str, seed: int) -> Path:
        """Guidance with other texts (`texts`), or for the shuffled clusters (`ids`)."""
        return self.output / "shuffled" / f"guidance-{of}-{seed}.json"


@dataclass(frozen=True)
class Study:
    """A study whose settings were checked.

    Attributes:
        settings: Its settings.
        data: The data set.
        task: The task that gives the labels.
        base: Keys of Stage 1 that all arms share, the question included.
        clusters: The clusters, if there are any.
        guidance: Their guidance, if there is any.
    """

    settings: FewShotSettings
    data: MemeData
    task: Task
    base: dict[str, Any]
    clusters: Clusters | None
    guidance: Guidance | None

    @classmethod
    def open(cls, settings: FewShotSettings) -> "Study":
        """Open data, clusters and guidance, and check that they and the recipe fit together.

        Raises:
            UserError: missing splits, a task of several classes, answers that are not the recipe's, or guidance of
                other clusters.
        """
        data = open_data(settings.data)
        task = data.task(settings.task)
        base = {**settings.base}
        base["prompt_template"] = base.get("prompt_template") or task.prompt
        raise_all(list(_data_problems(settings, data, task, base)), f"The data in {settings.data} do not fit")
        clusters = None if settings.clusters is None else Clusters.open(settings.clusters)
        guidance = None if settings.guidance is None else Guidance.open(settings.guidance)
        if clusters is not None and guidance is not None:
            guidance.check(clusters.digest, clusters.count)
        return cls(settings, data, task, base, clusters, guidance)

    @property
    def layout(self) -> Layout:
        """Places of the files."""
        settings = self.settings
        return Layout(settings.output_dir, f"{max(settings.shots)}-shot-{settings.seeds}-seeds")

    @property
    def lists(self) -> Path:
        """File of the K-shot lists."""
        settings = self.settings
        return settings.k_shot or default_lists(settings.data, settings.train_split, settings.task)

    @property
    def trained(self) -> list[ArmName]:
        """Arms that are trained."""
        return [arm for arm in self.settings.arms if ARMS[arm].tuning is not None]

    def stated(self, matched_rank: int) -> dict[str, Any]:
        """What every run of the study depends on, for its record: with other values the runs would not compare."""
        settings = self.settings
        return plain(
            {
                "data": str(settings.data),
                "fingerprint": self.data.manifest.fingerprint,
                "splits": [settings.train_split, settings.test_split],
                "task": self.task.name,
                "recipe": self.base,
                "model": fingerprint_model(str(self.base["model_name_or_path"])),
                "matched_rank": matched_rank,
                "clusters": None if self.clusters is None else self.clusters.digest,
                "guidance": None if self.guidance is None else self.guidance.digest,
            }
        )


def _data_problems(settings: FewShotSettings, data: MemeData, task: Task, base: Mapping[str, Any]) -> Iterator[str]:
    for name in ("train_split", "test_split"):
        if getattr(settings, name) not in data.splits:
            yield f"`{name}` is {getattr(settings, name)!r}; it has {', '.join(data.splits)}."
    if task.multi_label or len(task.classes) != 2:
        yield f"task {task.name!r} has the classes {', '.join(task.classes)}; the study is limited to two."
        return
    words = [str(base.get(key, word)) for key, word in (("negative_answer", "No"), ("positive_answer", "Yes"))]
    known = expected_answers("binary", (), *words)
    for label, answer in enumerate(task.answers):
        try:
            found: Any = known.label_of(answer)
        except ValueError as error:
            found = error
        if found != label:
            yield f"the answer of class {label} is {answer!r}, and the recipe's answers are {' and '.join(words)}."


def prepare(study: Study, matched_rank: int) -> None:
    """Write lists, training files, recipes and shuffled controls. What is there already and the same is left alone."""
    settings, layout = study.settings, study.layout
    lists = _lists(study)
    union: set[str] = set()
    for shots, seed in _pairs(settings):
        ids = lists[shots, seed]
        union |= set(ids)
        write_sharegpt(
            settings.data,
            layout.data,
            task=settings.task,
            prompt=study.base["prompt_template"],
            name=shot_name(shots, seed),
            splits=[settings.train_split],
            shots=ShotList(shots=shots, seed=seed, ids=ids),
        )
    _write_once(layout.shots, "".join(_shot_rows(study, union)))
    for arm in study.trained:
        recipe = arm_recipe(ARMS[arm], study.base, matched_rank)
        _write_once(layout.recipe(arm), yaml.safe_dump(plain(recipe), sort_keys=False, allow_unicode=True))
    _write_once(layout.recipe("base"), yaml.safe_dump(plain(study.base), sort_keys=False, allow_unicode=True))
    for seed in range(settings.seeds):
        _write_shuffled(study, seed)


def _lists(study: Study) -> dict[tuple[int, int], list[str]]:
    """(K, seed) → ids. Lists that are missing are drawn.

    Raises:
        UserError: lists of another task, or of K memes in total.
    """
    settings = study.settings
    if study.lists.is_file():
        manifest = read_manifest(study.lists, KShotManifest)
        if (manifest.split, manifest.task, manifest.per_class) != (settings.train_split, study.task.name, True):
            how = "each class" if manifest.per_class else "all classes together"
            raise UserError(
                f"{study.lists} has lists of K memes of {how}, of split {manifest.split!r} and task {manifest.task!r}; "
                f"the study needs K of each class, of {settings.train_split!r} and {study.task.name!r}. Give another "
                "`k_shot`."
            )
        found = {(one.shots, one.seed): one.ids for one in manifest.lists}
        if set(_pairs(settings)) <= set(found):
            return found
    write_k_shot(
        settings.data,
        list(settings.shots),
        seeds=settings.seeds,
        split=settings.train_split,
        task=settings.task,
        output=study.lists,
    )
    return {(one.shots, one.seed): one.ids for one in read_manifest(study.lists, KShotManifest).lists}


def shot_name(shots: int, seed: int) -> str:
    """Name of a list's training file in `dataset_info.json`."""
    return f"{shots}_shot_seed_{seed}"


def _pairs(settings: FewShotSettings) -> list[tuple[int, int]]:
    return [(shots, seed) for shots in settings.shots for seed in range(settings.seeds)]


def _shot_rows(study: Study, ids: set[str]) -> Iterator[str]:
    """Lines of the memes with these ids, labelled by the study's task."""
    for meme in study.data.memes(study.settings.train_split):
        if meme.id in ids:
            row = replace(meme, label=None, extras={}, image=Path(os.path.normpath(meme.path.absolute()))).to_row()
            yield json_line(row | {"label": study.data.value(study.task, meme)})


def _write_shuffled(study: Study, seed: int) -> None:
    """Write the shuffled clusters and guidance that the arms need."""
    layout, arms = study.layout, [ARMS[arm] for arm in study.settings.arms]
    guidance = study.guidance
    if guidance is not None and any(arm.guidance == "shuffled" for arm in arms):
        _write_guidance(layout.guidance("texts", seed), guidance.shuffled(seed))
    if study.clusters is None or not any(arm.clusters == "shuffled" for arm in arms):
        return
    shuffled, place = study.clusters.shuffled(seed), layout.clusters(seed)
    if not place.is_dir() or Clusters.open(place).digest != shuffled.digest:
        shuffled.copy_to(place)
    if guidance is not None:
        _write_guidance(layout.guidance("ids", seed), replace(guidance, clusters=shuffled.digest))


def _write_guidance(path: Path, guidance: Guidance) -> None:
    if not path.is_file() or Guidance.open(path) != guidance:
        path.parent.mkdir(parents=True, exist_ok=True)
        guidance.copy_to(path)


def _write_once(path: Path, text: str) -> None:
    """Write a file unless it has this content: steps that name it are done again when it is newer."""
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        write_text(path, text)


def few_shot_steps(study: Study) -> list[Step]:
    """Commands in order: what needs no training, then for each K and seed every arm, so that a fault shows early."""
    settings, layout, arms = study.settings, study.layout, study.settings.arms
    steps: list[Step] = []
    of_shots = [arm for arm in arms if ARMS[arm].bank_head is not None]
    if ZERO_SHOT in arms or of_shots:
        steps.append(Step("Untuned model: scored split", _untuned(study, ZERO_SHOT)))
    if of_shots:
        shots = ra_hmd("extract", data=layout.shots, split=settings.train_split, output=layout.shot_features)
        steps.append(Step("Untuned model: shots", [*shots, *_bare(study)]))
    if "guidance" in arms:
        steps.append(Step("Untuned model with guidance: scored split", _untuned(study, "guidance")))
    for shots_of, seed in _pairs(settings):
        for arm in study.trained:
            title = f"{shots_of} shots, seed {seed}: {ARMS[arm].title}"
            steps.append(Step(f"Train · {title}", _train(study, arm, shots_of, seed)))
            words = ra_hmd("extract", checkpoint=layout.run(arm, shots_of, seed), **_scored(study))
            words += ["--output", str(layout.features(arm, shots_of, seed))]
            steps.append(Step(f"Score · {title}", words))
    return steps


def _scored(study: Study) -> dict[str, object]:
    """Options of the split that is scored."""
    settings = study.settings
    task = {} if settings.task is None else {"task": settings.task}
    return {"data": settings.data, "split": settings.test_split, "batch_size": settings.batch_size, **task}


def _bare(study: Study) -> list[str]:
    """Options of the untuned model, which reads memes as the recipe says."""
    model = str(study.base["model_name_or_path"])
    return ["--backbone-only", "--checkpoint", model, "--config", str(study.layout.recipe("base"))]


def _untuned(study: Study, arm: ArmName) -> list[str]:
    words = ra_hmd("extract", **_scored(study), output=study.layout.features(arm)) + _bare(study)
    given = _guides(study, arm, 0)
    return words + [word for key, place in given.items() for word in (f"--{key}", str(place))]


def _train(study: Study, arm: ArmName, shots: int, seed: int) -> list[str]:
    layout = study.layout
    values: dict[str, object] = {
        "dataset_dir": layout.data,
        "dataset": shot_name(shots, seed),
        "output_dir": layout.run(arm, shots, seed),
        "seed": seed,
    }
    return [TRAINER, "train", str(layout.recipe(arm)), *overrides(values | _guides(study, arm, seed))]


def _guides(study: Study, arm: ArmName, seed: int) -> dict[str, object]:
    """Clusters and guidance of an arm's run, by the names of their keys and options."""
    settings, layout, stated = study.settings, study.layout, ARMS[arm]
    found: dict[str, object] = {}
    places: dict[Source, object] = {"own": settings.clusters, "shuffled": layout.clusters(seed)}
    if stated.clusters is not None:
        found["clusters"] = places[stated.clusters]
    if stated.guidance is not None and settings.guidance is not None:
        ids_drawn = stated.clusters == "shuffled"
        changed = layout.guidance("ids" if ids_drawn else "texts", seed)
        found["guidance"] = changed if ids_drawn or stated.guidance == "shuffled" else settings.guidance
    return found


def check_known(study: Mapping[str, Any], known: Mapping[str, Any] | None, place: Path) -> None:
    """Raise `UserError` where an earlier start of the study in `place` depended on something else."""
    differing = [
        f"{key} was {known.get(key)!r} and is {study[key]!r}" for key in study if known and known.get(key) != study[key]
    ]
    if differing:
        raise UserError(
            f"{place} holds a study of something else: {'; '.join(differing)[:800]}. Give another `output_dir`, or "
            "remove it."
        )
