"""Which images train and which validate. Whatever is random follows from the seed; groups are never torn apart."""

import json
import re

from common.cli import listed
from common.config import UserError
from common.output import write_text
from common.streams import SPLIT, generator


def split(items, config):
    """Indices into `items`, objects with `name`, `group` and `part`: {"train": [...], "val": [...]}, both sorted, none empty.

    In this order: the lists of --split; parts "val" and "train" of whoever published the data; number --fold of --folds; a
    random share --validation. Images of the part "test" are in neither. Folds and shares hold whole groups, if there are any:
    those of the layout, or what --group matches in the names. Lists and parts that tear what --group matches are refused.

    Raises: UserError for lists that do not fit the data, for too few images or groups, and for groups on both sides.
    """
    if config.data.split:
        return _whole(items, _given(items, config.data.split), config)
    published = {part: [i for i, item in enumerate(items) if item.part == part] for part in ("train", "val", "", "test")}
    if published["val"] and not config.data.folds:
        if not published["train"]:
            raise UserError(f"{config.data.data_dir} has images to validate on, but none to train on in train/")
        return _whole(items, {part: published[part] for part in ("train", "val")}, config)
    usable = sorted(published["train"] + published["val"] + published[""])
    units = _units([items[i] for i in usable], config)  # lists of positions in `usable`
    if len(usable) < 2:
        raise UserError(
            f"{config.data.data_dir or 'this'} holds {len(usable)} images: it takes one to train on and one to validate"
        )
    if len(units) < (config.data.folds or 2):
        raise UserError(
            f"{len(units)} {'groups' if len(units) < len(usable) else 'images'} do not make {config.data.folds or 2} parts: "
            "use fewer --folds, or another --group"
        )
    order = [units[k] for k in generator(config.seed, SPLIT).permutation(len(units))]
    folds = config.data.folds
    held_back = _fold(order, folds)[config.data.fold or 0] if folds else _share(order, config.data.validation)
    held_back = {usable[k] for unit in held_back for k in unit}
    return {"train": [i for i in usable if i not in held_back], "val": sorted(held_back)}


def _units(items, config):
    """What must stay together: lists of indices, one for every group, or one for every image."""
    units = {}
    for i, group in enumerate(groups_of(items, config)):
        units.setdefault(group or (i,), []).append(i)
    return list(units.values())


def groups_of(items, config):
    """The group of each item, "" for none: that of the layout, or what --group matches in its name below train/, val/, test/.

    Raises: UserError for what is no regular expression with a group in it, or matches nothing in a name.
    """
    pattern = config.data.group
    if not pattern:
        return [item.group for item in items]
    try:
        compiled = re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise UserError(f"--group {pattern!r} is no regular expression with a (...) in it: {error}") from None
    if not compiled.groups:
        raise UserError(f"--group {pattern!r} is no regular expression with a (...) in it")
    matches = [compiled.search(item.name.removeprefix(f"{item.part}/")) for item in items]
    if None in matches:
        raise UserError(f"--group {pattern!r} matches nothing in {items[matches.index(None)].name}")
    groups = [match[1] for match in matches]
    if not any(groups):
        raise UserError(f"--group {pattern!r} has nothing in its (...) in any name: put what belongs together there")
    return groups


def _whole(items, parts, config):
    """`parts`, if none of the groups that --group matches is in both. Raises: UserError."""
    if config.data.group:
        train, val = (set(groups_of([items[i] for i in parts[part]], config)) for part in ("train", "val"))
        if both := sorted(train & val):
            source = f"--split {config.data.split}" if config.data.split else f"train/ and val/ in {config.data.data_dir}"
            raise UserError(
                f"{source} put {len(both)} of {len(train | val)} groups of --group {config.data.group!r} on both sides: "
                f"{listed(both, 3)}; --folds N splits anew and keeps groups together, or leave --group out"
            )
    return parts


def _share(order, share):
    """Units that hold about `share` of the images: one at least, and never all."""
    wanted = round(share * sum(map(len, order)))
    chosen = []
    for unit in order:
        if sum(map(len, chosen)) + len(unit) <= wanted and len(chosen) < len(order) - 1:
            chosen.append(unit)
    return chosen or [min(order, key=len)]


def _fold(order, folds):
    """`folds` lists of units with nearly as many images each: the largest unit first, always to the smallest fold."""
    parts = [[] for _ in range(folds)]
    for unit in sorted(order, key=len, reverse=True):
        min(parts, key=lambda part: sum(map(len, part))).append(unit)
    return parts


def _read(path):
    """split.json: {"train": [name], "val": [name], "checksums": {name: text}}; the lists alone do for --split.

    Raises: OSError, or ValueError for anything else.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        lists = [found[part] for part in ("train", "val")]
    except (RecursionError, TypeError, KeyError):
        lists = [None]
    if not all(isinstance(names, list) and all(isinstance(name, str) for name in names) for names in lists):
        raise ValueError('it is no split: JSON with the lists "train" and "val" is')
    return found


def _given(items, path):
    """The split that stands in a JSON file, as `write_split` made it, or in the train.txt and val.txt of a folder."""
    try:
        if path.is_dir():
            texts = {part: (path / f"{part}.txt").read_text(encoding="utf-8") for part in ("train", "val")}
            lists = {part: [line.strip() for line in text.splitlines() if line.strip()] for part, text in texts.items()}
        else:
            lists = {part: _read(path)[part] for part in ("train", "val")}
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
    for part, names in lists.items():
        for name in names:
            if index.get(name) is None:
                raise UserError(f"--split {path}: {name} ({part}) is {'several images' if name in index else 'no image'} there")
        if not names:
            raise UserError(f"--split {path} lists no images for {part!r}")
    found = {part: sorted({index[name] for name in names}) for part, names in lists.items()}
    if both := set(found["train"]) & set(found["val"]):
        raise UserError(f"--split {path} has {items[min(both)].name} on both sides")
    return found


def check_split(path, training, validation):
    """Whether these `Examples` are those of a run that goes on. path: of the split.json that `write_split` wrote then.

    Raises: UserError for other images, or for some that are not as they were, and their masks.
    """
    try:
        found = _read(path)
        had = found["checksums"].items()
    except (OSError, ValueError, KeyError, AttributeError):
        raise UserError(f"{path} cannot be read, and --resume needs the images that it lists: start a new run") from None
    if [found["train"], found["val"]] != [training.names, validation.names]:
        raise UserError(f"the images are not those of {path}: --resume needs the data as it was")
    now = dict(zip(training.names + validation.names, training.checksums + validation.checksums))
    changed = [name for name, checksum in now.items() if (name, checksum) not in had]
    if changed:
        raise UserError(
            f"{len(changed)} of {len(now)} images, or their masks, are not as they were in the run of {path.parent}: "
            f"{listed(changed, 3)}; --resume needs the data as it was; --checkpoint {path.parent / 'last.safetensors'} with "
            "another --run-dir starts a new run from its weights"
        )


def write_split(path, training, validation):
    """Writes JSON that `--split` reads, so that a later run or an evaluation uses the same images. Both are `Examples`."""
    found = {"train": training.names, "val": validation.names}
    found["checksums"] = dict(zip(training.names + validation.names, training.checksums + validation.checksums))
    write_text(path, json.dumps(found, indent=1, ensure_ascii=False) + "\n")
