"""How data sets lie on disk: which file is whose mask. `data.meaning` knows what the numbers in the masks mean."""

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from common.config import VOID, Names, Size, UserError
from common.text import listed
from data.files import EXTENSIONS, count_bands, count_pages, has_color, image_files, is_meant, read_image, read_pair, readable
from data.meaning import OBJECTS, by_index, read_colors, trimap_classes

import numpy as np
from PIL import Image
from PIL.Image import Resampling
from tqdm import tqdm

SUFFIX = re.compile(r"[-_. ].*[^\W\d_].*")  # of masks, as found by itself: _mask, -seg, and not _1, which numbers images


@dataclass(frozen=True)
class Item:
    """One image and its mask on disk; nothing of them is decoded yet."""

    name: str  # unique: the image's path below --data-dir with "/", for messages and split.json; "stack.tif[3]" for a page
    image: Path
    mask: Path
    page: int | None = None  # in a file that holds many, from 0
    group: str = ""  # images of one group stay on one side of a split, where the layout knows groups
    part: str = ""  # "train", "val" or "test" where whoever published the data has split it


@dataclass(frozen=True)
class Layout:
    """What a data set holds and how to read it."""

    items: list[Item]  # sorted by name
    # (item, channels, size or None) -> image uint8, uint16 or float32 [H, W, channels], mask uint8 [H, W], with the values of
    # the files; both resized to `size` if it is given. With `objects` the mask is int32, 0 and the numbers 1 to n of the
    # objects. Raises UserError. Called from several threads.
    read: Callable[[Item, int, Size | None], tuple[np.ndarray, np.ndarray]]
    classes: dict[int, int] | None = None  # mask value -> class index where the layout fixes it; None: by the values found
    class_names: Names | None = None
    mask_suffix: str | None = None  # as it was given or found
    left_out: list[str] = field(default_factory=list)  # images and masks without the other, with --skip-bad
    over: list[str] = field(default_factory=list)  # lines on files that are none of the data set
    objects: bool = False  # whether masks tell objects of one class apart
    channels: int | None = None  # of the images where the layout fixes it; None: as the files are
    note: str = ""  # a few words for the line about the data


def find_layout(config):
    """Finds the images and masks of `config.data.dataset` below `config.data.data_dir`; none is decoded.

    Returns: `Layout`, with one item at least.

    Raises: UserError for a folder or file that is missing or cannot be read, and for an image or a mask without the other.
    """
    find = {"folder": _folder, "carvana": _carvana, "oxford_pet": _oxford_pet, "isbi": _isbi, "nyuv2": _nyuv2}
    find["dsb2018"] = _dsb2018
    try:
        if not config.data.data_dir.exists():
            raise UserError(f"--data-dir {config.data.data_dir} does not exist")
        found = find[config.data.dataset](config)
        return replace(found, objects=config.data.objects)
    except OSError as error:
        reason = f"{error.strerror}; check the path and its permissions"
        raise UserError(f"cannot read {error.filename or config.data.data_dir}: {reason}") from None


def _reader(config, colors=None):
    """`Layout.read` for a pair of files."""

    def read(item, channels, size):
        return read_pair(item.image, item.mask, channels, size, item.page, colors, config.data.objects)

    return read


def _folder(config):
    """images/ and masks/ in the folder itself, or in each of its folders train/, val/ and test/."""
    data_dir, colors = config.data.data_dir, read_colors(config) if config.data.colors is not None else None
    parts = [part for part in ("train", "val", "test") if _holds_images(data_dir / part)]
    if parts and (data_dir / "images").is_dir():
        raise UserError(f"{data_dir} holds images/ and {parts[0]}/images/: keep all images in one of the two ways")
    pairs = {part: _pairs(data_dir / part, "images", "masks", config.data.mask_suffix) for part in parts or [""]}
    items = [
        Item(f"{part}/{item.name}".lstrip("/"), item.image, item.mask, part=part)
        for part, found in pairs.items()
        for item in found.items
    ]
    pairs = {
        part: found._replace(alone=[f"{part}/{line}".lstrip("/") for line in found.alone]) for part, found in pairs.items()
    }
    suffixes = sorted({found.suffix for found in pairs.values()})
    if len(suffixes) > 1:
        raise UserError(
            f"the parts of {data_dir} name their masks in several ways, with {' and '.join(map(repr, suffixes))} behind the "
            "name of the image: rename those of one part"
        )
    classes, names = (by_index(len(colors.names)), colors.names) if colors else (None, None)
    if config.data.objects:
        classes, names = OBJECTS, Names(("background", "object"))
    return _layout(config, items, pairs.values(), _reader(config, colors), classes, names, suffixes[0] or None)


