"""Which image sizes fit through the U: arithmetic alone. `common.padding` makes every size fit.

A U-Net pools `depth` times, and a size must be even before it is halved. With "same" padding that asks for multiples
of 2**depth. With the paper's "valid" padding every 3x3 convolution also takes 2 pixels away, so the logits are smaller
than the image by a margin, and skips are cropped before they meet the upsampled features.

network: `config.network`, or anything with its `depth` and `padding`.
"""


def margin(depth, padding):
    """How many pixels the logits are smaller than the image, in height and in width.

    A U of depth 0 is two 3x3 convolutions: 4 pixels. A level more doubles that and adds two convolutions above it on
    either side: m(d) = 4 + 2 m(d-1) + 4. Solved: 12 * 2**d - 8, the paper's 572 - 388 = 184 for d = 4.
    """
    return 0 if padding == "same" else 12 * 2**depth - 8


def skip_crop(network, level):
    """Pixels to cut from each side of the skip at `level`: half of twice the margin of the U below it."""
    return margin(network.depth - level - 1, network.padding)


def min_size(network):
    """The smallest height or width, in pixels, that gives logits."""
    return 2**network.depth if network.padding == "same" else margin(network.depth, network.padding) + 1


def needs(network):
    """The smallest size in words, for the message about an image below it."""
    return f"{network.depth} poolings with {network.padding!r} padding need at least {min_size(network)}"


def missing(size, network):
    """How many pixels `size` lacks to the next size that halves evenly at every level (an int or an int tensor).

    "valid": the logits are 2**depth * (b - 4) + 4 pixels for b pixels at the bottom of the U.
    """
    unit = 2**network.depth
    fits = 0 if network.padding == "same" else 4 + margin(network.depth, network.padding)
    return (fits + unit - size % unit) % unit  # nothing negative: ONNX's integers divide toward zero
