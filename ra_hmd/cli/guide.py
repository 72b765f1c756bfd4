"""What the help of `ra-hmd` says about each command beside its options: its step, examples, and what comes next."""

from dataclasses import dataclass

WAY = """Detect hateful memes with a large multimodal model and a bank of labelled examples.

The way from data to verdicts, which `ra-hmd init` prepares for your data and model:

1 data      ra-hmd data import, then data check and data to-sharegpt
2 train     llamafactory-cli train STAGE1.yaml; without a language model, leave this step out
3 extract   ra-hmd extract; without a language model, ra-hmd encode
4 refine    ra-hmd stage2 STAGE2.yaml
5 evaluate  ra-hmd evaluate
6 serve     ra-hmd bank create, then ra-hmd predict, serve or console"""

EPILOG = """`ra-hmd COMMAND --help` shows examples. Each command prints the usual next one when it ends.
`ra-hmd --install-completion` makes Tab complete commands and options (bash, zsh, fish, PowerShell)."""


@dataclass(frozen=True)
class About:
    """What is said about a command.

    Attributes:
        examples: Command lines, without `ra-hmd` and the command's name.
        next: The usual next command line. `{name}` is the value of a parameter, or a value of the command's result.
    """

    examples: tuple[str, ...]
    next: str = ""


