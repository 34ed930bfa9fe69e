"""Prediction of images of any size in windows of one size: the memory does not grow with the image, and no seam shows.

Windows overlap, and every pixel is taken from a window in which the network sees all that it would see in the whole image.
Then the tiled prediction equals the untiled one up to rounding, and nothing is left to blend. Three things make it so:

- Windows start at multiples of 2**depth, so that the poolings fall on the same grid of pixels as in the whole image.
- "same": what the convolutions pad with zeros at the border of a window spoils a halo of 6 * 2**depth pixels, which is not
  used (`HALO`). At the border of the image the window ends where the image ends, and the zeros belong there.
- "valid": the logits lack that border anyway. The image is mirrored around its border, the overlap-tile strategy of
  Ronneberger et al. 2015, figure 2, so that the prediction is as large as the image.

Batch normalization is a pointwise function in inference, so it does not see the rest of the window.
"""

import itertools
from typing import NamedTuple

from common.config import UserError
from common.shapes import margin, missing
from common.text import printable

import numpy as np
from PIL import Image
from tqdm import tqdm

# How many pixels around a part of the image its prediction depends on, if the part ends at multiples of 2**depth. Level i + 1
# is asked for e(i + 1) of its pixels beyond the part by the two 3x3 convolutions and the up-convolution of level i, and asks
# the image of level i for f(i), after the pooling and two 3x3 convolutions more:
#
#     e(0) = 0, e(i + 1) = ceil((e(i) + 2) / 2) = 1, 2, 2, 2 ...      f(depth) = e(depth) + 2, f(i) = 2 f(i + 1) + 2
#
# So f(0) = (e(depth) + 4) * 2**depth - 2: 94 pixels with the default depth of 4. The next multiple is 6 * 2**depth.
HALO = 6
STRIP = 256  # rows that are brought back to the image's size at once


class Window(NamedTuple):
    """One window on one axis of an image."""

    pixels: np.ndarray  # int [window], what the network gets, as indices into the axis; mirrored at its ends
    target: slice  # what is taken from this window; the targets of an axis cover it once
    source: slice  # the same pixels in the window's logits


def smallest_tile(network):
    """The smallest window, in pixels, that has something left between its two halos."""
    return (2 * HALO + 1) * 2**network.depth


def smallest_image(network):
    """The smallest height or width, in pixels, of an image: one that training takes too."""
    return 2**network.depth if network.padding == "same" else 1


def cut(size, tile, network):
    """Cuts an axis of `size` pixels, at least `smallest_image`, into windows of one length, at most `tile` pixels: [Window]."""
    unit = 2**network.depth
    lost = margin(network.depth, network.padding) // 2  # at each side of the logits
    fill = missing(size + 2 * lost, network)  # on both sides, as `common.padding.any_size` pads the whole image
    before = lost + fill // 2
    pixels = np.pad(np.arange(size), (before, lost + fill - fill // 2), mode="reflect")
    window = min(len(pixels), tile - -missing(tile, network) % unit)  # the largest that fits through the U
    halo = lost or HALO * unit
    step = max(window - 2 * halo, unit) // unit * unit
    last = len(pixels) - window
    starts = [min(start, last) for start in range(0, last + step, step)]
    bounds = [0, *(start + halo - before for start in starts[1:]), size]

    def between(start, first, end):
        shift = before - lost - start  # from the axis to the logits
        return Window(pixels[start : start + window], slice(first, end), slice(first + shift, end + shift))

    return [between(*borders) for borders in zip(starts, bounds, bounds[1:])]


def symmetries(square, augment):
    """[(quarter turns, mirrored)]: those of `data.augment`'s kind `augment` for a square, or for another rectangle.

    flips and paper: 8 of a square, 4 of another. photo and recolor: 2, as the network has seen nothing upside down.

    Raises: UserError for a kind that neither turns nor mirrors.
    """
    if augment in ("none", "elastic"):
        raise UserError(f"--tta: in the training, --augment {augment}, no image was mirrored or turned: leave it out")
    turned = (0,) if augment in ("photo", "recolor") else range(4) if square else (0, 2)
    return [(turns, mirrored) for turns in turned for mirrored in (False, True)]


def predict_tiles(predict, image, network, tile, tta=None, name=None, white=255):
    """The prediction of an image at its own size, tile by tile. A bar named `name` shows the progress in a terminal.

    predict: float32 [1, h, w, channels] in 0..1 -> probabilities [1, h - margin, w - margin, classes], both numpy arrays.
    image: uint8 or uint16 [H, W, channels], 0 to `white`, both sides at least `smallest_image`.
    tile: the side of the windows in pixels, at least `smallest_tile`.
    tta: test-time augmentation, the mean over the `symmetries` of that --augment of the training. None: no such mean.

    Yields: (rows, columns, float32 [h, w, classes]): slices of the image, which cover it once, and their probabilities.
    """
    height, width, _ = image.shape
    views = symmetries(height == width, tta) if tta else [(0, False)]
    windows = list(itertools.product(cut(height, tile, network), cut(width, tile, network)))
    for rows, columns in tqdm(windows, desc=name and printable(name), unit=" tiles", delay=1, leave=False, disable=None):
        window, total = image[np.ix_(rows.pixels, columns.pixels)].astype(np.float32) / white, 0
        for turns, mirrored in views:
            seen = np.rot90(window, turns)
            p = predict((seen[:, ::-1] if mirrored else seen)[np.newaxis])[0]
            total = total + np.rot90(p[:, ::-1] if mirrored else p, -turns)
        yield rows.target, columns.target, (total / len(views))[rows.source, columns.source].astype(np.float32)


def predict_resized(predict, image, size, network, tile, tta=None, name=None, white=255):
    """As `predict_tiles`, for an image that was resized for the network: the prediction at its own `size`, (height, width).

    The probabilities, and not the classes, are resized, bilinearly: borders come out smooth.
    """
    (height, width), (h, w, _) = size, image.shape
    p = np.empty([h, w, network.classes], np.float32)
    for rows, columns, part in predict_tiles(predict, image, network, tile, tta, name, white):
        p[rows, columns] = part
    layers = [Image.fromarray(p[..., c]) for c in range(network.classes)]
    for top in range(0, height, STRIP):
        end = min(top + STRIP, height)
        box = (0, top / height * h, w, end / height * h)
        strips = [layer.resize((width, end - top), Image.Resampling.BILINEAR, box) for layer in layers]
        yield slice(top, end), slice(0, width), np.stack(strips, axis=-1)
