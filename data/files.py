"""What image files hold: values of 8 or 16 bits as they are stored, and what is refused. `data.bands` opens the files."""

import contextlib
import os
import stat
from pathlib import Path
from typing import NamedTuple

from common.config import VOID, Size, UserError
from data.bands import FORMATS, SIDEWAYS, counted, images_in, open_raster, upright

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.Image import Resampling

EXTENSIONS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".gif", ".bmp", ".webp", ".npy")
MAX_NUMBER = 2**24  # in label images; a table of all numbers is made
STRETCHED = (1, 99.8)  # percentiles: of pixels, a hundredth may be dust and background, and of the objects some are glints
TOP = 65535  # what floats become at most


class Colors(NamedTuple):
    """What the colours of masks stand for."""

    path: Path  # the file that says so, for messages
    indices: dict[tuple[int, int, int], int]  # (red, green, blue) -> class index or VOID
    rest_is_void: bool  # other colours are void, and no error


def read_pair(image_path, mask_paths, channels, size=None, page=None, colors=None, objects=False, void=None):
    """Reads an image and its masks, upright as their EXIF orientation says, as large as they are stored.

    Args:
        channels: see `read_image`.
        size: that the image will be resized to: a JPEG comes so, since it is decoded faster.
        page: of multi-page files, from 0. None: the files must hold one image each.
        colors, void: see `read_mask`.
        objects: the masks number objects, see `read_objects`.

    Returns: image uint8, uint16 or float32 [H, W, channels], mask uint8 [H, W], or int32 if it numbers objects.

    Raises: UserError for what cannot be read, and for a mask that is not as large as its image.
    """
    image, size_of_image, stored = _read_image(image_path, channels, size, page)
    mask = read_objects(mask_paths, page, void) if objects else read_masks(mask_paths, page, colors, void)
    if size_of_image != (size_of_mask := Size(*mask.shape)):
        remedy = "they must have one size"
        if size_of_mask == stored:
            remedy = "the photo is turned by its EXIF orientation, and the mask is not: turn it, or save the photo without that"
        raise UserError(f"{image_path} is {size_of_image} pixels, but its mask {mask_paths[0]} is {size_of_mask}: {remedy}")
    return image, mask


def read_image(path, channels, size=None, page=None):
    """Reads gray or colour, converted to the other if need be, or other bands -> [H, W, channels], the values as stored.

    uint8, 0 to 255, or where the file holds more uint16, or float32, 0 and above; what is white in these, `on_scale` is told.
    Transparency that is the same everywhere is dropped. A JPEG that shrinks to `size` is decoded at half, a quarter or an
    eighth of its size, whichever is still large enough, and the rest of the way by triangles as wide as the step: four times
    faster, and as free of aliasing.

    Raises: UserError for what cannot be read, for other bands than `channels`, where they are neither gray nor RGB, and for
    values below 0, or above 65535 if they are whole numbers.
    """
    return resized(_read_image(path, channels, size, page)[0], size)


def resized(values, size, box=None):
    """[H, W, C] -> of `size`, or as it is without one, by triangles as wide as the step. box: the part that is the image."""
    if not size or values.shape[:2] == tuple(size) and not box:
        return values
    whole_rgb = values.dtype == np.uint8 and values.shape[-1] == 3  # others Pillow takes band by band
    parts = [values] if whole_rgb else np.moveaxis(values, -1, 0)
    return np.dstack([Image.fromarray(part).resize(size[::-1], Resampling.BILINEAR, box) for part in parts])


def count_bands(path):
    """By the header of a file: 1 if it is gray, 3 if it may have colour, or how many other bands it holds.

    Raises: UserError if it cannot be read.
    """
    with readable(path):
        return open_raster(path).count


def has_color(image):
    """Whether an image [H, W, 3] is not gray. Gray that JPEG stored as colour is off by 1 or 2."""
    return bool((np.ptp(image, axis=-1) > (0 if image.dtype == np.float32 else 2)).any())


