"""What the numbers and colours in masks mean: decided once for a whole data set."""

import re
import reprlib
import sys
from dataclasses import dataclass

from common.config import VOID, Names, UserError, Values
from common.pictures import class_names
from common.text import listed, say
from data.files import Colors, is_jpeg

import numpy as np

OBJECTS = {0: 0, 1: 1}  # `Layout.classes` where masks number objects: `as_classes` makes them background and foreground


@dataclass(frozen=True)
class Meaning:
    """What the values of the masks of a data set mean."""

    table: np.ndarray  # uint8 [256]: value -> class index, or VOID
    classes: int  # as in `Config`: 1 is foreground against background
    void_label: int | None  # the value that is void, None if there is none
    note: str  # a few words on how the values were read
    values: Values | None = None  # what stands for the classes, in order, where that is not 0, 1, 2, ..., or 0 and 255


def mask_meaning(present, items, config, layout):
    """Decides for the whole data set what the values of its masks mean: a mask of one image may well be 0 everywhere.

    Args:
        present: bool [n, 256], which values each mask holds.
        items: the n `data.layouts.Item`s.
        config: its `classes` and `void_label` are followed where they are given, and found where they are None.

    Returns: `Meaning`.

    Raises: UserError for values that fit nothing, naming the files that are unlike the others, for JPEG masks whose values are
    smeared, and for masks without a foreground.
    """
    values, void, held = config.data.mask_values, config.data.void_label, present.any(axis=0)
    jpeg = np.array([is_jpeg(item.mask) for item in items], bool)
    if layout.classes is not None or values:
        classes, indices, note = _fixed(present, items, config, layout)
    else:
        present = _without(present, [] if void is None else [void])
        classes, indices, note = _found(present, items, config, jpeg)
        by_class = sorted((index, value) for value, index in indices.items() if index != VOID)
        if len(by_class) == max(classes, 2) and not set(indices) <= {0, 1, VOID}:
            found = Values(value for _, value in by_class)
            values = found if found != tuple(range(len(found))) else None
    smeared = jpeg & (present.sum(axis=1) > 1)
    # of black and white JPEG leaves enough, and a smeared colour has no name
    if smeared.any() and not config.data.colors and len(indices) < 256 and set(indices) != {0, VOID}:
        raise UserError(
            f"{_of_all(smeared)}{items[int(smeared.argmax())].mask} is a JPEG file of class indices: JPEG does not keep "
            "a mask's values, save it as PNG from the original; black and white, 0 and 255, could be read"
        )
    if void is None and held[VOID] and indices.get(VOID) == VOID:
        void = VOID
    table = np.full(256, VOID, np.uint8)
    table[list(indices)] = list(indices.values())
    if void is not None:
        table[void] = VOID
        note += f", {void} is void"
    if config.network.classes is None and len(set(table[held]) - {VOID}) < 2:
        learnt = held & (table != VOID)
        only = f"only the value {_span(np.flatnonzero(learnt).tolist())}" if learnt.any() else "no value"
        beside = " (and void)" if (held & ~learnt).any() else ""
        raise UserError(
            f"all {len(items)} masks hold {only} of a class{beside}, so there is nothing to learn: check {items[0].mask.parent}"
            f"{' and --mask-values' if config.data.mask_values else ''}, or set --classes if that is meant"
        )
    return Meaning(table, classes, void, note, values)


def _fixed(present, items, config, layout):
    """What a layout or --mask-values says about masks -> (classes, {value: class index}, note)."""
    values = config.data.mask_values
    classes = {**dict(zip(values, range(len(values)))), VOID: VOID} if values else layout.classes
    known = {**classes, config.data.void_label: VOID}
    n = 1 + max(index for index in known.values() if index != VOID)
    wrong = _without(present, [value for value in known if value is not None])
    if wrong.any():
        item, allowed = items[int(wrong.any(axis=1).argmax())], ", ".join(map(str, sorted(classes)))
        raise UserError(
            f"{_of_all(wrong.any(axis=1))}{item.mask} holds the value {wrong.any(axis=0).argmax()}, but "
            f"{'--mask-values' if values else f'--dataset {config.data.dataset}'} has {allowed}: mend it"
        )
    note = f"classes {layout.class_names}" if n <= 4 else f"{n} classes"
    if values:
        note = f"{n} classes from mask values {_span(values)}"
    return config.network.classes or (1 if n == 2 else n), classes, note


