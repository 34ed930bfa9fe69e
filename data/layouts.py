"""How data sets lie on disk, which file is whose mask, and what the numbers in a mask mean."""

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from common.config import VOID, Names, Size, UserError
from data.files import Colors, count_pages, read_pair, readable

import numpy as np
from PIL import Image
from PIL.Image import Resampling
from tqdm import tqdm

EXTENSIONS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".gif")


@dataclass(frozen=True)
class Item:
    """One image and its mask on disk; nothing of them is decoded yet."""

    name: str  # unique: the image's path below --data-dir with "/", for messages and split.json; "stack.tif[3]" for a page
    image: Path
    mask: Path
    page: int = 0  # in a file that holds many
    group: str = ""  # images of one group stay on one side of a split, where the layout knows groups
    part: str = ""  # "train", "val" or "test" where whoever published the data has split it


@dataclass(frozen=True)
class Layout:
    """What a data set holds and how to read it."""

    items: list[Item]  # sorted by name
    # (item, channels, size or None) -> image uint8 [H, W, channels], mask uint8 [H, W] with the values of the file;
    # both resized to `size` if it is given. Raises UserError. Called from several threads.
    read: Callable[[Item, int, Size | None], tuple[np.ndarray, np.ndarray]]
    classes: dict[int, int] | None = None  # mask value -> class index where the layout fixes it; None: by the values found
    class_names: Names | None = None


@dataclass(frozen=True)
class Meaning:
    """What the values of the masks of a data set mean."""

    table: np.ndarray  # uint8 [256]: value -> class index, or VOID
    classes: int  # as in `Config`: 1 is foreground against background
    void_label: int | None  # the value that is void, None if there is none
    note: str  # a few words on how the values were read


def find_layout(config):
    """Finds the images and masks of `config.data.dataset` below `config.data.data_dir`; none is decoded.

    Returns: `Layout`, with one item at least.

    Raises: UserError for a folder or file that is missing or cannot be read, and for an image or a mask without the other.
    """
    find = {"folder": _folder, "carvana": _carvana, "oxford_pet": _oxford_pet, "isbi": _isbi, "nyuv2": _nyuv2}
    try:
        if not config.data.data_dir.exists():
            raise UserError(f"--data-dir {config.data.data_dir} does not exist")
        return find[config.data.dataset](config)
    except OSError as error:
        reason = f"{error.strerror}; check the path and its permissions"
        raise UserError(f"cannot read {error.filename or config.data.data_dir}: {reason}") from None


def _reader(has_pages=False, colors=None):
    """`Layout.read` for a pair of files."""

    def read(item, channels, size):
        return read_pair(item.image, item.mask, channels, size, item.page if has_pages else None, colors)

    return read


def _folder(config):
    """images/ and masks/ in the folder itself, or in each of its folders train/, val/ and test/."""
    data_dir, colors = config.data.data_dir, read_colors(config) if config.data.colors else None
    parts = [part for part in ("train", "val", "test") if (data_dir / part / "images").is_dir()]
    if not parts:
        items = _pairs(data_dir, "images", "masks")
    elif (data_dir / "images").is_dir():
        raise UserError(f"{data_dir} holds images/ and {parts[0]}/images/: keep all images in one of the two ways")
    else:
        items = [
            Item(f"{part}/{item.name}", item.image, item.mask, part=part)
            for part in parts
            for item in _pairs(data_dir / part, "images", "masks")
        ]
    classes, names = (by_index(len(colors.names)), colors.names) if colors else (None, None)
    return Layout(sorted(items, key=lambda item: item.name), _reader(colors=colors), classes, names)


def _carvana(config):
    """train/ID_VV.jpg and train_masks/ID_VV_mask.gif, or .png: 16 views VV of every car ID. Masks are 0/1 or 0/255."""
    items = [
        Item(item.name, item.image, item.mask, group=item.image.stem.rpartition("_")[0])
        for item in _pairs(config.data.data_dir, "train", "train_masks", "_mask")
    ]
    return Layout(items, _reader(), class_names=Names(("background", "car")))