def on_scale(image, white, name):
    """What `read_image` read on the one scale of the data set: [H, W, C], 0 to `Data.scale`.

    8 bits always end at 255. What is white in 16 bits, of which a camera fills 12, and in floats, only the data set knows:
    `white`, None where all its images have 8 bits. Values above it are white. Floats become 0 to `TOP`.

    Raises: UserError for more than 8 bits where `white` is None; the message calls the image `name`.
    """
    if white is None:
        if image.dtype == np.uint8:
            return image
        kind = "16 bits" if image.dtype == np.uint16 else "floats"
        only = "but the images to train on had 8 bits, so nothing says what is white in it"
        raise UserError(f"{name} has {kind}, {only}: save it with 8 bits as they were, or train with such images")
    top = TOP if isinstance(white, float) else white
    kind = np.uint8 if top <= 255 else np.uint16
    if image.dtype == np.uint8:
        return np.rint(np.arange(256) * (top / 255)).astype(kind)[image]
    if image.dtype == np.float32:
        return np.rint(np.minimum(image, white) * np.float32(top / white)).astype(kind)
    return np.minimum(image, white).astype(kind)


def look_up(curves, image):
    """Every value v of an image [H, W, C], uint8 or uint16, becomes curves[:, v]; curves: [C, values]. -> [H, W, C]"""
    if image.dtype == np.uint8 and len(curves) <= 512:  # channels, OpenCV's limit
        table = np.zeros((1, 256, len(curves)), np.uint8)
        table[0, : curves.shape[1]] = curves.T
        return cv2.LUT(image, table).reshape(image.shape)
    return np.stack([curve.astype(image.dtype).take(image[..., c]) for c, curve in enumerate(curves)], axis=-1)


