"""Images to predict: finding them, reading and predicting one, and writing what came out."""

import contextlib
import functools
import os
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from common.colors import CLASS_COLORS
from common.config import Config, Size, UserError
from common.metrics import predicted_classes
from common.output import replacing
from common.pictures import class_names, in_values, shown_bands
from common.text import listed, say
from data.files import EXTENSIONS, count_pages, in_8_bits, on_scale, read_image, stretched
from data.patterns import images_among, is_image, pair, unused, walk
from prediction.georeference import hides, read_tags
from prediction.tiles import predict_resized, predict_tiles, smallest_image

import numpy as np
from PIL import Image

COLORS = np.rint(255 * CLASS_COLORS).astype(np.uint8)  # [256, 3]
ROWS = 256  # of a large image that are worked on at once, where the whole would take many times the memory of the image


class Source(NamedTuple):
    """One image to predict, or one mask to compare with."""

    path: Path
    page: int | None  # from 0, in a file that holds many
    stem: str  # of the files that are written
    file: str = ""  # the path below the folder that was named, with "/"

    def __str__(self):
        name = self.file or self.path.name  # images of two folders may have one name
        return name if self.page is None else f"{name}[{self.page + 1}]"


def find_images(paths, config=None):
    """All images of the files and folders `paths`: [Source]. The masks of the training's patterns are left alone.

    In a folder these are what the patterns of the training find there, or else the image files that lie in it.

    Raises: UserError for what does not exist, a folder without images, and two images that would get the same name.
    """
    files, sources = {}, {}  # path -> path below the folder that was named
    for path in paths:
        if not path.exists():
            raise UserError(f"{path} does not exist")
        found = _in_folder(path, config) if path.is_dir() else {path: path.name}
        if not found:
            raise UserError(f"{path} holds no images ({', '.join(EXTENSIONS)})")
        files |= found
    stems = Counter(path.stem for path in files)
    for path, file in files.items():
        stem = path.stem if stems[path.stem] == 1 else file.rpartition(".")[0].replace("/", "_")
        for source in pages_of(path, stem, file):
            if other := sources.get(source.stem):
                raise UserError(f"{other.path} and {path} would both become {source.stem}.png: give them an --output each")
            sources[source.stem] = source
    return list(sources.values())


def _in_folder(folder, config):
    """{image: its path below `folder`}"""
    files, data = walk(folder), (config or Config()).data
    usable = [file for file in files if is_image(folder, file)]
    here = [file for file in usable if "/" not in file]
    found = list(images_among(data.image_files, data.mask_files, usable)) if data.mask_files else []
    if not found and data.mask_files:
        names = [Path(pattern).name for pattern in (data.image_files, data.mask_files)]
        with contextlib.suppress(UserError):  # which mask is whose does not matter here
            masks = {mask for masks in pair(*names, here).masks.values() for mask in masks} if names[0] != names[1] else set()
            here = [file for file in here if file not in masks]
    found = found or here
    if rest := unused(files, found):
        say(f"{folder}: not predicted: {listed(rest)}", sys.stderr)
    return {folder / file: file for file in found}


def pages_of(path, stem=None, file=""):
    """[Source] of a file: several for a TIFF or GIF of many pages. A file that cannot be read is one, and fails later."""
    pages, stem = 1, stem or path.stem
    if path.suffix.lower() in (".tif", ".tiff", ".gif"):
        with contextlib.suppress(UserError):
            pages = count_pages(path)
    if pages == 1:
        return [Source(path, None, stem, file)]
    return [Source(path, page, f"{stem}_{page + 1:0{len(str(pages))}}", file) for page in range(pages)]


def outputs(source, args):
    """Where the results of an image go, by the options of predict.py: {"mask": path, "overlay": path, ...}."""
    paths = {"mask": f"{source.stem}.{'tif' if read_tags(source) else 'png'}"}
    if args.overlay:
        paths["overlay"] = f"overlays/{source.stem}.png"
    if args.probabilities:
        paths["probabilities"] = f"probabilities/{source.stem}.npy"
    if args.objects:
        paths |= {"objects": f"objects/{source.stem}.png", "objects as TIFF": f"objects/{source.stem}.tif"}
    return {kind: args.output / path for kind, path in paths.items()}


def predict_mask(predict, source, config, tile, tta, save_to=None, keep=None, threshold=0.5):
    """-> image [H, W, channels] on the scale of the training, class indices uint8 [H, W], probabilities [H, W] of class `keep`.

    All probabilities go into the file `save_to`, if any.

    predict: from `prediction.network.make_predict`. tile, tta: as `predict_tiles` takes them; threshold: `predicted_classes`.

    Raises: UserError for an image that cannot be read or is too small, OSError for a file that cannot be written.
    """
    network, size, white = config.network, config.data.image_size, config.data.scale
    image = _read(source, config)
    height, width, _ = image.shape
    stretch = functools.partial(stretched, white=white) if config.data.stretch else np.asarray
    if size in (None, (height, width)):
        smallest = smallest_image(network)
        if min(height, width) < smallest:
            raise UserError(f"{source.path} is {Size(height, width)} pixels, too small for this network: it needs {smallest}")
        parts = predict_tiles(predict, stretch(image), network, tile, tta, str(source), white)
    else:
        resized = on_scale(read_image(source.path, network.channels, size, source.page), config.data.white, source.path)
        parts = predict_resized(predict, stretch(resized), (height, width), network, tile, tta, str(source), white)
    mask = np.empty((height, width), np.uint8)
    kept = None if keep is None else np.empty((height, width), np.float32)
    with array_file(save_to, (height, width, network.classes)) if save_to else contextlib.nullcontext() as saved:
        for rows, columns, p in parts:
            if not np.isfinite(p).all():
                raise UserError(f"{source.path}: the network's answer is not finite; its weights are too large, train again")
            mask[rows, columns] = predicted_classes(p[np.newaxis], threshold)[0]
            if keep is not None:
                kept[rows, columns] = p[..., keep if network.classes > 1 else 0]
            if save_to:
                saved[rows, columns] = p
    return image, mask, kept


