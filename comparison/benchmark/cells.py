"""What `compare.py bench` measures, cell by cell, and how many cells fit into memory at a time."""

import collections
import itertools
import re
from pathlib import Path
from typing import NamedTuple

from common import shapes
from common.config import Size
from comparison import columns
from comparison.benchmark import roofline

import numpy as np

MODES = {"train": "training", "infer": "inference", "folded": "inference, batch norm folded"}
LIMIT = "limit"  # stands for an implementation: what the device can do at best
# with --batch-norm fused keras_impl has v1's kernel for the normalization: this is what Keras has by itself
STOCK = "keras_impl, stock batch normalization"
ROWS = (*columns.IMPLEMENTATIONS, STOCK)
PROCESS_BYTES = 800 * 2**20  # of a process with TensorFlow in it, before the first image


class Cell(NamedTuple):
    """What one process measures: one of `ROWS`, or `LIMIT`, in one setting."""

    precision: str  # as in `Config`, or "tf32"
    jit: bool
    batch_size: int
    image_size: Size
    implementation: str

    def config(self, config):
        precision = "float32" if self.precision == "tf32" else self.precision
        stock = {"batch_norm": "explicit"} if self.implementation == STOCK else {}
        return config.replace(precision=precision, jit=self.jit, batch_size=self.batch_size, **stock)

    @property
    def column(self):
        return self.implementation.partition(",")[0]

    @property
    def setting(self):
        return f"{self.precision}{', XLA' if self.jit else ''}, batch {self.batch_size}, {self.image_size} pixels"

    @property
    def title(self):
        return f"{self.implementation}, {self.setting}"


def find_cells(config, given, matrix, image_size, has_tf32):
    """The cells of a `matrix`: "quick", "default" or "full".

    given: names of the options that the user has set. An axis of the matrix that is among them has that value alone.
    image_size: of the images that are there; only drawn ones can have another.
    """
    batch_size = config.training.batch_size
    axes = {
        "precision": ["float32", *(["tf32"] if has_tf32 else []), "bfloat16"],
        "jit": [False] if matrix == "quick" else [False, True],
        "batch_size": sorted({1, batch_size, 4 * batch_size}) if matrix == "full" else [batch_size],
        "image_size": [image_size],
    }
    if matrix == "full" and config.data.dataset == "synthetic" and not config.data.crop_size:
        axes["image_size"].append(Size(2 * image_size.height, 2 * image_size.width))
    for name in given & axes.keys():
        axes[name] = [image_size if name == "image_size" else config.flat[name]]
    cells = [Cell(precision, False, batch_size, image_size, LIMIT) for precision in axes["precision"]]
    order = (axes[name] for name in ("image_size", "batch_size", "precision", "jit"))
    for image_size, batch_size, precision, jit in itertools.product(*order):
        rows = [row for row in ROWS if row != STOCK or config.network.batch_norm == "fused"]
        cells += [Cell(precision, jit, batch_size, image_size, row) for row in rows]
    return cells


def expected_bytes(cell, config):
    """A generous estimate of the memory that the cell needs: a number must not take the machine down."""
    if cell.implementation == LIMIT:
        return PROCESS_BYTES
    network = config.network
    found = roofline.convolutions(network, *(side + shapes.margin(network.depth, network.padding) for side in cell.image_size))
    # every number between two operations is kept for the gradient: of a convolution, a normalization and an activation
    numbers = 3 * cell.batch_size * sum(c.inputs + c.outputs for c in found) * roofline.BYTES[cell.precision]
    # in float32 or wider: weights, two moments and gradients, and what becomes of them in an update; the folded copy
    weights = 10 * sum(c.kernel for c in found) * max(4, roofline.BYTES[cell.precision])
    return PROCESS_BYTES + numbers * (2 if cell.jit else 1) + weights


def available_bytes():
    """Memory that new processes may take, or infinity where nobody says."""
    try:  # Linux
        return 1024 * int(re.search(r"MemAvailable:\s*(\d+) kB", Path("/proc/meminfo").read_text())[1])
    except (OSError, TypeError):
        return np.inf


def groups(cells, config, memory):
    """Lists of cells whose processes can be up at a time; with them those that alone are too much for `memory` bytes.

    memory: None where nobody knows: what is compared is up at a time, and no more.
    """
    settings = collections.defaultdict(list)
    for cell in cells:
        settings[cell[:-1] if cell.implementation != LIMIT else LIMIT].append(cell)
    limits = settings.pop(LIMIT)
    need = {cell: expected_bytes(cell, cell.config(config)) for cell in cells}
    start = sum(need[cell] for cell in limits)
    too_large, found, used = [], [], start
    for of_setting in settings.values():
        together = sum(need[cell] for cell in of_setting)
        if memory and start + together > memory:
            too_large += of_setting
            continue
        if not found or not memory or used + together > memory:
            found.append(list(limits))
            used = start
        found[-1] += of_setting
        used += together
    return found, too_large
