"""The least work that the network is, in operations and bytes, and how fast the device could do it.

Williams, Waterman, Patterson 2009: "Roofline: an insightful visual performance model for multicore architectures".
"""

import math

from common.colors import CLASS_COLORS
from common.layers import table
from common.pictures import save_figure, styled
from common.weights import is_trainable, weight_shapes

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator

MODES = {"train": "training", "infer": "inference", "folded": "inference, batch norm folded"}
BYTES = {"float32": 4, "tf32": 4, "bfloat16": 2, "float16": 2, "float64": 8}  # of an activation


def convolutions(network, height, width):
    """The layers that are convolutions, for one image of `height` x `width`, padded where that does not fit."""
    return [layer for layer in table(network, (height, width)) if "kernel" in layer.weights]


def convolution_flops(network, height, width):
    """(inference, training) floating-point operations of the convolutions for one image.

    Training: every convolution also has a gradient by its kernel and, but for the first, by its input, each as expensive as
    itself. What is not a convolution is left out: below 2 % of them from 16 filters on.
    """
    flops = []  # a multiplication and an addition each
    for layer in convolutions(network, height, width):
        # applied once for every pixel that is written; the up-convolution's, with stride 2, for every one that is read
        pixels = math.prod((layer.inputs if layer.kind == "deconv" else layer.outputs)[:2])
        flops.append(2 * math.prod(layer.weights["kernel"]) * pixels)
    return sum(flops), 3 * sum(flops) - flops[0]


def least_bytes(config, precision, batch_size, height, width):
    """(inference, training) bytes that a step of `batch_size` images must move to and from memory.

    Everything between two convolutions is counted as fused into them, and what a cache could keep from one to the next is
    not: a convolution reads its input and its kernel once and writes its output once. In training its two gradients read
    the gradient of the output twice, the input and the kernel once, and write a gradient of each, but for the input of the
    first; Adam reads and writes a weight and its two moments and reads the gradient, SGD has one moment, in float32 or wider.
    """
    size, wide = BYTES[precision], 8 if precision == "float64" else 4
    moved = []  # by each convolution in the forward pass
    for layer in convolutions(config.network, height, width):
        activations = batch_size * (math.prod(layer.inputs) + math.prod(layer.outputs))
        moved.append(size * (activations + math.prod(layer.weights["kernel"])))
    parameters = sum(math.prod(shape) for name, shape in weight_shapes(config.network).items() if is_trainable(name))
    update = {"adam": 7, "sgd": 5}[config.training.optimizer] * parameters * wide
    return sum(moved), 3 * sum(moved) - moved[0] + update


@styled
def draw(records, peaks, title, path):
    """A panel for every mode: the roofs that the device sets in every precision, and what the implementations reached below.

    Under a panel stands how much of its roof each precision reaches: of the arithmetic, or of what memory moves.

    records: of `speeds.record`. peaks: precision -> {"convolution": operations per second, "copy": bytes per second}.
    """
    modes, implementations, precisions = (
        list(dict.fromkeys(row[name] for row in records)) for name in ("mode", "implementation", "precision")
    )
    # often they are equally fast: the markers, the largest first, lie within each other
    markers, sizes = (dict(zip(implementations, each)) for each in ("os^Dv", (16, 12, 9, 6, 4)))
    # of the points, and of where a roof bends
    x = [row["flops"] / row["least_bytes"] for row in records] + [p["convolution"] / p["copy"] for p in peaks.values()]
    y = [row["flops_per_second"] for row in records] + [peak["convolution"] for peak in peaks.values()]
    x, ylim = np.geomspace(min(x) / 2, max(x) * 2, 200), (min(y) / 1.5e9, max(y) * 1.5 / 1e9)

    figure = Figure(figsize=(4.2 * len(modes), 4.6))
    panels = figure.subplots(1, len(modes), sharex=True, sharey=True, squeeze=False)[0]
    for mode, axes in zip(modes, panels):
        axes.set(xscale="log", yscale="log", xlim=x[[0, -1]], ylim=ylim, title=MODES[mode])
        axes.set_xlabel("operations of the convolutions per byte that must be moved")
        axes.grid()
        for k, precision in enumerate(precisions):
            color, peak, shares, limits = tuple(CLASS_COLORS[(5, 6, 3, 7)[k]]), peaks.get(precision), {}, {}
            if peak:
                roof = np.minimum(peak["convolution"], x * peak["copy"])
                axes.plot(x, roof / 1e9, color=color, lw=(4, 2.2, 1, 1)[k])  # roofs may lie on each other
            for row in (row for row in records if (row["mode"], row["precision"]) == (mode, precision)):
                name, intensity, speed = row["implementation"], row["flops"] / row["least_bytes"], row["flops_per_second"]
                style = dict(mec="white") if row["jit"] else dict(mfc="none")
                axes.plot(intensity, speed / 1e9, marker=markers[name], ms=sizes[name], color=color, **style)
                if peak:
                    roof, unit = min((peak["convolution"], "GFLOP/s"), (intensity * peak["copy"], "GB/s"))
                    limits[f"{peak['convolution' if unit == 'GFLOP/s' else 'copy'] / 1e9:,.0f} {unit}"] = None
                    shares.setdefault("with XLA " * row["jit"], []).append(f"{100 * speed / roof:.0f}")
            words = [how + " to ".join(dict.fromkeys((min(s, key=int), max(s, key=int)))) for how, s in shares.items()]
            words = f"{' %, '.join(words)} % of {' and '.join(limits)}" if peak else "its limit was not measured"
            axes.text(0, -0.25 - 0.065 * k, f"{precision}: {words}", color=color, fontsize=8, transform=axes.transAxes)
    for axis in (panels[0].xaxis, panels[0].yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter("{x:,g}")
        axis.set_minor_formatter("")
    panels[0].set_ylabel("GFLOP/s")
    figure.suptitle(f"{title}\nA line is what the device could do, a marker what was reached: the nearer the better")
    figure.tight_layout()
    handles = [Line2D([], [], color="0.3", mfc="none", ls="", marker=m, ms=sizes[n], label=n) for n, m in markers.items()]
    handles.append(Line2D([], [], color="0.3", ls="", marker="o", label="filled: with XLA"))
    figure.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, 0), fontsize=8, ncols=4)
    save_figure(figure, path)
