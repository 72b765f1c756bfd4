"""Known bad combinations of packages, and that our own ranges leave them out."""

import importlib.metadata
from types import SimpleNamespace

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from ra_hmd.core.errors import UserError
from ra_hmd.core.package_versions import KNOWN_BAD, bad_pairs

BROKEN = {"transformers": "5.6.0", "flash-attn": "2.8.3", "torch": "2.14.1"}


@pytest.mark.parametrize(
    ("options", "versions", "count"),
    [
        (None, BROKEN, 1),
        ({"flash_attn": "fa2"}, BROKEN, 1),
        ({"flash_attn": "sdpa"}, BROKEN, 0),
        ({"flash_attn": "fa2"}, BROKEN | {"transformers": "5.5.4"}, 0),
        ({"flash_attn": "fa2"}, {"transformers": "5.6.0"}, 0),
        ({"flash_attn": "fa2"}, BROKEN | {"torch": "2.9.1"}, 2),
        (None, {}, 0),
    ],
)
def test_a_combination_is_found_where_it_fails(
    options: dict[str, str] | None, versions: dict[str, str], count: int
) -> None:
    assert len(bad_pairs(options, versions.get)) == count


def test_our_ranges_leave_out_what_is_known_to_fail() -> None:
    needed = {r.name: r for r in map(Requirement, importlib.metadata.requires("ra-hmd") or [])}
    for pair in KNOWN_BAD:
        (version,) = (part.version.replace("*", "0") for part in SpecifierSet(pair.versions))
        assert not needed[pair.package].specifier.contains(version), pair


def test_training_is_refused_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    from llamafactory.extras.constants import AttentionFunction

    from llamafactory_ext.sft_classifier.workflow import run_sft_classifier

    real = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: BROKEN.get(name) or real(name))
    engines = {"use_unsloth": False, "use_kt": False, "mixture_of_depths": None}
    arguments = SimpleNamespace(flash_attn=AttentionFunction.FA2, **engines)
    with pytest.raises(UserError, match=r"transformers 5\.6\.0 with flash-attn"):
        run_sft_classifier(arguments, *[SimpleNamespace()] * 4)
