"""What `compare.py bench` measures, cell by cell, in order."""

import itertools
from typing import NamedTuple

from common import found_in, shapes
from common.config import PRESETS, Config, Size
from comparison import columns
from comparison.benchmark import roofline

LIMIT = "limit"  # stands for an implementation: what the device can do at best
# with --batch-norm fused keras_impl has v1's kernel for the normalization: this is what Keras has by itself
STOCK = "keras_impl, stock batch normalization"
PROCESS_BYTES = 800 * 2**20  # of a process with TensorFlow in it, before the first image
ENOUGH = 1.05  # a batch that is twice as large has to bring so much more, or it is not taken
# networks beside the user's own; the paper's sees 572 pixels of an image of 388 that is mirrored around its border
VARIANTS = {"": {}, "ReLU": dict(activation="relu")}
VARIANTS["paper"] = PRESETS["paper"] | dict(crop_size=None, image_size=Size(388, 388))
VARIANTS["paper"].pop("batch_size")
PUBLISHED = {("train", 8): 119, ("infer", 16): 424}  # NVIDIA's of the paper's network, float16 with XLA on one A100: images/s


class Cell(NamedTuple):
    """What is measured by itself: an implementation, `STOCK` or `LIMIT`, in one setting."""

    implementation: str
    config: Config
    image_size: Size
    precision: str = "float32"  # as in `config`, or "tf32"
    variant: str = ""  # of `VARIANTS`
    doubles: bool = False  # whether the batch is to be found by `doubled`

    @property
    def column(self):
        return self.implementation.partition(",")[0]

    @property
    def batch_size(self):
        return self.config.training.batch_size

    @property
    def setting(self):
        how = f"{self.precision}{', XLA' * self.config.training.jit}, batch {self.batch_size}, {self.image_size} pixels"
        return f"{self.variant}, {how}" if self.variant else how

    @property
    def title(self):
        return f"{self.implementation}, {self.setting}"

    def published(self, mode):
        """What NVIDIA has measured of this network, None if not of this: images per second."""
        same = self.variant == "paper" and VARIANTS["paper"].items() <= self.config.flat.items()
        return PUBLISHED.get((mode, self.batch_size)) if same else None


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


def find_cells(config, given, matrix, image_size, kind="CPU", precisions=("float32",), own=None):
    """The cells of a `matrix`, "quick", "default" or "full", for a kind of device, "CPU" or "GPU".

    given: names of the options that the user has set, which every cell has. image_size: of the images that are there; only
    drawn ones can have another. precisions: as `machine.precisions`. own: the folder of a column of the reader's own.
    """
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
    found = []
    for variant, size, batch, precision, compiled in settings:
        options = dict(precision=precision.replace("tf32", "float32"), jit=compiled, batch_size=batch or batch_size)
        options |= dict(image_size=size or image_size) if drawn else {}
        options |= VARIANTS[variant]
        of_setting = config.replace(**{name: value for name, value in options.items() if name not in given})
        fused = of_setting.network.batch_norm == "fused" and (kind == "CPU" or matrix != "quick")
        for row in (LIMIT, *columns.IMPLEMENTATIONS, *[STOCK] * fused, *[own] * bool(own)):
            of_row = of_setting.replace(batch_norm="explicit") if row == STOCK else of_setting
            pixels = of_row.data.image_size if drawn else image_size
            found.append(Cell(row, of_row, pixels, precision, variant, batch is None and "batch_size" not in given))
    return list(dict.fromkeys(found))


def doubled(rate, batch_size=8):
    """[(batch size, images per second)]: doubled until that gains too little, or no longer fits into memory, where it is None.

    rate: function(batch size) -> images per second.
    """
    found = [(batch_size, rate(batch_size))]
    while found[-1][1] and (len(found) == 1 or found[-1][1] > ENOUGH * found[-2][1]):
        batch_size *= 2
        found.append((batch_size, rate(batch_size)))
    return found


def chosen(found):
    """[the batch size to take of `doubled`], or [] if none fits: the last but one, after which little is gained.

    Where memory has ended it, a quarter of that, for every column holds its own on the device.
    """
    sizes = [size for size, rate in found if rate]
    if len(sizes) < len(found):
        return [max(1, size // 4) for size in sizes[-1:]]
    return sizes[-2:-1]


def expected_bytes(cell):
    """A generous estimate of the memory that the cell needs: a number must not take the machine down."""
    if cell.implementation == LIMIT:
        return PROCESS_BYTES
    network, config = cell.config.network, cell.config
    size = (side + shapes.margin(network.depth, network.padding) for side in cell.image_size)
    # what a step moves is kept for the way back, in some form; XLA holds more of it at a time
    moved = roofline.least_bytes(config, cell.precision, cell.batch_size, *size)[1]
    return PROCESS_BYTES + (2 if config.training.jit else 1) * moved


def available_bytes():
    """Memory that new processes may take, or infinity where nobody says."""
    return 1024 * float(found_in("/proc/meminfo", r"MemAvailable:\s*(\d+) kB") or "inf")
