"""Write docs/pipeline.svg, the figure of docs/pipeline.md.

Usage: python scripts/make_pipeline_figure.py [--output docs/pipeline.svg]
"""

import argparse
from pathlib import Path
from xml.sax.saxutils import escape

SIZE = (1000, 330)
BOX = (170, 92)
# (left, top, fill, title, what it holds, commands)
BOXES = (
    (15, 25, "#eef2f7", "Labelled memes", "image, caption, label", "data import · check"),
    (215, 25, "#dbeafe", "Stage 1", "LMM: LoRA + head", "llamafactory-cli"),
    (415, 25, "#eef2f7", "Features", "hidden states", "extract"),
    (615, 25, "#dbeafe", "Stage 2", "contrast with neighbours", "stage2"),
    (815, 25, "#eef2f7", "Evaluation", "thresholds, intervals", "evaluate"),
    (15, 200, "#eef2f7", "New meme", "image, caption", ""),
    (315, 200, "#dcfce7", "Detector", "LMH, LRC, RKC, KRR", "predict · serve"),
    (615, 200, "#fef3c7", "Example bank", "versions with reasons", "bank"),
    (815, 200, "#eef2f7", "Verdict", "score, nearest memes", "console"),
)
ARROWS = (
    "M185 71 H209",
    "M385 71 H409",
    "M585 71 H609",
    "M785 71 H809",
    "M300 117 C300 160 360 155 360 194",  # Stage 1 → detector
    "M655 117 C655 160 440 155 440 194",  # Stage 2 → detector
    "M710 117 V194",  # Stage 2 → bank
    "M185 246 H309",
    "M615 232 H491",  # bank → detector
    "M485 266 H540 V312 H900 V298",  # detector → verdict
    "M815 246 H791",  # verdict → bank
)
LABELS = ((553, 225, "neighbours"), (690, 307, "verdict"), (751, 160, "embeddings"), (803, 190, "correction"))
SANS, MONO = "Helvetica, Arial, sans-serif", "ui-monospace, Menlo, Consolas, monospace"


def figure() -> str:
    """The SVG as text; the same at every call."""
    width, height = SIZE
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'role="img" aria-labelledby="title description">',
        '<title id="title">The RA-HMD pipeline</title>',
        '<desc id="description">Labelled memes train a multimodal model with a head (Stage 1). Its features refine '
        "the head (Stage 2), are evaluated, and fill an example bank. For a new meme, the detector combines the model, "
        "the head, a vote of the nearest memes of the bank and a kernel regression over all of them into a verdict; a "
        "correction of a verdict becomes a new version of the bank.</desc>",
        '<defs><marker id="arrow" viewBox="0 0 8 8" refX="6" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0 L8 4 L0 8 z" fill="#475569"/></marker></defs>',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
    ]
    parts += [
        f'<path d="{path}" fill="none" stroke="#475569" stroke-width="1.6" marker-end="url(#arrow)"/>'
        for path in ARROWS
    ]
    for left, top, fill, title, content, command in BOXES:
        middle = left + BOX[0] / 2
        parts += [
            f'<rect x="{left}" y="{top}" width="{BOX[0]}" height="{BOX[1]}" rx="8" fill="{fill}" stroke="#94a3b8"/>',
            _text(middle, top + 28, title, 16, weight="600"),
            _text(middle, top + 53, content, 12),
            _text(middle, top + 75, command, 12, family=MONO),
        ]
    return "\n".join([*parts, *(_text(x, y, label, 12) for x, y, label in LABELS), "</svg>", ""])


def _text(x: float, y: float, text: str, size: float, *, weight: str = "400", family: str = SANS) -> str:
    return (
        f'<text x="{x:g}" y="{y:g}" text-anchor="middle" font-family="{family}" font-size="{size:g}" '
        f'font-weight="{weight}" fill="#1e293b">{escape(text)}</text>'
    )


def main() -> None:
    """Write the figure."""
    parser = argparse.ArgumentParser(description="Write the figure of docs/pipeline.md.")
    parser.add_argument("--output", type=Path, default=Path(__file__).parents[1] / "docs" / "pipeline.svg")
    parser.parse_args().output.write_text(figure(), encoding="utf-8")


if __name__ == "__main__":
    main()