def _holds_images(folder):
    """Whether it is a part of a data set: with images/ in it, or with image files."""
    return folder.is_dir() and ((folder / "images").is_dir() or bool(image_files(folder)))


def _layout(config, items, pairs, *fields):
    """The `Layout` of `items`, which came out of `pairs`. Only --skip-bad passes over images and masks without the other."""
    alone, over = (sum(lists, []) for lists in zip(*((found.alone, found.over) for found in pairs)))
    if alone and not (config.data.skip_bad and items):
        suffix = next(iter(pairs)).suffix
        rule = f"STEM{suffix} is the mask of STEM" if suffix else "images and masks must have the same names"
        hint = " (--skip-bad goes on without)" if items else "; --mask-suffix _mask, if a_mask.png is the mask of a.png"
        raise UserError("; ".join([f"{rule}, up to the extension: in {config.data.data_dir} {listed(alone)}{hint}", *over]))
    return Layout(sorted(items, key=lambda item: item.name), *fields, left_out=alone, over=over)


def _carvana(config):
    """train/ID_VV.jpg and train_masks/ID_VV_mask.gif, or .png: 16 views VV of every car ID. Masks are 0/1 or 0/255."""
    pairs = _pairs(config.data.data_dir, "train", "train_masks", "_mask")
    items = [Item(item.name, item.image, item.mask, group=item.image.stem.rpartition("_")[0]) for item in pairs.items]
    return _layout(config, items, [pairs], _reader(config), None, Names(("background", "car")))


def _oxford_pet(config):
    """images/NAME.jpg and annotations/trimaps/NAME.png; test.txt is for the test, trainval.txt for training and validation.

    Without trainval.txt these are all photos that have a trimap, and are not in a test.txt.

    Trimaps hold 1 for the pet, 2 for the background, 3 for the outline, which is a class of its own but with --classes 1.
    """
    images, annotations = config.data.data_dir / "images", config.data.data_dir / "annotations"
    items, missing, note = {}, [], ""
    lists = {"": annotations / "trainval.txt", "test": annotations / "test.txt"}
    if unlisted := not lists[""].is_file() and images.is_dir() and (annotations / "trimaps").is_dir():
        lists = {part: path for part, path in lists.items() if path.is_file()}
    for part, path in lists.items():
        if not path.is_file():
            raise UserError(f"{path} is missing: --dataset oxford_pet needs images/ and annotations/ in --data-dir")
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.strip() and not line.startswith("#"):
                name = line.split()[0]  # the class, species and breed behind it are for classification
                item = Item(f"images/{name}.jpg", images / f"{name}.jpg", annotations / f"trimaps/{name}.png", part=part)
                if item.name in items:
                    raise UserError(f"{path} lists {name}, which is listed before: keep it once in trainval.txt or test.txt")
                items[item.name] = item
                missing += [
                    f"{file} is missing, listed in {path.name}" for file in (item.image, item.mask) if not file.is_file()
                ]
    if unlisted:
        photos = [path for path in image_files(images) if path.suffix == ".jpg" and f"images/{path.name}" not in items]
        found = [Item(f"images/{path.name}", path, annotations / f"trimaps/{path.stem}.png") for path in photos]
        found = {item.name: item for item in found if item.mask.is_file()}
        if not found:
            raise UserError(f"no photo in {images} has a trimap in {annotations / 'trimaps'}: unpack the data set again")
        items |= found
        how = "by --split" if config.data.split else "by chance"
        note = f"no trainval.txt: {len(found)} of {len(photos)} photos have a trimap, and are split {how}"
    if missing and not config.data.skip_bad:
        raise UserError(f"{listed(missing)}: unpack the data set again, or shorten the lists (--skip-bad goes on without)")
    if not items:
        raise UserError(f"{annotations / 'trainval.txt'} lists no images")
    items = [item for item in items.values() if item.image.is_file() and item.mask.is_file()]
    if config.network.classes not in (None, 1, 2, 3):
        raise UserError(
            f"--dataset oxford_pet has 3 classes, or the pet alone with --classes 1; got --classes {config.network.classes}"
        )
    items.sort(key=lambda item: item.name)
    return Layout(items, _reader(config), *trimap_classes(config), left_out=missing, note=note)


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
    return Layout(items, _reader(config), class_names=Names(("membrane", "cell")))


