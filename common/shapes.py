"""Which image sizes fit through the U, and the padding and cropping that make every size fit.

A U-Net pools `depth` times, and a size must be even before it is halved. With "same" padding that asks for multiples
of 2**depth. With the paper's "valid" padding every 3x3 convolution also takes 2 pixels away, so the logits are smaller
than the image by a margin, and skips are cropped before they meet the upsampled features.

`pad_input` makes any image fit by reflecting a few pixels at its borders; `crop_output` takes them away again.
"""

import tensorflow as tf


def margin(depth, padding):
    """How many pixels the logits are smaller than the image, in height and in width.

    A U of depth 0 is two 3x3 convolutions: 4 pixels. A level more doubles that and adds two convolutions above it on
    either side: m(d) = 4 + 2 m(d-1) + 4. Solved: 12 * 2**d - 8, the paper's 572 - 388 = 184 for d = 4.
    """
    return 0 if padding == "same" else 12 * 2**depth - 8


def skip_crop(config, level):
    """Pixels to cut from each side of the skip at `level`: half of twice the margin of the U below it."""
    return margin(config.depth - level - 1, config.padding)


def min_size(config):
    """The smallest height or width, in pixels, that gives logits."""
    return 2**config.depth if config.padding == "same" else margin(config.depth, config.padding) + 1


def missing(size, config):
    """How many pixels `size` lacks to the next size that halves evenly at every level (an int or an int tensor).

    "valid": the logits are 2**depth * (b - 4) + 4 pixels for b pixels at the bottom of the U.
    """
    if config.padding == "same":
        return -size % 2**config.depth
    return (4 + margin(config.depth, config.padding) - size) % 2**config.depth


def _height_width(images):
    """The static sizes where they are known, so that images that fit cost no operation; tensors otherwise."""
    dynamic = tf.shape(images)
    return [images.shape[axis] or dynamic[axis] for axis in (1, 2)]


def pad_input(images, config):
    """[N, H, W, C] of any size >= `min_size` -> [N, H', W', C], reflected at the borders to sizes that fit."""
    pads = [missing(size, config) for size in _height_width(images)]
    if all(isinstance(pad, int) and pad == 0 for pad in pads):
        return images
    before_after = [[pad // 2, pad - pad // 2] for pad in pads]
    return tf.pad(images, [[0, 0], *before_after, [0, 0]], mode="REFLECT")


def crop_output(logits, images, config):
    """Cuts from `logits` what `pad_input(images)` added: -> [N, H - margin, W - margin, classes]."""
    sizes = _height_width(images)
    pads = [missing(size, config) for size in sizes]
    if all(isinstance(pad, int) and pad == 0 for pad in pads):
        return logits
    (top, left), (height, width) = [pad // 2 for pad in pads], [s - margin(config.depth, config.padding) for s in sizes]
    return logits[:, top : top + height, left : left + width]
