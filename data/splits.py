"""Which images train and which validate. Whatever is random follows from the seed; groups are never torn apart."""

import json
import os
import re
from collections import defaultdict

from common.config import Data, UserError
from common.output import write_text
from common.streams import SPLIT, generator
from common.text import listed

import numpy as np

SIDES = ("train", "val")
FRAME = re.compile(r"(.*[-_. ])[^-_. \d]*(\d{3,})")  # 0001TP_006690, 0006R0_f00930


def split(items, config):
    """Indices into `items`, objects with `name`, `group` and `part`: {"train": [...], "val": [...]}, both sorted, none empty.

    In this order: the lists of --split; parts "val" and "train" of whoever published the data; number --fold of --folds; a
    random share --validation. Images of the part "test" are in neither. Folds and shares hold whole groups, if there are any;
    lists and parts that tear one are refused.

    Raises: UserError for lists that do not fit the data, for too few images or groups, and for groups on both sides.
    """
    data, given = config.data, {part: [i for i, item in enumerate(items) if item.part == part] for part in SIDES}
    if data.split:
        given = _given(items, data.split)
    elif not given["val"] or data.folds:
        return _drawn(items, config)
    elif not given["train"]:
        raise UserError(f"{data.data_dir} has images to validate on, but none to train on in train/")
    elif data.validation != Data.validation:
        raise UserError("--validation does nothing beside published parts: leave it out, or give patterns without {part}")
    train, val = ({items[i].group for i in given[part]} - {""} for part in SIDES)
    if both := sorted(train & val):
        torn = f"{len(both)} of {len(train | val)} groups on both sides: {listed(both, 3)}"
        remedy = "--folds N splits anew and keeps groups together, patterns without {group} let them be torn"
        raise UserError(f"{f'--split {data.split} puts' if data.split else 'the published parts put'} {torn}; {remedy}")
    return given


def _drawn(items, config):
    """A split by chance, of all but the test part."""
    data, folds = config.data, config.data.folds
    usable = [i for i, item in enumerate(items) if item.part != "test"]
    units = {}  # what must stay together: lists of indices, one for every group, or one for every image
    for i in usable:
        units.setdefault(items[i].group or (i,), []).append(i)
    if len(usable) < 2:
        raise UserError(f"{data.data_dir or 'this'} holds {len(usable)} images: it takes one to train on and one to validate")
    if len(units) < (folds or 2):
        kind, fewer = "groups" if len(units) < len(usable) else "images", ["fewer --folds"] * bool(folds)
        by_pattern = any(item.group and item.page is None for item in items)  # others are stacks
        remedy = " or ".join(fewer + ["patterns without {group}"] * by_pattern)
        raise UserError(f"{len(units)} {kind} do not make {folds or 2} parts: use {remedy}")
    order = [list(units.values())[k] for k in generator(config.network.seed, SPLIT).permutation(len(units))]
    held_back = []
    if folds:  # with nearly as many images each: the largest unit first, always to the smallest fold
        parts = [[] for _ in range(folds)]
        for unit in sorted(order, key=len, reverse=True):
            min(parts, key=len).extend(unit)
        held_back = parts[data.fold or 0]
    else:  # about the share that is wanted: one unit at least, and never all
        wanted, left = round(data.validation * len(usable)), len(order) - 1
        for unit in order:
            if left and len(held_back) + len(unit) <= wanted:
                held_back, left = held_back + unit, left - 1
        held_back = held_back or min(order, key=len)
    return {"train": sorted(set(usable) - set(held_back)), "val": sorted(held_back)}


