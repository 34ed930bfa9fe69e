"""The network as a table: layers, shapes, parameters. Read off the configuration, so it is the same for all three."""

from common.config import Size
from common.shapes import margin, missing
from common.weights import is_trainable, weight_shapes

import numpy as np


def layers(config, size):
    """[(name, (height, width, channels), trainable parameters)] of every layer for an image of `size`, in order.

    config: with `channels` and `classes`. size: (height, width), at least `shapes.min_size`.
    """
    height, width = (n + missing(n, config.network) for n in size)
    lost = 0 if config.network.padding == "same" else 2  # by a 3x3 convolution
    parameters = {}
    for name, shape in weight_shapes(config.network).items():
        layer = name.rsplit("/", 1)[0]
        parameters[layer] = parameters.get(layer, 0) + int(np.prod(shape)) * is_trainable(name)
    found = [("image", (*size, config.network.channels), 0)]
    for layer, count in parameters.items():
        block, _, part = layer.partition("/")
        number = block.removeprefix("down").removeprefix("up")
        level = int(number) if number.isdigit() else config.network.depth  # "dropout" is at the bottom
        channels = config.network.classes if block == "head" else config.network.filters * 2**level
        if part.startswith("conv"):
            height, width = height - lost, width - lost
        elif part == "deconv":
            height, width = 2 * height, 2 * width
        elif block == "head":
            height, width = (n - margin(config.network.depth, config.network.padding) for n in size)
        found.append((layer, (height, width, channels), count))
        last = part == ("bn2" if config.network.batch_norm != "none" else "conv2")
        if last and block.startswith("down") and block != f"down{config.network.depth}":
            height, width = height // 2, width // 2
            found.append((f"{block}/pool", (height, width, channels), 0))
        if part == "deconv":
            found.append((f"{block}/concat", (height, width, 2 * channels), 0))
    return found


def print_summary(config, size):
    """Prints the table for training on images of `size`, a `Size`, or on the crops that the options name."""
    size = config.data.crop_size or Size(
        *(n + margin(config.network.depth, config.network.padding) for n in size)
    )  # mirrored around the border
    rows = layers(config, size)
    print(f"{'layer':<16}{'height':>8}{'width':>8}{'channels':>10}{'parameters':>14}")
    for name, (height, width, channels), count in rows:
        print(f"{name:<16}{height:>8}{width:>8}{channels:>10}{count or '':>14}")
    total = sum(count for _, _, count in rows)
    print(f"{total:,} trainable parameters for {size} {'gray' if config.network.channels == 1 else 'RGB'} images")