def _read(source, config):
    """An image on the scale of the training: [H, W, channels], 0 to `Data.scale`."""
    white = config.data.white
    image = read_image(source.path, config.network.channels, page=source.page)
    if white and image.dtype != np.uint8:
        floats, kinds = image.dtype == np.float32, ["whole numbers of 16 bits", "floats"]
        if floats != isinstance(white, float):
            those = f"but the images to train on held {kinds[not floats]}, which have another white"
            raise UserError(f"{source.path} holds {kinds[floats]}, {those}: save it as they were")
        if above := np.mean(image > white):
            words = f"{above:.2%} of its values lie above {white:g}, the white of the training: read as white"
            say(f"warning: {source}: {words}", sys.stderr)
    return on_scale(image, white, source.path)


@contextlib.contextmanager
def array_file(path, shape):
    """A .npy file of float32 `shape`, as an array to write to. It appears at the end, whole or not at all."""
    with replacing(path) as part:
        array = np.lib.format.open_memmap(part, "w+", np.float32, shape)
        with open(part, "r+b") as file:  # takes its place on the disk: one that is full is an OSError here, a SIGBUS later
            os.posix_fallocate(file.fileno(), 0, os.path.getsize(part))
        yield array


def strips(*arrays):
    """A few rows at a time of arrays of one height."""
    for top in range(0, len(arrays[0]), ROWS):
        yield tuple(array[top : top + ROWS] for array in arrays)


def count_values(mask):
    """uint8 [H, W] -> int [256], how often each value occurs."""
    return np.array(Image.fromarray(mask).histogram())  # of less memory than np.bincount


def save_mask(path, mask, config, tags):
    """The values of the masks to train on, or class indices where a layout maps its own; 0 and 255 with one class.

    A PNG, or a TIFF with `tags`, which `prediction.georeference` reads.
    """
    values = config.data.mask_values or config.shown_values
    if config.network.classes == 1 and not config.data.mask_values:
        mask, colors = mask * np.uint8(255), None
    else:
        mask, colors = np.array(values, np.uint8)[mask], COLORS[: max(values) + 1]
    save_numbers(path, mask, tags, colors)


def save_numbers(path, numbers, tags=(), colors=None):
    """An image [H, W] of whole numbers: a TIFF with `tags`, or without a PNG. colors: uint8 [n, 3], those of the first n."""
    with replacing(path) as part:
        if path.suffix == ".tif":
            from tifffile import imwrite

            tags = [tag for tag in tags if not hides(tag, numbers)]
            palette = None if colors is None else np.pad(colors, [(0, 256 - len(colors)), (0, 0)]).T.astype(np.uint16) * 257
            kind = "minisblack" if colors is None else "palette"
            imwrite(part, numbers, photometric=kind, colormap=palette, compression="zlib", metadata=None, extratags=tags)
            return
        picture = Image.fromarray(numbers)
        if colors is not None:
            picture.putpalette(colors.tobytes())
        picture.save(part, "PNG")


def save_overlay(path, image, mask, config):
    """The image as `predict_mask` gives it, with a half-transparent colour on all that is not background (class 0)."""
    picture = Image.new("RGB", mask.shape[::-1])
    for top, (pixels, classes) in zip(range(0, len(mask), ROWS), strips(image, mask)):
        pixels = in_8_bits(shown_bands(pixels, config.data.show_bands), config.data.scale)
        classes = in_values(classes, config)
        mixed = pixels // 2 + COLORS[classes] // 2
        picture.paste(Image.fromarray(np.where(classes[..., np.newaxis] > 0, mixed, pixels)), (0, top))
    with replacing(path) as part:
        picture.save(part, "PNG")


def describe(source, mask, config):
    """One line on a mask: its size and the share of every class in it. Warns of a mask that is the same all over."""
    names = class_names(config.data.class_names, config.network.classes)
    counts = count_values(mask)[: len(names)]
    if (counts > 0).sum() == 1:
        say(f"warning: {source}: every pixel of the mask is {names[counts.argmax()]}", sys.stderr)
    shown = [1] if config.network.classes == 1 else np.flatnonzero(counts)
    shares = ", ".join(f"{names[i]} {counts[i] / mask.size:.1%}" for i in shown)
    return f"{source}  {Size(*mask.shape)}  {shares}"
