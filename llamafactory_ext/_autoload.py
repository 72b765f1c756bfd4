"""Makes every Python process of this environment ready for our LLaMA-Factory stage, at next to no cost.

Imported at start-up by `llamafactory_ext.pth` (Python 3.15 onward: by `llamafactory_ext.start`). It puts one finder on
`sys.meta_path`, which waits for the import of exactly `llamafactory.train.tuner` and then calls
`llamafactory_ext.install.install(tuner)`. So `llamafactory-cli train`, torchrun's children and Ray's workers all know
the stage, and programs that never import LLaMA-Factory notice nothing. Before one of the host's launchers is imported,
it asks whether that launcher would leave our stage out without a word (`llamafactory_ext.launchers`). Standard library
only.
"""

import os
import sys

TYPE_CHECKING = False  # that of `typing` would have every process import it
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.abc import Loader
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

HOST_MODULE = "llamafactory.train.tuner"
LAUNCHERS = ("llamafactory.launcher", "llamafactory.v1.launcher")


class TunerFinder:
    """Finds the host's tuner and launchers through the other finders, and adds our step to their loaders."""

    @staticmethod
    def find_spec(
        name: str, path: "Sequence[str] | None" = None, target: "ModuleType | None" = None
    ) -> "ModuleSpec | None":
        """Return the host module's own spec with our step added to its loader; None for every other module."""
        if name != HOST_MODULE and name not in LAUNCHERS:
            return None
        for finder in sys.meta_path:
            find = getattr(finder, "find_spec", None)
            spec = find(name, path, target) if find is not None and finder is not TunerFinder else None
            if spec is not None and spec.loader is not None:
                spec.loader = _InstallingLoader(spec.loader)
                return spec
        return None


class _InstallingLoader:
    def __init__(self, loader: "Loader") -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> "Any":
        return getattr(self._loader, name)

    def create_module(self, spec: "ModuleSpec") -> "ModuleType | None":
        return self._loader.create_module(spec)

    def exec_module(self, module: "ModuleType") -> None:
        from llamafactory_ext.launchers import prepare_restarts, refuse_diversion

        refuse_diversion(sys.argv[1:], launched=module.__name__ in LAUNCHERS)
        prepare_restarts(sys.argv[1:])
        self._loader.exec_module(module)
        if module.__name__ == HOST_MODULE:
            from llamafactory_ext.install import install

            install(module)


def register() -> None:
    """Put the finder first on `sys.meta_path`, unless `RA_HMD_DISABLE_PLUGIN=1`."""
    if os.environ.get("RA_HMD_DISABLE_PLUGIN", "0") != "1" and TunerFinder not in sys.meta_path:
        sys.meta_path.insert(0, TunerFinder)


register()
