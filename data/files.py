"""Decodes image files with Pillow: the values of each kind of file in 8 or 16 bits as they are stored, and what is refused.

scikit-image's reader shows palette masks as colours, takes a TIFF of three pages for RGB and cannot unpack LZW.
"""

import contextlib
import logging
import os
import re
import stat
import sys
import warnings
from pathlib import Path
from typing import NamedTuple

from common.config import VOID, Names, Size, UserError
from data.bands import counted, open_bands

import cv2
import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError
from PIL.Image import Resampling, Transpose

EXTENSIONS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".gif", ".bmp", ".webp", ".npy")
FORMATS = ("PNG", "JPEG", "TIFF", "GIF", "BMP", "WEBP")  # by content, whatever the name says; some .jpg are none
ALIKE = "all images of a network must have the same bands"
SUPPORTED = "gray or RGB with 8 or 16 bits, or gray as 32-bit floats of 0 to 1"
MAX_BYTES = 2**30  # of memory that decoding one file may take: as many threads decode at once as there are cores
# Bytes per pixel at the peak, by Pillow's mode, read as gray or as a mask, and as RGB: the image, its copies while it is
# converted and turned, and numpy's array. Measured, and held by a test that decodes one of each kind.
BYTES = {"L": (4, 9), "1": (8, 8), "P": (8, 8), "I;16": (10, 13), "I;16B": (10, 13), "I": (14, 14), "F": (17, 17)}
MAX_NUMBER = 2**24  # in label images; a table of all numbers is made
STRETCHED = (1, 99.8)  # percentiles: of pixels, a hundredth may be dust and background, and of the objects some are glints
BAND_BYTES = 24  # of one of many bands, while it is converted
COLOR_BYTES, COLOR_16_BYTES = (12, 8), (31, 26)
WEBP_BYTES, PROGRESSIVE_BYTES = 10, 3  # of the decoders of WebP and of progressive JPEG

Image.MAX_IMAGE_PIXELS = None  # Pillow would warn from 2**26.4 pixels and refuse from twice that: MAX_BYTES is checked here
warnings.filterwarnings("ignore", module="PIL")  # on metadata that no pixel depends on, and before errors
for library in ("PIL", "tifffile"):
    logging.getLogger(library).addHandler(logging.NullHandler())  # what they would print beside the one line of the error

TURNS = {  # EXIF orientation, as stored to upright
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}


SIDEWAYS = (Transpose.TRANSPOSE, Transpose.TRANSVERSE, Transpose.ROTATE_90, Transpose.ROTATE_270)


class Colors(NamedTuple):
    """What the colours of masks stand for."""

    path: Path  # the file that says so, for messages
    names: Names  # of the classes, in order
    indices: dict[tuple[int, int, int], int]  # (red, green, blue) -> class index or VOID
    rest_is_void: bool  # other colours are void, and no error


def read_pair(image_path, mask_path, channels, size=None, page=None, colors=None, objects=False, float_white=None):
    """Reads an image and its mask, upright as their EXIF orientation says, resized to `size` if it is given.

    Args:
        channels, float_white: see `read_image`.
        page: of multi-page files, from 0. None: the files must hold one image each.
        colors: see `read_mask`.
        objects: the mask numbers objects, see `read_objects`.

    Returns: image uint8 or uint16 [H, W, channels], mask uint8 [H, W], or int32 if it numbers objects.

    Raises: UserError for what cannot be read, and for a mask that is not as large as its image.
    """
    image, image_size, stored = _read_image(image_path, channels, size, page, float_white)
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


def read_image(path, channels, size=None, page=None, float_white=None):
    """Reads gray or colour, converted to the other if need be, or other bands -> [H, W, channels], the values as stored.

    uint8, 0 to 255, or uint16 where the file holds 16 bits; what white is there, `on_scale` knows. Floats of 0 to 1 become
    0 to 65535, or those of 0 to `float_white`, above which all is white. Transparency that is the same everywhere is dropped. A
    JPEG that shrinks to `size` is decoded at half, a quarter or an eighth of its size, whichever is still large enough, and the
    rest of the way by triangles as wide as the step: four times faster, and as free of aliasing.

    Raises: UserError for what cannot be read, for other bands than `channels`, where they are neither gray nor RGB, and for
    values outside of 16 bits, or of 0 to 1 if they are floats.
    """
    return _read_image(path, channels, size, page, float_white)[0]


