"""Decodes image files with Pillow: the values of each kind of file in 8 or 16 bits as they are stored, and what is refused.

scikit-image's reader shows palette masks as colours, takes a TIFF of three pages for RGB and cannot unpack LZW.
"""

import contextlib
import logging
import os
import re
import stat
import warnings
from pathlib import Path
from typing import NamedTuple

from common.config import VOID, Names, Size, UserError
from data.bands import check_png, check_size, counted, open_bands, upright

import cv2
import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError
from PIL.Image import Resampling

EXTENSIONS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".gif", ".bmp", ".webp", ".npy")
FORMATS = ("PNG", "JPEG", "TIFF", "GIF", "BMP", "WEBP")  # by content, whatever the name says; some .jpg are none
MAX_NUMBER = 2**24  # in label images; a table of all numbers is made
STRETCHED = (1, 99.8)  # percentiles: of pixels, a hundredth may be dust and background, and of the objects some are glints
TOP = 65535  # what floats become at most

Image.MAX_IMAGE_PIXELS = None  # Pillow would warn from 2**26.4 pixels and refuse from twice that: `check_size` does it here
warnings.filterwarnings("ignore", module="PIL")  # on metadata that no pixel depends on, and before errors
for library in ("PIL", "tifffile"):
    logging.getLogger(library).addHandler(logging.NullHandler())  # what they would print beside the one line of the error


class Colors(NamedTuple):
    """What the colours of masks stand for."""

    path: Path  # the file that says so, for messages
    names: Names  # of the classes, in order
    indices: dict[tuple[int, int, int], int]  # (red, green, blue) -> class index or VOID
    rest_is_void: bool  # other colours are void, and no error


def read_pair(image_path, mask_path, channels, size=None, page=None, colors=None, objects=False):
    """Reads an image and its mask, upright as their EXIF orientation says, resized to `size` if it is given.

    Args:
        channels: see `read_image`.
        page: of multi-page files, from 0. None: the files must hold one image each.
        colors: see `read_mask`.
        objects: the mask numbers objects, see `read_objects`.

    Returns: image uint8, uint16 or float32 [H, W, channels], mask uint8 [H, W], or int32 if it numbers objects.

    Raises: UserError for what cannot be read, and for a mask that is not as large as its image.
    """
    image, image_size, stored = _read_image(image_path, channels, size, page)
    mask, mask_size = _read_objects(mask_path, size, page) if objects else _read_mask(mask_path, size, page, colors)
    if image_size != mask_size:
        turned = "they must have one size"
        if mask_size == stored:
            turned = (
                f"the photo is stored as {stored} and turned by its EXIF orientation, the mask is drawn on it unturned; "
                "turn the mask, or save the photo without the orientation"
            )
        raise UserError(f"{image_path} is {image_size} pixels, but its mask {mask_path} is {mask_size}: {turned}")
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
    return _read_image(path, channels, size, page)[0]


def count_bands(path):
    """By the header of a file: 1 if it is gray, 3 if it may have colour, or how many other bands it holds.

    Raises: UserError if it cannot be read.
    """
    with readable(path):
        if found := open_bands(path):
            return found.count
        with Image.open(path, formats=FORMATS) as image:
            return 1 if image.mode in ("1", "L", "LA", "F") or image.mode.startswith("I") else 3


def has_color(image):
    """Whether an image [H, W, 3] is not gray. Gray that JPEG stored as colour is off by 1 or 2."""
    return bool((np.ptp(image, axis=-1) > (0 if image.dtype == np.float32 else 2)).any())


def on_scale(image, white, name):
    """What `read_image` read on the one scale of the data set: [H, W, C], 0 to `Data.scale`.

    8 bits always end at 255. What is white in 16 bits, of which a camera fills 12, and in floats, only the data set knows:
    `white`, None where all its images have 8 bits. Values above it are white. Floats become 0 to `TOP`.

    Raises: UserError for more than 8 bits where `white` is None; the message calls the image `name`.
    """
    if image.dtype == np.uint8:
        if white is None:
            return image
        return np.rint(np.arange(256) * (white / 255)).astype(_depth_of(white))[image]
    if white is None:
        raise UserError(
            f"{name} has {'16 bits' if image.dtype == np.uint16 else 'floats'}, but the images to train on had 8 bits, so "
            "nothing says what is white in it: save it with 8 bits as they were, or train with such images"
        )
    if image.dtype == np.float32:
        return np.rint(np.minimum(image, white) * np.float32(TOP / white)).astype(np.uint16)
    return np.minimum(image, white).astype(_depth_of(white))


