"""What int8 needs and costs: images of the training to choose its ranges by, and the dice of both on those that validate."""

from common.metrics import predicted_classes, scores
from common.shapes import margin
from data.borders import part_touching
from data.loader import load_examples
from data.meaning import as_classes

import numpy as np

CALIBRATED = 100  # training images to choose the ranges by
COMPARED = 100  # validation images


def window(values, size):
    """The middle of [H, W, ...] that is `size` large; mirrored where it is smaller."""
    for axis, side in enumerate(size):
        n = values.shape[axis]
        lack = max(side - n, 0)
        places = np.pad(np.arange(n), (lack // 2, lack - lack // 2), mode="reflect")
        start = (len(places) - side) // 2
        values = values.take(places[start : start + side], axis)
    return values


def read_windows(config, size):
    """-> ([images to calibrate by], [(image, mask) to compare on]): float32 [1, *size, channels] in 0..1, uint8 [1, H', W'].

    Raises: UserError when the data set of the training cannot be read.
    """
    config, training, validation = load_examples(config)
    cut, white = margin(config.network.depth, config.network.padding) // 2, config.data.scale

    def image(examples, i):
        return window(examples.images[i], size)[np.newaxis].astype(np.float32) / white

    def mask(examples, i):
        height, width = size
        values = as_classes(part_touching(examples.objects[i])) if examples.objects else examples.masks[i]
        return window(values, size)[np.newaxis, cut : height - cut, cut : width - cut]

    calibration = [image(training, i) for i in range(min(len(training.names), CALIBRATED))]
    pairs = [(image(validation, i), mask(validation, i)) for i in range(min(len(validation.names), COMPARED))]
    return calibration, pairs


def dice_of(predict, pairs, classes):
    """The mean dice of predict: images -> probabilities, on what `read_windows` returns."""
    return np.nanmean([scores(mask, predicted_classes(predict(image)), classes)["dice"] for image, mask in pairs])