def _nyuv2(config):
    """nyu_depth_v2_labeled.mat, in --data-dir or named by it (Silberman et al. 2012): images and labels in one HDF5 file.

    Of its 894 labels the most frequent become the classes, 40 or --classes, in order of frequency; the rest is void.
    """
    import h5py  # comes with TensorFlow, and only this layout needs it

    if config.network.channels not in (None, 1, 3):
        raise UserError(f"--dataset nyuv2 has colour images, for --channels 3 or 1; got {config.network.channels}")
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
    return Layout(items, read, by_index(len(frequent)), class_names, channels=3)


def _dsb2018(config):
    """ID/images/ID.png and ID/masks/*.png, one for every nucleus, in stage1_train/ or in --data-dir itself.

    Of masks that overlap, the first by name has the pixels.
    """
    folder = bowl_of(config.data.data_dir)
    items, alone, over = [], [], []
    for path in _others(folder):
        found = {part: image_files(path / part) for part in ("images", "masks") if (path / part).is_dir()}
        over += [other for part in found for other in _others(path / part)] if found else [path]
        images, masks = found.get("images"), found.get("masks")
        if images and masks:
            items += [Item(image.relative_to(folder).as_posix(), image, path / "masks") for image in images]
        elif found:
            alone.append(f"{path.name}/ has no {'masks/ with a mask for each nucleus' if images else 'images/ with an image'}")
    if not items and not alone:
        raise UserError(f"{folder} holds no ID/images/ID.png: --dataset dsb2018 needs stage1_train/ in --data-dir, unpacked")
    if alone and not (config.data.skip_bad and items):
        hint = " (--skip-bad goes on without)" if items else ""
        raise UserError(f"in {folder} {listed(alone)}: unpack the data set again{hint}")
    names = Names(("background", "nucleus"))
    note = "where masks overlap the first has the pixels"
    return Layout(items, _reader(config), OBJECTS, names, left_out=alone, over=_passed_over(over, folder), note=note)


def bowl_of(folder):
    """Where the folders ID/ of the 2018 Data Science Bowl lie: in `folder` or its stage1_train/."""
    return folder / "stage1_train" if (folder / "stage1_train").is_dir() else folder


def nested_images(folder):
    """The image files ID/images/NAME in `bowl_of(folder)`, sorted: as the 2018 Data Science Bowl has them."""
    folders = [child / "images" for child in sorted(bowl_of(folder).iterdir()) if is_meant(child)]
    return [path for images in folders if images.is_dir() for path in image_files(images)]


class Pairs(NamedTuple):
    """What lies in a folder of images and a folder of masks, or in one folder."""

    items: list[Item]
    suffix: str  # behind the stem in the names of masks; "" if the names are the same
    alone: list[str]  # lines on images and masks without the other
    over: list[str]  # lines on what else lies there


