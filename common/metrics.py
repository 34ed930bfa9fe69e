"""What a segmentation is judged by: dice, intersection over union, pixel accuracy. Plain numpy.

Masks are class indices, VOID where nobody labelled: such pixels count nowhere.
"""

from common.config import VOID, UserError, Weights

import numpy as np


def predicted_classes(probabilities, threshold=0.5):
    """[N, H, W, classes] -> [N, H, W] class indices: 1 from a probability of `threshold` with one class, else the largest."""
    if probabilities.shape[-1] == 1:
        return (probabilities[..., 0] >= threshold).astype(np.uint8)
    return probabilities.argmax(-1).astype(np.uint8)


def confusion(masks, predictions, classes):
    """[classes, classes] pixels: row c, column k are those of class c that were predicted as k. One class: [2, 2].

    masks, predictions: class indices, two arrays of one shape. The matrix of a data set is the sum over its images.
    """
    masks, predictions = np.asarray(masks), np.asarray(predictions)
    labelled, n = masks != VOID, max(classes, 2)
    pairs = masks[labelled].astype(np.int64) * n + predictions[labelled]
    return np.bincount(pairs, minlength=n * n).reshape(n, n)


def class_scores(matrix):
    """(IoU, dice) of every class in a confusion matrix [..., classes, classes], each [..., classes] in 0..1.

    Not a number for a class that occurs in neither truth nor prediction.
    """
    both = np.diagonal(matrix, axis1=-2, axis2=-1)
    sizes = (matrix.sum(-1) + matrix.sum(-2)).astype(float)
    sizes[sizes == 0] = np.nan
    return both / (sizes - both), 2 * both / sizes


def mean_over_classes(values, classes):
    """The mean of `values` [..., classes], from `class_scores`, over the classes that occur. One class: the foreground's.

    A foreground that occurs in neither truth nor prediction scores 1. Not a number where nothing is labelled: no class occurs.
    """
    occurs = ~np.isnan(values)
    if classes == 1:
        return np.where(occurs[..., 0] & ~occurs[..., 1], 1.0, values[..., 1])
    return np.nansum(values, -1) / np.where(occurs.any(-1), occurs.sum(-1), np.nan)


def measures(matrices, classes):
    """Dice, IoU and pixel accuracy in confusion matrices [..., n, n], each [...] in 0..1; not a number where none is labelled.

    One class: of the foreground; an empty mask predicted empty scores 1. More classes: the mean over the classes
    that the mask or the prediction contains, the background among them.
    """
    iou, dice = (mean_over_classes(values, classes) for values in class_scores(matrices))
    pixels = matrices.sum((-2, -1))
    return {"dice": dice, "iou": iou, "accuracy": np.trace(matrices, 0, -2, -1) / np.where(pixels, pixels, np.nan)}


def scores(masks, predictions, classes):
    """The `measures` of every image, each [N]. masks, predictions: [N, H, W] class indices."""
    return measures(np.stack([confusion(*pair, classes) for pair in zip(masks, predictions, strict=True)]), classes)


def balanced_weights(counts):
    """Class weights by median frequency: Eigen and Fergus 2015, arXiv 1411.4734, section 6.3.2.

        weight = median of the frequencies / frequency
        frequency = pixels of the class / pixels of the images that contain it

    counts: [images, classes] labelled pixels. A class that never occurs gets 0 and has no part in the median.
    Returns: `Weights`, rounded to 6 significant digits.
    Raises: UserError when nothing is labelled.
    """
    counts = np.asarray(counts, np.float64)
    occurs = counts.any(0)
    if not occurs.any():
        raise UserError("--class-weights balanced: no pixel of the training masks is labelled")
    around = ((counts > 0) * counts.sum(1, keepdims=True)).sum(0)  # [classes] pixels of the images that contain it
    frequency = counts.sum(0)[occurs] / around[occurs]
    weights = np.zeros(len(occurs))
    weights[occurs] = np.median(frequency) / frequency
    return Weights(float(f"{w:.6g}") for w in weights)
