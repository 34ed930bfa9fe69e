"""Decodes image files with Pillow: what each kind of file means in 8 bits, and what is refused.

scikit-image's reader shows palette masks as colours, takes a TIFF of three pages for RGB and cannot unpack LZW.
"""

import contextlib
import re
import warnings
from pathlib import Path
from typing import NamedTuple

from common.config import VOID, Names, Size, UserError

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError
from PIL.Image import Resampling, Transpose

FORMATS = ("PNG", "JPEG", "TIFF", "GIF", "BMP", "WEBP")  # by content, whatever the name says; some .jpg are none
MAX_PIXELS = 2**28  # 16384x16384, 1 GiB while a colour image is decoded

Image.MAX_IMAGE_PIXELS = None  # Pillow would warn from 2**26.4 pixels and refuse from twice that: MAX_PIXELS is checked here
warnings.filterwarnings("ignore", module="PIL")  # on metadata that no pixel depends on, and before errors

TURNS = {  # EXIF orientation, as stored to upright
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}


class Colors(NamedTuple):
    """What the colours of masks stand for."""

    path: Path  # the file that says so, for messages
    names: Names  # of the classes, in order
    indices: dict[tuple[int, int, int], int]  # (red, green, blue) -> class index or VOID
    rest_is_void: bool  # other colours are void, and no error


def read_pair(image_path, mask_path, channels, size=None, page=None, colors=None):
    """Reads an image and its mask, upright as their EXIF orientation says, resized to `size` if it is given.

    Args:
        channels: 1 or 3, see `read_image`.
        page: of multi-page files, from 0. None: the files must hold one image each.
        colors: see `read_mask`.

    Returns: image uint8 [H, W, channels], mask uint8 [H, W].

    Raises: UserError for what cannot be read, and for a mask that is not as large as its image.
    """
    image, image_size, stored = _read_image(image_path, channels, size, page)
    mask, mask_size, _ = _read_mask(mask_path, size, page, colors)
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
    """Reads gray or colour -> uint8 [H, W, channels], 0 to 255, converted to the other if need be; transparency is dropped.

    16 bits are scaled to 8. Below 4096 they are taken for the 12 bits of a camera, which would be all but black otherwise.
    A JPEG that shrinks to `size` is decoded at half, a quarter or an eighth of its size, whichever is still large enough,
    and the rest of the way by triangles as wide as the step: four times faster, and as free of aliasing.

    Raises: UserError for what cannot be read, and for values outside of 16 bits, or of 0 to 1 if they are floats.
    """
    return _read_image(path, channels, size, page)[0]


def read_mask(path, size=None, page=None, colors=None):
    """Reads the numbers of a mask as they are stored -> uint8 [H, W]; `data.meaning.mask_meaning` knows what they mean.

    A palette of grays only is a gray image, and its gray levels count. A palette with colours paints the class indices.
    With `colors`, a `Colors`, the colours count, and become class indices or VOID.

    Raises: UserError for what cannot be read, for colours that nobody named, and for numbers other than 0, 1, 2, ... 255.
    """
    return _read_mask(path, size, page, colors)[0]


def count_pages(path):
    """The number of images in a file. Raises: UserError if it cannot be read."""
    with readable(path), Image.open(path, formats=FORMATS) as image:
        return getattr(image, "n_frames", 1)


@contextlib.contextmanager
def readable(path):
    """Turns whatever a damaged file raises in a decoder, which can be nearly anything, into one line that says what to do."""
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.strerror:
            reason = f"{error.strerror}; check the file and its permissions"
        elif Path(path).stat().st_size == 0:
            reason = "it is empty, 0 bytes; replace or remove it"
        elif isinstance(error, UnidentifiedImageError):
            known = f"known are {', '.join(FORMATS)}, colours with 8 bits"
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


