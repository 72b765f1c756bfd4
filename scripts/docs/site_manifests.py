"""The page of file formats: what each kind of manifest holds, from the models that read it."""

from site_text import code, table

from ra_hmd.core.manifests import MODELS

_INTRODUCTION = """# Files

Every step leaves its results in open formats: tensors in safetensors, rows in Parquet or JSON Lines, everything else in
JSON and YAML. Nothing is pickled. [The pipeline](../pipeline.md) describes the files step by step: a run, a feature
store with its columns, the output of Stage 2; [evaluation.md](../evaluation.md) those of a report,
[bank.md](../bank.md) those of a bank, [data.md](../data.md) records of memes, [python.md](../python.md) how to read
them.

Beside its results every step leaves a **manifest**, a JSON file that says what was done, with what, and by which
versions. Later steps compare manifests, and refuse what does not belong together. Keys that this version does not know
are kept; manifests of all earlier versions are read. `kind` says which of these models a manifest has:
"""
_OPTIONS = """    options:
      heading_level: 3
      show_root_heading: true
      members: false
      show_signature: false
      docstring_section_style: table
"""


def manifest_page() -> str:
    """The page."""
    models = dict.fromkeys(MODELS.values())
    rows = [(code(kind), f"[`{model.__name__}`][{_place(model)}]", _first(model)) for kind, model in MODELS.items()]
    blocks = [f"::: {_place(model)}\n{_OPTIONS}" for model in models]
    every = "## Keys of each manifest\n\nEach has the keys of `Manifest` too.\n"
    base = f"::: ra_hmd.core.manifests.base.Manifest\n{_OPTIONS}"
    return "\n".join([_INTRODUCTION, table(("kind", "model", "what it is"), rows), "", every, base, *blocks])


def _place(model: type) -> str:
    return f"{model.__module__}.{model.__name__}"


def _first(model: type) -> str:
    return (model.__doc__ or "").strip().split("\n\n")[0].replace("\n", " ")