def stretched(image, white=255):
    """The contrast of one image stretched: [H, W, C], 0 to `white` -> the same; percentiles `STRETCHED` become 0 and `white`.

    For images of one kind that differ in exposure, as of microscopes. The bands of a colour stay together, others each have
    their own range.
    """
    curves = []
    for band in [image] if image.shape[-1] in (1, 3) else np.moveaxis(image, -1, 0):
        rows = np.array_split(band, -(-len(band) // 256))  # bincount takes 8 bytes for each value
        up_to = sum(np.bincount(part.ravel(), minlength=white + 1) for part in rows).cumsum()
        low, high = np.searchsorted(up_to, np.multiply(STRETCHED, up_to[-1] / 100))
        if low == high:  # next to nothing is in it
            low, high = 0, white
        curves.append(((np.arange(white + 1) - low) / (high - low) * white).round().clip(0, white))
    return look_up(np.broadcast_to(curves, (image.shape[-1], white + 1)), image)


def to_gray(image):
    """[H, W, 3] -> [H, W, 1] of the same type, weighted as ITU-R 601-2 has it."""
    if image.dtype == np.uint8:
        return np.asarray(Image.fromarray(image).convert("L"))[..., np.newaxis]
    gray = (image @ np.float32([0.299, 0.587, 0.114]))[..., np.newaxis]
    return gray if image.dtype == np.float32 else np.rint(gray).astype(image.dtype)


def in_8_bits(image, scale):
    """`on_scale` images for the eye: [H, W, C], 0 to `scale` -> uint8."""
    return image if scale == 255 else np.rint(image * np.float32(255 / scale)).astype(np.uint8)


def read_mask(path, page=None, colors=None, void=None):
    """Reads the numbers of a mask as they are stored -> uint8 [H, W]; `data.meaning.mask_meaning` knows what they mean.

    A palette of grays only is a gray image, and its gray levels count. A palette with colours paints the class indices. White
    is 255, in 1 bit and in 16. With `colors`, a `Colors`, the colours count, and become class indices or VOID.

    void: a number outside of 0 to 255 that becomes VOID.

    Raises: UserError for what cannot be read, for colours that nobody named, and for numbers other than 0, 1, 2, ... 255.
    """
    values = _read_values(path, page, colors)
    if values.dtype == np.uint8:
        return values
    with np.errstate(invalid="ignore"):  # what is no number equals nothing below
        whole = values.astype(np.uint8)
    is_void = values == void if void is not None and not 0 <= void <= 255 else values == 65535  # white in 16 bits
    whole[is_void] = 255
    wrong = values[(whole != values) & ~is_void]
    if wrong.size:
        hint = "; or --objects, if its numbers tell objects apart" if (wrong == np.rint(wrong)).all() and wrong[0] > 0 else ""
        hint = f"; --void-label {wrong[0]:.0f} if that marks what nobody labelled" if wrong[0] < 0 and void is None else hint
        raise UserError(f"{path} holds the value {wrong[0]}: a mask holds class indices, or 0 and 255{hint}")
    return whole


def read_masks(paths, page=None, colors=None, void=None):
    """`read_mask` of one file, or of several for one image: the largest value of each pixel."""
    return _merged(paths, lambda path: read_mask(path, page, colors, void), np.maximum)


def read_objects(paths, page=None, void=None):
    """Which object each pixel belongs to: int32 [H, W], 0 the background, their numbers above, -1 what is `void`.

    Args:
        paths: a label image, whose values above 0 number the objects, in any order and with gaps; or masks of one object each,
            0 and 255 or 0 and 1. Where two of these overlap, the first has the pixels.

    Raises: UserError for what cannot be read, for values that number nothing, and for masks of several sizes.
    """

    def read(path):
        values = _read_values(path, page)
        if ((values != 0) & (values != values.max())).any():
            raise UserError(f"{path} holds {len(np.unique(values))} values: the mask of one object holds 0 and 255")
        return (values > 0).astype(np.int32)

    if len(paths) > 1:
        return _merged(paths, read, lambda a, b: np.where((b > 0) & (a == 0), a.max() + 1, a))
    values = _read_values(paths[0], page)
    is_void = values == void  # all False without one
    least, most = np.min(values, where=~is_void, initial=0), np.max(values, where=~is_void, initial=0)
    if not (least >= 0 and most < MAX_NUMBER) or values.dtype.kind == "f" and (values != np.rint(values)).any():
        raise UserError(f"{paths[0]} holds values of {least} to {most}: with --objects a mask holds 0, 1, 2 and so on")
    return np.where(is_void, -1, values.astype(np.int32))


def _merged(paths, read, merge):
    """Masks of one image as one. Raises: UserError where their sizes differ."""
    found = read(paths[0])
    for path in paths[1:]:
        mask = read(path)
        if mask.shape != found.shape:
            size, first = Size(*mask.shape), f"{paths[0]} is {Size(*found.shape)}"
            raise UserError(f"{path} is {size} pixels, but {first}: masks of one image must have one size")
        found = merge(found, mask)
    return found


def numbered(objects):
    """int32 [H, W], numbers with gaps -> 1 to n in the same order, each of which occurs; -1 stays."""
    occurs = np.zeros(max(objects.max(), 0) + 1, np.int32)
    occurs[objects[objects > 0]] = 1
    return np.where(objects < 0, -1, occurs.cumsum(dtype=np.int32)[np.maximum(objects, 0)] * (objects > 0))


def nearest(mask, size):
    """The nearest pixels [height, width] of a mask: between classes 1 and 3 there is no class 2."""
    if not size:
        return mask
    rows, columns = (np.int64((np.arange(n) + 0.5) * m / n) for n, m in zip(size, mask.shape))
    return mask[rows][:, columns]


def count_pages(path):
    """How many images of their own a file holds. Raises: UserError if it cannot be read."""
    with readable(path):
        return 1 if str(path).endswith(".npy") else len(images_in(path))


@contextlib.contextmanager
def readable(path):
    """Turns whatever a damaged file raises in a decoder, which can be nearly anything, into one line that says what to do."""
    try:
        if os.path.islink(path) and not os.path.exists(path):
            raise UserError(f"cannot read {path}: it is a broken link, to {os.readlink(path)}: fetch that, or remove it")
        if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would be waited for without end
            raise UserError(f"cannot read {path}: it is no file; remove it")
        yield
    except UserError:
        raise
    except MemoryError:
        remedy = "close other programs, or cut the image into smaller ones"
        raise UserError(f"out of memory while {path} was read: {remedy}") from None
    except Exception as error:
        if isinstance(error, OSError) and error.strerror:
            reason = f"{error.strerror}; check the file and its permissions"
        elif not (start := Path(path).read_bytes()[:40]):
            reason = "it is empty, 0 bytes; replace or remove it"
        elif start.startswith(b"version https://git-lfs"):
            reason = "it is a pointer of Git LFS and not yet the file: git lfs pull fetches it"
        elif isinstance(error, UnidentifiedImageError):
            known = ", ".join(FORMATS) + " and not HEIC" * (Path(path).suffix.lower() in (".heic", ".heif"))
            reason = f"it is cut short, or no image of a known kind (known are {known}); save it again as PNG, or remove it"
        else:
            text = " ".join(str(error).split()) or type(error).__name__
            reason = f"it is damaged or cut short ({text[0].lower()}{text[1:]}); replace or remove it"
        raise UserError(f"cannot read {path}: {reason}") from error


def is_jpeg(path):
    """Whether a file is a JPEG by its first bytes, whatever its name says; by its name if it cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read(3) == b"\xff\xd8\xff"
    except OSError:
        return Path(path).suffix.lower() in (".jpg", ".jpeg")


def _as_stored(path, values):
    """[H, W] as uint8, uint16 or float32. Raises: UserError for values that these do not hold, and below 0."""
    if values.dtype.kind == "b":
        return values * np.uint8(255)
    least, top = values.min(), values.max()
    floats = values.dtype.kind == "f"
    if not (least >= 0 and top <= (np.finfo(np.float32).max if floats else 65535)):  # neither is true of what is no number
        kind = "no finite floats of 0 and more" if floats else "values outside of 0 to 65535"
        raise UserError(f"{path} holds {kind}: save it with 8 or 16 bits, or scale it to that")
    return np.ascontiguousarray(values, np.float32 if floats else None if values.dtype == np.uint8 else np.uint16)


def _read_image(path, channels, size, page):
    """-> uint8, uint16 or float32 [H, W, channels], `Size` in the file upright, and as stored."""
    with readable(path):
        found = open_raster(path, page)
        values, orientation, box = found.read("RGB" if channels == 3 else "L", size)
        values, stored = _as_stored(path, values), Size(found.height, found.width)
        whole = Size(*stored[::-1]) if orientation in SIDEWAYS else stored
        if is_jpeg(path):
            values = resized(values, size and (size[::-1] if orientation in SIDEWAYS else size), box)
        pixels = upright(values, orientation)
    held = pixels.shape[-1]
    if held == channels:
        return pixels, whole, stored
    if {held, channels} != {1, 3}:
        other = f"{counted(held)}, but the network reads {channels}"
        raise UserError(f"{path} holds {other}: all images of a network must have the same bands")
    return np.repeat(pixels, 3, axis=-1) if channels == 3 else to_gray(pixels), whole, stored


def _read_values(path, page, colors=None):
    """-> the numbers of a mask as they are stored [H, W]."""
    with readable(path):
        values, orientation, _ = open_raster(path, page).read(None if colors else "P")
        values = upright(values, orientation)
    if colors and values.shape[-1] in (1, 3):
        values = values >> 8 if values.dtype == np.uint16 else _as_stored(path, values)
        return _class_of_colors(np.broadcast_to(values, (*values.shape[:2], 3)), path, colors)
    if (values[..., 1:] != values[..., :1]).any():
        form = "a mask is gray: its values are class indices, or 0 and 255"
        raise UserError(f"{path} is a colour image, {form}; if its colours stand for classes, name them with --colors FILE")
    return np.array(values[..., 0]) * np.uint8(255) if values.dtype.kind == "b" else np.array(values[..., 0])


def _class_of_colors(rgb, path, colors):
    """uint8 [H, W, 3] -> class indices uint8 [H, W]. Raises: UserError for a colour without a class."""
    codes = rgb.astype(np.int32) @ (65536, 256, 1)
    table = sorted((np.dot(color, (65536, 256, 1)), index) for color, index in colors.indices.items())
    known, classes = np.array(table).T
    places = np.searchsorted(known, codes).clip(max=len(known) - 1)
    found, unknown = classes.astype(np.uint8)[places], known[places] != codes
    if unknown.any() and not colors.rest_is_void:
        others, counts = np.unique(codes[unknown], return_counts=True)
        red, rest = divmod(int(others[counts.argmax()]), 65536)
        more = f" and {len(others) - 1} more colours" if len(others) > 1 else ""
        advice = "add a line for it, or take what is not named for void with --void-label 255"
        if is_jpeg(path):
            advice = "JPEG does not keep a mask's colours, save it as PNG"
        color = f"the colour {red} {rest // 256} {rest % 256}{more}, which {colors.path} does not name"
        raise UserError(f"{path} has {counts.max()} pixels of {color}: {advice}")
    found[unknown] = VOID
    return found
