"""The U as a table of its layers in the order of the forward pass: names, shapes, weights (Ronneberger et al. 2015, figure 1).

Weights, summary, roofline and finder are read off it, so that no other module but the columns walks through the U.
"""

from typing import NamedTuple

from common.config import UserError, flag
from common.shapes import min_size, missing

STATISTICS = ("gamma", "beta", "moving_mean", "moving_variance")  # of a batch normalization


class Layer(NamedTuple):
    """One layer for one image. Shapes are (height, width, channels)."""

    name: str  # canonical, such as "down0/conv1"
    kind: str  # "conv", "bn", "act", "pool", "dropout", "deconv" or "concat"
    inputs: tuple  # of a concat: what comes from below
    outputs: tuple
    weights: dict  # "kernel", "bias", "gamma", ... -> shape; the weight's canonical name is f"{name}/{key}"


def table(network, size=None):
    """[`Layer`] for images of `size`, (height, width), padded as `padding.any_size` does; by default of the smallest size.

    Raises: UserError while the channels or the classes are not known.
    """
    unknown = [flag(name) for name in ("channels", "classes") if getattr(network, name) is None]
    if unknown:
        raise UserError(f"the network's layers are known once the data is read, or with {' and '.join(unknown)}")
    height, width = (side + missing(side, network) for side in size or 2 * [min_size(network)])
    x, layers = (height, width, network.channels), []  # x: the shape of what flows through

    def add(name, kind, channels, side=lambda n: n, **weights):
        nonlocal x
        layers.append(Layer(name, kind, inputs=x, outputs=(side(x[0]), side(x[1]), channels), weights=weights))
        x = layers[-1].outputs

    def double_conv(block, channels):
        for k in (1, 2):
            normalized = network.batch_norm != "none"  # a normalization would subtract the bias again
            weights = {"kernel": (3, 3, x[2], channels)} | ({} if normalized else {"bias": (channels,)})
            add(f"{block}/conv{k}", "conv", channels, lambda n: n if network.padding == "same" else n - 2, **weights)
            if normalized:
                add(f"{block}/bn{k}", "bn", channels, **dict.fromkeys(STATISTICS, (channels,)))
            add(f"{block}/act{k}", "act", channels)

    channels = [network.filters * 2**i for i in range(network.depth + 1)]
    for i in range(network.depth):
        double_conv(f"down{i}", channels[i])
        add(f"down{i}/pool", "pool", channels[i], lambda n: n // 2)
    double_conv(f"down{network.depth}", channels[-1])
    if network.dropout:
        add("dropout", "dropout", channels[-1], state=(2,))  # int64: the seed and the number of calls
    for i in reversed(range(network.depth)):
        kernel = (2, 2, channels[i], channels[i + 1])
        add(f"up{i}/deconv", "deconv", channels[i], lambda n: 2 * n, kernel=kernel, bias=(channels[i],))
        add(f"up{i}/concat", "concat", 2 * channels[i])
        double_conv(f"up{i}", channels[i])
    add("head", "conv", network.classes, kernel=(1, 1, network.filters, network.classes), bias=(network.classes,))
    return layers