def _oxford_pet(config):
    """images/NAME.jpg and annotations/trimaps/NAME.png; test.txt is for the test, trainval.txt for training and validation.

    Trimaps hold 1 for the pet, 2 for the background, 3 for the outline, which is a class of its own but with --classes 1.
    """
    images, annotations = config.data.data_dir / "images", config.data.data_dir / "annotations"
    items, missing = {}, []
    for part, path in {"": annotations / "trainval.txt", "test": annotations / "test.txt"}.items():
        if not path.is_file():
            raise UserError(f"{path} is missing: --dataset oxford_pet needs images/ and annotations/ in --data-dir")
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.strip() and not line.startswith("#"):
                name = line.split()[0]  # the class, species and breed behind it are for classification
                item = Item(f"images/{name}.jpg", images / f"{name}.jpg", annotations / f"trimaps/{name}.png", part=part)
                if item.name in items:
                    raise UserError(f"{path} lists {name}, which is listed before: keep it once in trainval.txt or test.txt")
                items[item.name] = item
                missing += [f"{file} is missing" for file in (item.image, item.mask) if not file.is_file()]
    if missing:
        raise UserError(f"listed in {annotations}, but {_listed(missing)}: unpack the data set again, or shorten the lists")
    if not items:
        raise UserError(f"{annotations / 'trainval.txt'} lists no images")
    items = sorted(items.values(), key=lambda item: item.name)
    if config.network.classes not in (None, 1, 2, 3):
        raise UserError(
            f"--dataset oxford_pet has 3 classes, or the pet alone with --classes 1; got --classes {config.network.classes}"
        )
    return Layout(items, _reader(), *trimap_classes(config))


def trimap_classes(config):
    """What the values of trimaps are: {value: class index}, class names. The outline counts as background, or is a class."""
    if config.network.classes in (1, 2) or config.network.classes is None and config.data.void_label == 3:
        return {2: 0, 1: 1, 3: 0}, Names(("background", "pet"))
    return {2: 0, 1: 1, 3: 2}, Names(("background", "pet", "outline"))


def _isbi(config):
    """train-volume.tif and train-labels.tif: a slice on every page; labels are 255 in the cells and 0 on their membranes."""
    volume, labels = config.data.data_dir / "train-volume.tif", config.data.data_dir / "train-labels.tif"
    for path in (volume, labels):
        if not path.is_file():
            raise UserError(f"{path} is missing: --dataset isbi needs {volume.name} and {labels.name} in --data-dir")
    pages, label_pages = count_pages(volume), count_pages(labels)
    if pages != label_pages:
        raise UserError(f"{volume} has {pages} pages, but {labels} has {label_pages}: they must be of one stack")
    digits = len(str(pages - 1))  # so that names sort as pages do
    items = [Item(f"{volume.name}[{page:0{digits}}]", volume, labels, page) for page in range(pages)]
    return Layout(items, _reader(has_pages=True), class_names=Names(("membrane", "cell")))


