"""A colour for each class index, in sRGB, told apart by colour-blind readers too for as long as that can be.

Class 0 is black, 1 to 7 are the palette of Okabe and Ito (Wong 2011, Nature Methods 8, 441), VOID is gray. Each of the others
is, of the 13 x 13 x 13 colours of an even grid, the one with the largest distance to the nearest of those before it and to
the gray, in CIELAB, in the worst of three eyes: of most people, without green cones, without red cones (Machado, Oliveira
and Fernandes 2009, severity 1). tests/test_pictures.py computes them again. From class 64 on they come again.
"""

import re
import reprlib

from common.values import VOID, ColorTable, Names, UserError

import numpy as np

# in row i, column k: class 16 * i + k
HEX = """
    000000 e69f00 56b4e9 009e73 f0e442 0072b2 d55e00 cc79a7 0000ff bfffaa 000055 eaffff 801500 6a6aff 004055 0015aa
    55bf6a 005540 00002a d4ff80 95d4aa 8095ff 95d4ea 004095 558040 4040ea 551515 aa4000 aa2a80 556ad4 d4ffd4 aad46a
    001580 2a2a6a 40152a ffff2a 6aaa40 2a6a40 4040bf d4d4d4 00bf80 80d440 80bfaa 1500d4 2a95d4 005555 556a95 aaeaaa
    ffff6a ff95ff 6aaabf 150040 80402a 1595bf 95552a 6a80ff 6a9515 ea4055 550040 d415aa bfff95 ea8040 6a0000 000015
"""
CLASS_COLORS = np.frombuffer(bytes.fromhex(HEX), np.uint8).reshape(-1, 3)
CLASS_COLORS = CLASS_COLORS[[k if k < 64 else 1 + k % 61 for k in range(256)]] / 255  # masks have evenly spaced values: a prime
CLASS_COLORS[VOID] = 128 / 255  # [256, 3], 0 to 1


def names_in(path):
    """`Names` of the classes in a file that `class_list` reads, or that has a name in each line. Raises: UserError."""
    table = ColorTable.parse(path)
    if not re.search(r"\d", table):
        return Names.of(filter(None, map(str.strip, table.splitlines())))
    names, indices = class_list(table, f"--class-names {path}")
    by_value = sorted((key, index) for key, index in indices.items() if isinstance(key, int) and index != VOID)
    return Names(names[index] for _, index in by_value) if by_value else names


def class_list(text, source):
    """Reads the classes of a mask, one in each line: a name and its value, or its red, green and blue, in any order of columns.

    CVAT's and VOC's labelmap.txt, Roboflow's _classes.csv, class_dict.csv, `sky 128 128 128`. A class named void has no index.
    One named background comes first, since class 0 is what the others are counted against.

    Returns: names in order, {value or (red, green, blue): class index or VOID}.

    Raises: UserError for a line that is something else, and for a name or a value that comes twice.
    """
    found = {}
    for number, line in enumerate(text.splitlines(), 1):
        line = re.sub(r"(^|\s)#.*", "", line).strip()
        parts = re.split(r"[,;:\t]", line) if re.search(r"[,;:\t]", line) else line.split()
        parts = [part.strip(" \"'") for part in parts if part.strip()]
        parts = [word for part in parts for word in (part.split() if re.fullmatch(r"[\d ]+", part) else [part])]
        numbers = [int(part) for part in parts if part.isdecimal()]
        if not parts or not numbers and not found:  # nothing, or a title
            continue
        columns = re.sub(r"w+", "w", "".join("n" if part.isdecimal() else "w" for part in parts))
        if not re.fullmatch(r"w(n|nnn)|(n|nnn)w|nwnnn|nnnwn", columns) or max(numbers) > 255:
            form = "a name and three numbers 0 to 255, or one: sky 0 128 255"
            raise UserError(f"{source}, line {number}: {reprlib.repr(line)} must be {form}")
        values = numbers[1:] if columns == "nwnnn" else numbers[:3]  # the other is a number of the line
        key = values[0] if len(values) == 1 else tuple(values)
        name = " ".join(part for part in parts if not part.isdecimal())
        if name in found.values() or key in found or type(next(iter(found), key)) is not type(key):
            raise UserError(
                f"{source}, line {number}: the name or the colour of {line!r} occurs before, or others have another form"
            )
        found[key] = name
    names = sorted((name for name in found.values() if name.lower() != "void"), key=lambda name: name.lower() != "background")
    return Names.of(names), {key: names.index(name) if name in names else VOID for key, name in found.items()}
