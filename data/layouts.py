"""Data sets on disk: their images and masks, named by two patterns, and what is published about their masks.

`data.meaning` knows what the numbers in the masks of all others mean.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from shlex import quote
from typing import NamedTuple

from common.colors import class_list
from common.config import VOID, Names, Size, UserError
from common.text import listed
from data.files import Colors, count_bands, count_pages, has_color, read_image, read_pair, readable, to_gray
from data.patterns import PARTS, guess, inventory, is_image, outlines, pair, readings, unused, walk

import numpy as np
from tqdm import tqdm

OBJECTS = {0: 0, 1: 1, VOID: VOID}  # `Layout.classes` where masks number objects, of which `as_classes` makes these values


@dataclass(frozen=True)
class Item:
    """One image and its mask on disk; nothing of them is decoded yet."""

    name: str  # unique: the image's path below --data-dir with "/", for messages and split.json; "stack.tif[3]" for a page
    image: Path
    mask: Path
    page: int | None = None  # in a file that holds many, from 0
    group: str = ""  # images of one group stay on one side of a split, where there are groups
    part: str = ""  # "train", "val" or "test" where whoever published the data has split it
    further: tuple[Path, ...] = ()  # more masks of this image, which are merged with `mask`, or are each of an object

    @property
    def masks(self):
        return (self.mask, *self.further)


@dataclass(frozen=True)
class Layout:
    """What a data set holds and how to read it."""

    items: list[Item]  # sorted by name
    # (item, channels, size or None) -> image uint8, uint16 or float32 [H, W, channels], mask uint8 [H, W], with the values of
    # the files, as large as they are stored; but a JPEG comes as `size`. With `objects` the mask is int32: 0, the numbers of
    # the objects, -1 where nobody labelled. Raises UserError. Called from several threads.
    read: Callable[[Item, int, Size | None], tuple[np.ndarray, np.ndarray]]
    classes: dict[int, int] | None = None  # mask value -> class index where it is fixed; None: by the values found
    class_names: Names | None = None
    patterns: dict[str, str] = field(default_factory=dict)  # "image_files" and "mask_files", as given, published or guessed
    left_out: list[str] = field(default_factory=list)  # images and masks without the other, with --skip-bad
    over: list[str] = field(default_factory=list)  # lines on files that are none of the data set
    objects: bool = False  # whether masks tell objects of one class apart
    channels: int | None = None  # of the images where the layout fixes it; None: as the files are
    note: str = ""  # a few words for the line about the data


class Published(NamedTuple):
    """How a data set is published: where it lies, and what the values of its masks mean."""

    images: str
    masks: str
    names: str = ""  # of the classes, in order
    values: str = ""  # that stand for them, where not 0, 1, 2 and so on; others are void
    lists: str = ""  # files that list the names of each part, see `LISTS`; other images need no masks
    colors: str = ""  # of the masks, as `class_list` reads them with ; between the lines; others are void


CITYSCAPES = "road,sidewalk,building,wall,fence,pole,traffic light,traffic sign,vegetation,terrain,sky,person,rider,car,truck,"
CITYSCAPES += "bus,train,motorcycle,bicycle"
VOC = "background,aeroplane,bicycle,bird,boat,bottle,bus,car,cat,chair,cow,diningtable,dog,horse,motorbike,person,pottedplant,"
VOC += "sheep,sofa,train,tvmonitor"
CAMVID_11 = "sky,building,pole,road,pavement,tree,sign,fence,car,pedestrian,bicyclist"
CAMVID = """Animal 64 128 64;Archway 192 0 128;Bicyclist 0 128 192;Bridge 0 128 64;Building 128 0 0;Car 64 0 128;CartLuggagePram
64 0 192;Child 192 128 64;Column_Pole 192 192 128;Fence 64 64 128;LaneMkgsDriv 128 0 192;LaneMkgsNonDriv 192 0 64;Misc_Text 128
128 64;MotorcycleScooter 192 0 192;OtherMoving 128 64 64;ParkingBlock 64 192 128;Pedestrian 64 64 0;Road 128 64 128;RoadShoulder
128 128 192;Sidewalk 0 0 192;SignSymbol 192 128 128;Sky 128 128 128;SUVPickupTruck 64 128 192;TrafficCone 0 0 64;TrafficLight 0
64 64;Train 192 64 128;Tree 128 128 0;Truck_Bus 192 128 192;Tunnel 64 0 64;VegetationMisc 192 192 0;Void 0 0 0;Wall 64 192 0"""
LISTS = ("train", "val", "test", "trainval", "default")  # the last two are split by chance; CVAT exports default.txt
DATASETS = {  # name -> how it is published, one or several ways
    "carvana": [Published("train/{group}_{name}.*", "train_masks/{group}_{name}_mask.*", "background,car")],
    "oxford_pet": [Published("images/{name}.jpg", "annotations/trimaps/{name}.png", lists="annotations/{name}.txt")],
    "dsb2018": [Published("**/{name}/images/*", "**/{name}/masks/*", "background,nucleus")],
    "isbi": [Published("{part}-volume.tif", "{part}-labels.tif", "membrane,cell")],  # a slice on every page
    "cityscapes": [
        Published(
            "**/leftImg8bit/{part}/*/{name}_leftImg8bit.png", "**/gtFine/{part}/*/{name}_gtFine_labelIds.png",
            CITYSCAPES, "7,8,11,12,13,17,19,20,21,22,23,24,25,26,27,28,31,32,33",
        )
    ],
    "voc": [
        Published("**/JPEGImages/{name}.*", "**/SegmentationClass/{name}.png", VOC, "", "**/ImageSets/Segmentation/{name}.txt")
    ],
    "camvid": [
        Published("**/701_StillsRaw_full/{name}.png", "**/LabeledApproved_full/{name}_L.png", colors=CAMVID),
        Published("**/{part}/{name}.png", "**/{part}_labels/{name}_L.png", colors=CAMVID),
        Published("**/{part}/{name}.png", "**/{part}annot/{name}.png", CAMVID_11, "0,1,2,3,4,5,6,7,8,9,10"),
    ],
}  # fmt: skip


def find_layout(config):
    """Finds the images and masks of `config.data.dataset` below `config.data.data_dir`; none is decoded.

    Returns: `Layout`, with one item at least.

    Raises: UserError for a folder or file that is missing or cannot be read, and for an image or a mask without the other.
    """
    data_dir = config.data.data_dir
    try:
        if not data_dir.exists():
            raise UserError(f"--data-dir {data_dir} does not exist")
        if config.data.dataset == "nyuv2":
            return _nyuv2(config)
        if not data_dir.is_dir():
            raise UserError(f"--data-dir {data_dir} is a file: name the folder that the images and masks lie below")
        return _pairs(config)
    except OSError as error:
        reason = f"{error.strerror}; check the path and its permissions"
        raise UserError(f"cannot read {error.filename or data_dir}: {reason}") from None


def published(config, has_files=lambda pattern: True):
    """The `Published` that a run of `config` reads, None for a folder of the user's; of several ways the first with images."""
    ways, data = DATASETS.get(config.data.dataset, []), config.data
    known = [way for way in ways if way.masks == data.mask_files]  # what a run has stored
    return next((way for way in known or ways if known or data.image_files or has_files(way.masks)), ways[0] if ways else None)


