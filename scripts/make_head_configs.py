"""Write `configs/hateclipper/` and `configs/rgcl/`: each data set × {Hate-CLIPper align, cross, concat; RGCL}.

    python scripts/make_head_configs.py           # write the files
    python scripts/make_head_configs.py --check   # change nothing; exit code 1 if the files on disk differ

The hyper-parameters are the published ones (Hate-CLIPper: arXiv 2210.05916 and its code; RGCL: arXiv 2311.08110 and
its released script). They stand once each below, so that no two of the files can drift apart.
"""

import argparse
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OUTPUT = ROOT / "configs"
FOLDERS = ("hateclipper", "rgcl")


@dataclass(frozen=True)
class Dataset:
    """A data set.

    Attributes:
        file: Stem of the YAML files; also the name of the data set's reader.
        title: Name for people.
        dev: Its development split, as an import calls it.
        fine: Fields with finer labels, for the auxiliary loss.
        task: Task to take labels from, where that is not the binary one.
        classes: Classes of that task, of which a meme may have any number.
    """

    file: str
    title: str
    dev: str = "val"
    fine: str | None = None
    task: str | None = None
    classes: int | None = None


DATASETS = (
    Dataset("hateful_memes", "Hateful Memes", "dev_seen", "target,attack"),
    Dataset("harm_c", "Harm-C", fine="intensity"),
    Dataset("harm_p", "Harm-P", fine="intensity"),
    Dataset("mami", "MAMI", fine="kind"),
    Dataset("multioff", "MultiOFF"),
    Dataset("pridemm", "PrideMM", fine="target,stance,humour"),
    Dataset("propaganda", "Propaganda, 22 techniques", task="techniques", classes=22),
)
CONFOUNDERS = Dataset("confounders", "Confounder memes, drawn", "dev")

PRODUCTS = {
    "align": "their element-wise product",
    "cross": "their outer product",
    "concat": "one vector after the other",
}
LAYERS = {"align": 3, "cross": 1, "concat": 3}  # m: align and cross have their best AUROC on dev with it


@dataclass(frozen=True)
class Recipe:
    """One file: a method on a data set.

    Attributes:
        dataset: The data set.
        fusion: Of Hate-CLIPper; None is RGCL.
    """

    dataset: Dataset
    fusion: str | None

    @property
    def path(self) -> Path:
        """Path below `configs`."""
        if self.fusion is None:
            return Path("rgcl") / f"{self.dataset.file}.yaml"
        return Path("hateclipper") / f"{self.dataset.file}_{self.fusion}.yaml"

    @property
    def tiny(self) -> bool:
        """Whether it is of the size of the tiny encoders."""
        return self.dataset is CONFOUNDERS

    @property
    def encoder(self) -> str:
        """`--encoder` of `ra-hmd encode`: what the authors used."""
        if self.tiny:
            return "outputs/encoders/clip"
        return "clip-vit-l-14-336" if self.fusion is None else "clip-vit-l-14"

    @property
    def folder(self) -> str:
        """Folder of its features and its output."""
        return "outputs/encoders/clip" if self.tiny else f"saves/{self.encoder}/{self.dataset.file}"

    @property
    def output(self) -> str:
        """`output_dir`."""
        return f"{self.folder}/rgcl" if self.fusion is None else f"{self.folder}/hateclipper_{self.fusion}"

    @property
    def command(self) -> str:
        """The command that takes the file."""
        return f"ra-hmd {'stage2' if self.fusion is None else 'train-head'} configs/{self.path.as_posix()}"

    def render(self) -> str:
        """The file's text."""
        sections = {
            "features": [
                f"train: {self.folder}/features/train  # also the bank that votes on dev",
                f"dev: {self.folder}/features/dev",
                f"output_dir: {self.output}",
            ],
            "head": _head(self),
            **({"loss": _loss(self)} if self.fusion is None else {}),
            "training": _training(self),
            "choice of the epoch": [
                f"select_by: {'dev_rkc_auroc' if self.fusion is None else 'dev_lrc_auroc'}",
                "topk: 20" + ("  # of the released script; the paper's text says 10" if self.fusion is None else ""),
                "weights: arithmetic",
            ],
        }
        body = "\n".join(f"### {title}\n" + "".join(f"{line}\n" for line in lines) for title, lines in sections.items())
        return "".join(f"# {line}".rstrip() + "\n" for line in _header(self)) + "\n" + body


def recipes() -> Iterator[Recipe]:
    """Every recipe, in a fixed order."""
    for dataset in (*DATASETS, CONFOUNDERS):
        yield from (Recipe(dataset, fusion) for fusion in PRODUCTS)
        yield Recipe(dataset, None)


def render_all() -> dict[Path, str]:
    """Path below `configs` → text, for every file."""
    return {recipe.path: recipe.render() for recipe in recipes()}


