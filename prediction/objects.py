"""Objects out of probabilities: which pixels are one nucleus, one cell, one car, and how that is settled."""

import contextlib
import hashlib
import itertools
import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from common.colors import CLASS_COLORS
from common.config import VOID, UserError
from common.output import replacing, write_csv, write_json
from common.pictures import class_names, shown_bands, told_apart
from common.text import cell, say
from data.borders import CROSS, part_touching
from data.files import in_8_bits
from prediction.images import save_numbers
from prediction.matching import object_scores
from prediction.tiles import predict_tiles

import numpy as np
from PIL import Image
from scipy.ndimage import binary_dilation, distance_transform_edt, gaussian_filter
from skimage.measure import label, regionprops_table
from skimage.morphology import dilation, local_maxima, reconstruction, remove_small_holes
from skimage.segmentation import expand_labels, find_boundaries, watershed
from tqdm import tqdm

SMOOTHING = 1.5  # pixels: the raster gives every distance small summits
THRESHOLDS, NECKS = (0.4, 0.5, 0.6, 0.75), (0, 0.5, 0.8, 0.9, 0.95)  # that are tried
AREAS = (0.1, 0.2, 0.3)  # shares of the median area of the true objects
SEARCHED = 4_000_000  # pixels of images to choose on


class Settings(NamedTuple):
    """What makes an object."""

    threshold: float  # of the probability, above 0: pixels from it on are in objects
    neck: float  # 0..1: two parts are two objects where it is less than `neck` times as high between them; 0: never
    area: int  # objects of fewer pixels are left out, and holes of fewer are filled

    @classmethod
    def of(cls, threshold, neck, area):
        """Raises: UserError for numbers that are no settings."""
        if not (0 < threshold <= 1 and 0 <= neck < 1 and 0 <= area < 2**53 and area == int(area)):
            raise UserError(
                "--object-settings takes a threshold above 0 and up to 1, a neck from 0 to below 1, and an area in pixels, "
                f"such as 0.5 0.8 20, got {threshold:g} {neck:g} {area:g}"
            )
        return cls(threshold, neck, int(area))

    def __str__(self):
        return f"{self.threshold:g} {self.neck:g} {self.area}"


def class_of_objects(name, config):
    """The index of the class that --object-class `name` means, None being the foreground. Raises: UserError."""
    classes = config.network.classes
    names = class_names(config.data.class_names, classes)
    if name is None:
        if classes > 2:
            raise UserError(f"--objects: of which of the {classes} classes? add --object-class NAME ({', '.join(names)})")
        return 1
    index = names.index(name) if name in names else int(name) if name.isdecimal() else len(names)
    if index >= len(names):
        raise UserError(f"--object-class {name}: the classes are {', '.join(names)}")
    if index == 0 and (classes == 1 or config.data.objects):
        raise UserError(f"--object-class {name}: this network knows objects of {names[1]} alone")
    return index


def split_objects(p, settings, parted=0):
    """Probabilities [H, W] -> labels int32 [H, W], 1 to n.

    parted: of a network that learned what `part_touching` made, how many pixels here are one of the training's; 0: of another.

    A watershed (Beucher and Lantuejoul 1979) from seeds, on the height of a pixel: how far it lies inside the pixels from the
    threshold on, and again inside those from halfway between the threshold and 1 on, so that a line of doubtful pixels, where
    two objects meet, is a valley. A seed is a summit from which every way to a higher one descends below `neck` times its
    height: the same for small objects and large ones. Holes that would be no objects are filled before: around a hole there
    is no summit. What was `parted` gets the pixels back that were taken from it: the line between two objects.
    """
    p = np.pad(p, 1)  # an object at the border ends there
    levels = [settings.threshold, (1 + settings.threshold) / 2]
    inside, surely = (remove_small_holes(p >= level, settings.area, connectivity=1) for level in levels)
    if settings.neck == 0:
        labels = label(inside, connectivity=1)
    else:
        distance = gaussian_filter(distance_transform_edt(inside) + distance_transform_edt(surely), SMOOTHING)
        height = -1e3 - np.arange(p.size, dtype=float).reshape(p.shape)  # outside; each its own: equal ones are slow to sort
        height[inside] = np.log(distance[inside])  # logarithms: a share is a difference
        filled = reconstruction(height + np.log(settings.neck), height, footprint=CROSS)  # summits cut down to `neck` of them
        seeds = label(local_maxima(filled, connectivity=1) & inside, connectivity=1)
        labels = watershed(-height, seeds, mask=inside)
    labels = labels[1:-1, 1:-1]
    stay = np.bincount(labels.ravel()) >= max(settings.area, 1)
    stay[0] = False
    labels = np.where(stay, np.cumsum(stay), 0).astype(np.int32)[labels]
    if not (parted and labels.any()):
        return labels
    grown = expand_labels(labels, parted)
    meet = (grown > 0) & (part_touching(grown) == 0)
    if parted > 1:
        meet = binary_dilation(meet, CROSS, parted - 1)
    return np.where(meet, grown, labels)


