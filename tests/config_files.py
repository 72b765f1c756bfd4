"""The YAML files below `configs`, checked by one test per interface."""

from collections.abc import Callable, Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STAGE1 = ROOT / "configs" / "stage1"
FILES = sorted(STAGE1.rglob("*.yaml"))
CLASSIFIER_FILES = [path for path in FILES if not path.stem.endswith("_sft")]
SFT_FILES = [path for path in FILES if path.stem.endswith("_sft")]
CLASS_FILES = {  # data set and task of the files of several classes
    STAGE1 / "qwen2_5_vl_7b/harm_c_intensity_qlora.yaml": ("harm_c", "intensity"),
    STAGE1 / "qwen2_5_vl_7b/mami_kind_qlora.yaml": ("mami", "kind"),
}


def name_of(path: Path) -> str:
    """Folder and stem of a file."""
    return f"{path.parent.name}/{path.stem}"


def check_each(paths: Iterable[Path], check: Callable[[Path], None]) -> None:
    """Run `check` on every file, of which there must be one; a failure names all the files that fail."""
    paths, failed = list(paths), []
    for path in paths:
        try:
            check(path)
        except Exception as error:
            failed.append(f"{name_of(path)}: {type(error).__name__}: {error}")
    assert paths
    assert not failed, "\n".join(failed)