def _head(recipe: Recipe) -> list[str]:
    fusion, rgcl = recipe.fusion or "align", recipe.fusion is None
    layers = 1 if recipe.tiny else LAYERS[fusion]
    width = 128 if recipe.tiny else 1024
    lines = [
        f"fusion: {fusion}",
        f"map_dim: {width}  # n",
        "map_dropout: 0.2",
        "input_dropout: 0.4",
        f"num_layers: {layers + 1}  # m = {layers} pre-output layer{'s' if layers > 1 else ''}, and the output",
        f"proj_dim: {width}",
        "dropout: [0.1]  # after each pre-output layer",
    ]
    if rgcl:
        lines.append("embedding: linear  # of the last pre-output layer before its ReLU")
    if recipe.dataset.classes:
        lines += ["problem_type: multi_label", f"output_dim: {recipe.dataset.classes}"]
    return lines


def _loss(recipe: Recipe) -> list[str]:
    sets = recipe.dataset.classes is not None
    loss = (
        ["loss: contrastive  # memes with a technique in common are alike"]
        if sets
        else ["loss: triplet", "margin: 0.1"]
    )
    return [
        *loss,
        "metric: cos",
        "hard_negatives: 1",
        "pseudo_gold_positives: 1",
        "in_batch_negatives: true",
        "ce_weight: 0.5",
        "mining: dense",
    ]


def _training(recipe: Recipe) -> list[str]:
    if recipe.fusion is None:
        decay, clip, epochs = ["weight_decay: 0.01"], ["grad_clip: 1.0"], 30
    else:
        decay, clip, epochs = ["weight_decay: 1.0e-4"], ["grad_clip: 0.1"], 20
    return [
        "batch_size: 64",
        f"epochs: {10 if recipe.tiny else epochs}",
        f"lr: {'1.0e-3' if recipe.tiny else '1.0e-4'}",
        *decay,
        *clip,
        f"seed: {0 if recipe.fusion is None else 42}",
    ]


def _header(recipe: Recipe) -> list[str]:
    if recipe.fusion is None:
        title = "RGCL: retrieval-guided contrastive learning on CLIP's image and text features"
    else:
        title = f"Hate-CLIPper, {recipe.fusion}: CLIP's image and text features fused as {PRODUCTS[recipe.fusion]}"
    return [
        f"{recipe.dataset.title} · {title}",
        "Written by scripts/make_head_configs.py: change the recipe there, not here.",
        "",
        "Needs",
        *_needs(recipe),
        "",
        "Launch, from the repository root with the environment activated",
        f"  {recipe.command}",
        "",
        "Common overrides (key=value after the file name)",
        *(line for key, meaning in _overrides(recipe) for line in _override_lines(key, meaning)),
        "",
        *textwrap.wrap(_origin(recipe), 112, break_on_hyphens=False),
        *(line for text in _differences(recipe) for line in textwrap.wrap(
            text, 112, initial_indent="  - ", subsequent_indent="    ", break_on_hyphens=False)),
    ]  # fmt: skip


def _needs(recipe: Recipe) -> list[str]:
    dataset = recipe.dataset
    task = f" --task {dataset.task}" if dataset.task else ""
    data = "outputs/confounders/a" if recipe.tiny else f"data/imported/{dataset.file}"
    lines = ["  features  of the training and the development split:"]
    for split, name in (("train", "train"), (dataset.dev, "dev")):
        lines += [
            f"              ra-hmd encode --encoder {recipe.encoder} --data {data}{task} \\",
            f"                --split {split} --output {recipe.folder}/features/{name}",
        ]
    if dataset.file == "mami":
        lines.append("            (the official tables have no `val`: import them with --val-fraction 0.1)")
    lines.append("            Test data is not asked for: the epoch is chosen on dev.")
    if recipe.fusion == "cross" and not recipe.tiny:
        return [
            *lines,
            "  memory    1.1 billion weights: 4.3 GB in float32, with gradients and AdamW's moments 17 GB, activations",
            "            on top; not measured here",
        ]
    return [*lines, "  machine   a CPU will do; a GPU is used where there is one"]


def _overrides(recipe: Recipe) -> list[tuple[str, str]]:
    """Overrides and what they mean; an override of several lines ends each but the last with a backslash."""
    pairs = [
        ("train=F/train dev=F/dev output_dir=NAME", "features of another encoder (`ra-hmd encode --encoder …`)"),
        ("seeds=5", "five runs, mean ± standard deviation in seeds.json"),
        ("patience=3", "stop when dev no longer improves"),
        ("num_layers=2", "m = 1 pre-output layer; 4, 6 and 8 are m = 3, 5 and 7"),
        ("mixed_precision=bf16", "or fp16: for GPUs"),
        *(_overrides_of_rgcl(recipe) if recipe.fusion is None else _overrides_of_hateclipper(recipe)),
    ]
    if not recipe.tiny and not recipe.dataset.classes:
        lists = f"data/imported/{recipe.dataset.file}/k_shot/train.json"
        few = f"k_shot={lists} \\\n  shots=8 seeds=5 output_dir={recipe.output}_8"
        pairs.append((few, "eight memes per class (`ra-hmd data k-shot`), five draws"))
    return pairs


