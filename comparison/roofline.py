"""The least work that the network is, in operations and bytes, and how fast the device could do it.

Williams, Waterman, Patterson 2009: "Roofline: an insightful visual performance model for multicore architectures".
"""

import math
from typing import NamedTuple

from common.layers import table
from common.pictures import save_figure
from common.weights import is_trainable, weight_shapes

import numpy as np
from matplotlib.figure import Figure

BYTES = {"float32": 4, "tf32": 4, "bfloat16": 2, "float64": 8}  # of an activation


class Convolution(NamedTuple):
    """One convolution for one image: its name, how many numbers go in and out and are in its kernel, its operations."""

    name: str
    inputs: int
    outputs: int
    kernel: int
    flops: int  # a multiplication and an addition each


def convolutions(network, height, width):
    """Every convolution of the forward pass for one image of `height` x `width`, padded where that does not fit."""
    found = []
    for layer in table(network, (height, width)):
        if layer.kind in ("conv", "deconv"):
            kernel = math.prod(layer.weights["kernel"])
            # applied once for every pixel that is written; the up-convolution's, with stride 2, for every one that is read
            pixels = math.prod((layer.inputs if layer.kind == "deconv" else layer.outputs)[:2])
            found.append(
                Convolution(layer.name, math.prod(layer.inputs), math.prod(layer.outputs), kernel, 2 * kernel * pixels)
            )
    return found


def convolution_flops(network, height, width):
    """(inference, training) floating-point operations of the convolutions for one image.

    Training: every convolution also has a gradient by its kernel and, but for the first, by its input, each as expensive as
    itself. What is not a convolution is left out: below 2 % of them from 16 filters on.
    """
    flops = [convolution.flops for convolution in convolutions(network, height, width)]
    return sum(flops), 3 * sum(flops) - flops[0]


def least_bytes(config, precision, batch_size, height, width):
    """(inference, training) bytes that a step of `batch_size` images must move to and from memory.

    Everything between two convolutions is counted as fused into them, and what a cache could keep from one to the next is
    not: a convolution reads its input and its kernel once and writes its output once. In training its two gradients read
    the gradient of the output twice, the input and the kernel once, and write a gradient of each, but for the input of the
    first; Adam reads and writes a weight and its two moments and reads the gradient, SGD has one moment, in float32 or wider.
    """
    size = BYTES[precision]
    wide = 8 if precision == "float64" else 4
    found = convolutions(config.network, height, width)
    activations = batch_size * sum(c.inputs + c.outputs for c in found) * size
    kernels = sum(c.kernel for c in found) * size
    gradients = batch_size * sum(2 * c.inputs + 2 * c.outputs for c in found) * size + 2 * kernels
    gradients -= (batch_size * (found[0].inputs + found[0].outputs) + found[0].kernel) * size  # nobody asks for that one
    parameters = sum(math.prod(shape) for name, shape in weight_shapes(config.network).items() if is_trainable(name))
    update = {"adam": 7, "sgd": 5}[config.training.optimizer] * parameters * wide
    return activations + kernels, activations + kernels + gradients + update


def draw(points, peaks, title, path):
    """The roofline of every precision, and every measurement below it.

    points: [(label, implementation, precision, operations per byte, operations per second)].
    peaks: precision -> {"convolution": operations per second, "copy": bytes per second}.
    """
    figure = Figure(figsize=(9, 5.4))
    axes = figure.subplots()
    intensities = np.logspace(0, 3.6, 200)
    styles = {precision: f"C{k + 3}" for k, precision in enumerate(peaks)}
    for precision, peak in peaks.items():
        roof = np.minimum(peak["convolution"], intensities * peak["copy"]) / 1e9
        words = f"{precision}: {peak['convolution'] / 1e9:,.0f} GFLOP/s, {peak['copy'] / 1e9:,.0f} GB/s"
        axes.loglog(intensities, roof, color=styles[precision], label=words)
    markers = dict(zip(dict.fromkeys(label for label, *_ in points), "os^Dv*PXhd<>"))
    colors = dict(zip(dict.fromkeys(implementation for _, implementation, *_ in points), ("C0", "C1", "C2")))
    for label, implementation, precision, intensity, speed in points:
        axes.loglog(
            *(intensity, speed / 1e9),
            **dict(marker=markers[label], color=colors[implementation], ls="", ms=7, alpha=0.8),
            **dict(markeredgecolor=styles.get(precision, "0.4"), markeredgewidth=1.5),
        )
    for label, marker in markers.items():
        axes.plot([], [], marker=marker, color="0.4", ls="", label=label)
    for implementation, color in colors.items():
        axes.plot([], [], marker="o", color=color, ls="", label=implementation)
    axes.set(xlabel="operations of the convolutions per byte that must be moved", ylabel="GFLOP/s", title=title)
    axes.title.set_fontsize(9)
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=7, loc="lower right")
    figure.tight_layout()
    save_figure(figure, path)
