"""Which images train and which validate. Whatever is random follows from the seed; groups are never torn apart."""

import json
import re

from common.checkpoint import replacing
from common.config import UserError
from common.streams import SPLIT, generator


def split(items, config):
    """Indices into `items`, objects with `name`, `group` and `part`: {"train": [...], "val": [...]}, both sorted, none empty.

    In this order: the lists of --split; parts "val" and "train" of whoever published the data; number --fold of --folds; a
    random share --validation. Images of the part "test" are in neither. Folds and shares hold whole groups, if there are any:
    those of the layout, or what --group matches in the names.

    Raises: UserError for lists that do not fit the data, and for too few images or groups.
    """
    if config.data.split:
        return _given(items, config.data.split)
    published = {part: [i for i, item in enumerate(items) if item.part == part] for part in ("train", "val", "", "test")}
    if published["val"] and not config.data.folds:
        if not published["train"]:
            raise UserError(f"{config.data.data_dir} has images to validate on, but none to train on in train/")
        return {part: published[part] for part in ("train", "val")}
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
    held_back = (
        _fold(order, config.data.folds)[config.data.fold or 0] if config.data.folds else _share(order, config.data.validation)
    )
    held_back = {usable[k] for unit in held_back for k in unit}
    return {"train": [i for i in usable if i not in held_back], "val": sorted(held_back)}


def _units(items, config):
    """What must stay together: lists of indices, one for every group, or one for every image."""
    groups = [item.group for item in items]
    if config.data.group:
        try:
            found = [re.search(config.data.group, item.name) for item in items]
            groups = [match and match.group(1) for match in found]
        except (re.error, IndexError) as error:
            raise UserError(f"--group {config.data.group!r} is no regular expression with a (...) in it: {error}") from None
        if None in groups:
            raise UserError(f"--group {config.data.group!r} matches nothing in {items[groups.index(None)].name}")
    units = {}
    for i, group in enumerate(groups):
        units.setdefault(group or (i,), []).append(i)
    return list(units.values())


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


def _given(items, path):
    """The split that stands in a JSON file, as `write_split` made it, or in the train.txt and val.txt of a folder."""
    try:
        if path.is_dir():
            lists = {part: (path / f"{part}.txt").read_text(encoding="utf-8").splitlines() for part in ("train", "val")}
            lists = {part: [line.strip() for line in lines if line.strip()] for part, lines in lists.items()}
        else:
            lists = json.loads(path.read_text(encoding="utf-8"))
            lists = {part: list(map(str, lists[part])) for part in ("train", "val")}
    except OSError as error:
        raise UserError(f"cannot read --split {error.filename or path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
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
    both = set(found["train"]) & set(found["val"])
    if both:
        raise UserError(f"--split {path} has {items[min(both)].name} on both sides")
    return found


def read_split(path):
    """(training names, validation names) as `write_split` wrote them; empty lists if there is no such file."""
    try:
        lists = json.loads(path.read_text(encoding="utf-8"))
        return lists["train"], lists["val"]
    except (OSError, ValueError, KeyError):
        return [], []


def write_split(path, training_names, validation_names):
    """Writes JSON that `--split` reads, so that a later run or an evaluation uses the same images."""
    text = json.dumps({"train": training_names, "val": validation_names}, indent=1, ensure_ascii=False)
    with replacing(path) as part:
        part.write_text(text + "\n", encoding="utf-8")