def _load(path, page, size, resample, draft=None, convert=lambda image: image):
    """Decodes a file, turns it upright and resizes it.

    Args:
        size: `Size` of the result, upright, or None.
        draft: "L" or "RGB" lets a JPEG be decoded as gray, and smaller as long as it is not smaller than `size`.
        convert: Pillow image -> Pillow image, before it is resized.

    Returns: Pillow image, `Size` of the file's image upright, and as it is stored.
    """
    with Image.open(path, formats=FORMATS) as image:
        is_jpeg = image.format in ("JPEG", "MPO")  # MPO: a phone's JPEG with a preview behind it
        if page is not None:
            image.seek(page)
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise UserError(
                f"{path} is {width}x{height} pixels by its header, more than {MAX_PIXELS}: "
                "cut it into tiles, or remove it if it is damaged"
            )
        if page is None and not is_jpeg and getattr(image, "n_frames", 1) > 1:
            raise UserError(f"{path} holds {image.n_frames} images: save each as a file of its own")
        if image.format == "PNG":  # the decoder skips the checksums: 1 wrong byte in 10 would pass, and draw another mask
            with Image.open(path, formats=["PNG"]) as twin:
                twin.verify()
        if not is_jpeg:
            image.load()  # PNG may hold its orientation at the end; TIFF comes upright
        turn = TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
        sideways = turn in (Transpose.TRANSPOSE, Transpose.TRANSVERSE, Transpose.ROTATE_90, Transpose.ROTATE_270)
        wanted = size and ((size.height, size.width) if sideways else (size.width, size.height))
        drafted = None
        if draft and is_jpeg:
            scale = _jpeg_scale(image.size, wanted) if wanted else 1
            drafted = image.draft(draft, (width // scale, height // scale))
        image.load()
    image = convert(image)
    if size:
        # drafted[1]: of 1918 pixels a quarter is 480, but only 479.5 of them are the image
        image = image.resize(wanted, resample, drafted and drafted[1])
    if turn is not None:
        image = image.transpose(turn)
    stored = Size(height, width)
    return image, Size(width, height) if sideways else stored, stored


def _read_image(path, channels, size, page):
    """-> uint8 [H, W, channels], `Size` in the file upright, and as stored."""

    def to_8_bits(image):
        if image.mode == "F" or image.mode.startswith("I"):
            values = np.asarray(image)
            white = 1 if image.mode == "F" else 4095 if values.max() < 4096 else 65535
            if not (values.min() >= 0 and values.max() <= white):  # so NaN is caught too
                raise UserError(f"{path} holds values outside of 0 to {white}: save it with 8 or 16 bits")
            return Image.fromarray(np.rint(values * (255 / white)).astype(np.uint8))
        return image if image.mode in ("L", "RGB") else image.convert("RGB")

    mode = "RGB" if channels == 3 else "L"
    with readable(path):
        image, size, stored = _load(path, page, size, Resampling.BILINEAR, mode, to_8_bits)
        pixels = np.asarray(image if image.mode == mode else image.convert(mode))
    return pixels.reshape(*pixels.shape[:2], channels), size, stored


def _read_mask(path, size, page, colors):
    """-> uint8 [H, W], `Size` in the file upright, and as stored."""
    with readable(path):
        # the nearest pixel: between classes 1 and 3 there is no class 2
        image, size, stored = _load(path, page, size, Resampling.NEAREST)
        if colors:
            values = _class_of_colors(np.asarray(image.convert("RGB")), path, colors)
        elif image.mode in ("1", "L", "F") or image.mode.startswith("I"):
            values = np.asarray(image)
        elif image.mode == "P":
            palette = np.array(image.getpalette(), np.uint8).reshape(-1, 3)
            if (palette == palette[:, :1]).all():
                image = image.point(np.pad(palette[:, 0], (0, 256 - len(palette))).tolist())  # gray levels, and no indices
            values = np.asarray(image)
        else:
            rgb = np.asarray(image.convert("RGB"))
            values = rgb[..., 0]
            if (rgb != values[..., None]).any():
                raise UserError(
                    f"{path} is a colour image, a mask is gray: its values are class indices, or 0 and 255; "
                    "if its colours stand for classes, name them with --colors FILE"
                )
    if values.dtype.itemsize > 1:
        values = np.where(values == 65535, 255, values)  # white in 16 bits
        wrong = values[~np.isin(values, np.arange(256))]
        if wrong.size:
            raise UserError(f"{path} holds the value {wrong[0]}: a mask holds class indices, or 0 and 255")
    return values.astype(np.uint8, copy=False), size, stored


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
        if Path(path).suffix.lower() in (".jpg", ".jpeg"):
            advice = "JPEG does not keep a mask's colours, save it as PNG"
        raise UserError(
            f"{path} has {counts.max()} pixels of the colour {red} {rest // 256} {rest % 256}{more}, which {colors.path} "
            f"does not name: {advice}"
        )
    return np.where(unknown, VOID, indices[found])
