"""Images of any number of bands, which Pillow does not know: TIFF through tifffile, and arrays that NumPy has saved."""

import threading
from collections.abc import Callable
from typing import NamedTuple

from common.config import UserError

import numpy as np

SMALLER, MASK = 1, 4  # NewSubfileType of pages that are previews or masks of others
# NumPy reads a header by ast.literal_eval, which in Python 3.11 now and then fails in several threads at once:
# "AST constructor recursion depth mismatch"
PARSING = threading.Lock()
WHITE_IS_0, CMYK = 0, 5  # PhotometricInterpretation


class Bands(NamedTuple):
    """What the header of a file says; its values are not read yet."""

    height: int
    width: int
    count: int  # of the bands
    dtype: np.dtype  # of the values
    orientation: int  # as EXIF numbers them, 1 for upright
    read: Callable[[], np.ndarray]  # -> [H, W, bands]

    @property
    def is_deep(self):
        """Whether the values need 16 bits."""
        return self.dtype.itemsize > 1 or self.dtype.kind == "i"


def open_bands(path):
    """-> `Bands`, or None for what Pillow reads: files of other kinds, and TIFFs of gray or RGB, with transparency or without.

    What a fourth sample in a TIFF is says its tag ExtraSamples: transparency, or anything, which makes it a band.

    Raises: UserError for arrays that are no image, and for TIFFs that hold several images or count from white.
    """
    with open(path, "rb") as file:
        start = file.read(6)
    if start == np.lib.format.MAGIC_PREFIX:
        return _open_array(path)
    return _open_tiff(path) if start[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+") else None


def _open_array(path):
    with PARSING:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    shape = array.shape if array.ndim == 3 else (*array.shape, 1)
    if len(shape) != 3 or not all(shape) or array.dtype.kind not in "buif":
        raise UserError(f"{path} holds {array.dtype} {list(array.shape)}: an image is [H, W] or [H, W, bands], of numbers")
    if shape[0] < min(shape[1:]):  # no image of several bands is as narrow as that
        raise UserError(f"{path} is {list(shape)}: bands come last, [H, W, bands]; save np.moveaxis(array, 0, -1)")
    return Bands(*shape, array.dtype, 1, lambda: array.reshape(shape))


def _open_tiff(path):
    from tifffile import TiffFile  # takes 0.1 s

    try:
        with TiffFile(path) as file:
            page = file.pages[0]
            samples, extra, dtype, planar = page.samplesperpixel, page.extrasamples, page.dtype, page.planarconfig == 2
            height, width, photometric = page.imagelength, page.imagewidth, int(page.photometric)
            orientation = int(page.tags.valueof("Orientation", 1))
            alpha = [samples - len(extra) + k for k, kind in enumerate(extra) if kind in (1, 2)]
            bands = samples - len(alpha)
            is_pillows = 0 not in extra and (dtype.itemsize <= 4 if bands == 1 else dtype.itemsize <= 2 and bands == 3)
            if is_pillows or photometric == CMYK or dtype.kind not in "uif":
                return None
            pages = [k for k, page in enumerate(file.pages) if not page.tags.valueof("NewSubfileType", 0) & (SMALLER | MASK)]
    except Exception:  # damaged: Pillow has the words for it
        return None
    if len(pages) != 1:
        raise UserError(f"{path} holds {len(pages)} images of {bands} bands: save each as a file of its own")
    if photometric == WHITE_IS_0:
        raise UserError(f"{path} holds {counted(bands)} of which 0 is white: save it with 0 as black")

    def read():
        try:
            with TiffFile(path) as file:
                values = file.pages[pages[0]].asarray()
        except (KeyError, ValueError) as error:
            if "imagecodecs" not in str(error):
                raise
            raise UserError(
                f"{path} is compressed in a way that takes one more package: pip install imagecodecs, or save it with another "
                "compression, such as deflate"
            ) from None
        values = np.moveaxis(values, 0, -1) if planar and samples > 1 else values.reshape(height, width, samples)
        if any(np.ptp(values[..., k]) for k in alpha):
            raise UserError(f"{path} has transparency that varies, beside {counted(bands)}: save it without")
        return np.delete(values, alpha, axis=-1) if alpha else values

    return Bands(height, width, bands, dtype, orientation, read)


def counted(bands):
    """A number of bands in words."""
    return f"{bands} band{'s' * (bands != 1)}"