def _found(present, items, config, jpeg):
    """What the values of the masks say -> (classes, {value: class index}, note). `present` is without --void-label.

    The first of the `_ways` that takes all masks; but what JPEG has made of black and white is no class indices.
    """
    values, classes = set(np.flatnonzero(present.any(axis=0)).tolist()), config.network.classes
    if classes is None and len(values) < 2:  # `mask_meaning` says so
        return 1, dict.fromkeys(values, 0), ""
    ways = _ways(present, config)
    words, standing, beside = next((way for way in ways if values <= {*way[1], *way[2]}), ("", [], []))
    if standing in ([0, 1], [0, VOID]):
        note = "mask values 0/1" if standing == [0, 1] else "mask values 0/255 read as 0/1"
        return classes or 1, {standing[0]: 0, standing[1]: 1}, note
    if classes in (None, 1, 2) and max(values) > 192 and jpeg[present[:, 1:255].any(axis=1)].all():
        # JPEG smears black and white into their neighbours. Class indices it would smear into each other.
        return classes or 1, {value: value // 128 for value in range(256)}, "JPEG masks read as 0 below 128 and 1 above"
    indices = sorted(values - {*beside})
    if not standing or len(indices) < 2 and VOID in values:  # 0 and 255 are no two classes of many
        raise _misfit(present, items, config, jpeg, ways)
    n, absent = len(standing), [str(value) for value in standing if value not in values]
    note = f"{n} classes from mask values {standing[0]} to {max(indices, default=0)}"
    if not classes:
        note += f" without {listed(absent, 3)}" if absent else ""
        single = [value for value in indices if present[:, value].sum() == 1] if len(items) >= 10 else []
        # a class that one mask has may be a slip of the pen
        note += "".join(f", {value} in {items[present[:, value].argmax()].mask.name} alone" for value in single[:3])
        if config.data.dataset == "folder" and _count_on(present):
            note += ", which may be numbers of objects: if so, --objects"
    return classes or (1 if n == 2 else n), {**{value: i for i, value in enumerate(standing)}, VOID: VOID}, note


def _ways(present, config):
    """[(words, values that stand for the classes in order, what may occur beside them)], in which masks are read."""
    classes, void, ways = config.network.classes, config.data.void_label, []
    beside = [VOID] if void is None else []  # of class indices 255 is void
    if classes in (None, 1, 2):
        ways = [("0 and 1", [0, 1], []), ("0 and 255", [0, VOID], [])]
    # 0, 1, 2 and so on but for the void label: a class of no pixels in its place would be learnt and shown for nothing
    numbers = [value for value in range(VOID) if value != void]
    if classes:
        counted = [numbers[: max(classes, 2)]]
    else:
        tops = {int(np.flatnonzero(row[:VOID])[-1]) for row in present if row[:VOID].any()}
        counted = [[value for value in numbers if value <= top] for top in sorted(tops)]
    for standing in counted:
        within = present[~_without(present, [*standing, *beside]).any(axis=1)]
        # a small data set may lack a class or two; 0, 38, 75 are no indices, and 250 values are smoothed edges or a photo
        fits = classes or len(standing) <= 200 and within[:, standing].any(axis=0).mean() >= 0.75
        if fits and len(standing) > 1 and standing != [0, 1]:
            ways.append((_span(standing), standing, beside))
    return ways


def _without(present, values):
    """bool [n, 256], the values that each mask holds beside `values`."""
    beside = present.copy()
    beside[:, values] = False
    return beside


def _count_on(present):
    """Whether masks look like label images: many hold 1 to k without a gap, for a k that is seldom the same."""
    tops = [int(row.sum()) for row in present[:, 1:] if row.any() and row[: row.sum()].all()]
    return len(tops) > 0.8 * present[:, 1:].any(axis=1).sum() and max(tops) > 3 and len(set(tops)) > max(1, len(tops) // 4)


def _span(values):
    """Numbers in words: 1 to 40, or each of them."""
    values = list(values)
    if len(values) > 1 and values == [*range(values[0], values[-1] + 1)]:
        return f"{values[0]} to {values[-1]}"
    return listed(list(map(str, values)), 8)


def _of_all(odd):
    """How many of all masks, as the beginning of a message; "" for the only one."""
    return f"{odd.sum()} of {len(odd)} masks: " if len(odd) > 1 else ""


def _misfit(present, items, config, jpeg, ways):
    """The `UserError` for values that are no class indices, about the masks that are unlike the others."""
    classes = config.network.classes
    outside = {words: _without(present, [*standing, *beside]).any(axis=1) for words, standing, beside in ways}
    most = min(outside, key=lambda words: outside[words].sum())  # what most masks hold
    odd = outside[most]
    few = 0 < 2 * odd.sum() < present[:, 1:].any(axis=1).sum()  # a mask of 0 alone fits any reading
    first = int(odd.argmax())
    values = set(np.flatnonzero(present.any(axis=0)).tolist())
    held = np.flatnonzero(present[first]).tolist()
    shown = ", ".join(map(str, held if len(held) <= 8 else [*held[:6], "...", held[-1]]))
    top = max(values - {VOID}, default=0)
    stray = values - set(np.flatnonzero(present[~odd].any(axis=0)).tolist())
    allowed = "but masks hold 0/1, 0/255, or class indices 0, 1, 2 and so on"
    if classes:
        takes = "0/1 or 0/255, the same in all masks" if classes <= 2 else ways[-1][0]
        allowed = f"but --classes {classes} takes {takes}"
    if few:
        allowed += f", and the other {len(odd) - odd.sum()} hold {most}"
    needed = top + 1 - (config.data.void_label is not None and config.data.void_label <= top)
    advice = next(
        text
        for applies, text in (
            (jpeg[first], "JPEG does not keep a mask's values, save it as PNG"),
            (
                values <= {0, 1, VOID} and classes in (None, 1, 2),
                "1 and 255 both occur in the masks; --void-label 255 if that marks what nobody labelled",
            ),
            (
                classes and top < max(classes, 2),
                "255 is foreground only with --classes 1 or 2; --void-label 255 if it marks what nobody labelled",
            ),
            (  # else most of the classes would not occur
                top < 200 and len(values - {VOID}) >= (top + 1) / 2,
                f"if they are class indices, set --classes {needed}, otherwise mend the mask",
            ),
            (
                few and len(stray) == 1,
                f"mend the mask, or --void-label {min(stray, default=0)} if that marks what nobody labelled",
            ),
            (len(held) > 32, "save it without smoothed edges"),
            (few, "mend the mask"),
            (True, "if gray levels or colours stand for classes, name them with --colors FILE"),
        )
        if applies
    )
    if config.data.dataset == "folder" and len(held) > 3 and VOID not in held and not jpeg[first] and not classes:
        advice += ", or --objects if each number is an object"
    return UserError(
        f"{_of_all(odd) if few else ''}{items[first].mask} holds {len(held)} values ({shown}), {allowed}: {advice}"
    )


def as_classes(mask):
    """uint8 [H, W] as it is; int32 [H, W], numbers of objects, -> uint8, 0 for the background and 1 for an object."""
    return mask if mask.dtype == np.uint8 else (mask > 0).astype(np.uint8)


def by_index(n):
    """`Layout.classes` where `read` maps to class indices itself."""
    return {**{i: i for i in range(n)}, VOID: VOID}


def trimap_classes(config):
    """What the values of trimaps are: {value: class index}, class names. The outline counts as background, or is a class."""
    if config.network.classes in (1, 2) or config.network.classes is None and config.data.void_label == 3:
        return {2: 0, 1: 1, 3: 0}, Names(("background", "pet"))
    return {2: 0, 1: 1, 3: 2}, Names(("background", "pet", "outline"))


def read_colors(config):
    """Reads a line `name red green blue` for every class -> `Colors`; the class named void has no index.

    Raises: UserError for a line that is something else, a name or a colour that comes twice, and too few classes.
    """
    path, names, indices = config.data.colors.path, [], {}
    for number, line in enumerate(config.data.colors.splitlines(), 1):
        line = line.partition("#")[0].strip()
        if not line:
            continue
        match = re.fullmatch(r"([^,]+?)\s+(\d{1,3})\s+(\d{1,3})\s+(\d{1,3})", line)
        name, color = (match[1], tuple(map(int, match.groups()[1:]))) if match else ("", (256,))
        if max(color) > 255:
            raise UserError(
                f"--colors {path}, line {number}: {reprlib.repr(line)} must be a name and three numbers 0 to 255: sky 0 128 255"
            )
        if name in names or color in indices:
            raise UserError(f"--colors {path}, line {number}: the name or the colour of {line!r} occurs before")
        if name == "void":
            indices[color] = VOID
        else:
            indices[color] = len(names)
            names.append(name)
    if not 2 <= len(names) <= VOID:
        raise UserError(f"--colors {path} names {len(names)} classes: it takes 2 to {VOID}, a line for each")
    if max(config.network.classes or len(names), 2) != len(names):
        raise UserError(
            f"--colors {path} names {len(names)} classes, but --classes is {config.network.classes}: leave --classes out"
        )
    return Colors(path, Names(names), indices, config.data.void_label is not None)


def filled_in(config, layout, meaning):
    """The config with what was found out about the masks.

    Classes have the names of the command line, or those of the layout if there is one for each; classes whose index is not the
    value that stands for them are named by the value.

    Raises: UserError when the names on the command line are too few or too many.
    """
    needed, names, known = max(meaning.classes, 2), config.data.class_names, layout.class_names
    if names and len(names) != needed:
        raise UserError(f"--class-names needs one for each of {needed} classes, got {len(names)}")
    if not names and meaning.values and needed > 2:
        names = Names(f"class {value}" for value in meaning.values)
    elif not names and known and len(known) == needed:
        names = known
    return config.replace(classes=meaning.classes, void_label=meaning.void_label, mask_values=meaning.values, class_names=names)


def check_classes(config, learnt, judged):
    """learnt, judged: which classes occur in the masks to train on, and to validate on: bool [classes].

    Raises: UserError where there is nothing to learn from, or to judge by. Warns of classes that only one side has.
    """
    for found, part, why in (learnt, "train", "learn from"), (judged, "validate", "judge by"):
        if not found.any():
            raise UserError(
                f"no pixel of the masks to {part} on is labelled, so there is nothing to {why}: another --seed or --split"
            )
    names = class_names(config.data.class_names, config.network.classes)
    if learnt.sum() == 1:
        only = names[int(learnt.argmax())]
        say(f"warning: every labelled pixel to train on is {only}: there is nothing to tell it from", sys.stderr)
    elif (learnt != judged).any():
        of_one = [f"{names[k]} only to {'train' if learnt[k] else 'validate'} on" for k in np.flatnonzero(learnt != judged)]
        say(f"warning: the masks hold {listed(of_one, 5)}", sys.stderr)
