"""YAML keys of stage `sft-classifier`, on top of LLaMA-Factory's own."""

import dataclasses
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from llamafactory.hparams import FinetuningArguments
from pydantic import ConfigDict, Field, NonNegativeFloat, PositiveFloat, PositiveInt

from llamafactory_ext.expert_arguments import ExpertArguments, expert_problems, set_default_target
from llamafactory_ext.host_arguments import refusals
from llamafactory_ext.launchers import STAGE
from llamafactory_ext.ray_arguments import RayTrainingArguments
from llamafactory_ext.retention_arguments import RetentionArguments, retention_problems
from ra_hmd.core.config import Rate, validate_fields, without
from ra_hmd.core.errors import UserError, raise_all
from ra_hmd.core.problem import Problem, ProblemType
from ra_hmd.data.prompt import OFFICIAL_PROMPT, Answers, PromptTemplate
from ra_hmd.models.head import HeadConfig
from ra_hmd.models.losses import ClassWeights, Objective
from ra_hmd.models.tokenization import expected_answers
from stage2.losses.official import LossName
from stage2.losses.settings import RetrievalLossSettings
from stage2.losses.similarity import LossMetric


class JointLossSettings(RetrievalLossSettings):
    """Settings of the retrieval-guided loss in joint training: the YAML keys with the prefix `rgcl_`."""

    TITLE: ClassVar[str] = "rgcl"

    model_config = ConfigDict(alias_generator=lambda name: f"rgcl_{'metrics' if name == 'metric' else name}")

    pseudo_gold_positives: PositiveInt = Field(
        default=1, description="Nearest other rows of the same class per anchor."
    )
    reindex_every: PositiveInt = Field(
        default=250, description="Optimizer steps after which the bank is embedded and mined again."
    )
    warmup: int = Field(default=0, ge=0, description="Optimizer steps before this loss begins; no bank until then.")


_JOINT = JointLossSettings.model_fields
_JOINT_HELP = {name: {"help": f"sft-classifier, rgcl: {info.description}"} for name, info in _JOINT.items()}


