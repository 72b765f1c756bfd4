"""The sentences of the desk's pages, found in their sources."""

import ast
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import get_args

from jinja2 import nodes

from ra_hmd.cases.outcome import State
from ra_hmd.cases.policy import Why
from ra_hmd.core.templates import template_environment
from ra_hmd.desk.class_names import BINARY_NAMES

PACKAGE = Path(__file__).parents[2] / "ra_hmd"
SPOKEN = ("alt", "aria-label", "placeholder", "title")
"""Attributes whose value is read or spoken."""
NOT_ON_PAGES = {
    "database.py",
    "webhooks.py",
    "class_names.py",
    "settings.py",
    "mount.py",
    "server.py",
    "export.py",
    "forgetting.py",
    "texts.py",
}
"""Modules whose errors only commands and the API show, and names of languages, each in its own."""
MODULES = [
    path
    for path in [
        *(PACKAGE / "desk").glob("*.py"),
        *(PACKAGE / "cases").glob("*.py"),
        PACKAGE / "serve" / "case_service.py",
    ]
    if path.name not in NOT_ON_PAGES
]
ERRORS = ("UserError", "CaseConflict", "NoSuchCase")
REACHED = (
    "bank/bank.py", "bank/backends/parquet.py", "bank/identical.py", "bank/planned_change.py", "bank/row_history.py",
    "core/problem.py", "data/images.py", "inference/detector.py", "serve/bank_service.py", "serve/uploads.py",
)  # fmt: skip
"""Modules below the desk whose errors its pages show."""
REACHED_ERRORS = (*ERRORS, "AlreadyApplied", "BankInUse", "LabelConflictError", "NotInBank")
FOR_PROGRAMS = {
    "`problem_type: binary` has one output, not {0}; set `output_dim: 1`, or `problem_type: single_label` or "
    "`multi_label`.",
    "`problem_type: single_label` needs two or more outputs, `output_dim` is {0}; for two classes use `problem_type: "
    "binary`.",
    "{0} has memes of class {1} only; {2}.",
    "{0} has {1} labels per row; `problem_type: {2}` needs one, use multi_label.",
    "{0} has {1}; `problem_type: multi_label` with `output_dim: {2}` needs a 0/1 vector of {3} per row.",
    "{0} is not an example bank; make one with `ra-hmd bank create`.",
    "{0} {1} ({2}):\n{3}",  # the calls give what stands in place of {1}
    "{0}: backend {1} keeps no views ({2}); give a folder, or leave them out.",
    "{0}: {1} of {2} rows have no label; training and evaluation need one.",
    "A rollback stands alone: look at it, or at the other changes.",
    "No change is given; use --add, --remove, --relabel or --rollback.",
    "No meme is given.",
    "Only an example bank can be changed; make one with `ra-hmd bank create` and give it with --bank.",
    "Only an example bank can be changed; make one with `ra_hmd.create_bank`.",
    "Recall {0} is asked for, it must be in (0, 1].",
    "The head `{0}` has no answer: {1}",
    "The head `{0}` needs a bank: the labelled memes that vote.",
    "The labels {0} are not all of one kind: {1}.",
    "The new labels do not fit {0}: {1}.",
    "These are the same image and caption with different labels; decide on one label ({0}):\n{1}",
    "These would be removed and relabelled ({0}):\n{1}",
    "View {0} is not among those of the bank {1} ({2}).",
    "abstain is for binary heads; this one decides `{0}`.",
    "abstain is {0}, it must lie in [0, 0.5).",
}
"""Errors of these modules that only commands and the API show: what a page sends cannot lead there."""
VALUES = {*get_args(State), *get_args(Why), *BINARY_NAMES}
"""Words that come from the database or the detector, and are translated when they are shown."""


def of_templates() -> Iterator[tuple[str, str]]:
    """File and sentence of each `_("…")`, also where it is chosen from a list or by a condition."""
    environment = template_environment("ra_hmd.desk")
    for path in sorted((PACKAGE / "desk" / "templates").glob("*.html")):
        tree = environment.parse(path.read_text(encoding="utf-8"))
        for call in tree.find_all(nodes.Call):
            if isinstance(call.node, nodes.Name) and call.node.name == "_":
                yield from ((path.name, const.value) for const in _constants(call.args[0]))
        for loop in tree.find_all(nodes.For):  # {% for path, name in (("review", "Review"), …) %} … _(name)
            if isinstance(loop.iter, nodes.Tuple | nodes.List):
                found = (const.value for const in loop.iter.find_all(nodes.Const))
                yield from ((path.name, value) for value in found if isinstance(value, str) and value[:1].isupper())


def _constants(argument: nodes.Node) -> Iterator[nodes.Const]:
    if isinstance(argument, nodes.Const):
        yield argument
    elif isinstance(argument, nodes.CondExpr):
        yield from _constants(argument.expr1)
        if argument.expr2 is not None:
            yield from _constants(argument.expr2)