def _depth_of(white):
    return np.uint8 if white <= 255 else np.uint16


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


def read_mask(path, size=None, page=None, colors=None):
    """Reads the numbers of a mask as they are stored -> uint8 [H, W]; `data.meaning.mask_meaning` knows what they mean.

    A palette of grays only is a gray image, and its gray levels count. A palette with colours paints the class indices.
    With `colors`, a `Colors`, the colours count, and become class indices or VOID. White in 16 bits, 65535, becomes 255.

    Raises: UserError for what cannot be read, for colours that nobody named, and for numbers other than 0, 1, 2, ... 255.
    """
    return _read_mask(path, size, page, colors)[0]


def read_objects(path, size=None, page=None):
    """Which object each pixel belongs to: int32 [H, W], 0 the background, and 1 to n, each of which occurs.

    Args:
        path: a label image, whose values above 0 number the objects, in any order and with gaps; or a folder of masks of one
            object each, 0 and 255 or 0 and 1. Where two of these overlap, the first by name has the pixels.

    Raises: UserError for what cannot be read, for values that number nothing, for masks of several sizes, and for a folder
    without masks.
    """
    return _read_objects(path, size, page)[0]


def count_pages(path):
    """The number of images in a file that Pillow reads. Raises: UserError if it cannot be read."""
    with readable(path), Image.open(path, formats=FORMATS) as image:
        return getattr(image, "n_frames", 1)


def image_files(folder):
    """The image files in `folder`, sorted. Names with a leading dot are the file manager's, even ._cat.png."""
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in EXTENSIONS and is_meant(p) and p.is_file())


def is_meant(path):
    """Whether a person has put it there, and not a file manager."""
    return not path.name.startswith(".") and path.name.lower() not in ("thumbs.db", "desktop.ini")


@contextlib.contextmanager
def readable(path):
    """Turns whatever a damaged file raises in a decoder, which can be nearly anything, into one line that says what to do."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would be waited for without end
            raise UserError(f"cannot read {path}: it is no file; remove it")
        yield
    except UserError:
        raise
    except MemoryError:
        raise UserError(
            f"out of memory while {path} was read: close other programs, or cut the image into smaller ones"
        ) from None
    except Exception as error:
        if isinstance(error, OSError) and error.strerror:
            reason = f"{error.strerror}; check the file and its permissions"
        elif Path(path).stat().st_size == 0:
            reason = "it is empty, 0 bytes; replace or remove it"
        elif isinstance(error, UnidentifiedImageError):
            known = f"known are {', '.join(FORMATS)}"
            known += " and not HEIC" * (Path(path).suffix.lower() in (".heic", ".heif"))
            reason = f"it is cut short, or no image of a known kind ({known}); save it again as PNG, or remove it"
        else:
            text = re.sub(r"\s+", " ", str(error)) or type(error).__name__
            text = text[0].lower() + text[1:]
            reason = f"it is damaged or cut short ({text}); replace or remove it"
        raise UserError(f"cannot read {path}: {reason}") from error


def _jpeg_scale(size, wanted):
    """How many times smaller a JPEG can be decoded, for a part of the work, and be no smaller than `wanted`: 1, 2, 4 or 8.

    libjpeg rounds up: a quarter of 1918 is 480. Pillow by itself would take a half for that.
    """
    return next((k for k in (8, 4, 2) if all(-(-n // k) >= m for n, m in zip(size, wanted))), 1)


def is_jpeg(path):
    """Whether a file is a JPEG by its first bytes, whatever its name says; by its name if it cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read(3) == b"\xff\xd8\xff"
    except OSError:
        return Path(path).suffix.lower() in (".jpg", ".jpeg")


