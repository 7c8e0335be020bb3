"""Draw the sprite sheet from the Noto Color Emoji font; run once, its output is shipped.

    python -m tokvid.data.sprites.draw_sheet /path/to/NotoColorEmoji.ttf

It knows nothing of clips: it draws each emoji at the font's only bitmap size, crops it to the square
around its visible pixels, shrinks it and writes ``sheet.png`` and ``sheet.json`` beside this file.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

FONT_SIZE = 109  # the only bitmap strike in the font
CELL = 48
COLUMNS = 8
SPRITES = {
    "apple": 0x1F34E, "banana": 0x1F34C, "grapes": 0x1F347, "watermelon": 0x1F349,
    "pineapple": 0x1F34D, "strawberry": 0x1F353, "pear": 0x1F350, "book": 0x1F4D8,
    "diamond": 0x1F48E, "corn": 0x1F33D, "eggplant": 0x1F346, "broccoli": 0x1F966,
    "avocado": 0x1F951, "mushroom": 0x1F344, "bread": 0x1F35E, "cheese": 0x1F9C0,
    "burger": 0x1F354, "pizza": 0x1F355, "donut": 0x1F369, "globe": 0x1F30D,
    "cake": 0x1F370, "egg": 0x1F373, "frog": 0x1F438, "pig": 0x1F437,
    "panda": 0x1F43C, "lion": 0x1F981, "fox": 0x1F98A, "koala": 0x1F428,
    "penguin": 0x1F427, "chick": 0x1F424, "octopus": 0x1F419, "crab": 0x1F980,
    "fish": 0x1F420, "whale": 0x1F433, "turtle": 0x1F422, "owl": 0x1F989,
    "ladybug": 0x1F41E, "bomb": 0x1F4A3, "parrot": 0x1F99C, "ghost": 0x1F47B,
    "unicorn": 0x1F984, "snail": 0x1F40C, "car": 0x1F697, "robot": 0x1F916,
    "bus": 0x1F68C, "tractor": 0x1F69C, "rocket": 0x1F680, "train": 0x1F686,
    "boat": 0x26F5, "balloon": 0x1F388, "ball": 0x26BD, "basketball": 0x1F3C0,
    "heart": 0x2764, "star": 0x2B50, "sun": 0x1F31E, "moon": 0x1F31C,
    "cloud": 0x2601, "rainbow": 0x1F308, "flower": 0x1F33B, "crown": 0x1F451,
    "tree": 0x1F333, "cactus": 0x1F335, "house": 0x1F3E0, "gift": 0x1F381,
}  # fmt: skip


def draw_emoji(font: ImageFont.FreeTypeFont, codepoint: int) -> Image.Image:
    """One emoji as an RGBA image of ``CELL`` by ``CELL`` pixels, cropped to its bounding square."""
    canvas = Image.new("RGBA", (2 * FONT_SIZE, 2 * FONT_SIZE))
    ImageDraw.Draw(canvas).text((FONT_SIZE // 4, FONT_SIZE // 4), chr(codepoint), font=font, embedded_color=True)
    box = canvas.getchannel("A").getbbox()
    if box is None:
        raise SystemExit(f"the font draws nothing for U+{codepoint:X}")
    side = max(box[2] - box[0], box[3] - box[1])
    left, top = (box[0] + box[2] - side) // 2, (box[1] + box[3] - side) // 2
    square = canvas.crop((left, top, left + side, top + side))
    # Pillow resamples RGBA with premultiplied alpha, so no dark rims appear.
    return square.resize((CELL, CELL), Image.Resampling.LANCZOS)


def main(font_path: str) -> None:
    """Write ``sheet.png`` and ``sheet.json`` beside this file."""
    font = ImageFont.truetype(font_path, FONT_SIZE)
    rows = -(-len(SPRITES) // COLUMNS)
    sheet = Image.new("RGBA", (COLUMNS * CELL, rows * CELL))
    for number, codepoint in enumerate(SPRITES.values()):
        row, column = divmod(number, COLUMNS)
        sheet.paste(draw_emoji(font, codepoint), (column * CELL, row * CELL))
    folder = Path(__file__).parent
    sheet.save(folder / "sheet.png", optimize=True)
    entries = [{"name": name, "codepoint": f"U+{codepoint:X}"} for name, codepoint in SPRITES.items()]
    (folder / "sheet.json").write_text(
        json.dumps({"cell": CELL, "columns": COLUMNS, "sprites": entries}, indent=1) + "\n", encoding="utf-8"
    )


if __name__ == "__main__":
    main(sys.argv[1])
