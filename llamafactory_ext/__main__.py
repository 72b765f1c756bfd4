"""`python -m llamafactory_ext x.yaml`: LLaMA-Factory's `train`, with the plugin, also without its `.pth` file."""

import llamafactory_ext._autoload  # noqa: F401 (registers the finder)


def main() -> None:
    """Run LLaMA-Factory's training entry point on the command line's arguments."""
    from llamafactory.train import tuner

    from llamafactory_ext.install import install

    install(tuner)
    tuner.run_exp()


if __name__ == "__main__":
    main()