def _nyuv2(config):
    """nyu_depth_v2_labeled.mat, in --data-dir or named by it (Silberman et al. 2012): images and labels in one HDF5 file.

    Of its 894 labels the most frequent become the classes, 40 or --classes, in order of frequency; the rest is void.
    """
    import h5py  # comes with TensorFlow, and only this layout needs it

    path = config.data.data_dir if config.data.data_dir.is_file() else config.data.data_dir / "nyu_depth_v2_labeled.mat"
    if not path.is_file():
        raise UserError(f"{path} is missing: --dataset nyuv2 needs it in --data-dir, or its path as --data-dir")
    wanted, counts = max(config.network.classes or 40, 2), np.zeros(2**16, np.int64)
    with readable(path):
        file = h5py.File(path, "r")  # stays open: its readers share what it has unpacked
        images, labels, names = file["images"], file["labels"], file["names"][()].ravel()
        n, _, width, height = shape = images.shape
        if not n or shape != (n, 3, width, height) or labels.shape != (n, width, height):
            raise UserError(f"{path} has images {shape} and labels {labels.shape}, not [N, 3, W, H] and [N, W, H]")
        starts = range(0, n, 8)  # 20 MB at a time
        for start in tqdm(starts, desc="counting labels", unit=" images", unit_scale=8, delay=1, leave=False, disable=None):
            counts += np.bincount(labels[start : start + 8].ravel(), minlength=len(counts))
        counts[0] = 0  # unlabelled
        frequent = np.argsort(-counts, kind="stable")[:wanted]
        frequent = frequent[counts[frequent] > 0]
        class_names = Names("".join(map(chr, file[names[label - 1]][()].ravel())) for label in frequent)
    if len(frequent) < (wanted if config.network.classes else 2):
        raise UserError(f"{path} has {len(frequent)} labels, too few for --classes {wanted}")
    table = np.full(len(counts), VOID, np.uint8)
    table[frequent] = np.arange(len(frequent))

    def read(item, channels, size):
        with readable(path):
            image = Image.fromarray(np.ascontiguousarray(images[item.page].transpose(2, 1, 0)))  # MATLAB's order is [3, W, H]
            mask = Image.fromarray(np.ascontiguousarray(table[labels[item.page]].T))
        if size:
            image, mask = image.resize(size[::-1], Resampling.BILINEAR), mask.resize(size[::-1], Resampling.NEAREST)
        pixels = np.asarray(image if channels == 3 else image.convert("L"))
        return pixels.reshape(*pixels.shape[:2], channels), np.asarray(mask)

    digits = len(str(n - 1))
    items = [Item(f"{path.name}[{i:0{digits}}]", path, path, i) for i in range(n)]
    return Layout(items, read, by_index(len(frequent)), class_names)


def _pairs(folder, images, masks, mask_ending=""):
    """Pairs `folder/images/STEM.*` with `folder/masks/STEM{mask_ending}.*`; what is no image file is passed over.

    The stems must be the same to the letter: cat.png belongs to cat.gif, and not to cat1.png or Cat.png.

    Returns: [Item], sorted by name.

    Raises: UserError for a missing folder, no images, an image or a mask without its counterpart, two files of one stem.
    """
    for kind in (images, masks):
        if not (folder / kind).is_dir():
            raise UserError(f"{folder / kind} is missing: --data-dir needs the folders {images}/ and {masks}/")
    image_paths, mask_paths = _by_stem(folder / images), _by_stem(folder / masks)
    if not image_paths:
        raise UserError(f"{folder / images} holds no images ({', '.join(EXTENSIONS)})")
    wanted = {stem + mask_ending for stem in image_paths}
    alone = [f"{images}/{path.name} has no mask" for stem, path in image_paths.items() if stem + mask_ending not in mask_paths]
    alone += [f"{masks}/{path.name} has no image" for stem, path in mask_paths.items() if stem not in wanted]
    if alone:
        rule = f"STEM{mask_ending} is the mask of STEM" if mask_ending else "images and masks must have the same names"
        raise UserError(f"{rule}, up to the extension; in {folder} {_listed(alone)}")
    items = [Item(f"{images}/{path.name}", path, mask_paths[stem + mask_ending]) for stem, path in image_paths.items()]
    return sorted(items, key=lambda item: item.name)


def _by_stem(folder):
    """{stem: path} of the image files in `folder`, sorted. Names with a leading dot are the file manager's, even ._cat.png."""
    found = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in EXTENSIONS and not path.name.startswith("."):
            stem = unicodedata.normalize("NFC", path.stem)  # macOS may store é as e and an accent
            if stem in found:
                raise UserError(f"{found[stem]} and {path} have the same name but for the extension: keep one of them")
            found[stem] = path
    return found


def _listed(texts, limit=10):
    more = f", and {len(texts) - limit} more" if len(texts) > limit else ""
    return ", ".join(texts[:limit]) + more


def by_index(n):
    """`Layout.classes` where `read` maps to class indices itself."""
    return {**{i: i for i in range(n)}, VOID: VOID}