def _pairs(folder, images, masks, suffix=None):
    """Pairs `folder/images/STEM.*` with `folder/masks/STEM{suffix}.*`, or with STEM{suffix}.* beside it -> `Pairs`.

    The stems must be the same to the letter: cat.png belongs to cat.gif, and not to cat1.png or Cat.png.

    Args:
        suffix: None: none, unless no name is the same and there is one that makes the names of all masks.

    Raises: UserError for a missing folder, no images, two files of one stem.
    """
    image_folder, mask_folder = folder / images, folder / masks
    prefix = f"{images}/"
    if not image_folder.exists() and not mask_folder.exists() and folder.is_dir() and image_files(folder):
        image_folder, prefix = folder, ""
    together = not mask_folder.is_dir()
    if not image_folder.is_dir():
        raise UserError(f"{image_folder} is missing: --data-dir needs the folders {images}/ and {masks}/")
    over = [line for line in map(passed_over, [image_folder] if together else [image_folder, mask_folder]) if line]
    image_paths = _by_stem(image_folder)
    mask_paths = image_paths if together else _by_stem(mask_folder)
    if not image_paths:
        raise UserError("; ".join([f"{image_folder} holds no images ({', '.join(EXTENSIONS)})", *over]))
    if suffix is None:
        suffix = find_suffix(image_paths, mask_paths)
    if together:
        mask_paths = {stem: path for stem, path in image_paths.items() if suffix and stem.endswith(suffix)}
        image_paths = {stem: path for stem, path in image_paths.items() if stem not in mask_paths}
        if not mask_paths:
            problem = f"holds no masks with {suffix}" if suffix else "is missing"
            raise UserError(
                f"{image_folder if suffix else mask_folder} {problem}: --data-dir needs the folders {images}/ and {masks}/, or "
                "masks beside their images: --mask-suffix _mask, if a_mask.png is the mask of a.png"
            )
    wanted = {stem + suffix for stem in image_paths}
    alone = [f"{prefix}{path.name} has no mask" for stem, path in image_paths.items() if stem + suffix not in mask_paths]
    alone += [f"{path.relative_to(folder)} has no image" for stem, path in mask_paths.items() if stem not in wanted]
    items = [
        Item(f"{prefix}{path.name}", path, mask_paths[stem + suffix])
        for stem, path in image_paths.items()
        if stem + suffix in mask_paths
    ]
    return Pairs(items, suffix, alone, over)


def find_suffix(image_paths, mask_paths):
    """What stands behind the names of images in the names of all masks, such as "_mask", or "".

    In one folder masks are the files that end so, and at least half of the images have one.
    """
    together = image_paths is mask_paths
    if not together and image_paths.keys() & mask_paths.keys():
        return ""
    stems, best = sorted(image_paths), set()
    tails = {name[len(stem) :] for stem in stems[:100] for name in mask_paths if name.startswith(stem)}
    for tail in filter(SUFFIX.fullmatch, sorted(tails, key=lambda tail: (len(tail), tail))):
        named = {name for name in mask_paths if name.endswith(tail)}
        fits = {name.removesuffix(tail) for name in named} <= image_paths.keys() - (named if together else set())
        if (
            fits
            and len(named) > len(best)
            and (2 * len(named) >= len(stems) - len(named) if together else named == set(mask_paths))
        ):
            best, suffix = named, tail
    return suffix if best else ""


def passed_over(folder):
    """What else is in `folder`, in a line for the user, or ""."""
    return "".join(_passed_over(_others(folder), folder, f" in {folder.name}/"))


def _others(folder):
    """What a person has put into `folder` that is no image file, sorted."""
    known = set(image_files(folder))
    return sorted(p for p in folder.iterdir() if p not in known and is_meant(p))


def _passed_over(others, folder, where=""):
    """[a line for the user on the `others` in `folder`], or []."""
    names = [p.relative_to(folder).as_posix() + "/" * p.is_dir() for p in others]
    line = f"passed over{where}, since they are no files that end with {' '.join(EXTENSIONS)}: {listed(names, 3)}"
    return [line] if names else []


def _by_stem(folder):
    """{stem: path} of the image files in `folder`, sorted."""
    found = {}
    for path in image_files(folder):
        stem = unicodedata.normalize("NFC", path.stem)  # macOS may store é as e and an accent
        if stem in found:
            raise UserError(f"{found[stem]} and {path} have the same name but for the extension: keep one of them")
        found[stem] = path
    return found


def find_channels(layout):
    """1 if the images are gray, 3 if any of some that are spread over the data set has colour, or how many bands they have.

    Some are not few: among gray images, many of them stored as colours, a quarter may have colour. Bad files are passed over.
    """
    if layout.channels:
        return layout.channels
    n = len(layout.items)
    for i in sorted({k * (n - 1) // 63 for k in range(64)}):
        item = layout.items[i]
        try:
            bands = count_bands(item.image)
            if bands == 1:
                continue
            if bands != 3:
                return bands
            # a JPEG is decoded no larger, which saves most of it
            image = read_image(item.image, 3, Size(256, 256), item.page)
        except UserError:
            continue
        if has_color(image):
            return 3
    return 1