def count_bands(path):
    """By the header of a file: 1 if it is gray, 3 if it may have colour, or how many other bands it holds.

    Raises: UserError if it cannot be read.
    """
    with readable(path):
        if found := open_bands(path):
            return found.count
        with Image.open(path, formats=FORMATS) as image:
            return 1 if image.mode in ("1", "L", "LA", "F") or image.mode.startswith("I") else 3


def depth_of(white):
    """The type of images whose white is that value, None for the 255 of 8 bits."""
    return np.uint8 if (white or 255) <= 255 else np.uint16


def on_scale(image, white, name):
    """What `read_image` read on the one scale of the data set -> 0 to `white`, or to 255 in 8 bits where `white` is None.

    8 bits always end at 255. Of 16 bits only the data set knows: a camera fills 12, and `white` is what counts as 1.0. Values
    above it are white.

    Raises: UserError for 16 bits where `white` is None; the message calls the image `name`.
    """
    if image.dtype == np.uint8:
        if white is None:
            return image
        return np.rint(np.arange(256) * (white / 255)).astype(depth_of(white))[image]
    if white is None:
        raise UserError(
            f"{name} has 16 bits, but the images to train on had 8, so nothing says what is white in it: save it with 8 bits "
            "as they were, or train with images of 16 bits"
        )
    return np.minimum(image, white).astype(depth_of(white))


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
    """uint8 or uint16 [H, W, 3] -> [H, W, 1], weighted as ITU-R 601-2 has it."""
    if image.dtype == np.uint8:
        return np.asarray(Image.fromarray(image).convert("L"))[..., np.newaxis]
    return np.rint(image @ np.float32([0.299, 0.587, 0.114])).astype(image.dtype)[..., np.newaxis]


def in_8_bits(image, white):
    """`on_scale` images for the eye: uint8 [H, W, C]."""
    return image if white is None else np.rint(image * np.float32(255 / white)).astype(np.uint8)


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


def floats_in(path, image):
    """Of what was read as `image`: whether the file holds floats, and what percent of them are white or above, both int."""
    if image.dtype == np.uint8:
        return 0, 0
    with readable(path):
        if found := open_bands(path):
            floats = found.dtype.kind == "f"
        else:
            with Image.open(path, formats=FORMATS) as header:
                floats = header.mode == "F"
    return int(floats), int(100 * np.mean(image == 65535)) if floats else 0


def span_of_floats(path):
    """The least and the greatest value in a file of floats. Raises: UserError if it cannot be read."""
    with readable(path):
        if found := open_bands(path):
            values = found.read()
        else:
            with Image.open(path, formats=FORMATS) as image:
                values = _array(image)
    return values.min(), values.max()


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
        elif isinstance(error, UnidentifiedImageError) and (held := _bands_of_tiff(path)):
            raise UserError(_unsupported(path, held)) from None
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


def _unsupported(path, held):
    return f"{path} holds {held}, which this cannot read: save it as {SUPPORTED}"


def _bands_of_tiff(path):
    """What a TIFF that Pillow does not know holds, in words, or None."""
    from tifffile import TiffFile  # takes 0.1 s, and only the message needs it

    try:
        with TiffFile(path) as file:
            page = file.pages[0]
            return f"{page.samplesperpixel} band{'s' * (page.samplesperpixel > 1)} of {page.dtype}"
    except Exception:  # it is damaged too
        return None


def _bytes_per_pixel(image, as_rgb):
    """At the peak, while an image that is open but not decoded is read."""
    color = COLOR_16_BYTES if _bits(image) == 16 else COLOR_BYTES
    more = WEBP_BYTES * (image.format == "WEBP") + PROGRESSIVE_BYTES * bool(image.info.get("progressive"))
    return BYTES.get(image.mode, color)[as_rgb] + more


def _band_bytes(found):
    """`_bytes_per_pixel` of `Bands`: all as they are stored and as they are read, and one of them in several forms."""
    return found.count * (found.dtype.itemsize + 1 + found.is_deep) + BAND_BYTES


