"""Draw docs/attacks.png: drawn memes under the attacks that a picture shows, at severity 3.

python scripts/make_attack_sheet.py [--severity 3] [--output docs/attacks.png]
"""

import argparse
import math
import tempfile
from pathlib import Path

from PIL import Image, ImageDraw

from ra_hmd.attacks.apply import CleanMeme, attacked
from ra_hmd.attacks.base import Variant
from ra_hmd.attacks.drawing import font_of
from ra_hmd.attacks.suites import ATTACKS
from ra_hmd.data.meme_files import read_memes
from ra_hmd.data.synthetic.confounders import make_confounders

CELL, TITLE, COLUMNS = 112, 14, 9


def main() -> None:
    """Draw the sheet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--severity", type=int, default=3, choices=(1, 2, 3))
    parser.add_argument("--output", type=Path, default=Path(__file__).resolve().parents[1] / "docs" / "attacks.png")
    options = parser.parse_args()
    shown = [attack for attack in ATTACKS.values() if "picture" in attack.channels and not attack.needs]
    rows = math.ceil(len(shown) / COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * (CELL + 4), rows * (CELL + TITLE + 4)), "white")
    draw = ImageDraw.Draw(sheet)
    with tempfile.TemporaryDirectory() as folder:
        make_confounders(Path(folder) / "memes", size=96)
        memes = [meme for meme in read_memes(Path(folder) / "memes" / "a" / "train.jsonl") if meme.label == 1]
        for number, attack in enumerate(shown):
            made = attacked(CleanMeme(memes[number % len(memes)]), Variant(attack, options.severity, "picture"))
            image = made.meme.load_image()
            image.thumbnail((CELL, CELL), Image.Resampling.LANCZOS)
            row, column = divmod(number, COLUMNS)
            left, top = column * (CELL + 4), row * (CELL + TITLE + 4)
            draw.text((left, top), attack.name, fill="black", font=font_of("DejaVuSans.ttf", 11))
            sheet.paste(image, (left, top + TITLE))
    sheet.quantize(192, dither=Image.Dither.NONE).save(options.output, optimize=True)


if __name__ == "__main__":
    main()
