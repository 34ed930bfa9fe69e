"""The network as a table: layers, shapes, parameters. Read off the configuration, so it is the same for all three."""

import math

from common.layers import table
from common.shapes import margin
from common.weights import is_trainable


def layers(config, size):
    """[(name, (height, width, channels), trainable parameters)] of every layer for an image of `size`, in order.

    config: with `channels` and `classes`. size: (height, width), at least `shapes.min_size`. The image and the logits have
    their own sizes, the layers between those of the padded image; activation functions, which change no shape, are left out.
    """
    network = config.network
    logits = (*(n - margin(network.depth, network.padding) for n in size), network.classes)
    found = [("image", (*size, network.channels), 0)]
    for layer in table(network, size):
        if layer.kind != "act":
            trainable = (shape for part, shape in layer.weights.items() if is_trainable(f"{layer.name}/{part}"))
            shape = logits if layer.name == "head" else layer.outputs
            found.append((layer.name, shape, sum(map(math.prod, trainable))))
    return found


def print_summary(config, size):
    """Prints the table for an image of `size`, (height, width)."""
    print(f"\n{'layer':<16}{'height':>8}{'width':>8}{'channels':>10}{'parameters':>14}")
    for name, (height, width, channels), count in layers(config, size):
        print(f"{name:<16}{height:>8}{width:>8}{channels:>10}{count or '':>14}")
