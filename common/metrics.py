"""What a segmentation is judged by: dice, intersection over union, pixel accuracy. Plain numpy."""

import numpy as np


def predicted_classes(probabilities):
    """[N, H, W, classes] -> [N, H, W] class indices: 1 from a probability of 0.5 with one class, else the largest."""
    if probabilities.shape[-1] == 1:
        return (probabilities[..., 0] >= 0.5).astype(np.uint8)
    return probabilities.argmax(-1).astype(np.uint8)


def scores(masks, predictions, classes):
    """Dice, IoU and pixel accuracy of every image, each [N] in 0..1.

    masks, predictions: [N, H, W] class indices.
    One class: of the foreground; an empty mask predicted empty scores 1. More classes: the mean over the classes
    that the mask or the prediction contains, the background among them.
    """
    masks, predictions = np.asarray(masks), np.asarray(predictions)
    indices = [1] if classes == 1 else range(classes)
    truth = np.stack([masks == c for c in indices], -1)  # [N, H, W, classes]
    guess = np.stack([predictions == c for c in indices], -1)
    both = (truth & guess).sum((1, 2))  # [N, classes]
    sizes = truth.sum((1, 2)) + guess.sum((1, 2))
    present = sizes > 0
    counted = present if classes > 1 else np.ones_like(present)

    def mean_over_classes(above, below):
        return np.average(np.divide(above, below, out=np.ones(above.shape), where=present), axis=1, weights=counted)

    return {
        "dice": mean_over_classes(2 * both, sizes),
        "iou": mean_over_classes(both, sizes - both),
        "accuracy": (masks == predictions).mean((1, 2)),
    }
