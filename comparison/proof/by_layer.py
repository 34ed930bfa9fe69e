"""Layer by layer, also when all is well: each activation and gradient of the three, how far apart, how much, and where."""

import itertools

from common.pictures import save_figure, styled
from common.weights import initial_weights
from comparison import columns
from comparison.proof import exact, finder
from comparison.proof.apart import apart, head, print_by_layer

import numpy as np
from matplotlib.figure import Figure


def look(implementation, case, batches, weights):
    """What one implementation makes of the first batch, layer by layer. -> rung -> {name -> array}

    Activations from the image on, gradients from the head backwards.
    """
    built, (images, masks), rungs = exact.build(implementation, case), batches[0], {}
    for training, mode in ((False, "inference"), (True, "training")):
        built.start(weights)
        rungs[f"activations in {mode}"] = dict(finder.activations(built.model, case.config, images, training))
    built.start(weights)
    return rungs | {"gradients": finder.gradients_backwards(built, images, masks)[1]}


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
    """A row for each layer: largest difference over the largest value, in ulp, and the percentage of the elements that differ.

    Behind it, where the largest lies. rows: of `compare`.
    """
    print(f"\n{title}")
    found = {}
    for key, pairs in rows.items():
        worst = max(pairs.values(), key=lambda a: a.relative)
        found[key] = [f"{a} {100 * a.share:.0f}%" if a.relative else "0" for a in pairs.values()]
        found[key].append(list(worst.where) if worst.where else "")
    print_by_layer([*map(head, next(iter(rows.values()))), "the largest at"], found)


@styled
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
