"""What the numbers and colours in masks mean: decided once for a whole data set."""

import sys
from dataclasses import dataclass

from common.config import VOID, Names, UserError, Values
from common.pictures import class_names
from common.text import listed, say
from data.files import is_jpeg

import numpy as np

NEAR = 32  # of 0 and of 255: what is left of black and white by JPEG, or by smoothing
BETWEEN = 0.1  # share of the pixels that may lie between these, along the edges


@dataclass(frozen=True)
class Meaning:
    """What the values of the masks of a data set mean."""

    table: np.ndarray  # uint8 [256]: value -> class index, or VOID
    classes: int  # as in `Config`: 1 is foreground against background
    void_label: int | None  # the value that is void, None if there is none
    note: str  # a few words on how the values were read
    values: Values | None = None  # what stands for the classes, in order, where that is not 0, 1, 2, ..., or 0 and 255


def mask_meaning(counts, items, config, layout):
    """Decides for the whole data set what the values of its masks mean: a mask of one image may well be 0 everywhere.

    Args:
        counts: int [n, 256], how many pixels of each mask have each value.
        items: the n `data.layouts.Item`s.
        config: its `classes` and `void_label` are followed where they are given, and found where they are None.

    Returns: `Meaning`.

    Raises: UserError for values that fit nothing, naming the files that are unlike the others, for JPEG masks whose values are
    smeared, and for masks without a foreground.
    """
    held, void = counts.any(axis=0), config.data.void_label
    jpeg = np.array([is_jpeg(item.mask) for item in items], bool)
    if not (found := _read(counts, items, config, layout, jpeg)):
        raise _misfit(counts, items, config, layout, jpeg)
    classes, indices, note = found
    values, by_class = config.data.mask_values, sorted((index, value) for value, index in indices.items() if index != VOID)
    if layout.classes is None and len(by_class) == max(classes, 2) and not set(indices) <= {0, 1, VOID}:
        values = Values(value for _, value in by_class)
        values = values if values != tuple(range(len(values))) else None
    smeared = jpeg & (np.count_nonzero(counts, axis=1) > 1)
    # of black and white JPEG leaves enough, and a smeared colour has no name
    if smeared.any() and not config.data.colors and len(indices) < 256 and set(indices) != {0, VOID}:
        raise UserError(
            f"{_of_all(smeared)}{items[int(smeared.argmax())].mask} is a JPEG file of class indices: JPEG does not keep "
            "a mask's values, save it as PNG from the original; black and white, 0 and 255, could be read"
        )
    if void is None and any(index == VOID and held[value] for value, index in indices.items()):
        void = VOID
    table = np.full(256, VOID, np.uint8)
    table[list(indices)] = list(indices.values())
    if void is not None:
        table[_as_read(void, layout)] = VOID
        note += f", {'the rest' if len(indices) == 256 and layout.classes else void} is void"
    if config.network.classes is None and len(set(table[held]) - {VOID}) < 2:
        learnt = held & (table != VOID)
        only = f"only the value {_span(np.flatnonzero(learnt).tolist())}" if learnt.any() else "no value"
        beside = " (and void)" if (held & ~learnt).any() else ""
        raise UserError(
            f"all {len(items)} masks hold {only} of a class{beside}, so there is nothing to learn: check {items[0].mask.parent}"
            f"{' and --mask-values' if config.data.mask_values else ''}, or set --classes if that is meant"
        )
    return Meaning(table, classes, void, note, values)


def _as_read(void, layout):
    """The value that the reader of the masks makes of --void-label, as an index; of None there is none."""
    return [] if void is None else [VOID if layout.objects or not 0 <= void <= 255 else void]


