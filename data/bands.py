"""Opens image files of every kind: by Pillow, and what Pillow does not know, TIFFs of many bands, colours of 16 bits, arrays.

scikit-image's reader shows palette masks as colours, takes a TIFF of three pages for RGB and cannot unpack LZW.
"""

import contextlib
import logging
import threading
import warnings
from collections.abc import Callable
from typing import NamedTuple

from common.config import UserError

import cv2
import numpy as np
from PIL import ExifTags, Image

FORMATS = ("PNG", "JPEG", "TIFF", "GIF", "BMP", "WEBP")  # by content, whatever the name says; some .jpg are none
MAX_VALUES = 400_000_000  # width x height x bands of a file that is read: as many threads decode at once as there are cores
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # how a file begins
SMALLER, MASK = 1, 4  # NewSubfileType of pages that are previews or masks of others
# NumPy reads a header by ast.literal_eval, which in Python 3.11 now and then fails in several threads at once:
# "AST constructor recursion depth mismatch"
PARSING = threading.Lock()
WHITE_IS_0, CMYK = 0, 5  # PhotometricInterpretation, the tag 262
COLORED = (2, 4, 6)  # colour type of a PNG: RGB, gray or RGB with transparency
SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that swap height and width

Image.MAX_IMAGE_PIXELS = None  # Pillow would warn from 2**26.4 pixels and refuse from twice that: `_check_size` does it here
warnings.filterwarnings("ignore", module="PIL")  # on metadata that no pixel depends on, and before errors
for library in ("PIL", "tifffile"):
    logging.getLogger(library).addHandler(logging.NullHandler())  # what they would print beside the one line of the error


class Raster(NamedTuple):
    """What the header of a file says; its values are not read yet."""

    height: int  # as it is stored
    width: int
    count: int  # of the bands; 3 for all that may have colour
    # (mode, size) -> values [H, W, bands] as they lie in the file, the EXIF orientation by which `upright` turns them, and the
    # box of them that is the image, for resizing, or None for all. mode "L" or "RGB" lets a JPEG be decoded as gray or colour,
    # and smaller, but no smaller than `size`, upright; "P" keeps the indices of a palette with colours, else they are RGB.
    read: Callable


def open_raster(path, page=None):
    """-> `Raster`.

    What a fourth sample in a TIFF is says its tag ExtraSamples: transparency, or anything, which makes it a band.

    page: of several images, from 0. None: it must hold one, or else reading it raises UserError.

    Raises: UserError for arrays that are no image, for what no decoder has, and for what is too large to read.
    """
    with open(path, "rb") as file:
        start = file.read(26)
    if start.startswith(np.lib.format.MAGIC_PREFIX):
        return _open_array(path)
    pages = images_in(path)
    deep = start.startswith(b"\x89PNG") and len(start) == 26 and start[24] == 16 and start[25] in COLORED
    found = start[:4] in TIFF and _open_tiff(path, pages[page or 0], len(pages) == 1)
    found = found or _open_by_pillow(path, pages[page or 0], deep)

    def refuse(*_):
        raise UserError(f"{path} holds {len(pages)} images: save each as a file of its own")

    return found if page is not None or len(pages) == 1 else found._replace(read=refuse)


def images_in(path):
    """The numbers of the pages of a file that are images: a TIFF may hold smaller copies and masks of them, too."""
    with open(path, "rb") as file:
        is_tiff = file.read(4) in TIFF
    with contextlib.suppress(Exception):  # damaged: Pillow has the words for it
        if is_tiff:
            from tifffile import TiffFile  # takes 0.1 s

            with TiffFile(path) as file:
                every = range(len(file.pages))  # whose count sees where pages of a damaged file go in a circle
                kinds = [file.pages[k].tags.valueof("NewSubfileType", 0) for k in every]
            if found := [k for k, kind in enumerate(kinds) if not kind & (SMALLER | MASK)]:
                return found
    with Image.open(path, formats=FORMATS) as image:  # an MPO is a phone's JPEG with a preview behind it
        return list(range(1 if image.format == "MPO" else getattr(image, "n_frames", 1)))


def _check_size(path, width, height, bands):
    if width * height * bands > MAX_VALUES:
        size = f"{width}x{height} pixels of {counted(bands)} by its header, more than {MAX_VALUES // 10**6} million values"
        raise UserError(f"{path} is {size}: cut it into tiles, or remove it if it is damaged")


def _check_alpha(path, bands, alpha):
    """alpha: the values of the band that is transparency among so many, or the least and the largest of them."""
    if np.ptp(alpha):
        remedy = "save the image without it, as gray or RGB; if it is a band, as TIFF with ExtraSamples 0, or as .npy"
        one = "one is not the same everywhere: as transparency it would be dropped"
        raise UserError(f"{path} has {counted(bands)}, and {one}; {remedy}")


