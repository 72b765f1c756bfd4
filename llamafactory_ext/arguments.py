"""The YAML keys of stage `sft-classifier`, on top of LLaMA-Factory's own."""

import re
from dataclasses import dataclass, field
from typing import Any, Literal

from llamafactory.hparams import FinetuningArguments

from llamafactory_ext.host_arguments import refusals
from llamafactory_ext.launchers import STAGE
from ra_hmd.core.config import coerce_fields
from ra_hmd.core.errors import UserError, raise_all
from ra_hmd.core.problem import Problem, ProblemType
from ra_hmd.data.prompt import OFFICIAL_PROMPT, Answers, PromptTemplate
from ra_hmd.models.head import HeadConfig
from ra_hmd.models.losses import ClassWeights, Objective
from ra_hmd.models.tokenization import expected_answers


@dataclass
class ClassifierFinetuningArguments(FinetuningArguments):
    """LLaMA-Factory's fine-tuning arguments plus ours. Names and defaults are those of the official RA-HMD files."""

    stage: Literal["pt", "sft", "rm", "ppo", "dpo", "kto", "sft-classifier"] = field(
        default="sft",
        metadata={"help": "Which stage will be performed in training."},
    )
    loss_ratio: list[float] = field(
        default_factory=lambda: [1.0, 1.0],
        metadata={"help": "sft-classifier: r0, r1 of the loss r0 * L_LM + r1 * L_LRC; with rgcl also r2, of L_RGCL."},
    )
    classifier_lr: float = field(
        default=1e-4,
        metadata={"help": "sft-classifier: learning rate of the head (the adapter has `learning_rate`)."},
    )
    num_layers: int = field(
        default=2,
        metadata={"help": "sft-classifier: linear layers of the head; all but the last are hidden blocks."},
    )
    proj_dim: int = field(
        default=1024,
        metadata={"help": "sft-classifier: width of the head's hidden blocks, and of the retrieval embedding."},
    )
    output_dim: int = field(
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
    focal_gamma: float = field(
        default=2.0,
        metadata={"help": "sft-classifier: gamma of classification_loss focal; 0 is cross-entropy."},
    )
    class_weights: ClassWeights = field(
        default="none",
        metadata={
            "help": "sft-classifier: what a class weighs: none, balanced (1/n) or effective_number (in between)."
        },
    )
    class_balance_beta: float = field(
        default=0.999,
        metadata={"help": "sft-classifier: beta of class_weights effective_number: 0 is none, towards 1 balanced."},
    )
    input_dropout: float = field(
        default=0.0,
        metadata={"help": "sft-classifier: dropout on the head's input."},
    )
    dropout: list[float] | None = field(
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
    rgcl: bool = field(
        default=False,
        metadata={"help": "sft-classifier: add a retrieval-guided loss on the head's embedding (joint training)."},
    )
    rgcl_loss: Literal["contrastive", "triplet", "naive"] = field(
        default="contrastive",
        metadata={"help": "sft-classifier, rgcl: which loss, as in Stage 2 (docs/stage2.md)."},
    )
    rgcl_metrics: Literal["cos", "ip", "l2"] = field(
        default="ip",
        metadata={"help": "sft-classifier, rgcl: similarity of loss and mining: cos, ip (inner product / D), l2."},
    )
    rgcl_reindex_every: int = field(
        default=250,
        metadata={"help": "sft-classifier, rgcl: optimizer steps after which the bank is embedded and mined again."},
    )
    rgcl_warmup: int = field(
        default=0,
        metadata={"help": "sft-classifier, rgcl: optimizer steps before this loss begins; no bank until then."},
    )
    rgcl_hard_negatives: int = field(
        default=1,
        metadata={"help": "sft-classifier, rgcl: nearest rows of other classes per anchor; 0: none."},
    )
    rgcl_pseudo_gold_positives: int = field(
        default=1,
        metadata={"help": "sft-classifier, rgcl: nearest other rows of the same class per anchor."},
    )
    rgcl_temperature: float = field(
        default=1.0,
        metadata={"help": "sft-classifier, rgcl_loss contrastive: similarities are divided by it."},
    )
    rgcl_margin: float = field(
        default=0.1,
        metadata={"help": "sft-classifier, rgcl_loss triplet: how much nearer positives must be."},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stage != STAGE:
            return
        problems = coerce_fields(self, OUR_FIELDS, "YAML")
        raise_all(problems or self._cross_check(), f"Keys of stage {STAGE} that do not fit")

    def _cross_check(self) -> list[str]:
        problems = refusals(self)
        most = 3 if self.rgcl else 2
        ratio = self.loss_ratio
        if not 2 <= len(ratio) <= most or min(ratio, default=-1) < 0 or sum(ratio) == 0:
            third = " (and r2 with `rgcl: true`)" if len(ratio) == 3 else ""
            problems.append(f"`loss_ratio` is {ratio}; give two weights >= 0, not both 0: [r0, r1]{third}.")
        if self.classifier_lr <= 0:
            problems.append(f"`classifier_lr` is {self.classifier_lr}; it must be above 0.")
        if self.focal_gamma < 0:
            problems.append(f"`focal_gamma` is {self.focal_gamma}; it must not be negative.")
        if not 0 <= self.class_balance_beta < 1:
            problems.append(f"`class_balance_beta` is {self.class_balance_beta}; it must lie in [0, 1).")
        problems += self._answer_problems() + self._rgcl_problems()
        for build in (lambda: self.head_config(1), lambda: self.prompt):
            try:
                build()
            except UserError as error:
                problems.append(str(error))
        return problems

    def _answer_problems(self) -> list[str]:
        """What keeps `problem_type`, `output_dim` and the answers from fitting together."""
        if self.problem_type == "binary":
            problems = [f"`{name}` is {getattr(self, name)!r}; give the first word of the answer alone."
                        for name in ("negative_answer", "positive_answer")
                        if not re.fullmatch(r"\w+", getattr(self, name))]  # fmt: skip
            if self.output_dim > 1:
                problems.append(
                    f"`output_dim` is {self.output_dim}; set `problem_type: single_label` or `multi_label`."
                )
            if self.answers is not None:
                problems.append("`answers` are of several classes; of a binary problem set `positive_answer` and "
                                "`negative_answer`.")  # fmt: skip
            return problems or self._same_answers()
        if self.answers is None or len(self.answers) != self.output_dim:
            return [
                f"`output_dim` is {self.output_dim}, and `answers` are {self.answers}; give the answers of all "
                "classes, in class order (`ra-hmd data to-sharegpt --task` writes the class names)."
            ]
        return self._same_answers()

    def _same_answers(self) -> list[str]:
        try:
            _ = self.expected_answers
        except UserError as error:
            return [str(error)]
        return []

    def _rgcl_problems(self) -> list[str]:
        names = [name for name in OUR_FIELDS if name.startswith("rgcl_")]
        if not self.rgcl:
            defaults = type(self).__dataclass_fields__
            return [f"`{name}` is set without `rgcl: true`; set that too, or remove it." for name in names
                    if getattr(self, name) != defaults[name].default]  # fmt: skip
        least = {"rgcl_reindex_every": 1, "rgcl_pseudo_gold_positives": 1, "rgcl_warmup": 0, "rgcl_hard_negatives": 0}
        problems = [f"`{name}` is {getattr(self, name)}; it must be at least {low}." for name, low in least.items()
                    if getattr(self, name) < low]  # fmt: skip
        if self.rgcl_temperature <= 0:
            problems.append(f"`rgcl_temperature` is {self.rgcl_temperature}; it must be above 0.")
        if self.rgcl_margin < 0:
            problems.append(f"`rgcl_margin` is {self.rgcl_margin}; it must not be negative.")
        if self.loss_ratio[2:] == [0]:
            problems.append("`rgcl: true`, but its weight in `loss_ratio` is 0; remove one of them.")
        return problems

    @property
    def loss_weights(self) -> tuple[float, float, float]:
        """r0, r1 and r2 of the three losses; r2 is 1 unless given."""
        r0, r1, *r2 = self.loss_ratio
        return r0, r1, r2[0] if r2 else 1.0

    @property
    def problem(self) -> Problem:
        """What a label means."""
        return Problem(self.problem_type, self.output_dim)

    @property
    def objective(self) -> Objective:
        """The head's loss."""
        return Objective(self.problem, self.focal_gamma if self.classification_loss == "focal" else 0.0)

    def head_config(self, hidden_size: int) -> HeadConfig:
        """Shape of the head on an LMM of the given hidden size."""
        return HeadConfig(
            hidden_size,
            self.num_layers,
            self.proj_dim,
            self.output_dim,
            self.input_dropout,
            tuple(self.dropout or ()),
            self.problem_type,
        )

    @property
    def expected_answers(self) -> Answers:
        """How answers begin, or what they list, in class order."""
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


def normalise(args: dict[str, Any]) -> list[str]:
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