def _check_cost(path, width, height, cost):
    """Raises: UserError for an image that takes too much memory, at `cost` bytes for each pixel."""
    if cost * width * height > MAX_BYTES:
        raise UserError(
            f"{path} is {width}x{height} pixels by its header, and would take {cost * width * height / 2**30:.1f} GiB to read, "
            f"more than {MAX_BYTES / 2**30:g}: cut it into tiles, or remove it if it is damaged"
        )


def _check(path, image, as_rgb):
    """Raises: UserError for what takes too much memory or would be read wrong, by its header, before any pixel is decoded."""
    (width, height), mode, tags = image.size, image.mode, getattr(image, "tag_v2", {})
    _check_cost(path, width, height, _bytes_per_pixel(image, as_rgb))
    bands, extra = tags.get(277, 1), tags.get(338, ())  # SamplesPerPixel, and what those beyond the colours are
    if bands > 4 or 0 in extra:  # 1 and 2 are transparency, 0 is anything
        raise UserError(_unsupported(path, f"{bands} bands"))
    if mode == "F" and tags.get(262) == 0:
        raise UserError(_unsupported(path, "floats of which 0 is white"))
    if _bits(image) == 16 and not mode.startswith("I") and not _low_bytes(image):
        raise UserError(_unsupported(path, f"16-bit colours of the kind {_rawmode(image)}"))


def _rawmode(image):
    """How the decoder unpacks pixels, "RGB;16B": 16 bits, high byte first."""
    args = image.tile[0].args if image.tile else ""
    return str(args[0] if isinstance(args, tuple) else args)


def _bits(image):
    return 16 if ";16" in _rawmode(image) or image.mode.startswith("I;16") else 8


def _low_bytes(image):
    """The tiles of an image of 16-bit colours, of which Pillow keeps the high bytes, such that it keeps the low ones."""
    found = re.fullmatch(r"(RGBA?;16)([LBN])", _rawmode(image))
    if not found:
        return None
    swapped = found[1] + {"L": "B", "B": "L", "N": "B" if sys.byteorder == "little" else "L"}[found[2]]
    return [tile._replace(args=(swapped, *tile.args[1:]) if isinstance(tile.args, tuple) else swapped) for tile in image.tile]