def _overrides_of_rgcl(recipe: Recipe) -> list[tuple[str, str]]:
    sets = recipe.dataset.classes is not None
    shape = ["fusion", "map_dim", "num_layers", "proj_dim", "embedding", *(["problem_type", "output_dim"] * sets)]
    nothing = textwrap.wrap(" ".join(f"{name}=null" for name in shape), 60)
    return [
        ("loss=triplet" if sets else "loss=contrastive", "the other loss of RGCL"),
        ("mining=sparse", "BM25 over the captions instead of the embedding"),
        ("mining=sparse object_words=objects", "also over what a detector saw, in the memes' field `objects`"),
        ("select_by=dev_lrc_auroc", "for the logistic regression, which is learnt some epochs after the vote"),
        (
            " \\\n  ".join([f"init_head={recipe.folder}/hateclipper_align", *nothing]),
            "refine a head that was trained on these features",
        ),
    ]


def _overrides_of_hateclipper(recipe: Recipe) -> list[tuple[str, str]]:
    pairs = [
        ("map_dim=64" if recipe.tiny else "map_dim=256", "n, a smaller projection"),
        ("image_loss=1.0 text_loss=1.0", "auxiliary outputs of each modality alone"),
    ]
    if recipe.dataset.fine:
        fine = f"fine_grained_loss=1.0 'fine_grained=[{recipe.dataset.fine}]'"
        pairs.append((fine, "auxiliary outputs of finer labels, where the store has them"))
    return [*pairs, ("class_weights=balanced", "rare classes count more")]


def _override_lines(key: str, meaning: str) -> Iterator[str]:
    *first, last = key.split("\n")
    yield from (f"  {line}" for line in first)
    if len(last) < 44:
        yield f"  {last:<44}{meaning}"
    else:
        yield from (f"  {last}", f"  {'':<44}{meaning}")


def _origin(recipe: Recipe) -> str:
    if recipe.tiny:
        method = "RGCL" if recipe.fusion is None else "Hate-CLIPper"
        return (
            f"{method} at the size of the tiny encoders: projections and layers of 128, one pre-output layer, a higher "
            "learning rate, few epochs. Everything else as in the other files."
        )
    if recipe.fusion is None:
        return "The hyper-parameters of the released script. What differs, and why:"
    return "The hyper-parameters of the paper and of its code's run.sh. What differs, and why:"


def _differences(recipe: Recipe) -> list[str]:
    if recipe.tiny:
        return []
    lines = []
    if recipe.fusion is None:
        sets = recipe.dataset.classes is not None
        lines += [
            "The anchor is not in its own bank, and every class is searched by itself, as in the paper. The authors' "
            "code searches 12 rows for positives and negatives together"
            + ("." if sets else "; `compat=official` does that."),
            "The kept epoch is the best on dev by the KNN vote; the authors' code chooses by the linear head, and "
            "looks at test scores after every epoch.",
            "`weight_decay` is AdamW's default: the authors' code ignores the argument of that name. `grad_clip` is "
            "that of RA-HMD's Stage 2.",
        ]
        if sets:
            lines.append(
                "`loss: contrastive`. RGCL was not published for label sets; two memes are alike here if they have a "
                "technique in common, or both none. The KNN vote has one score per technique."
            )
    else:
        lines.append("AdamW's decay leaves biases out.")
        if recipe.fusion == "concat":
            lines.append("m = 3, as in align: which m of concat is best on dev was not published.")
        if recipe.dataset.file not in ("hateful_memes", "propaganda"):
            lines.append("Hate-CLIPper was published for Hateful Memes; the hyper-parameters are those.")
    return lines


def compare(folder: Path = OUTPUT) -> list[str]:
    """One sentence for each file of ours below `folder` that is missing, differs, or has no recipe."""
    wanted = render_all()
    found = {path.relative_to(folder) for name in FOLDERS for path in (folder / name).rglob("*") if path.is_file()}
    problems = [f"{folder / path} is missing" for path in sorted(wanted.keys() - found)]
    problems += [f"{folder / path} has no recipe" for path in sorted(found - wanted.keys())]
    problems += [f"{folder / path} differs from its recipe" for path in sorted(wanted.keys() & found)
                 if (folder / path).read_text(encoding="utf-8") != wanted[path]]  # fmt: skip
    return problems


def main() -> int:
    """Write or check the files; the exit code is 1 when the folders do not end up as the recipes say."""
    parser = argparse.ArgumentParser(description="Write configs/hateclipper and configs/rgcl.")
    parser.add_argument("--check", action="store_true", help="change nothing, tell what differs")
    if not parser.parse_args().check:
        for path, text in render_all().items():
            (OUTPUT / path).parent.mkdir(parents=True, exist_ok=True)
            (OUTPUT / path).write_text(text, encoding="utf-8")
    problems = compare()
    print("\n".join(problems) or f"{len(render_all())} files in configs/hateclipper and configs/rgcl are up to date")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