_START = {
    "doctor": About(("",), "ra-hmd init"),
    "init": About(
        ("", "memes --data hateful_memes --source DOWNLOADS --model qwen2_vl_7b --gpus 1 --report-to none"), "{first}"
    ),
    "demo": About(("--output outputs/demo",), "ra-hmd init"),
}
_DATA = {
    "data": About(()),
    "data list": About(("",), "ra-hmd data import NAME FOLDER --output data/imported/NAME"),
    "data import": About(
        (
            "hateful_memes DOWNLOADS/hateful_memes --output data/imported/hateful_memes",
            "generic memes.csv --output data/imported/ours --columns image=file text=caption label=class",
            "generic ORG/NAME --output data/imported/ours --columns image=picture text=caption",
        ),
        "ra-hmd data check {output}",
    ),
    "data check": About(("data/imported/hateful_memes",), "ra-hmd data to-sharegpt {folder} --output data"),
    "data to-sharegpt": About(
        ("data/imported/hateful_memes --output data",), "llamafactory-cli train STAGE1.yaml (see configs/stage1)"
    ),
    "data k-shot": About(
        ("data/imported/hateful_memes --shots 4 8 16 --seeds 5",),
        "ra-hmd data to-sharegpt {folder} --output data --k-shot {output} --shots K",
    ),
    "data ocr": About(("data/imported/ours",), "ra-hmd data check {folder}"),
    "data make-confounders": About(
        ("--output outputs/confounders",), "ra-hmd data import generic {output}/a --output {output}/imported_a"
    ),
}
_TRAIN = {
    "train-head": About(
        ("configs/hateclipper/hateful_memes_align.yaml output_dir=outputs/head",),
        "ra-hmd evaluate --checkpoint {output_dir} --bank TRAIN --dev DEV --queries TEST --output REPORT",
    ),
    "linear-probe": About(
        ("--train features/train --dev features/dev --output outputs/probe",),
        "ra-hmd evaluate --checkpoint {output} --bank {train} --dev {dev} --queries TEST --output REPORT",
    ),
    "zero-shot": About(
        ("--encoder clip-vit-l-14 --output outputs/zero_shot",),
        "ra-hmd encode --encoder {encoder} --features projected --data DATA --split TEST --output STORE",
    ),
    "import-official": About(
        ("OFFICIAL --base-model Qwen/Qwen2-VL-7B-Instruct --quantization-bit 4 --output RUN",),
        "ra-hmd extract --checkpoint {output} --data DATA --split train --output {output}/features/train",
    ),
}
_EXTRACT = {
    "extract": About(
        ("--checkpoint RUN --data data/imported/hateful_memes --split train --output RUN/features/train",),
        "extract the other splits in the same way, then "
        "ra-hmd stage2 STAGE2.yaml init_head={checkpoint} train=TRAIN dev=DEV output_dir={checkpoint}/stage2",
    ),
    "encode": About(
        ("--encoder clip-vit-l-14-336 --data data/imported/hateful_memes --split train --output features/train",),
        "encode the other splits in the same way, then "
        "ra-hmd stage2 configs/rgcl/hateful_memes.yaml train=TRAIN dev=DEV output_dir=OUTPUT",
    ),
    "features": About(()),
    "features info": About(("RUN/features/train", "RUN/features/train --json")),
    "features import": About(("old.pt --output features/train",), "ra-hmd features info {output}"),
    "features export": About(("features/train --output train.pt",)),
}
_REFINE = {
    "stage2": About(
        (
            "configs/stage2/hateful_memes.yaml init_head=RUN train=RUN/features/train dev=RUN/features/dev "
            "output_dir=RUN/stage2",
        ),
        "ra-hmd evaluate --checkpoint {output_dir} --bank TRAIN --dev DEV --queries TEST --output {output_dir}/report",
    ),
}
_EVALUATE = {
    "evaluate": About(
        (
            "--checkpoint RUN/stage2 --bank RUN/features/train --dev RUN/features/dev --queries RUN/features/test "
            "--final --output RUN/report",
        ),
        "ra-hmd bank create banks/memes --checkpoint RUN --features {bank} --reason 'training split'",
    ),
    "results": About(("outputs saves --output results.md",)),
    "card": About(
        ("RUN/stage2 --report RUN/report --license apache-2.0 --language en --output card",),
    ),
}
_SERVE = {
    "bank": About(()),
    "bank create": About(
        ("banks/memes --checkpoint RUN/stage2 --features RUN/features/train --reason 'training split'",),
        "ra-hmd serve {checkpoint} --bank {bank}",
    ),
    "bank copy": About(
        ("banks/memes http://milvus.example:19530#memes", "banks/memes s3://memes/bank"),
        "ra-hmd bank info {target}",
    ),
    "bank add": About(
        ("banks/memes --checkpoint RUN/stage2 --features NEW_FEATURES --reason 'memes of this week'",),
        "ra-hmd bank log {bank}",
    ),
    "bank remove": About(("banks/memes 01245 --reason 'picture was cut off'",), "ra-hmd bank log {bank}"),
    "bank relabel": About(("banks/memes 08291=0 --reason 'satire, second reading'",), "ra-hmd bank log {bank}"),
    "bank rollback": About(("banks/memes --to 2 --reason 'too many false alarms'",), "ra-hmd bank log {bank}"),
    "bank info": About(("banks/memes", "banks/memes --json"), "ra-hmd bank log {bank}"),
    "bank log": About(("banks/memes",), "ra-hmd bank rollback {bank} --to VERSION --reason WHY"),
    "bank search": About(("banks/memes --checkpoint RUN/stage2 --queries RUN/features/dev --output evidence.json",)),
    "bank effect": About(
        ("banks/memes --checkpoint RUN/stage2 --queries RUN/features/dev --add NEW_FEATURES",),
        "make the change with ra-hmd bank add, remove, relabel or rollback",
    ),
    "bank export-hashes": About(("banks/memes ours.csv",)),
    "bank import-hashes": About(("theirs.jsonl lists/shared.csv --tag hate=1 --tag NON_MALICIOUS=0",)),
    "bank audit": About(
        ("banks/memes --checkpoint RUN/stage2 --memes data/imported/hateful_memes --output outputs/audit",),
        "ra-hmd bank relabel {bank} ID=CLASS --reason WHY",
    ),
    "bank suggest": About(
        ("banks/memes --checkpoint RUN/stage2 --pool NEW_FEATURES --budget 32 --output suggested.jsonl",),
        "ra-hmd console {checkpoint} --bank {bank} --queue QUEUE.jsonl --suggestions {output}",
    ),
    "bank attack": About(("banks/memes --checkpoint RUN/stage2 --queries RUN/features/dev --sizes 1 2 4 8",)),
    "predict": About(
        (
            "NEW.png --text 'what is written on it' --checkpoint RUN/stage2 --bank banks/memes",
            "--input NEW.jsonl --output verdicts.jsonl --checkpoint RUN/stage2 --bank banks/memes",
        ),
        "ra-hmd serve {checkpoint} --bank BANK",
    ),
    "explain": About(
        ("NEW.png --text 'what is written on it' --checkpoint RUN/stage2 --bank banks/memes --policy POLICY.txt",),
    ),
    "serve": About(("RUN/stage2 --bank banks/memes", "RUN/stage2 --bank banks/memes --keys keys.json --host 0.0.0.0")),
    "console": About(("RUN/stage2 --bank banks/memes --queue NEW.jsonl",)),
    "push": About(
        (
            "RUN/stage2 --repo ORG/NAME --base-model Qwen/Qwen2-VL-7B-Instruct --report RUN/report --dry-run",
            "RUN/stage2 --repo ORG/NAME --bank banks/memes --license apache-2.0 --language en",
        ),
        "python -c 'from ra_hmd import Detector; Detector.from_pretrained(\"{folder}\")'",
    ),
    "cases": About(()),
    "cases export": About(
        (
            "audit.csv --cases banks/memes.cases.sqlite --since 2026-11-01",
            "audit.jsonl --cases banks/memes.cases.sqlite --bank banks/memes --row 08291",
        ),
    ),
    "cases memes": About(
        ("decisions.jsonl --cases banks/memes.cases.sqlite --since 2026-11-01",),
        "ra-hmd data import generic {output} --output data/imported/decisions",
    ),
    "cases forget": About(("--cases banks/memes.cases.sqlite --before 2026-01-01",)),
    "serve-key": About(
        ("ana --role moderator --keys keys.json", "ana --keys keys.json --remove"),
        "ra-hmd serve RUN --bank BANK --keys {keys}",
    ),
}
_FEW_SHOT = {
    "cluster": About(
        ("--data data/imported/hateful_memes --encoder clip-vit-l-14-336 --output outputs/clusters",),
        "ra-hmd guidance {output} --output guidance.json --endpoint URL --model MODEL",
    ),
    "guidance": About(
        (
            "outputs/clusters --output guidance.json --endpoint http://127.0.0.1:11434/v1 --model gemma3:27b --show",
            "outputs/clusters --output guidance.json --from texts/",
        ),
        "ra-hmd few-shot STUDY.yaml --dry-run (see configs/few_shot)",
    ),
    "export-clusters": About(("RUN --output outputs/adapters",)),
    "few-shot": About(
        (
            "configs/few_shot/qwen2_5_vl_7b_study.yaml --dry-run",
            "configs/studies/few_shot_confounders.yaml output_dir=outputs/few_shot",
        )
    ),
}
_STUDIES = {
    "cross-eval": About(("configs/studies/cross_eval_encoders.yaml --final",), "ra-hmd results FOLDERS"),
    "attack": About(
        ("data/imported/hateful_memes --output outputs/attacked --suite quick --splits test_seen",),
        "ra-hmd robustness STUDY.yaml (see configs/studies)",
    ),
    "robustness": About(("configs/studies/robustness_confounders.yaml --final",)),
    "staleness": About(
        ("--checkpoint RUN/stage2 --bank RUN/features/dev --period-key date --date-part month --output outputs/age",)
    ),
    "ablate": About(("--output outputs/ablate",)),
    "in-context": About(
        ("--checkpoint RUN --data DATA --split dev --examples DATA --examples-split train --shots 4 --output OUT",),
        "ra-hmd results {output}",
    ),
    "judge": About(
        (
            "--rationales rationales.jsonl --references references.jsonl --endpoint http://127.0.0.1:8000/v1 "
            "--model MODEL --output outputs/judged",
        )
    ),
    "retention": About(()),
    "retention drawn": About(("--checkpoint RUN --output outputs/retention",)),
    "retention policy": About(("--before outputs/before --after outputs/after --output outputs/policy",)),
    "retention benchmarks": About(("outputs/lmms/base outputs/lmms/tuned --output outputs/benchmarks",)),
}
_TINY = {
    "tiny-lmm": About(("--family qwen2_vl --output models/tiny",)),
    "tiny-encoder": About(
        (
            "--family clip --output models/tiny_clip",
            "--family clip --train-on outputs/confounders --output models/tiny_clip",
        ),
        "ra-hmd encode --encoder {output} --data DATA --output STORE",
    ),
}

STEPS: dict[str, dict[str, About]] = {
    "Start": _START,
    "1 · Data": _DATA,
    "2 · Train": _TRAIN,
    "3 · Extract": _EXTRACT,
    "4 · Refine": _REFINE,
    "5 · Evaluate": _EVALUATE,
    "6 · Bank, verdicts and service": _SERVE,
    "Few labelled memes": _FEW_SHOT,
    "Studies": _STUDIES,
    "Models for tests": _TINY,
}
"""Steps, in the order of the help, to their commands. The rest of the help comes from the commands themselves."""
