"""What `compare.py bench` measures, cell by cell, and which cells are up at a time."""

import collections
import itertools
import re
from pathlib import Path
from typing import NamedTuple

from common import shapes
from common.config import PRESETS, Size
from comparison import columns
from comparison.benchmark import roofline

import numpy as np

MODES = {"train": "training", "infer": "inference", "folded": "inference, batch norm folded"}
LIMIT = "limit"  # stands for an implementation: what the device can do at best
# with --batch-norm fused keras_impl has v1's kernel for the normalization: this is what Keras has by itself
STOCK = "keras_impl, stock batch normalization"
ROWS = (*columns.IMPLEMENTATIONS, STOCK)
PROCESS_BYTES = 800 * 2**20  # of a process with TensorFlow in it, before the first image
ENOUGH = 1.05  # a batch that is twice as large has to bring so much more, or it is not taken
# networks beside the user's own; the paper's sees 572 pixels of an image of 388 that is mirrored around its border
VARIANTS = {"": {}, "ReLU": dict(activation="relu")}
VARIANTS["paper"] = PRESETS["paper"] | dict(crop_size=None, image_size=Size(388, 388))


class Cell(NamedTuple):
    """What is measured by itself: one of `ROWS`, or `LIMIT`, in one setting."""

    precision: str  # as in `Config`, or "tf32"
    jit: bool
    batch_size: int | None  # None: to be found by `doubled`
    image_size: Size
    implementation: str
    variant: str = ""  # of `VARIANTS`
    changes: tuple = ()  # its options, but for those that the user has set: (name, value)

    def config(self, config):
        changes = dict(self.changes) | dict(jit=self.jit, batch_size=self.batch_size or config.training.batch_size)
        changes["precision"] = "float32" if self.precision == "tf32" else self.precision
        if self.implementation == STOCK:
            changes["batch_norm"] = "explicit"
        return config.replace(**changes)

    def published(self, mode):
        """What NVIDIA has measured, None if not this: images per second in float16 with XLA on one A100."""
        same = self.variant == "paper" and self.changes == changes_of("paper", set())
        return {("train", 8): 119, ("infer", 16): 424}.get((mode, self.batch_size)) if same else None

    @property
    def column(self):
        return self.implementation.partition(",")[0]

    @property
    def setting(self):
        how = f"{self.precision}{', XLA' if self.jit else ''}, batch {self.batch_size}, {self.image_size} pixels"
        return f"{self.variant}, {how}" if self.variant else how

    @property
    def title(self):
        return f"{self.implementation}, {self.setting}"


def changes_of(variant, given):
    """The options of a variant, but for those `given` by the user, and for the batch."""
    return tuple((name, value) for name, value in VARIANTS[variant].items() if name not in {"batch_size", *given})


def settings_of_cpu(matrix, precisions, batch_size, sizes):
    """[(variant, image size, batch size, precision, XLA)]; sizes: of images, of which all but "full" take the first."""
    compiled = (False,) if matrix == "quick" else (False, True)
    batches = sorted({1, batch_size, 4 * batch_size}) if matrix == "full" else [batch_size]
    return list(itertools.product([""], sizes if matrix == "full" else sizes[:1], batches, precisions, compiled))


def settings_of_gpu(matrix, precisions, sizes, variants):
    """The same for a GPU, in order of worth, since its time may be short: there a batch of 8 small images times launches."""
    narrow = [precision for precision in precisions if "16" in precision] or precisions
    small, *large = (
        [("", size, None, precision, compiled) for compiled in (False, True) for precision in precisions] for size in sizes
    )
    if matrix == "quick":
        return [setting for setting in small if not setting[-1] or setting[-2] in narrow]
    # NVIDIA's setting first
    each = itertools.product((True, False), reversed(precisions), (8, 16))
    paper = [("paper", None, batch, precision, compiled) for compiled, precision, batch in each]
    relu = [("ReLU", size, None, *rest) for size in sizes for rest in itertools.product(narrow, (False, True))]
    return [setting for setting in small + paper + sum(large, []) + relu if setting[0] in variants]


def find_cells(config, given, matrix, image_size, kind="CPU", has_tf32=False):
    """The cells of a `matrix`, "quick", "default" or "full", for a kind of device, "CPU" or "GPU".

    given: names of the options that the user has set, which every cell has. image_size: of the images that are there; only
    drawn ones can have another.
    """
    precisions = ["float32", *["tf32"] * has_tf32, "bfloat16", *["float16"] * (kind == "GPU")]
    if "precision" in given:
        precisions = [config.network.precision]
    drawn, batch_size = config.data.dataset == "synthetic" and not config.data.crop_size, config.training.batch_size
    larger = Size(512, 512) if kind == "GPU" else Size(2 * image_size.height, 2 * image_size.width)
    sizes = [image_size, larger] if drawn and "image_size" not in given else [image_size]
    if kind == "GPU":
        variants = ["", *["ReLU"] * (config.network.activation == "elu"), *["paper"] * drawn]
        settings = settings_of_gpu(matrix, precisions, sizes, variants)
    else:
        settings = settings_of_cpu(matrix, precisions, batch_size, sizes)
    found, limited = [], set()
    for variant, size, batch, precision, compiled in settings:
        changes = changes_of(variant, given)
        size = size or dict(changes).get("image_size", image_size)
        if "batch_size" in given:
            batch = batch_size
        if "jit" in given:
            compiled = config.training.jit
        fused = config.replace(**dict(changes)).network.batch_norm == "fused" and (kind == "CPU" or matrix != "quick")
        rows = [LIMIT] * (precision not in limited) + [row for row in ROWS if row != STOCK or fused]
        limited.add(precision)
        found += [Cell(precision, compiled, batch, size, row, variant, changes) for row in rows]
    return list(dict.fromkeys(found))


def doubled(rate, batch_size=8):
    """[(batch size, images per second)]: doubled until that gains too little, or no longer fits into memory, where it is None.

    rate: function(batch size) -> images per second. The last but one is the batch to take, if there is one.
    """
    found = [(batch_size, rate(batch_size))]
    while found[-1][1] and (len(found) == 1 or found[-1][1] > ENOUGH * found[-2][1]):
        batch_size *= 2
        found.append((batch_size, rate(batch_size)))
    return found


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


def by_setting(cells):
    """Lists of the cells of one setting, in order."""
    found = collections.defaultdict(list)
    for cell in cells:
        found[cell._replace(implementation="")].append(cell)
    return list(found.values())


def groups(cells, config, memory):
    """Lists of cells whose processes can be up at a time; with them those that alone are too much for `memory` bytes."""
    limits = [cell for cell in cells if cell.implementation == LIMIT]
    need = {cell: expected_bytes(cell, cell.config(config)) for cell in cells}
    start = used = sum(need[cell] for cell in limits)
    too_large, found = [], []
    for of_setting in by_setting(cell for cell in cells if cell.implementation != LIMIT):
        together = sum(need[cell] for cell in of_setting)
        if start + together > memory:
            too_large += of_setting
            continue
        if not found or used + together > memory:
            found.append(list(limits))
            used = start
        found[-1] += of_setting
        used += together
    return found, too_large
