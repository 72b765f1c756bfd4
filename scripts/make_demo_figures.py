"""Write docs/embeddings.svg and docs/bank_update.svg from the folder of a finished demo, as the demo itself draws them.

ra-hmd demo --output outputs/demo
python scripts/make_demo_figures.py outputs/demo [--output docs]
"""

import argparse
import shutil
from pathlib import Path

from ra_hmd.core.artifacts import read_json
from ra_hmd.experiments.demo_figure import write_bank_update_figure, write_embedding_figure


def main() -> None:
    """Draw the figures anew in the demo's report, and copy them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of the demo")
    parser.add_argument("--output", type=Path, default=Path(__file__).parents[1] / "docs")
    options = parser.parse_args()
    report = options.run / "report"
    curves = read_json(report / "metrics.json")["bank_update"]
    for figure in (write_embedding_figure(options.run), write_bank_update_figure(curves, report)):
        shutil.copyfile(figure, options.output / figure.name)


if __name__ == "__main__":
    main()