def masks_of(config, way):
    """What is known of the masks of the `Published` `way`: (`Colors` or None, {value: class index} or None, names or None).

    Raises: UserError for a list of classes that makes none.
    """
    data, classes, void = config.data, config.network.classes, config.data.void_label
    names = Names((way.names if way and way.names else "background,object").split(","))
    if data.objects:
        return None, OBJECTS, names
    if data.dataset == "oxford_pet":  # the outline is a class, counts as background, or is void
        if classes not in (None, 1, 2, 3):
            raise UserError(f"--dataset oxford_pet has 3 classes, or the pet alone with --classes 1; got --classes {classes}")
        outline = classes in (1, 2) or classes is None and void == 3
        return None, {2: 0, 1: 1, 3: 0 if outline else 2}, Names(("background", "pet", *([] if outline else ["outline"])))
    if data.colors is not None or way and way.colors:
        path = "of CamVid" if data.colors is None else data.colors.path
        listing = way.colors.replace("\n", " ").replace(";", "\n") if data.colors is None else data.colors
        rest_is_void = data.colors is None or void is not None
        names, indices = class_list(listing, f"--colors {path}")
        if not 2 <= len(names) <= VOID:
            raise UserError(f"--colors {path} names {len(names)} classes: it takes 2 to {VOID}, a line for each")
        if max(classes or len(names), 2) != len(names):
            raise UserError(f"--colors {path} names {len(names)} classes, but --classes is {classes}: leave --classes out")
        if not all(isinstance(key, int) for key in indices):
            return Colors(path, indices, rest_is_void), by_index(len(names)), names
        return None, {**dict.fromkeys(range(256) if rest_is_void else [VOID], VOID), **indices}, names
    if not way:
        return None, None, None
    if way.values:
        return None, {**dict.fromkeys(range(256), VOID), **dict(zip(map(int, way.values.split(",")), range(VOID)))}, names
    return None, by_index(len(names)) if len(names) > 2 else None, names


