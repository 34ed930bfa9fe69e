"""Changes to a training image that leave it a possible image, done to image and mask alike. Both functions return views."""

import numpy as np


def flips(image, mask, rng):
    """One of the symmetries of a square: image [H, W, C], mask [H, W] -> the same shapes, all symmetries equally likely.

    A square has 8: four right-angle rotations, each as it is or mirrored. Of these only 4 keep the shape of an image that
    is not square (mirrored in x, in y, in both, in neither), and only those are drawn for it: a batch has one shape.
    """
    square = image.shape[0] == image.shape[1]
    turns = rng.integers(4) if square else 2 * rng.integers(2)
    image, mask = np.rot90(image, turns), np.rot90(mask, turns)
    return (image[:, ::-1], mask[:, ::-1]) if rng.integers(2) else (image, mask)


def random_crop(image, mask, size, rng):
    """A window of `size` (height, width): image [H, W, C], mask [H, W] -> [height, width, C] and [height, width].

    Raises: ValueError when the window is larger than the image.
    """
    (height, width), (h, w) = mask.shape, size
    top, left = rng.integers(height - h + 1), rng.integers(width - w + 1)
    return image[top : top + h, left : left + w], mask[top : top + h, left : left + w]