def _load(path, page, size, resample, draft=None, convert=lambda image, low: [image]):
    """Decodes a file, turns it upright and resizes it.

    Args:
        size: `Size` of the result, upright, or None.
        draft: "L" or "RGB" lets a JPEG be decoded as gray, and smaller as long as it is not smaller than `size`.
        convert: Pillow image, and of 16-bit colours the image of their low bytes -> [Pillow image], before they are resized.

    Returns: what `convert` returned, `Size` of the file's image upright, and as it is stored.
    """
    with contextlib.ExitStack() as stack:
        image, low = stack.enter_context(Image.open(path, formats=FORMATS)), None
        jpeg = image.format in ("JPEG", "MPO")  # MPO: a phone's JPEG with a preview behind it
        if page is not None:
            image.seek(page)
        _check(path, image, as_rgb=draft == "RGB")
        width, height = image.size
        if page is None and not jpeg and getattr(image, "n_frames", 1) > 1:
            raise UserError(f"{path} holds {image.n_frames} images: save each as a file of its own")
        if image.format == "PNG":  # the decoder skips the checksums: 1 wrong byte in 10 would pass, and draw another mask
            with Image.open(path, formats=["PNG"]) as twin:
                twin.verify()
        if tiles := _low_bytes(image):
            low = stack.enter_context(Image.open(path, formats=[image.format]))
            low.seek(image.tell())
            low.tile = tiles
            low.load()
        if not jpeg:
            image.load()  # PNG may hold its orientation at the end; TIFF comes upright
        turn = TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
        sideways = turn in SIDEWAYS
        wanted = size and ((size.height, size.width) if sideways else (size.width, size.height))
        drafted = None
        if draft and jpeg:
            scale = _jpeg_scale(image.size, wanted) if wanted else 1
            drafted = image.draft(draft, (width // scale, height // scale))
        image.load()
    if image.mode[-1] in "Aa" and np.ptp(image.getextrema()[-1]):
        raise UserError(
            f"{path} has {len(image.getbands())} bands, and the last is not the same everywhere: as transparency it would be "
            f"dropped; save the image without it, as {SUPPORTED}; if it is a band, as TIFF with ExtraSamples 0, or as .npy"
        )
    if image.mode.startswith("I;16") and getattr(image, "tag_v2", {}).get(262) == 0:  # as in 8 bits, where Pillow does it
        image = Image.fromarray(65535 - np.asarray(image).astype(np.uint16, copy=False))
    images = convert(image, low)
    if size:
        # drafted[1]: of 1918 pixels a quarter is 480, but only 479.5 of them are the image
        images = [image.resize(wanted, resample, drafted and drafted[1]) for image in images]
    if turn is not None:
        images = [image.transpose(turn) for image in images]
    stored = Size(height, width)
    return images, Size(width, height) if sideways else stored, stored


def _array(image):
    """np.asarray(image), a few rows at a time: at once it would take the memory of two more images."""
    rows = max(2**18 // image.width, 1)
    values = None
    for top in range(0, image.height, rows):
        strip = np.asarray(image.crop((0, top, image.width, min(top + rows, image.height))))
        if values is None:
            values = np.empty((image.height, *strip.shape[1:]), strip.dtype)
        values[top : top + rows] = strip
    return values


def _planes(path, image, low, float_white=None):
    """What was decoded -> one Pillow image, "L" or "RGB", or for each band of 16 bits one of mode "I;16"."""
    if low:
        pairs = zip(image.split()[:3], low.split())
        return [Image.fromarray(np.asarray(high).astype(np.uint16) << 8 | np.asarray(rest)) for high, rest in pairs]
    if image.mode == "F" or image.mode.startswith("I"):
        return [Image.fromarray(_in_16_bits(path, _array(image), float_white))]
    return [image if image.mode in ("L", "RGB") else image.convert("RGB")]


def _in_16_bits(path, values, float_white):
    """Whole numbers of 0 to 65535, or floats of 0 to 1 or to `float_white`, -> uint16. Raises: UserError for others."""
    most = (float_white or 1) if values.dtype.kind == "f" else 65535
    least, top = values.min(), values.max()
    if not (least >= 0 and (top <= most or values.dtype.kind == "f" and most != 1)):  # neither is true of what is no number
        hint = f", or train with --float-white {top:.6g}" if most == 1 and 0 <= least <= top < np.inf else ""
        raise UserError(f"{path} holds values outside of 0 to {most:g}: save it with 8 or 16 bits, or scale it to that{hint}")
    if values.dtype.kind != "f":
        return values.astype(np.uint16, copy=False)
    values = np.minimum(values, most) if top > most else values
    return np.rint(values * np.float32(65535 / most)).astype(np.uint16)


def _read_bands(path, found, size, float_white):
    """`_read_image` of `Bands`, all of them."""
    _check_cost(path, found.width, found.height, _band_bytes(found))
    values, turn = found.read(), TURNS.get(found.orientation)
    pixels, stored = None, Size(found.height, found.width)
    upright = Size(found.width, found.height) if turn in SIDEWAYS else stored
    for k in range(found.count):
        band = values[..., k]
        if found.dtype.kind == "b":
            band = band * np.uint8(255)
        if found.is_deep:
            band = _in_16_bits(path, band, float_white)
        image = Image.fromarray(np.ascontiguousarray(band))
        image = image if turn is None else image.transpose(turn)
        image = image.resize(size[::-1], Resampling.BILINEAR) if size else image
        if pixels is None:
            pixels = np.empty((image.height, image.width, found.count), np.uint16 if found.is_deep else np.uint8)
        pixels[..., k] = image
    return pixels, upright, stored


def _read_image(path, channels, size, page, float_white):
    """-> uint8 or uint16 [H, W, channels], `Size` in the file upright, and as stored."""
    mode = "RGB" if channels == 3 else "L"
    with readable(path):
        if found := open_bands(path):
            if found.count != channels and not {found.count, channels} <= {1, 3}:
                raise UserError(f"{path} holds {counted(found.count)}, but the network reads {channels}: {ALIKE}")
            pixels, size, stored = _read_bands(path, found, size, float_white)
            if found.count != channels:
                pixels = np.repeat(pixels, 3, axis=-1) if channels == 3 else to_gray(pixels)
            return pixels, size, stored
        images, size, stored = _load(
            path, page, size, Resampling.BILINEAR, mode, lambda *found: _planes(path, *found, float_white)
        )
        if channels not in (1, 3):
            raise UserError(f"{path} is gray or RGB, but the network reads {channels} bands: {ALIKE}")
        if images[0].mode in ("L", "RGB"):
            pixels = _array(images[0] if images[0].mode == mode else images[0].convert(mode))
            return pixels.reshape(*pixels.shape[:2], channels), size, stored
        pixels = np.stack([_array(image) for image in images], axis=-1)
    if channels == 3:
        return np.repeat(pixels, 3 // len(images), axis=-1), size, stored
    return pixels if len(images) == 1 else to_gray(pixels), size, stored


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
    numbers = values.astype(np.int32)
    strips = [numbers[top : top + 256] for top in range(0, len(numbers), 256)]  # an index array takes 8 bytes per pixel
    table = np.zeros(int(most) + 1, np.int32)
    for strip in strips:
        table[strip] = 1
    table[0] = 0
    table = table.cumsum(dtype=np.int32)
    for strip in strips:
        strip[:] = table[strip]
    return numbers, size


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

    def gray(image, low):  # 16-bit colours are gray where the three are equal
        return _planes(path, image, low) if low and not colors else [image]

    with readable(path):
        if (found := open_bands(path)) and found.count == 1:
            _check_cost(path, found.width, found.height, 3 * found.dtype.itemsize)
            if found.orientation in TURNS:
                raise UserError(f"{path} has to be turned (its orientation is {found.orientation}): save it upright")
            values, stored = found.read()[..., 0], Size(found.height, found.width)
            if size:
                rows, columns = (np.int64((np.arange(n) + 0.5) * m / n) for n, m in zip(size, stored))
                values = values[np.ix_(rows, columns)]
            return np.array(values, np.uint8 if found.dtype.kind == "b" else None), stored
        # the nearest pixel: between classes 1 and 3 there is no class 2
        (image, *others), size, _ = _load(path, page, size, Resampling.NEAREST, convert=gray)
        if colors:
            values = _class_of_colors(_array(image.convert("RGB")), path, colors)
        elif image.mode in ("1", "L", "F") or image.mode.startswith("I"):
            values = _array(image)
        elif image.mode == "P":
            palette = np.array(image.getpalette(), np.uint8).reshape(-1, 3)
            if (palette == palette[:, :1]).all():
                image = image.point(np.pad(palette[:, 0], (0, 256 - len(palette))).tolist())  # gray levels, and no indices
            values = _array(image)
        else:
            red, *others = image.convert("RGB").split()
            values = _array(red)
        if any((_array(other) != values).any() for other in others):
            raise UserError(
                f"{path} is a colour image, a mask is gray: its values are class indices, or 0 and 255; "
                "if its colours stand for classes, name them with --colors FILE"
            )
    return values, size


def _class_of_colors(rgb, path, colors):
    """uint8 [H, W, 3] -> class indices uint8 [H, W]. Raises: UserError for a colour without a class."""
    codes = rgb.astype(np.int32) @ (65536, 256, 1)
    known, order = np.unique(np.array(list(colors.indices)) @ (65536, 256, 1), return_index=True)
    indices = np.array(list(colors.indices.values()), np.uint8)[order]
    found = np.searchsorted(known, codes).clip(max=len(known) - 1)
    unknown = known[found] != codes
    if unknown.any() and not colors.rest_is_void:
        others, counts = np.unique(codes[unknown], return_counts=True)
        red, rest = divmod(int(others[counts.argmax()]), 65536)
        more = f" and {len(others) - 1} more colours" if len(others) > 1 else ""
        advice = "add a line for it, or take what is not named for void with --void-label 255"
        if is_jpeg(path):
            advice = "JPEG does not keep a mask's colours, save it as PNG"
        raise UserError(
            f"{path} has {counts.max()} pixels of the colour {red} {rest // 256} {rest % 256}{more}, which {colors.path} "
            f"does not name: {advice}"
        )
    return np.where(unknown, VOID, indices[found])