def by_index(n):
    """`Layout.classes` where the values are class indices."""
    return {**{i: i for i in range(n)}, VOID: VOID}


def _pairs(config):
    """The `Layout` of whatever two patterns name: those of the command line, of whoever published the data, or guessed."""
    data, run_dir = config.data, config.training.run_dir
    own = [data.cache, run_dir if run_dir and (run_dir / "config.json").is_file() else None]  # may lie there, too
    everything = walk(data.data_dir, [path.resolve() for path in own if path])
    files = [file for file in everything if is_image(data.data_dir, file)]
    way = published(config, lambda pattern: any(next(readings(pattern, file), None) for file in files))
    patterns = data.image_files or way and way.images, data.mask_files or way and way.masks
    there = "; ".join(filter(None, [f"below {data.data_dir} lie {inventory(everything) or 'no files'}", outlines(everything)]))
    if not all(patterns):
        patterns, enough = guess(files)
        if not enough:
            images, masks = patterns or ("images/{name}.*", "masks/{name}.*")
            say_it = f"say it with --image-files '{images}' --mask-files '{masks}', or what is right"
            raise UserError(f"nothing says which file is whose mask: {there}; {say_it}")
    found = pair(*patterns, files)
    masked, alone, note, lists = found.masks, found.alone, "", []
    parts = {file: fields.get("part", "") for file, fields in found.fields.items()}
    if way and way.lists:  # not all images have masks
        lists = [file for file in everything if (name := next(readings(way.lists, file), {})) and name["name"] in LISTS]
        by_name = {fields["name"]: file for file, fields in found.fields.items()}
        listed_parts, alone = _listed(data.data_dir, lists, by_name, masked)
        parts |= listed_parts
        only = set(listed_parts.values()) - {"test"}
        masked = {file: masks for file, masks in masked.items() if file in listed_parts or not only}
        note = f"{len(masked)} of {len(found.fields)} images have a mask{' and are listed' if only else ''}"
    asked = f"--image-files {quote(patterns[0])} --mask-files {quote(patterns[1])}"
    if not masked:
        raise UserError(f"by {asked} {listed(alone, 4) or 'no file fits'}: {there}")
    over = [f"images and masks by {asked}"]  # to paste and change
    if apart := sum(parts[file] == "test" and file not in masked for file in found.fields):
        over.append(f"{apart} images of the test part have no masks: left alone")
    used = {*found.fields, *lists, *(mask for masks in found.masks.values() for mask in masks)}
    used |= {file for file in everything if data.colors and Path(data.data_dir, file) == Path(data.colors.path)}
    if rest := unused(everything, used):
        over += [f"not used in {data.data_dir}: {listed(rest, 20)}", outlines(set(everything) - used)]
        over = [line for line in over if line]
    if alone and not data.skip_bad:
        raise UserError("; ".join([f"by {asked} {listed(alone)} (--skip-bad goes on without)", *over[1:]]))
    items = []
    for file, masks in masked.items():
        image, first, *further = (data.data_dir / name for name in (file, *masks))
        items += _pages(Item(file, image, first, None, found.fields[file].get("group", ""), parts[file], tuple(further)))
    if len({item.image for item in items if item.page is not None}) > 1:  # the slices of a stack are alike
        stacks = [item.group or item.name.rpartition("[")[0] for item in items]
        items = [item if item.page is None else replace(item, group=stack) for item, stack in zip(items, stacks)]
    colors, classes, names = masks_of(config, way)

    def read(item, channels, size):
        return read_pair(item.image, item.masks, channels, size, item.page, colors, data.objects, data.void_label)

    if data.dataset == "dsb2018":
        note = "where masks overlap the first has the pixels"
    kept = {"image_files": patterns[0], "mask_files": patterns[1]}
    items.sort(key=lambda item: item.name)
    return Layout(items, read, classes, names, kept, alone, over, data.objects, note=note)


