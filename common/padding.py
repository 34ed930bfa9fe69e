"""Networks take sizes that halve evenly at every level; around them images of any size are padded, and the logits cropped."""

from common.device import tf  # first of all
from common.shapes import margin, min_size, missing, needs

import numpy as np


def any_size(model, images, network):
    """model(images), in inference, for images of any size of at least `shapes.min_size` pixels.

    The images are reflected at their borders up to a size that fits, and the logits cut back: [N, H, W, channels] ->
    [N, H - margin, W - margin, classes]. Sizes that fit, and are known when a graph is traced, cost no operation.

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
    before_after = [[pad // 2, pad - pad // 2] for pad in pads]
    logits = model(tf.pad(images, [[0, 0], *before_after, [0, 0]], mode="REFLECT"), training=False)
    (top, left), (height, width) = [pad // 2 for pad in pads], [s - margin(network.depth, network.padding) for s in sizes]
    return logits[:, top : top + height, left : left + width]
