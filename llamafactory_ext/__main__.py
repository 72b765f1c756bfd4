"""`python -m llamafactory_ext x.yaml`: LLaMA-Factory's `train`, with the plugin, also without its `.pth` file."""

import sys

import llamafactory_ext._autoload  # noqa: F401 (registers the finder)
import ra_hmd  # noqa: F401 (before the host: see ra_hmd.core.privacy)
from llamafactory_ext.installed import end_without
from llamafactory_ext.launchers import refuse_diversion


def main() -> None:
    """Run LLaMA-Factory's training entry point on the command line's arguments."""
    refuse_diversion(sys.argv[1:], launched=False)
    end_without("Training", ("llamafactory",))
    from llamafactory.train import tuner

    from llamafactory_ext.install import install

    install(tuner)
    tuner.run_exp()


if __name__ == "__main__":
    main()