def _listed(folder, lists, images, masked):
    """What lists of names say, {image: part}, and what they name that is not there. images: name -> image.

    Raises: UserError for a name that two parts have.
    """
    parts, missing = {}, []
    for path in sorted(lists, key=lambda path: (Path(path).stem not in PARTS, path)):  # trainval.txt may repeat train.txt
        part = PARTS.get(Path(path).stem, "")
        for line in (folder / path).read_text(encoding="utf-8", errors="replace").splitlines():
            if line.strip() and not line.startswith("#"):
                name = line.split()[0]  # what stands behind it in oxford_pet is for classification
                file = images.get(name)
                if file not in masked:
                    missing.append(f"{name}, listed in {path}, has no {'mask' if file else 'image'}")
                elif parts.setdefault(file, part) != part and (part or parts[file] == "test"):
                    raise UserError(f"{folder / path} lists {name}, which is listed before: keep it in one of the lists")
    return parts, missing


def _pages(item):
    """The item, or one for each image of its file, whose masks are as many. Raises: UserError for other numbers of masks."""
    n = pages = 1
    if item.image.suffix.lower() in (".tif", ".tiff"):
        with contextlib.suppress(UserError):  # said when it is read
            found = count_pages(item.image)
            n, pages = found, found if found == 1 else count_pages(item.mask)
    if pages != n:
        raise UserError(f"{item.image} has {n} pages, but {item.mask} has {pages}: they must be of one stack")
    digits = len(str(n - 1))  # so that names sort as pages do
    return [item] if n == 1 else [replace(item, name=f"{item.name}[{k:0{digits}}]", page=k) for k in range(n)]


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
        for image in tqdm(labels, desc="counting labels", unit=" images", delay=1, leave=False, disable=None):
            counts += np.bincount(image.ravel(), minlength=len(counts))
        counts[0] = 0  # unlabelled
        frequent = np.argsort(-counts, kind="stable")[:wanted]
        frequent = frequent[counts[frequent] > 0]
        class_names = Names.of("".join(map(chr, file[names[label - 1]][()].ravel())) for label in frequent)
    if len(frequent) < (wanted if config.network.classes else 2):
        raise UserError(f"{path} has {len(frequent)} labels, too few for --classes {wanted}")
    table = np.full(len(counts), VOID, np.uint8)
    table[frequent] = np.arange(len(frequent))

    def read(item, channels, size):
        with readable(path):
            image = np.ascontiguousarray(images[item.page].transpose(2, 1, 0))  # MATLAB's order is [3, W, H]
            return image if channels == 3 else to_gray(image), np.ascontiguousarray(table[labels[item.page]].T)

    digits = len(str(n - 1))
    items = [Item(f"{path.name}[{i:0{digits}}]", path, path, i) for i in range(n)]
    return Layout(items, read, by_index(len(frequent)), class_names, channels=3)


def find_channels(layout):
    """1 if the images are gray, 3 if any of some that are spread over the data set has colour, or how many bands they have.

    Some are not few: among gray images, many of them stored as colours, a quarter may have colour. Bad files are passed over.
    """
    if layout.channels:
        return layout.channels
    n = len(layout.items)
    for item in (layout.items[i] for i in sorted({k * (n - 1) // 63 for k in range(64)})):
        with contextlib.suppress(UserError):
            bands = count_bands(item.image)
            if bands not in (1, 3):
                return bands
            # a JPEG is decoded no larger, which saves most of it
            if bands == 3 and has_color(read_image(item.image, 3, Size(256, 256), item.page)):
                return 3
    return 1