def _load(path, page, size, resample, draft, convert):
    """Decodes a file that Pillow reads, turns it upright and resizes it.

    Args:
        size: `Size` of the result, upright, or None.
        draft: "L" or "RGB" lets a JPEG be decoded as gray, and smaller as long as it is not smaller than `size`; None does not.
        convert: what is done to the Pillow image before it is resized.

    Returns: [H, W] or [H, W, 3], `Size` of the file's image upright, and as it is stored.
    """
    with Image.open(path, formats=FORMATS) as image:
        image.filename = ""  # else Pillow maps a gray TIFF into memory, and does not turn it
        jpeg = image.format in ("JPEG", "MPO")  # MPO: a phone's JPEG with a preview behind it
        if page is not None:
            image.seek(page)
        width, height = image.size
        check_size(path, width, height, len(image.getbands()))
        if page is None and not jpeg and getattr(image, "n_frames", 1) > 1:
            raise UserError(f"{path} holds {image.n_frames} images: save each as a file of its own")
        if image.format == "PNG":
            check_png(path)
        if not jpeg:
            image.load()  # PNG may hold its orientation at the end; TIFF comes upright
        orientation = image.getexif().get(ExifTags.Base.Orientation)
        sideways = orientation in (5, 6, 7, 8)
        wanted = size and (tuple(size) if sideways else size[::-1])
        box = None
        if draft and jpeg:
            scale = _jpeg_scale(image.size, wanted) if wanted else 1
            _, box = image.draft(draft, (width // scale, height // scale)) or (None, None)
        image.load()
    if image.mode[-1] in "Aa" and np.ptp(image.getextrema()[-1]):
        raise UserError(
            f"{path} has {len(image.getbands())} bands, and the last is not the same everywhere: as transparency it would be "
            "dropped; save the image without it, as gray or RGB; if it is a band, as TIFF with ExtraSamples 0, or as .npy"
        )
    if image.mode.startswith("I;16") and getattr(image, "tag_v2", {}).get(262) == 0:  # as in 8 bits, where Pillow does it
        image = Image.fromarray(65535 - np.asarray(image).astype(np.uint16, copy=False))
    image = convert(image)
    if size:
        # the box: of 1918 pixels a quarter is 480, but only 479.5 of them are the image
        image = image.resize(wanted, resample, box)
    stored = Size(height, width)
    return upright(np.asarray(image), orientation), Size(width, height) if sideways else stored, stored


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

    def plain(image):
        if image.mode == "F" or image.mode.startswith("I"):
            return Image.fromarray(_as_stored(path, np.asarray(image)))
        return image if image.mode in ("L", "RGB") else image.convert("RGB")

    with readable(path):
        if found := open_bands(path, page):
            values = found.read()
            images = [Image.fromarray(_as_stored(path, values[..., k])) for k in range(found.count)]
            images = [image.resize(size[::-1], Resampling.BILINEAR) for image in images] if size else images
            pixels = np.stack([np.asarray(image) for image in images], axis=-1)
            whole, stored = Size(*values.shape[:2]), Size(found.height, found.width)
        else:
            pixels, whole, stored = _load(path, page, size, Resampling.BILINEAR, "RGB" if channels == 3 else "L", plain)
            pixels = np.atleast_3d(pixels)
    held = pixels.shape[-1]
    if held == channels:
        return pixels, whole, stored
    if {held, channels} != {1, 3}:
        raise UserError(
            f"{path} holds {counted(held)}, but the network reads {channels}: all images of a network must have the same bands"
        )
    return np.repeat(pixels, 3, axis=-1) if channels == 3 else to_gray(pixels), whole, stored


def _read_mask(path, size, page, colors):
    """-> uint8 [H, W], and its `Size` in the file upright."""
    values, size = _read_values(path, size, page, colors)
    if values.dtype != np.uint8:
        with np.errstate(invalid="ignore"):  # what is no number equals nothing below
            whole = values.astype(np.uint8)
        whole[values == 65535] = 255  # white in 16 bits
        wrong = values[(whole != values) & (values != 65535)]
        if wrong.size:
            hint = "; or --objects, if its numbers tell objects apart" if (wrong == np.rint(wrong)).all() else ""
            raise UserError(f"{path} holds the value {wrong[0]}: a mask holds class indices, or 0 and 255{hint}")
        values = whole
    return values.astype(np.uint8, copy=False), size


def _read_objects(path, size, page):
    """-> int32 [H, W], 0 and 1 to n, and its `Size` in the file upright."""
    if path.is_dir():
        return _read_single_objects(path, size)
    values, size = _read_values(path, size, page)
    least, most = values.min(), values.max()
    if not (least >= 0 and most < MAX_NUMBER) or values.dtype.kind == "f" and (values != np.rint(values)).any():
        raise UserError(f"{path} holds values of {least} to {most}: with --objects a mask holds 0, 1, 2 and so on")
    table = np.zeros(int(most) + 1, np.int32)
    numbers = values.astype(np.int32)
    table[numbers] = 1
    table[0] = 0
    return table.cumsum(dtype=np.int32)[numbers], size


def _read_single_objects(folder, size):
    """`_read_objects` of a folder of masks of one object each."""
    numbers, shape, n = None, None, 0
    for path in image_files(folder):
        values, found = _read_mask(path, size, None, None)
        if (held := np.count_nonzero(np.bincount(values.ravel()))) > 2:
            raise UserError(f"{path} holds {held} values: the mask of one object holds 0 and 255")
        if numbers is None:
            numbers, shape = np.zeros(values.shape, np.int32), found
        if found != shape:
            raise UserError(f"{path} is {found} pixels, but other masks in {folder} are {shape}: they must have one size")
        new = (values > 0) & (numbers == 0)
        n += new.any()  # what lies under others altogether, or vanished in resizing, has no number
        numbers[new] = n
    if numbers is None:
        raise UserError(f"{folder} holds no masks: it takes one for each object")
    return numbers, shape


def _read_values(path, size, page, colors=None):
    """-> the numbers of a mask as they are stored [H, W], and its `Size` in the file upright."""

    def plain(image):
        if image.mode == "P" and not colors:
            palette = np.array(image.getpalette(), np.uint8).reshape(-1, 3)
            if (palette == palette[:, :1]).all():
                image = image.point(np.pad(palette[:, 0], (0, 256 - len(palette))).tolist())  # gray levels, and no indices
            return image
        is_gray = image.mode in ("1", "L", "F") or image.mode.startswith("I")
        return image if is_gray and not colors else image.convert("RGB")

    with readable(path):
        # the nearest pixel: between classes 1 and 3 there is no class 2
        if found := open_bands(path, page):
            values = found.read()
            whole = Size(*values.shape[:2])
            if size:
                rows, columns = (np.int64((np.arange(n) + 0.5) * m / n) for n, m in zip(size, whole))
                values = values[np.ix_(rows, columns)]
        else:
            values, whole, _ = _load(path, page, size, Resampling.NEAREST, None, plain)
    values = np.atleast_3d(values)
    if colors and values.shape[-1] in (1, 3):
        values = values >> 8 if values.dtype == np.uint16 else values
        return _class_of_colors(np.broadcast_to(values, (*values.shape[:2], 3)), path, colors), whole
    if (values[..., 1:] != values[..., :1]).any():
        raise UserError(
            f"{path} is a colour image, a mask is gray: its values are class indices, or 0 and 255; "
            "if its colours stand for classes, name them with --colors FILE"
        )
    return np.array(values[..., 0], np.uint8 if values.dtype.kind == "b" else None), whole


def _class_of_colors(rgb, path, colors):
    """uint8 [H, W, 3] -> class indices uint8 [H, W]. Raises: UserError for a colour without a class."""
    codes, places, counts = np.unique(rgb.astype(np.int32) @ (65536, 256, 1), return_inverse=True, return_counts=True)
    known = {(red * 256 + green) * 256 + blue: index for (red, green, blue), index in colors.indices.items()}
    unknown = np.array([code not in known for code in codes.tolist()])
    if unknown.any() and not colors.rest_is_void:
        red, rest = divmod(int(codes[unknown][counts[unknown].argmax()]), 65536)
        more = f" and {unknown.sum() - 1} more colours" if unknown.sum() > 1 else ""
        advice = "add a line for it, or take what is not named for void with --void-label 255"
        if is_jpeg(path):
            advice = "JPEG does not keep a mask's colours, save it as PNG"
        raise UserError(
            f"{path} has {counts[unknown].max()} pixels of the colour {red} {rest // 256} {rest % 256}{more}, which "
            f"{colors.path} does not name: {advice}"
        )
    return np.array([known.get(code, VOID) for code in codes.tolist()], np.uint8)[places.reshape(rgb.shape[:2])]
