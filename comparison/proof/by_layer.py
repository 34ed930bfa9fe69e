"""Layer by layer, also when all is well: each activation and gradient of the three, how far apart, how much, and where."""

import itertools
from typing import NamedTuple

from common.pictures import save_figure
from common.weights import initial_weights
from comparison import columns
from comparison.proof import finder
from comparison.proof.ladder import ulp_distance

import numpy as np
from matplotlib.figure import Figure


class Apart(NamedTuple):
    """How far two arrays are apart."""

    relative: float  # the largest difference, over the largest value; infinite where shapes or not-a-numbers disagree
    ulp: int = 0  # that difference in units in the last place
    share: float = 0.0  # of the elements that differ
    where: tuple = ()  # the index of the largest difference

    def __str__(self):
        return f"{self.relative:.1e} {self.ulp} ulp" if self.relative else "0"


def apart(x, y):
    """`Apart` of two arrays of one float type."""
    if x.shape != y.shape:
        return Apart(np.inf)
    wide, other = x.astype(np.float64), y.astype(np.float64)
    d = np.abs(wide - other)
    d = np.where(np.isfinite(d), d, np.inf)  # not a number equals nothing
    if not d.any():
        return Apart(0.0)
    where = tuple(int(k) for k in np.unravel_index(d.argmax(), d.shape))
    return Apart(float(d.max() / np.abs(wide).max()), ulp_distance(x[where], y[where]), np.count_nonzero(d) / d.size, where)


def look(implementation, case, batches, weights):
    """What one implementation makes of the first batch, layer by layer. -> rung -> {name -> array}

    Activations from the image on, gradients from the head backwards.
    """
    probe, (images, masks), rungs = finder.Probe(implementation, case), batches[0], {}
    for training, mode in ((False, "inference"), (True, "training")):
        probe.start(weights)
        rungs[f"activations in {mode}"] = dict(finder.activations(probe.model, case.config, images, training))
    probe.start(weights)
    return rungs | {"gradients": probe.gradients(images, masks)}


def compare(case, batches):
    """-> {(rung, layer): {pair: `Apart`}}"""
    weights = initial_weights(case.config.network)
    seen = {name: look(name, case, batches, weights) for name in columns.IMPLEMENTATIONS}
    return {
        (rung, name): {
            f"{a} - {b}": apart(seen[a][rung][name], seen[b][rung][name])
            for a, b in itertools.combinations(columns.IMPLEMENTATIONS, 2)
        }
        for rung, layers in seen["lowlevel"].items()
        for name in layers
    }


def print_table(title, rows):
    """A row for each layer: largest difference over the largest value, in ulp, and the share of the elements that differ.

    Behind it, where the largest lies. rows: of `compare`.
    """
    pairs = list(next(iter(rows.values())))
    print(f"\n{title:<28}" + "".join(f"{pair:>32}" for pair in pairs) + "  where the largest lies")
    for rung, layers in itertools.groupby(rows, key=lambda key: key[0]):
        print(rung)
        for key in layers:
            cells = [f"{f'{a}, {100 * a.share:.0f} %' if a.relative else '0':>32}" for a in rows[key].values()]
            worst = max(rows[key].values())
            print(f"  {key[1]:<26}{''.join(cells)}{f'  {list(worst.where)}' if worst.where else ''}", flush=True)


def draw(tables, path):
    """Layers down, pairs across, a panel for each rung; 0, which has no logarithm, is white and marked.

    The colour is log10 of the largest difference over the layer's largest value. tables: title -> rows of `compare`.
    """
    layers = {}
    for rung, name in next(iter(tables.values())):
        layers.setdefault(rung, []).append(name)
    across = [(title, pair) for title, rows in tables.items() for pair in next(iter(rows.values()))]
    figure = Figure(figsize=(14, 0.15 * max(map(len, layers.values())) + 3), layout="constrained")
    axes = figure.subplots(1, len(layers))
    for axis, (rung, names) in zip(axes, layers.items()):
        values = np.array([[tables[title][rung, name][pair].relative for title, pair in across] for name in names])
        shown = np.log10(np.where(values > 0, values, np.nan))
        image = axis.imshow(shown, cmap="cividis", vmin=-16, vmax=0, aspect="auto", interpolation="nearest")
        for row, column in np.argwhere(values == 0):
            axis.text(column, row, "0", ha="center", va="center", fontsize=6, color="0.5")
        axis.set_title(rung, fontsize=10)
        axis.set_xticks(range(len(across)), [f"{pair}, {title.split(', ')[-1]}" for title, pair in across], fontsize=7)
        axis.tick_params(axis="x", rotation=90)
        axis.set_yticks(range(len(names)), names, fontsize=6)
        for k in range(3, len(across), 3):  # between the tiers
            axis.axvline(k - 0.5, color="0.5", lw=0.5)
    label = "log10 of the largest difference, over the layer's largest value; white: 0"
    figure.colorbar(image, ax=axes, shrink=0.6).set_label(label, fontsize=8)
    figure.suptitle(" | ".join(tables), fontsize=8)
    save_figure(figure, path)
