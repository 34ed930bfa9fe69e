"""Networks take sizes that halve evenly at every level; around them images of any size are padded, and the logits cropped."""

from common.device import tf  # first of all
from common.shapes import margin, min_size, missing, needs

import numpy as np


def any_size(model, images, network):
    """model(images), in inference, for images of any size of at least `shapes.min_size` pixels.

    The part of the images that the logits are for is mirrored around them, up to a size that fits, and the logits are cut back:
    [N, H, W, channels] -> [N, H - margin, W - margin, classes]. So what was mirrored for "valid" padding goes on as it began.
    Sizes that fit, and are known when a graph is traced, cost no operation.

    Raises: ValueError for smaller images, where their size is known when a graph is traced.
    """
    height, width = images.shape[1:3]
    if min(height or np.inf, width or np.inf) < min_size(network):
        raise ValueError(f"an image is {width}x{height} pixels, but {needs(network)}")
    dynamic = tf.shape(images)
    sizes = [images.shape[axis] or dynamic[axis] for axis in (1, 2)]
    pads = [missing(size, network) for size in sizes]
    if all(isinstance(pad, int) and pad == 0 for pad in pads):
        return model(images, training=False)
    lost = margin(network.depth, network.padding)
    for axis, size, pad in zip((1, 2), sizes, pads):
        i, last = tf.range(size + pad) - pad // 2, size - lost - 1  # of the part that the logits are for
        mirrored = last - abs(last - abs(i - lost // 2) % tf.maximum(2 * last, 1)) + lost // 2
        images = tf.gather(images, tf.where((i >= 0) & (i < size), i, mirrored), axis=axis)
    (top, left), (height, width) = [pad // 2 for pad in pads], [size - lost for size in sizes]
    return model(images, training=False)[:, top : top + height, left : left + width]