def torn_sequences(layout, parts, config):
    """[A line] where `parts`, a split by `split`, have frames of one video or slices of one volume on both sides, or [].

    Taken for sequences are images that are numbered evenly, with zeros before, under one of several names. What --split says is
    not questioned.
    """
    frames, torn, folds = defaultdict(list), [], config.data.folds  # frames: the name -> [(number, side)]
    for side, indices in parts.items():
        for item in (layout.items[i] for i in indices):
            if not item.group and (name := FRAME.fullmatch(os.path.splitext(os.path.basename(item.name))[0])):
                frames[name[1]].append((name[2], side))
    for name, found in frames.items():
        numbers, sides = zip(*found)
        steps = np.diff(sorted(map(int, numbers)))
        even = len(steps) > 3 and np.mean(steps == np.median(steps)) >= 0.5 and any(number[0] == "0" for number in numbers)
        torn += [name] * (even and len(set(sides)) > 1)
    every = sum(map(len, frames.values())) == sum(map(len, parts.values())) and len(frames) > 1
    named = layout.patterns and all("{name}" in pattern for pattern in layout.patterns.values())
    named = named and len({name[-1] for name in frames}) == 1  # what stands before the number, in the patterns too
    if not (torn and every and named) or config.data.split:
        return []
    images, masks = (text.replace("{name}", f"{{group}}{torn[0][-1]}{{name}}") for text in layout.patterns.values())
    asked = f"--image-files '{images}' --mask-files '{masks}'"
    if folds and folds > len(frames) or not folds and any(item.part == "val" for item in layout.items):
        asked += f" --folds {min(len(frames), 5)}"  # published parts would tear them again
    return [
        f"frames of one sequence, such as {torn[0]}*, are on both sides of the split, and neighbours are alike, which flatters "
        f"the validation; {asked} keeps each sequence on one side"
    ]


def _read(path):
    """{"train": [name], "val": [name]} of a JSON file, and what else is in it, or of the train.txt and val.txt in a folder.

    Raises: OSError, or ValueError for anything else.
    """
    if path.is_dir():
        texts = {part: (path / f"{part}.txt").read_text(encoding="utf-8") for part in SIDES}
        return {part: [line.strip() for line in text.splitlines() if line.strip()] for part, text in texts.items()}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        lists = [found[part] for part in SIDES]
    except (RecursionError, TypeError, KeyError):
        lists = [None]
    if not all(isinstance(names, list) and all(isinstance(name, str) for name in names) for names in lists):
        raise ValueError("no split")
    return found


def _given(items, path):
    """The split that stands in `path`, which `_read` takes."""
    try:
        lists = _read(path)
    except OSError as error:
        raise UserError(f"cannot read --split {error.filename or path}: {error.strerror}") from None
    except ValueError:
        raise UserError(f'--split {path} is no split: JSON with the lists "train" and "val" is') from None
    # a name as split.json has it, or as lists are written by hand: without folders, without an extension
    index = {}
    for i, item in enumerate(items):
        file = item.name.rsplit("/", 1)[-1]
        for name in {item.name, file, file.rsplit(".", 1)[0]}:
            index[name] = None if name in index else i  # None: of several images
    for part in SIDES:
        for name in lists[part]:
            if index.get(name) is None:
                raise UserError(f"--split {path}: {name} ({part}) is {'several images' if name in index else 'no image'} there")
        if not lists[part]:
            raise UserError(f"--split {path} lists no images for {part!r}")
    found = {part: sorted({index[name] for name in lists[part]}) for part in SIDES}
    if both := set(found["train"]) & set(found["val"]):
        raise UserError(f"--split {path} has {items[min(both)].name} on both sides")
    return found


def _listed(training, validation):
    """What split.json holds of two `Examples`: their names, and the checksums of each image and its mask."""
    names, checksums = training.names + validation.names, training.checksums + validation.checksums
    return {"train": training.names, "val": validation.names, "checksums": dict(zip(names, checksums))}


def check_split(path, training, validation):
    """Whether these `Examples` are those of a run that goes on. path: of the split.json that `write_split` wrote then.

    Raises: UserError for other images, or for some that are not as they were, and their masks.
    """
    try:
        had = _read(path)
        before = had["checksums"].items()
    except (OSError, ValueError, KeyError, AttributeError):
        raise UserError(f"{path} cannot be read, and --resume needs the images that it lists: start a new run") from None
    now, run = _listed(training, validation), path.parent
    if any(had[part] != now[part] for part in SIDES):
        raise UserError(f"the images are not those of {path}: --resume needs the data as it was")
    if changed := [name for name, checksum in now["checksums"].items() if (name, checksum) not in before]:
        what = f"{len(changed)} of {len(now['checksums'])} images, or their masks, are not as they were in the run of {run}"
        remedy = f"--checkpoint {run / 'last.safetensors'} with another --run-dir starts a new run from its weights"
        raise UserError(f"{what}: {listed(changed, 3)}; --resume needs the data as it was; {remedy}")


def write_split(path, training, validation):
    """Writes JSON that `--split` reads, so that a later run or an evaluation uses the same images. Both are `Examples`."""
    write_text(path, json.dumps(_listed(training, validation), indent=1, ensure_ascii=False) + "\n")
