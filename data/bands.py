"""Images that Pillow does not know: TIFFs of many bands, colours of 16 bits, and arrays that NumPy has saved."""

import threading
from collections.abc import Callable
from typing import NamedTuple

from common.config import UserError

import cv2
import numpy as np
from PIL import ExifTags, Image

MAX_VALUES = 400_000_000  # width x height x bands of a file that is read: as many threads decode at once as there are cores
SMALLER, MASK = 1, 4  # NewSubfileType of pages that are previews or masks of others
# NumPy reads a header by ast.literal_eval, which in Python 3.11 now and then fails in several threads at once:
# "AST constructor recursion depth mismatch"
PARSING = threading.Lock()
WHITE_IS_0, CMYK = 0, 5  # PhotometricInterpretation
COLORED = (2, 4, 6)  # colour type of a PNG: RGB, gray or RGB with transparency


class Raster(NamedTuple):
    """What the header of a file says; its values are not read yet."""

    height: int  # as it is stored
    width: int
    count: int  # of the bands
    read: Callable[[], np.ndarray]  # -> [H, W, bands], upright


def open_bands(path, page=None):
    """-> `Raster`, or None for what Pillow reads: files of other kinds, and gray or 8-bit RGB, with transparency or without.

    What a fourth sample in a TIFF is says its tag ExtraSamples: transparency, or anything, which makes it a band.

    page: of several in a TIFF, from 0. None: it must hold one.

    Raises: UserError for arrays that are no image, for TIFFs that hold several images or count from white, and for what is
    too large to read.
    """
    with open(path, "rb") as file:
        start = file.read(26)
    found = None
    if start.startswith(np.lib.format.MAGIC_PREFIX):
        found = _open_array(path)
    elif start[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        found = _open_tiff(path, page)
    elif start.startswith(b"\x89PNG") and len(start) == 26 and start[24] == 16 and start[25] in COLORED:
        found = _open_png(path)
    if found:
        check_size(path, found.width, found.height, found.count)
    return found


def check_size(path, width, height, bands):
    """Raises: UserError for an image that would take too much memory, by its header."""
    if width * height * bands > MAX_VALUES:
        raise UserError(
            f"{path} is {width}x{height} pixels of {counted(bands)} by its header, more than {MAX_VALUES // 10**6} million "
            "values: cut it into tiles, or remove it if it is damaged"
        )


def _open_array(path):
    with PARSING:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    shape = array.shape if array.ndim == 3 else (*array.shape, 1)
    if len(shape) != 3 or not all(shape) or array.dtype.kind not in "buif":
        raise UserError(f"{path} holds {array.dtype} {list(array.shape)}: an image is [H, W] or [H, W, bands], of numbers")
    if shape[0] < min(shape[1:]):  # no image of several bands is as narrow as that
        raise UserError(f"{path} is {list(shape)}: bands come last, [H, W, bands]; save np.moveaxis(array, 0, -1)")
    return Raster(*shape, lambda: array.reshape(shape))


def _open_png(path):
    """Colours of 16 bits, of which Pillow keeps 8."""
    with Image.open(path, formats=["PNG"]) as image:
        width, height = image.size

    def read():
        check_png(path)
        with Image.open(path, formats=["PNG"]) as image:
            orientation = image.getexif().get(ExifTags.Base.Orientation)  # it may stand at the end, behind the pixels
        return upright(_without(path, _by_opencv(path), [3]), orientation)

    return Raster(height, width, 3, read)


def check_png(path):
    """Raises: SyntaxError for a wrong byte, which decoders let pass: 1 in 10 would draw another picture."""
    with Image.open(path, formats=["PNG"]) as image:
        image.verify()


def _by_opencv(path):
    """uint16 [H, W, 3 or 4]: RGB, and transparency."""
    values = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    if values is None:
        raise ValueError("its pixels cannot be decoded")
    return cv2.cvtColor(values, cv2.COLOR_BGRA2RGBA if values.shape[-1] == 4 else cv2.COLOR_BGR2RGB)


def _open_tiff(path, wanted):
    from tifffile import TiffFile  # takes 0.1 s

    try:
        with TiffFile(path) as file:
            page = file.pages[wanted or 0]
            samples, extra, planar = page.samplesperpixel, page.extrasamples, page.planarconfig == 2
            height, width, photometric = page.imagelength, page.imagewidth, int(page.photometric)
            dtype, kind, itemsize = page.dtype, page.dtype.kind, page.dtype.itemsize
            orientation = int(page.tags.valueof("Orientation", 1))
            pages = [k for k, page in enumerate(file.pages) if not page.tags.valueof("NewSubfileType", 0) & (SMALLER | MASK)]
    except Exception:  # damaged: Pillow has the words for it
        return None
    alpha = [samples - len(extra) + k for k, kind in enumerate(extra) if kind in (1, 2)]
    bands = samples - len(alpha)
    if kind == "c":
        raise UserError(f"{path} holds {counted(bands)} of {dtype}: save it with 8 or 16 bits, or as 32-bit floats")
    is_pillows = 0 not in extra and bands in (1, 3) and (itemsize == 1 or samples == 1 and itemsize <= 4)
    if kind == "f" and photometric == WHITE_IS_0:
        is_pillows = False  # it would not turn them around
    if is_pillows or photometric == CMYK or kind not in "uif":
        return None
    if len(pages) != 1 and wanted is None:
        raise UserError(f"{path} holds {len(pages)} images of {counted(bands)}: save each as a file of its own")
    if photometric == WHITE_IS_0:
        raise UserError(f"{path} holds {counted(bands)} of which 0 is white: save it with 0 as black")

    def read():
        try:
            with TiffFile(path) as file:
                values = file.pages[pages[0] if wanted is None else wanted].asarray()
        except (KeyError, ValueError) as error:
            if "imagecodecs" not in str(error):
                raise
            if (bands, dtype, planar, wanted) == (3, np.uint16, False, None):
                return _without(path, _by_opencv(path), alpha)  # which turns it, too
            raise UserError(
                f"{path} is compressed in a way that takes one more package: pip install imagecodecs, or save it with another "
                "compression, such as deflate"
            ) from None
        values = np.moveaxis(values, 0, -1) if planar and samples > 1 else values.reshape(height, width, samples)
        return upright(_without(path, values, alpha), orientation)

    return Raster(height, width, bands, read)


def _without(path, values, alpha):
    """[H, W, C] but for the channels `alpha`, where it has them. Raises: UserError if what they hold varies."""
    alpha = [k for k in alpha if k < values.shape[-1]]
    if any(np.ptp(values[..., k]) for k in alpha):
        raise UserError(
            f"{path} has transparency that varies, beside {counted(values.shape[-1] - len(alpha))}: save the image without it"
        )
    return np.delete(values, alpha, axis=-1) if alpha else values


def upright(values, orientation):
    """[H, W, ...] turned as its EXIF orientation says, 1 to 8; others, and None, are 1."""
    if orientation not in range(2, 9):
        return values
    if orientation > 4:
        values = values.swapaxes(0, 1)
    return np.ascontiguousarray(
        values[:: -1 if orientation in (3, 4, 7, 8) else 1, :: -1 if orientation in (2, 3, 6, 7) else 1]
    )


def counted(bands):
    """A number of bands in words."""
    return f"{bands} band{'s' * (bands != 1)}"