def read_colors(config):
    """Reads a line `name red green blue` for every class -> `Colors`; the class named void has no index.

    Raises: UserError for a line that is something else, a name or a colour that comes twice, and too few classes.
    """
    path, names, indices = config.data.colors, [], {}
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise UserError(f"--colors {path} is no text in UTF-8") from None
    for number, line in enumerate(lines, 1):
        line = line.partition("#")[0].strip()
        if not line:
            continue
        match = re.fullmatch(r"(.+?)\s+(\d+)\s+(\d+)\s+(\d+)", line)
        color = tuple(int(value) for value in match.groups()[1:]) if match else (256,)
        if max(color) > 255 or "," in match[1]:
            raise UserError(
                f"--colors {path}, line {number}: {line!r} must be a name and three numbers 0 to 255: sky 0 128 255"
            )
        if match[1] in names or color in indices:
            raise UserError(f"--colors {path}, line {number}: the name or the colour of {line!r} occurs before")
        if match[1] == "void":
            indices[color] = VOID
        else:
            indices[color] = len(names)
            names.append(match[1])
    if not 2 <= len(names) <= VOID:
        raise UserError(f"--colors {path} names {len(names)} classes: it takes 2 to {VOID}, a line for each")
    if max(config.network.classes or len(names), 2) != len(names):
        raise UserError(
            f"--colors {path} names {len(names)} classes, but --classes is {config.network.classes}: leave --classes out"
        )
    return Colors(path, Names(names), indices, config.data.void_label is not None)


