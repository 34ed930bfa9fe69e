"""The background between cells that touch or nearly touch: in the masks to train on, and in the paper's loss."""

import cv2
import numpy as np
from scipy.ndimage import distance_transform_edt, find_objects, label

SIGMA = 5.0  # pixels; "w0 = 10 and sigma = 5 pixels" in section 3 of the paper
BORDER = 10.0
CROSS = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], np.uint8)  # pixels are joined by their sides, not their corners
REACH = int(4 * SIGMA)  # pixels from a cell beyond which its share of the weight is below BORDER * exp(-8) = 0.003


def part_touching(objects):
    """Where two objects share a side, the pixels on both sides of it become background: int32 [H, W] -> the same.

    What is below 0, which nobody labelled, stays and parts nothing.

    "The small separation borders that we introduce between touching cells", Ronneberger et al. 2015, section 3. A network with
    one class of objects could not tell two that touch from one. What is two pixels wide between two others vanishes.
    """
    numbers = objects.astype(np.float32)  # whole ones up to 2**24 are exact
    highest = cv2.dilate(numbers, CROSS)
    lowest = cv2.erode(np.where(numbers <= 0, np.inf, numbers), CROSS)
    return np.where((highest == lowest) | (objects < 0), objects, 0)


def border_weights(mask, class_weights=(1.0, 1.0), objects=None):
    """Ronneberger et al. 2015, equation 2:  w = w_c + w_0 exp(-(d_1 + d_2)**2 / (2 sigma**2))

    d_1 and d_2 are the distances to the nearest and to the second nearest cell. Inside of cells the second term is left out.

    Args:
        mask: [H, W] class indices, 0 the background, 255 what nobody labelled.
        class_weights: w_c of every class; the paper's balance the classes.
        objects: int [H, W], the number of the cell that a pixel belongs to, 0 for none. None: a cell is a connected part of the
            foreground, and in the ground truth a pixel of background must separate two that touch.

    Returns: float32 [H, W]
    """
    foreground = (mask > 0) & (mask < 255)
    cells = label(foreground)[0] if objects is None else np.maximum(objects, 0)
    nearest, second = np.full(mask.shape, np.inf, np.float32), np.full(mask.shape, np.inf, np.float32)
    for number, place in enumerate(find_objects(cells), start=1):
        if place is None:  # it lies outside of the crop
            continue
        around = tuple(slice(max(part.start - REACH, 0), part.stop + REACH) for part in place)
        distance = distance_transform_edt(cells[around] != number).astype(np.float32)
        first = np.minimum(nearest[around], distance)
        second[around] = np.minimum(second[around], np.maximum(nearest[around], distance))
        nearest[around] = first
    between = BORDER * np.exp(-((nearest + second) ** 2) / (2 * SIGMA**2))
    table = np.zeros(256, np.float32)
    table[: len(class_weights)] = class_weights
    return table[np.asarray(mask, np.uint8)] + np.where(foreground, 0, between).astype(np.float32)
