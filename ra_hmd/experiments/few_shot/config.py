"""Settings of `ra-hmd few-shot`: data, recipe, clusters, guidance, shots and arms."""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar

import yaml
from pydantic import Field, field_validator

from ra_hmd.core.config import Settings
from ra_hmd.core.errors import UserError, raise_all
from ra_hmd.experiments.few_shot.arms import ARMS, SET_BY_STUDY, ArmName
from ra_hmd.retrieval.voting import VoteWeights, Voting

DEFAULT_ARMS: tuple[ArmName, ...] = (
    *("zero_shot", "guidance", "rkc", "krr", "lora", "lora_matched", "hydralora"),
    *("ssmoe", "ssmoe_guidance_shuffled", "ssmoe_ids_shuffled"),
)
_NEEDED = ("model_name_or_path", "template")


class FewShotSettings(Settings):
    """Settings of a few-shot study."""

    TITLE: ClassVar[str] = "few-shot"

    data: Path = Field(description="Imported data set: a folder with <split>.jsonl.")
    output_dir: Path = Field(description="Folder for runs, features, the report and the record of finished steps.")
    train_split: str = Field(default="train", description="Split that the shots are drawn from.")
    test_split: str = Field(default="test", description="Split to score; `test` needs --final.")
    task: str | None = Field(default=None, description="Binary task that gives the labels; null: the first.")
    recipe: Path | None = Field(default=None, description="YAML file of stage `sft-classifier` that all arms share.")
    keys: dict[str, Any] = Field(default_factory=dict, description="Keys of Stage 1 in place of those in `recipe`.")
    model: str | None = Field(default=None, description="Model, in place of the recipe's `model_name_or_path`.")
    clusters: Path | None = Field(default=None, description="Folder of `ra-hmd cluster`, fitted on `train_split`.")
    guidance: Path | None = Field(default=None, description="File of `ra-hmd guidance` for these clusters.")
    k_shot: Path | None = Field(
        default=None, description="Lists of `ra-hmd data k-shot`, made if missing; null: the data folder's own."
    )
    shots: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        default=(4, 8, 16), min_length=1, description="Numbers of labelled memes of each class."
    )
    seeds: int = Field(default=5, ge=1, description="Number of lists, and trainings on them, for each K.")
    arms: tuple[ArmName, ...] = Field(default=DEFAULT_ARMS, min_length=1, description="Arms of the study.")
    topk: int = Field(default=20, ge=1, description="K of the vote of arm `rkc`; of fewer shots all vote.")
    weights: VoteWeights = Field(default="arithmetic", description="Weights of that vote.")
    batch_size: int = Field(default=16, ge=1, description="Memes per forward pass of an extraction.")
    bootstrap_samples: int = Field(default=1000, ge=1, description="Resamples of each 95 % interval.")
    seed: int = Field(default=0, description="Seed of the resampling.")

    @field_validator("shots", "arms", mode="after")
    @classmethod
    def _unique(cls, values: tuple[Any, ...]) -> tuple[Any, ...]:
        if len(set(values)) < len(values):
            raise ValueError(f"{list(values)} names one twice; name each once")
        return values

    def _problems(self) -> Iterator[str]:
        if self.train_split == self.test_split:
            yield f"`train_split` and `test_split` are both {self.test_split!r}; the shots would be scored."
        for name in ("clusters", "guidance"):
            arms = [arm for arm in self.arms if getattr(ARMS[arm], name) is not None]
            # SSMoE without guidance is a study of its own; what is shuffled or shown alone must exist.
            arms = [arm for arm in arms if name == "clusters" or arm not in ("ssmoe", "ssmoe_ids_shuffled")]
            if arms and getattr(self, name) is None:
                yield f"`{name}` is not set; the arms {', '.join(arms)} need it. Set it, or leave them out of `arms`."
        if self.guidance is not None and self.clusters is None:
            yield "`guidance` belongs to clusters; set `clusters` too."
        reserved = sorted(set(self.keys) & set(SET_BY_STUDY))
        if reserved:
            yield f"`keys` has {', '.join(reserved)}, which the study sets itself; leave them out."

    @property
    def voting(self) -> Voting:
        """Settings of the vote of arm `rkc`."""
        return Voting(self.topk, self.weights)

    @cached_property
    def base(self) -> dict[str, Any]:
        """Keys of Stage 1 that all arms share: those of `recipe`, with `keys` and `model` in their place.

        Clusters and guidance are not among them: the arms differ in these.

        Raises:
            UserError: no such file, no YAML, or a recipe that these arms cannot share.
        """
        values: Any = {}
        if self.recipe is not None:
            if not self.recipe.is_file():
                raise UserError(f"`recipe`: {self.recipe} does not exist; give a YAML file of Stage 1.")
            try:
                values = yaml.safe_load(self.recipe.read_text(encoding="utf-8"))
            except (yaml.YAMLError, UnicodeDecodeError) as error:
                raise UserError(f"`recipe`: {self.recipe} is not valid YAML: {error}") from error
            if not isinstance(values, dict):
                raise UserError(f"`recipe`: {self.recipe} holds no keys; lines such as `key: value` are needed.")
        merged = {**values, **self.keys} | ({} if self.model is None else {"model_name_or_path": self.model})
        raise_all(list(_recipe_problems(merged)), f"The recipe {self.recipe or '(keys)'} cannot be shared by the arms")
        return {key: value for key, value in merged.items() if key not in ("clusters", "guidance")}


def _recipe_problems(base: dict[str, Any]) -> Iterator[str]:
    for key in _NEEDED:
        if not base.get(key):
            yield f"`{key}` is missing; set it in the recipe or in `keys`."
    if base.get("stage", "sft-classifier") != "sft-classifier":
        yield f"`stage: {base['stage']}`: experts and LMH scores need `sft-classifier`."
    if base.get("finetuning_type", "lora") != "lora":
        yield f"`finetuning_type: {base['finetuning_type']}`: the arms are compared by their adapters; use `lora`."
    if base.get("problem_type", "binary") != "binary":
        yield f"`problem_type: {base['problem_type']}`: the study is limited to two classes."
    if base.get("adapter_name_or_path"):
        yield f"`adapter_name_or_path: {base['adapter_name_or_path']}`: the arms start from the model; remove it."