def find_channels(layout, samples=5):
    """1 if the images are gray, 3 if any of a few that are spread over the data set has colour; bad files are passed over."""
    n = len(layout.items)
    for i in sorted({k * (n - 1) // max(samples - 1, 1) for k in range(samples)}):
        try:
            image, _ = layout.read(layout.items[i], 3, Size(256, 256))  # a JPEG is decoded no larger, which saves most of it
        except UserError:
            continue
        if (image.max(axis=-1) - image.min(axis=-1) > 2).any():  # gray that JPEG stored as colour is off by 1 or 2
            return 3
    return 1


def class_names(config, layout, classes):
    """The names on the command line, or those of the layout if there is one for each class, or None.

    Raises: UserError when the names on the command line are too few or too many.
    """
    needed, given = max(classes, 2), config.data.class_names
    if given and len(given) != needed:
        raise UserError(f"--class-names needs one for each of {needed} classes, got {len(given)}")
    return given or (layout.class_names if layout.class_names and len(layout.class_names) == needed else None)


def mask_meaning(present, items, config, layout):
    """Decides for the whole data set what the values of its masks mean: a mask of one image may well be 0 everywhere.

    Args:
        present: bool [n, 256], which values each mask holds.
        items: the n `Item`s.
        config: its `classes` and `void_label` are followed where they are given, and found where they are None.

    Returns: `Meaning`.

    Raises: UserError for values that fit nothing, naming the first file that has them, and for masks without a foreground.
    """
    void, held = config.data.void_label, present.any(axis=0)
    if layout.classes is not None:
        classes, indices, note = _fixed(present, items, config, layout)
    else:
        labelled = present.copy()
        labelled[:, [] if void is None else void] = False
        classes, indices, note = _found(labelled, items, config)
    if void is None and held[VOID] and indices.get(VOID) == VOID:
        void = VOID
    table = np.full(256, VOID, np.uint8)
    table[list(indices)] = list(indices.values())
    if void is not None:
        table[void] = VOID
        note += f", {void} is void"
    return Meaning(table, classes, void, note)


def _fixed(present, items, config, layout):
    """What a layout says about its masks -> (classes, {value: class index}, note)."""
    known = {**layout.classes, config.data.void_label: VOID}
    n = 1 + max(index for index in known.values() if index != VOID)
    wrong = present.copy()
    wrong[:, [value for value in known if value is not None]] = False
    if wrong.any():
        item, allowed = items[int(wrong.any(axis=1).argmax())], ", ".join(map(str, sorted(layout.classes)))
        raise UserError(
            f"{item.mask} holds the value {wrong.any(axis=0).argmax()}, but --dataset {config.data.dataset} has {allowed}"
        )
    note = f"classes {layout.class_names}" if n <= 4 else f"{n} classes"
    return config.network.classes or (1 if n == 2 else n), layout.classes, note


def _found(present, items, config):
    """What the values of the masks say -> (classes, {value: class index}, note). `present` is without --void-label."""
    values, classes = set(np.flatnonzero(present.any(axis=0)).tolist()), config.network.classes
    top = max(values, default=0)
    if classes is None and len(values) < 2:
        raise UserError(
            f"all {len(items)} masks hold {f'only the value {top}' if values else 'nothing but void'}, so there is nothing to "
            f"learn: check {items[0].mask.parent}, or set --classes if that is meant"
        )
    jpeg = np.array([_is_jpeg(item.mask) for item in items])
    if classes in (None, 1, 2):
        if values <= {0, 1}:
            return classes or 1, {0: 0, 1: 1}, "mask values 0/1"
        if values <= {0, 255}:
            return classes or 1, {0: 0, 255: 1}, "mask values 0/255 read as 0/1"
        if top > 192 and jpeg[present[:, 1:255].any(axis=1)].all():
            # JPEG smears black and white into their neighbours. Class indices it would smear into each other.
            return classes or 1, {value: value // 128 for value in range(256)}, "JPEG masks read as 0 below 128 and 1 above"

    indices = values - {VOID} if config.data.void_label is None else values  # beside class indices 255 is void
    n = classes or max(indices) + 1
    absent = sorted(set(range(n)) - indices)
    if classes:
        fits = max(indices, default=0) < n and (len(indices) > 1 or VOID not in values)  # 0 and 255 are no two classes of many
    else:  # a small data set may lack a class or two; 0, 38, 75 are no indices, and 250 values are smoothed edges or a photo
        fits = n <= 200 and len(absent) <= n / 4 and not jpeg.any()
    if n > 2 and fits:
        note = f"{n} classes from mask values 0 to {max(indices, default=0)}"
        if absent and not classes:
            note += f" without {_listed(list(map(str, absent)), 3)}"
        return n, {**{i: i for i in range(n)}, VOID: VOID}, note
    raise _misfit(present, items, classes)


def _is_jpeg(path):
    return path.suffix.lower() in (".jpg", ".jpeg")


def _misfit(present, items, classes):
    """The `UserError` for values that are no class indices, about the first mask that has them."""
    values = np.flatnonzero(present.any(axis=0)).tolist()
    limit = max(classes, 2) if classes else next(v for v in range(1, 257) if v not in values)
    bad = (present[:, limit:] if classes or limit < 200 else present[:, 2:VOID]).any(axis=1)
    first = int(np.argmax(bad if bad.any() else [_is_jpeg(item.mask) for item in items]))
    held = [str(value) for value in np.flatnonzero(present[first])]
    shown = ", ".join(held if len(held) <= 8 else [*held[:6], "...", held[-1]])
    top = max([value for value in values if value < VOID], default=0)
    if classes:
        allowed = "0/1 or 0/255, the same in all masks" if limit == 2 else f"0 to {classes - 1}"
        allowed = f"but --classes {classes} takes {allowed}"
    else:
        allowed = "but masks hold 0/1, 0/255, or class indices 0, 1, 2 and so on"
    if _is_jpeg(items[first].mask):
        advice = "JPEG does not keep a mask's values, save it as PNG"
    elif set(values) <= {0, 1, VOID} and limit == 2:
        advice = "1 and 255 both occur in the masks; --void-label 255 if that marks what nobody labelled"
    elif classes and top < limit:
        advice = "255 is foreground only with --classes 1 or 2; --void-label 255 if it marks what nobody labelled"
    elif len(held) > 32:
        advice = f"save it without smoothed edges; if it does hold class indices, set --classes {top + 1}"
    elif classes:
        advice = f"if they are class indices, set --classes {top + 1}, otherwise mend the mask"
    else:
        advice = f"if they are class indices, set --classes {top + 1}; if gray levels or colours, name them with --colors FILE"
    return UserError(f"{items[first].mask} holds {len(held)} values ({shown}), {allowed}: {advice}")