def of_modules() -> Iterator[tuple[str, str]]:
    """File and sentence of each `text("…")`, of each error, and of whatever else reads like a sentence."""
    for path in sorted(MODULES):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        errors = list(_errors(tree))
        inside = {id(node) for error in errors for node in ast.walk(error)}
        yield from ((path.name, sentence) for error in errors for sentence in _sentences(error.args[0]))
        if path.parent.name == "desk":
            yield from ((path.name, sentence) for sentence in [*_spoken(tree, inside), *_named(tree)])


def of_reached() -> Iterator[tuple[str, str]]:
    """File and sentence of each error below the desk that a page may show."""
    for name in REACHED:
        for node in ast.walk(ast.parse((PACKAGE / name).read_text(encoding="utf-8"))):
            called = getattr(node.func, "attr", getattr(node.func, "id", "")) if isinstance(node, ast.Call) else ""
            if isinstance(node, ast.Call) and called in REACHED_ERRORS and node.args:
                yield from ((name, sentence) for sentence in _sentences(node.args[0]))
            if isinstance(node, ast.Call) and called == "raise_all":
                yield from ((name, _listing(sentence)) for sentence in _sentences(node.args[1]))
            if isinstance(node, ast.Call) and called == "_raise":  # of the bank service: the bank comes first
                yield from ((name, _listing(f"{{0}} {sentence}")) for sentence in _sentences(node.args[2]))


def _listing(heading: str) -> str:
    """The sentence of `raise_all`: a heading, the number of problems, and their lines."""
    places = heading.count("{")
    return f"{heading} ({{{places}}}):\n{{{places + 1}}}"


def with_values() -> Iterator[str]:
    """Each string of the desk's modules that has values in it, with `{0}`, `{1}` in their places."""
    for path in (PACKAGE / "desk").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            yield from _sentences(node) if isinstance(node, ast.JoinedStr) else ()


def _errors(tree: ast.AST) -> Iterator[ast.Call]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ERRORS and node.args:
            yield node


def _sentences(node: ast.AST) -> Iterator[str]:
    """The sentences that an expression can be, with `{0}`, `{1}` for the values in them."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.IfExp):
        yield from _sentences(node.body)
        yield from _sentences(node.orelse)
    elif isinstance(node, ast.JoinedStr):
        parts, number = [], 0
        for part in node.values:
            parts.append(part.value if isinstance(part, ast.Constant) else f"{{{number}}}")
            number += not isinstance(part, ast.Constant)
        yield "".join(map(str, parts))


def _spoken(tree: ast.AST, inside_errors: set[int]) -> Iterator[str]:
    left_out = inside_errors | set(_not_shown(tree))
    for node in ast.walk(tree):
        name = getattr(node.func, "attr", getattr(node.func, "id", "")) if isinstance(node, ast.Call) else ""
        if name in ("text", "_", "Texts") and isinstance(node, ast.Call) and node.args:
            yield from _sentences(node.args[0])
        is_text = isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in left_out
        if is_text and re.fullmatch(r"[A-Z“].* .*[.?!]", node.value, re.DOTALL):
            yield node.value


def _named(tree: ast.Module) -> Iterator[str]:
    """Names that a module has for what it shows: capitalised words and several words in its collections."""
    for node in tree.body:
        value = getattr(node, "value", None) if isinstance(node, ast.Assign | ast.AnnAssign) else None
        if isinstance(value, ast.Dict | ast.Tuple | ast.List):
            keys = {id(key) for part in ast.walk(value) if isinstance(part, ast.Dict) for key in part.keys}
            texts = [part.value for part in ast.walk(value) if isinstance(part, ast.Constant) and id(part) not in keys]
            yield from (
                text for text in texts if isinstance(text, str) and re.fullmatch(r"[A-Z][a-z]+|\w+,?( .+)+", text)
            )


def _not_shown(tree: ast.AST) -> Iterator[int]:
    """Docstrings, descriptions of settings, and answers of routes that no page shows."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr):
            yield id(node.value)
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("Field", "HTTPException"):
            yield from (id(part) for part in ast.walk(node))


class _Bare(HTMLParser):
    """Collects words of a template that stand there without `_()`."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_data(self, data: str) -> None:
        self._look(data)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        for name, value in attributes:
            if name in SPOKEN and value:
                self._look(value)

    def _look(self, words: str) -> None:
        if re.search(r"[A-Za-z]{2}", words):
            self.found.append(words.strip())


def bare_words(path: Path) -> list[str]:
    """Words of a template that are not translated."""
    environment = template_environment("ra_hmd.desk")
    tokens = environment.lex(path.read_text(encoding="utf-8"))
    parser = _Bare()
    parser.feed("".join(value for _, kind, value in tokens if kind == "data"))
    parser.close()
    return parser.found