def find_objects(p, settings, config):
    """Probabilities [H, W] of the class -> labels int32 [H, W]. Where the training resized, areas are in pixels of its size."""
    size = config.data.image_size or p.shape
    scale = p.size / (size[0] * size[1])
    parted = max(1, round(scale**0.5)) if config.data.objects else 0
    return split_objects(p, settings._replace(area=round(settings.area * scale)), parted)


def true_objects(mask, klass):
    """Class indices [H, W] -> labels: where nothing tells objects apart, each connected part of the class is one."""
    return label(mask == klass, connectivity=1)


def choose_settings(pairs, parted=0):
    """The best `Settings`: (settings, {name: mean over the images} of `object_scores`, how many were tried).

    By the sum of mean AP, which counts objects, and AJI, which counts pixels: by AP alone a few large objects that are one in
    the end weigh nothing beside some small ones that are two, and little decides whether touching objects are parted at all.
    The best threshold and neck with the middle one of the areas, then the best area with them.

    pairs: (probabilities [H, W], true labels [H, W]) of images; pixels that nobody labelled are 0 in both.
    parted: as in `split_objects`.
    """
    areas = np.concatenate([np.bincount(truth.ravel())[1:] for _, truth in pairs])
    typical = np.median(areas[areas > 0]) if areas.any() else 0
    areas, tried = [round(share * typical) for share in AREAS], {}

    def compare(settings, pair):
        p, truth = pair
        return object_scores(truth, split_objects(p, settings, parted))

    def best_of(candidates):
        for settings in tqdm(candidates, desc="settings", delay=1, leave=False, disable=None):
            if settings not in tried:
                tried[settings] = list(threads.map(compare, itertools.repeat(settings), pairs))
        return max(candidates, key=lambda settings: np.mean([scores["ap"] + scores["aji"] for scores in tried[settings]]))

    with ThreadPoolExecutor() as threads:
        best = best_of([Settings(*two, areas[len(areas) // 2]) for two in itertools.product(THRESHOLDS, NECKS)])
        best = best_of([best._replace(area=area) for area in areas])
    return best, {name: float(np.mean([scores[name] for scores in tried[best]])) for name in tried[best][0]}, len(tried)


def labelled_pairs(config, predict, klass, tile, tta):
    """What `choose_settings` takes: ([of the run's validation images], [of those that it trained on]), up to `SEARCHED`.

    A dozen images may show hardly any objects that touch, and then a neck that parts nothing looks best: more of them chose
    better, for nuclei and for membranes, although the network has seen them (docs/results.md). Validation images come first.

    Raises: UserError when the data of the run is not there, or not labelled.
    """
    from data.loader import load_examples  # and TensorFlow with it

    config, training, validation = load_examples(config)
    white, pixels, pairs = config.data.scale, 0, ([], [])
    for examples, several in zip((validation, training), pairs):
        for i, name in enumerate(examples.names):
            if pixels >= SEARCHED:
                break
            mask = examples.masks[i]
            if (mask == VOID).all():
                continue
            p = np.empty(mask.shape, np.float32)
            for rows, columns, part in predict_tiles(predict, examples.images[i], config.network, tile, tta, name, white):
                p[rows, columns] = part[..., klass if config.network.classes > 1 else 0]
            truth = examples.objects[i] if examples.objects else true_objects(mask, klass)
            several.append((np.where(mask == VOID, 0, p), truth))
            pixels += p.size
    if not pixels:
        raise UserError("no mask of the training has a labelled pixel")
    return pairs


def settled(checkpoint, config, predict, klass, tile, tta=None):
    """The `Settings` for a checkpoint: those in objects.json beside it, or else the best on the images of its run.

    What was found is printed, and kept in that file for the next time, also where the data of the training is not.

    Raises: UserError when they are not known and the data of the training cannot be read.
    """
    case = f"{klass}, --tta" if tta else str(klass)  # whose probabilities are others
    path, digest, known = checkpoint.parent / "objects.json", hashlib.sha256(checkpoint.read_bytes()).hexdigest(), {}
    is_ours = not os.path.lexists(path)  # COCO's annotations may have that name
    with contextlib.suppress(OSError, ValueError, TypeError, AttributeError, KeyError):  # none, or changed by hand: anew
        kept = json.loads(path.read_text())
        is_ours = kept.keys() == {"checkpoint", "classes"}
        if kept["checkpoint"] == digest:  # else it is of other weights
            known = kept["classes"]
            settings = Settings.of(*known[case]["settings"])
            say(f"objects by --object-settings {settings}, from {path}")
            return settings
    try:
        validation, training = labelled_pairs(config, predict, klass, tile, tta)
    except UserError as error:
        remedy = "--objects looks there for its settings: or name them, as in --object-settings 0.5 0.8 20"
        raise UserError(f"{error}; {remedy}") from None
    settings, scores, tried = choose_settings(validation + training, int(config.data.objects))
    words = f"the best of {tried} tried on {len(validation)} validation and {len(training)} training images: "
    words += "mean AP {ap:.4f}, AP at IoU 0.5 {ap50:.4f}, F1 {f1:.4f}, AJI {aji:.4f}".format(**scores)
    say(f"objects by --object-settings {settings}, {words}")
    known[case] = {"settings": list(settings), "validation": len(validation), "training": len(training), **scores}
    try:
        if not is_ours:
            raise OSError(f"{path} holds something else")
        write_json(path, {"checkpoint": digest, "classes": known})
    except OSError as error:
        say(f"warning: the settings are not kept for the next time: {error}", sys.stderr)
    return settings


def save_labels(path, path_of_tiff, labels, tags=()):
    """The label image of 16 bits, with more than 65535 objects of 32: a PNG, `path`, or with that many or `tags` a TIFF."""
    wide = labels.max(initial=0) > 65535
    path, other = (path_of_tiff, path) if wide or tags else (path, path_of_tiff)
    if wide and not tags:
        say(f"{path.stem}: {labels.max()} objects are more than a PNG can number: {path.name}")
    save_numbers(path, labels if wide else labels.astype(np.uint16), tags)
    other.unlink(missing_ok=True)  # of an earlier prediction, with --overwrite


def measure(labels, image, place=None):
    """One dict for each object: label; area in pixels; row and column of the centroid; mean intensity in each channel.

    top, left, bottom, right: the first row and column of the object, and those behind its last.
    place: from `georeference.map_of_pixels`; with it also map_x and map_y of the centroid and map_area, in units of the map.

    image: [H, W, channels], as `predict_mask` gives it: 0 to 255, or to --white.
    """
    n = image.shape[-1]
    channels = [""] if n == 1 else ["_red", "_green", "_blue"] if n == 3 else [f"_band_{k + 1}" for k in range(n)]
    columns = "label area row column top left bottom right".split() + [f"mean_intensity{channel}" for channel in channels]
    table = regionprops_table(labels, image, ["label", "area", "centroid", "bbox", "intensity_mean"])
    if place is not None:
        columns += ["map_x", "map_y", "map_area"]
        x, y = place @ [table["centroid-1"], table["centroid-0"], np.ones(len(table["label"]))]
        table |= {"x": x, "y": y, "map area": table["area"] * abs(np.linalg.det(place[:, :2]))}
    return [dict(zip(columns, row, strict=True)) for row in zip(*table.values())]


def write_table(path, rows):
    """rows: name of the image -> what `measure` returns, as one CSV file."""
    objects = [{"image": cell(name)} | {key: f"{row[key]:.10g}" for key in row} for name in rows for row in rows[name]]
    columns = list(dict.fromkeys(itertools.chain(["image", "label"], *objects)))  # of some images there is a map
    write_csv(path, [columns, *([row.get(column, "") for column in columns] for row in objects)])


def save_outlines(path, image, labels, config):
    """The image, as `predict_mask` gives it, with the outline of each object, in another colour than those that touch it."""
    picture = in_8_bits(shown_bands(image, config.data.show_bands), config.data.scale).copy()
    lines = find_boundaries(labels, connectivity=1, mode="inner")
    if (thick := round(min(labels.shape) / 600)) > 0:
        lines = dilation(lines, np.ones((2 * thick + 1, 2 * thick + 1))) & (labels > 0)
    colors = np.rint(255 * CLASS_COLORS[[1, 2, 3, 4, 6, 7]]).astype(np.uint8)  # seen on black and on purple; blue is not
    picture[lines] = colors[(told_apart(labels)[lines] - 1) % len(colors)]
    with replacing(path) as part:
        Image.fromarray(picture).save(part, "PNG")