def _read(counts, items, config, layout, jpeg):
    """-> (classes, {value: class index}, note), or None for values that are no class indices. Raises: UserError."""
    values = config.data.mask_values
    counts = _without(counts, _as_read(config.data.void_label, layout))
    if layout.classes is None and not values:
        return _found(counts, items, config, jpeg)
    classes = {**dict(zip(values, range(len(values)))), VOID: VOID} if values else layout.classes
    n = 1 + max(index for index in classes.values() if index != VOID)
    wrong = _without(counts, list(classes)) > 0
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


def _found(counts, items, config, jpeg):
    """What the values of the masks say, as `_read`. `counts` is without --void-label.

    The first of the `_ways` that takes all masks; but what JPEG or smoothing has made of black and white is no class indices.
    """
    present = counts > 0
    values, classes = set(np.flatnonzero(present.any(axis=0)).tolist()), config.network.classes
    if classes is None and len(values) < 2:  # `mask_meaning` says so
        return 1, dict.fromkeys(values, 0), ""
    words, standing, beside = next((way for way in _ways(present, config) if values <= {*way[1], *way[2]}), ("", [], []))
    if standing in ([0, 1], [0, VOID]):
        note = "mask values 0/1" if standing == [0, 1] else "mask values 0/255 read as 0/1"
        return classes or 1, {standing[0]: 0, standing[1]: 1}, note
    blurred = present[:, 1:255].any(axis=1)
    ends = counts[:, :NEAR].sum() + counts[:, 256 - NEAR :].sum()
    # JPEG and smoothed edges mix black and white into many values of few pixels; class indices they would mix into each other
    if classes in (None, 1, 2) and max(values) > 192 and ends >= (1 - BETWEEN) * counts.sum():
        if jpeg[blurred].all() or len(values & {*range(NEAR, 256 - NEAR)}) > 8:
            what = "JPEG masks" if jpeg[blurred].all() else f"{blurred.sum()} masks with smoothed edges"
            return classes or 1, {value: value // 128 for value in range(256)}, f"{what} read as 0 below 128 and 1 above"
    indices = sorted(values - {*beside})
    if not standing or len(indices) < 2 and VOID in values:  # 0 and 255 are no two classes of many
        return None
    n, absent = len(standing), [str(value) for value in standing if value not in values]
    note = f"{n} classes from mask values {standing[0]} to {max(indices, default=0)}"
    if not classes:
        note += f" without {listed(absent, 3)}" if absent else ""
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
    """[n, 256], what each mask holds beside `values`."""
    beside = present.copy()
    beside[:, values] = 0
    return beside


def _span(values):
    """Numbers in words: 1 to 40, or each of them."""
    values = list(values)
    if len(values) > 1 and values == [*range(values[0], values[-1] + 1)]:
        return f"{values[0]} to {values[-1]}"
    return listed(list(map(str, values)), 8)


def _of_all(odd):
    """How many of all masks, as the beginning of a message; "" for the only one."""
    return f"{odd.sum()} of {len(odd)} masks: " if len(odd) > 1 else ""


def _misfit(counts, items, config, layout, jpeg):
    """The `UserError` for values that are no class indices: what the odd masks hold, what fits, and options that were tried."""
    classes, void = config.network.classes, config.data.void_label
    present = _without(counts, _as_read(void, layout)) > 0
    ways = _ways(present, config)
    outside = {words: _without(present, [*standing, *beside]).any(axis=1) for words, standing, beside in ways}
    most = min(outside, key=lambda words: outside[words].sum())  # what most masks hold
    odd = outside[most] if outside[most].any() else ~outside[most]  # 0 and 255 fit many classes, and are none
    few = 0 < 2 * odd.sum() < present[:, 1:].any(axis=1).sum()  # a mask of 0 alone fits any reading
    mask, held = items[int(odd.argmax())].mask, np.flatnonzero(present[odd.argmax()]).tolist()
    takes = "masks hold 0/1, 0/255, or class indices 0, 1, 2 and so on"
    if classes:
        takes = f"--classes {classes} takes {'0/1 or 0/255, the same in all masks' if classes <= 2 else ways[-1][0]}"
    if present[~odd][:, 1:].any():
        takes += f", and the other {np.count_nonzero(~odd)} hold {most}"

    *indices, top = sorted({0, *np.flatnonzero(present[:, :VOID].any(axis=0)).tolist()})
    stray, offers = np.flatnonzero(present[odd].any(axis=0) & ~present[~odd].any(axis=0)).tolist(), {}
    if len(stray) == 1 or not few and VOID in stray:
        offers[f"--void-label {stray[-1]} if that marks what nobody labelled"] = dict(void_label=stray[-1])
    gaps, needed, these = 2 * len(indices) < top, top + 1 - (void is not None and void <= top), Values([*indices, top])
    if not few or not gaps:
        offers[f"--classes {needed} if they are class indices"] = dict(classes=needed)
    if not few:
        named = f"--mask-values {these} if these alone stand for the classes, --colors FILE to name them"
        offers[named] = dict(mask_values=these)
    advice = [words for words, options in offers.items() if _works(counts, items, config, layout, jpeg, options)]
    if config.data.dataset == "folder" and len(held) > 3 and VOID not in held and not classes:
        advice.append("--objects if each number is an object")
    advice.append("or mend the mask" if advice else "mend the mask")
    if jpeg[odd.argmax()]:
        advice = ["JPEG does not keep a mask's values, save it as PNG"]
    elif len(indices) >= 32 and (top >= 200 or gaps):
        advice = ["save it without smoothed edges"]
    shown = ", ".join(map(str, held if len(held) <= 8 else [*held[:6], "...", held[-1]]))
    holds = f"{_of_all(odd) if few else ''}{mask} holds {len(held)} values ({shown})"
    return UserError(f"{holds}, but {takes}: {', '.join(advice)}")


def _works(counts, items, config, layout, jpeg, options):
    """Whether other `options` than those that are given make classes of the masks."""
    given = config.flat
    if any(given[name] == value or name == "void_label" and given[name] is not None for name, value in options.items()):
        return False
    try:
        changed = config.replace(**options)
        found = _read(counts, items, changed, layout, jpeg)
    except UserError:
        return False
    learnt = {found[1].get(value, VOID) for value in np.flatnonzero(counts.any(axis=0)).tolist()} if found else ()
    return len({*learnt} - {VOID}) > (config.network.classes is None)


def doubt(config, index):
    """What else the masks of a folder may well be, in words, or "". index: of `data.cache`."""
    data, objects = config.data, index["objects"]
    if data.dataset != "folder" or data.colors is not None:
        return ""
    if not data.objects:
        values = np.count_nonzero(index["counts"][:, 1:VOID], axis=1)
        many = values > 3  # in label images each value is one piece
        alike = many.any() and np.mean(index["parts"][many] == values[many]) > 0.8
        return "which may be numbers of objects: if so, --objects" if alike else ""
    if objects.max() < 2:
        return "one object in a mask at most: if the masks hold classes, leave --objects out"
    odd = data.void_label is None and np.count_nonzero((index["highest"] == VOID) & (objects > 1) & (objects < VOID // 2))
    return f"in {odd} masks one has the number 255: --void-label 255 if that marks what nobody labelled" if odd else ""


def as_classes(mask):
    """uint8 [H, W] as it is; int32 [H, W], numbers of objects, -> uint8: 0 the background, 1 an object, VOID below 0."""
    return mask if mask.dtype == np.uint8 else np.where(mask < 0, VOID, mask > 0).astype(np.uint8)


def class_pixels(counts, meaning):
    """int [n, 256], how many pixels of n masks have each value -> [n, classes], how many are of each class."""
    return np.stack([counts[:, meaning.table == k].sum(axis=1) for k in range(max(meaning.classes, 2))], axis=1)


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
    found = dict(classes=meaning.classes, void_label=meaning.void_label, mask_values=meaning.values, class_names=names)
    return config.replace(**found, **layout.patterns)


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