@dataclass
class ClassifierFinetuningArguments(RayTrainingArguments, RetentionArguments, ExpertArguments, FinetuningArguments):
    """LLaMA-Factory's fine-tuning arguments plus ours. Names and defaults are those of the official RA-HMD files."""

    stage: Literal["pt", "sft", "rm", "ppo", "dpo", "kto", "sft-classifier"] = field(
        default="sft",
        metadata={"help": "Which stage will be performed in training."},
    )
    lora_target: str | None = field(  # the host's default, "all", stays that of runs without experts
        default=None,
        metadata=dict(FinetuningArguments.__dataclass_fields__["lora_target"].metadata),
    )
    loss_ratio: list[NonNegativeFloat] = field(
        default_factory=lambda: [1.0, 1.0],
        metadata={"help": "sft-classifier: r0, r1 of the loss r0 * L_LM + r1 * L_LRC; with rgcl also r2, of L_RGCL."},
    )
    classifier_lr: PositiveFloat = field(
        default=1e-4,
        metadata={"help": "sft-classifier: learning rate of the head (the adapter has `learning_rate`)."},
    )
    num_layers: PositiveInt = field(
        default=2,
        metadata={"help": "sft-classifier: linear layers of the head; all but the last are hidden blocks."},
    )
    proj_dim: PositiveInt = field(
        default=1024,
        metadata={"help": "sft-classifier: width of the head's hidden blocks, and of the retrieval embedding."},
    )
    output_dim: PositiveInt = field(
        default=1,
        metadata={"help": "sft-classifier: logits of the head: 1 is binary, else the number of classes."},
    )
    problem_type: ProblemType = field(
        default="binary",
        metadata={"help": "sft-classifier: binary, single_label (one of C classes) or multi_label (any of C classes)."},
    )
    classification_loss: Literal["cross_entropy", "focal"] = field(
        default="cross_entropy",
        metadata={"help": "sft-classifier: loss of the head: cross_entropy (BCE unless single_label) or focal."},
    )
    focal_gamma: NonNegativeFloat = field(
        default=2.0,
        metadata={"help": "sft-classifier: gamma of classification_loss focal; 0 is cross-entropy."},
    )
    class_weights: ClassWeights = field(
        default="none",
        metadata={
            "help": "sft-classifier: what a class weighs: none, balanced (1/n) or effective_number (in between)."
        },
    )
    class_balance_beta: Annotated[float, Field(ge=0, lt=1)] = field(
        default=0.999,
        metadata={"help": "sft-classifier: beta of class_weights effective_number: 0 is none, towards 1 balanced."},
    )
    input_dropout: Rate = field(
        default=0.0,
        metadata={"help": "sft-classifier: dropout on the head's input."},
    )
    dropout: list[Rate] | None = field(
        default=None,
        metadata={"help": "sft-classifier: dropout after each hidden block of the head, e.g. [0.2, 0.4]; unset: none."},
    )
    embed_mode: Literal["last_token", "pool"] = field(
        default="last_token",
        metadata={"help": "sft-classifier: the head reads the last prompt token, or the mean over the prompt."},
    )
    embed_layer: Literal["last", "penultimate"] = field(
        default="last",
        metadata={"help": "sft-classifier: layer that the head reads; `penultimate` keeps every layer in memory."},
    )
    positive_answer: str = field(
        default="Yes",
        metadata={"help": "sft-classifier: first word of the answer of class 1."},
    )
    negative_answer: str = field(
        default="No",
        metadata={"help": "sft-classifier: first word of the answer of class 0."},
    )
    answers: list[str] | None = field(
        default=None,
        metadata={"help": "sft-classifier: of C classes, in order, how each answer begins; multi_label: the names."},
    )
    prompt_template: str = field(
        default=OFFICIAL_PROMPT,
        metadata={"help": "sft-classifier: the question of the data, with <image> once and {text} for the caption."},
    )
    overlong_caption: Literal["shorten", "error"] = field(
        default="shorten",
        metadata={"help": "sft-classifier: a caption that does not fit in cutoff_len is shortened, or refused."},
    )
    fold_captions: bool = field(
        default=False,
        metadata={"help": "sft-classifier: fold captions first: one spelling for look-alikes, nothing invisible."},
    )
    rgcl: bool = field(
        default=False,
        metadata={"help": "sft-classifier: add a retrieval-guided loss on the head's embedding (joint training)."},
    )
    rgcl_loss: LossName = field(default=_JOINT["loss"].default, metadata=_JOINT_HELP["loss"])
    rgcl_metrics: LossMetric = field(default=_JOINT["metric"].default, metadata=_JOINT_HELP["metric"])
    rgcl_reindex_every: int = field(default=_JOINT["reindex_every"].default, metadata=_JOINT_HELP["reindex_every"])
    rgcl_warmup: int = field(default=_JOINT["warmup"].default, metadata=_JOINT_HELP["warmup"])
    rgcl_hard_negatives: int = field(default=_JOINT["hard_negatives"].default, metadata=_JOINT_HELP["hard_negatives"])
    rgcl_pseudo_gold_positives: int = field(
        default=_JOINT["pseudo_gold_positives"].default, metadata=_JOINT_HELP["pseudo_gold_positives"]
    )
    rgcl_temperature: float = field(default=_JOINT["temperature"].default, metadata=_JOINT_HELP["temperature"])
    rgcl_margin: float = field(default=_JOINT["margin"].default, metadata=_JOINT_HELP["margin"])

    def __post_init__(self) -> None:
        set_default_target(self)
        super().__post_init__()
        if self.stage != STAGE:
            return
        problems, invalid = validate_fields(self, OUR_FIELDS)
        problems += without([*refusals(self), *self._problems()], invalid)
        raise_all([f"YAML: {text}" for text in problems], f"Keys of stage {STAGE} that do not fit")

    def _problems(self) -> Iterator[str]:
        """Yield one sentence for each contradiction between fields."""
        most = 3 if self.rgcl else 2
        ratio = self.loss_ratio
        if not 2 <= len(ratio) <= most or sum(ratio) == 0:
            third = " (and r2 with `rgcl: true`)" if len(ratio) == 3 else ""
            yield f"`loss_ratio` is {ratio}; give two weights >= 0, not both 0: [r0, r1]{third}."
        yield from self._answer_problems()
        yield from self._rgcl_problems()
        yield from expert_problems(self)
        yield from retention_problems(self)
        for build in (lambda: self.head_config(1), lambda: self.prompt):
            try:
                build()
            except UserError as error:
                yield from error.problems

    def _answer_problems(self) -> Iterator[str]:
        """Contradictions between `problem_type`, `output_dim` and the answers."""
        if self.problem_type == "binary":
            words = [name for name in ("negative_answer", "positive_answer")
                     if not re.fullmatch(r"\w+", getattr(self, name))]  # fmt: skip
            for name in words:
                yield f"`{name}` is {getattr(self, name)!r}; give the first word of the answer alone."
            if self.output_dim > 1:
                yield f"`output_dim` is {self.output_dim}; set `problem_type: single_label` or `multi_label`."
            if self.answers is not None:
                yield "`answers` are of several classes; for two set `positive_answer` and `negative_answer`."
            if words or self.output_dim > 1 or self.answers is not None:
                return
        elif self.answers is None or len(self.answers) != self.output_dim:
            yield (
                f"`output_dim` is {self.output_dim}, and `answers` are {self.answers}; give the answers of all "
                "classes, in class order (`ra-hmd data to-sharegpt --task` writes the class names)."
            )
            return
        try:
            _ = self.expected_answers
        except UserError as error:
            yield from error.problems

    def _rgcl_problems(self) -> Iterator[str]:
        keys = {name: getattr(self, name) for name in OUR_FIELDS if name.startswith("rgcl_")}
        if not self.rgcl:
            for item in dataclasses.fields(self):
                if item.name in keys and keys[item.name] != item.default:
                    yield f"`{item.name}` is set without `rgcl: true`; set that too, or remove it."
            return
        try:
            _ = self.joint_loss
        except UserError as error:
            yield from error.problems
        if self.loss_ratio[2:] == [0]:
            yield "`rgcl: true`, but its weight in `loss_ratio` is 0; remove one of them."

    @property
    def joint_loss(self) -> JointLossSettings:
        """Settings of the retrieval-guided loss."""
        return JointLossSettings(**{name: getattr(self, name) for name in OUR_FIELDS if name.startswith("rgcl_")})

    @property
    def loss_weights(self) -> tuple[float, float, float]:
        """r0, r1 and r2 of the three losses; r2 is 1 unless given."""
        r0, r1, *r2 = self.loss_ratio
        return r0, r1, r2[0] if r2 else 1.0

    @property
    def problem(self) -> Problem:
        """Classification problem of the head."""
        return Problem(self.problem_type, self.output_dim)

    @property
    def objective(self) -> Objective:
        """The head's loss."""
        return Objective(self.problem, self.focal_gamma if self.classification_loss == "focal" else 0.0)

    def head_config(self, hidden_size: int) -> HeadConfig:
        """Shape of the head on an LMM of the given hidden size."""
        return HeadConfig(
            input_dim=hidden_size,
            num_layers=self.num_layers,
            proj_dim=self.proj_dim,
            output_dim=self.output_dim,
            input_dropout=self.input_dropout,
            dropout=tuple(self.dropout or ()),
            problem_type=self.problem_type,
        )

    @property
    def expected_answers(self) -> Answers:
        """Beginning of each class's answer, or the names that answers list, in class order."""
        return expected_answers(self.problem_type, self.answers or (), self.negative_answer, self.positive_answer)

    @property
    def prompt(self) -> PromptTemplate:
        """The question of the data."""
        return PromptTemplate(self.prompt_template)


OUR_FIELDS = tuple(
    name
    for name in ClassifierFinetuningArguments.__dataclass_fields__
    if name not in FinetuningArguments.__dataclass_fields__
)


def correct_host_arguments(args: dict[str, Any]) -> list[str]:
    """Mend, in place, what stock LLaMA-Factory 0.9.5 would silently misread in an official RA-HMD file.

    Returns:
        One sentence for each change.

    Raises:
        UserError: a quantisation method that no one knows.
    """
    notes = []
    method = args.get("quantization_method")
    if method == "bitsandbytes":
        args["quantization_method"] = "bnb"
        notes.append("`quantization_method: bitsandbytes` was read as `bnb` (the host would train unquantised).")
    elif method is not None and method not in ("bnb", "gptq", "awq", "aqlm", "quanto", "eetq", "hqq", "mxfp4", "fp8"):
        raise UserError(f"`quantization_method: {method}` is unknown to LLaMA-Factory; use `bnb` with 4 or 8 bits.")
    for key in ("classifier_lr", "learning_rate"):
        if isinstance(args.get(key), str):
            args[key] = float(args[key])
            notes.append(f"`{key}` was text to YAML ('1e-4' has no dot) and was read as {args[key]}.")
    return notes