def _open_by_pillow(path, page, deep):
    """deep: a PNG of colours of 16 bits, of which Pillow keeps 8."""

    def opened():
        image = Image.open(path, formats=FORMATS)
        if page:
            image.seek(page)
        return image

    def read(mode=None, size=None):
        with opened() as image:
            image.filename = ""  # else Pillow maps a gray TIFF into memory, and does not turn it
            jpeg, box = image.format in ("JPEG", "MPO"), None
            if image.format == "PNG":  # a wrong byte, which decoders let pass: 1 in 10 would draw another picture
                Image.open(path).verify()
            if not jpeg:
                image.load()  # PNG may hold its orientation at the end; TIFF comes upright
            orientation = image.getexif().get(ExifTags.Base.Orientation)
            if jpeg and mode in ("L", "RGB"):
                # 1 less: libjpeg rounds up, a quarter of 1918 is 480. Of these 479.5 are the image, and in the box.
                smallest = size and [max(n - 1, 1) for n in (size if orientation in SIDEWAYS else size[::-1])]
                _, box = image.draft(mode, smallest) or (None, None)
            image.load()
        if image.mode[-1] in "Aa":
            _check_alpha(path, len(image.getbands()), image.getextrema()[-1])
        if deep:
            return _by_opencv(path), orientation, box
        if image.mode == "P" and mode == "P":
            palette = np.array(image.getpalette(), np.uint8).reshape(-1, 3)
            if (palette == palette[:, :1]).all():  # gray levels, and no indices
                image = image.point(np.pad(palette[:, 0], (0, 256 - len(palette))).tolist())
        elif image.mode not in ("1", "L", "F", "RGB") and not image.mode.startswith("I"):
            image = image.convert("RGB")
        values = np.asarray(image)
        if image.mode.startswith("I;16") and getattr(image, "tag_v2", {}).get(262) == WHITE_IS_0:  # in 8 bits Pillow does it
            values = 65535 - values
        return np.atleast_3d(values), orientation, box

    with opened() as image:
        gray = image.mode in ("1", "L", "LA", "F") or image.mode.startswith("I")
        _check_size(path, *image.size, len(image.getbands()))  # transparency, too
        return Raster(image.height, image.width, 1 if gray else 3, read)


def _open_array(path):
    with PARSING:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    shape = array.shape if array.ndim == 3 else (*array.shape, 1)
    if len(shape) != 3 or not all(shape) or array.dtype.kind not in "buif":
        raise UserError(f"{path} holds {array.dtype} {list(array.shape)}: an image is [H, W] or [H, W, bands], of numbers")
    if shape[0] < min(shape[1:]):  # no image of several bands is as narrow as that
        raise UserError(f"{path} is {list(shape)}: bands come last, [H, W, bands]; save np.moveaxis(array, 0, -1)")
    _check_size(path, *shape[1::-1], shape[2])
    return Raster(*shape, lambda *_: (array.reshape(shape), None, None))


def _by_opencv(path):
    """uint16 [H, W, 3], without transparency."""
    values = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    if values is None:
        raise ValueError("its pixels cannot be decoded")
    _check_alpha(path, 4, values[..., 3:] if values.shape[-1] == 4 else 0)
    return cv2.cvtColor(values[..., :3], cv2.COLOR_BGR2RGB)


def _open_tiff(path, number, alone):
    """`Raster`, or None for what Pillow reads: gray and 8-bit RGB, with transparency or without, CMYK, and what is damaged."""
    from tifffile import TiffFile  # takes 0.1 s

    try:
        with TiffFile(path) as file:
            page = file.pages[number]
            samples, extra, planar = page.samplesperpixel, page.extrasamples, page.planarconfig == 2
            height, width, photometric = page.imagelength, page.imagewidth, int(page.photometric)
            dtype, kind, itemsize = page.dtype, page.dtype.kind, page.dtype.itemsize
            orientation = int(page.tags.valueof("Orientation", 1))
    except Exception:  # damaged: Pillow has the words for it
        return None
    alpha = [samples - len(extra) + k for k, kind in enumerate(extra) if kind in (1, 2)]
    bands = samples - len(alpha)
    if kind == "c":
        raise UserError(f"{path} holds {counted(bands)} of {dtype}: save it with 8 or 16 bits, or as 32-bit floats")
    is_pillows = 0 not in extra and bands in (1, 3) and (itemsize == 1 or samples == 1 and itemsize <= 4)
    is_pillows = is_pillows and not (kind == "f" and photometric == WHITE_IS_0)  # it would not turn them around
    if is_pillows or photometric == CMYK or kind not in "uif":
        return None
    _check_size(path, width, height, bands)

    def read(*_):
        if photometric == WHITE_IS_0:
            raise UserError(f"{path} holds {counted(bands)} of which 0 is white: save it with 0 as black")
        try:
            with TiffFile(path) as file:
                values = file.pages[number].asarray()
        except (KeyError, ValueError) as error:
            if "imagecodecs" not in str(error):
                raise
            if (bands, dtype, planar, alone) == (3, np.uint16, False, True):
                return _by_opencv(path), None, None  # which turns it, too
            remedy = "pip install imagecodecs, or save it with another compression, such as deflate"
            raise UserError(f"{path} is compressed in a way that takes one more package: {remedy}") from None
        values = np.moveaxis(values, 0, -1) if planar and samples > 1 else values.reshape(height, width, samples)
        for k in alpha:
            _check_alpha(path, samples, values[..., k])
        return np.delete(values, alpha, axis=-1), orientation, None

    return Raster(height, width, bands, read)


def upright(values, orientation):
    """[H, W, ...] turned as its EXIF orientation says, 1 to 8; others, and None, are 1."""
    if orientation not in range(2, 9):
        return values
    values = values.swapaxes(0, 1) if orientation in SIDEWAYS else values
    down, right = -1 if orientation in (3, 4, 7, 8) else 1, -1 if orientation in (2, 3, 6, 7) else 1
    return np.ascontiguousarray(values[::down, ::right])


def counted(bands):
    """A number of bands in words."""
    return f"{bands} band{'s' * (bands != 1)}"
