"""What a run is: a network, its training, its data, in three frozen dataclasses of which one holds the others.

`Config.of(filters=8, precision="float64")` makes the whole from flat names; the command line (`common.cli`) and config.json are
as flat. Networks take `config.network` alone.
"""

import contextlib
import dataclasses
import math
import reprlib
import types
import typing
from pathlib import Path
from typing import Literal

from common.colors import names_in
from common.shapes import min_size, missing
from common.text import printable
from common.values import VOID, Addresses, Bands, ColorTable, Names, Size, UserError, Values, Weights, in_float32

IMPLEMENTATIONS = ("lowlevel", "highlevel", "keras_impl")


class Stopped(Exception):
    """The user has stopped a run, and all that it takes to go on is saved. `signal`: the number of what stopped it."""

    def __init__(self, message, signal):
        super().__init__(message)
        self.signal = signal


def option(default, help, **marks):
    """A field with its meaning and unit, which is also its --help text.

    Marks:
    low, high: the least and the largest value; high comes with low. above, below: the value is larger, or smaller.
    needs: another field, which must be set then, and the values that do if not all. excludes: fields that must not be set.
    found: the data says it where the command line does not. free: may change when a run goes on. hidden: it has no option.
    val: decides which images validate and how they are read, as every field of `Data` does where it does not say False.
    """
    return dataclasses.field(default=default, metadata={"help": help, **marks})


def flag(name):
    """The command line's word for a field."""
    return "--" + name.replace("_", "-")


def kind_of(field):
    """`int` for a field of `int` or of `int | None`."""
    return typing.get_args(field.type)[0] if isinstance(field.type, types.UnionType) else field.type


def range_of(field):
    """The range of a field in words, "" where it has none."""
    marks = field.metadata
    if {"low", "high"} <= marks.keys():
        return f"{marks['low']} to {marks['high']}"
    words = {"low": "at least", "above": "above", "below": "below"}
    return " and ".join(f"{word} {marks[name]}" for name, word in words.items() if name in marks)


def check(part):
    """Whether each value of a dataclass lies in its range and has the company that it needs. Raises: UserError."""
    for field in dataclasses.fields(part):
        value, marks, word = getattr(part, field.name), field.metadata, flag(field.name)
        if type(value) in (int, float):
            low, high = marks.get("low", -math.inf), marks.get("high", math.inf)
            if not (low <= value <= high and marks.get("above", -math.inf) < value < marks.get("below", math.inf)):  # nan too
                finite = "" if abs(value) < math.inf else " and finite"
                raise UserError(f"{word} must be {range_of(field)}{finite}, got {value}")
            if type(value) is float and not (in_float32(value) and (value < 1 - 2**-25 or marks.get("below") != 1)):
                raise UserError(f"{word} {value} is a number that float32 does not hold, with which a training computes")
            if type(value) is int and value >= 2**31:  # products of two are still whole numbers everywhere
                raise UserError(f"{word} must be below 2**31, got {value}")
        if value is None or value == field.default:
            continue
        if "needs" in marks:
            other, *allowed = marks["needs"]
            has = getattr(part, other)
            if has is None or allowed and has not in allowed:
                without = f", or --no-{word[2:]}" if value is True and field.name in PRESETS["paper"] else ""
                raise UserError(f"{word} needs {flag(other)} {' or '.join(allowed)}".rstrip() + without)
        for other in marks.get("excludes", ()):
            if getattr(part, other) not in (None, False):
                raise UserError(f"{word} and {flag(other)} exclude each other: leave one of them out")


def _from_json(name, value):
    """The value of the field `name` as JSON has it. Raises: UserError for one that the field does not take."""
    field = FIELDS[name][1]
    kind, kinds = kind_of(field), typing.get_args(field.type)
    with contextlib.suppress(TypeError, ValueError, OverflowError, AttributeError):  # the last: of a kind without `parse`
        if value is None and types.NoneType in kinds or typing.get_origin(kind) is Literal and value in kinds:
            return value
        if kind in (bool, int, str) and type(value) is kind:
            return value
        if kind is float and type(value) in (int, float):
            return value if int in kinds else float(value)  # white may be an int
        if isinstance(value, str) and "\0" not in value:
            return kind(value) if kind in (Path, ColorTable) else kind.parse(value)
    raise UserError(f"{name!r} is {reprlib.repr(value)[:100]}, which {flag(name)} does not take")


@dataclasses.dataclass(frozen=True)
class Network:
    """What the weights and the function of the network follow from. `channels` and `classes` may be known by the data alone.

    Raises: UserError when a value, or two values together, make no network.
    """

    # more channels than 512 OpenCV neither turns nor deforms
    channels: int | None = option(
        None, "1 gray, 3 RGB, or other bands (default: as found)", low=1, high=512, found=True, val=True
    )
    classes: int | None = option(None, "1: sigmoid; more: softmax (default: as found)", low=1, high=VOID, found=True, val=True)
    filters: int = option(16, "feature maps of the first level; every level below has twice as many", low=1, high=2**16)
    # an image of 2**14 pixels a side, the largest that is read, is 1 pixel at the bottom then
    depth: int = option(4, "poolings: the bottom of the U is 2**depth times smaller than the image", low=1, high=14, val=True)
    activation: Literal["elu", "relu"] = option("elu", "after every 3x3 convolution")
    padding: Literal["same", "valid"] = option("same", "same: logits as large as the image; valid: the paper's", val=True)
    batch_norm: Literal["fused", "explicit", "none"] = option("fused", "fused: one kernel; explicit: tf.nn.moments")
    bn_momentum: float = option(0.9, "share of the old moving statistic that an update keeps", low=0, below=1)
    bn_epsilon: float = option(1e-3, "added to the variance", above=0, hidden=True)
    dropout: float = option(0.0, "share of values dropped at the end of the contracting path", low=0, below=1)
    precision: Literal["float32", "bfloat16", "float16", "float64"] = option(
        "float32", "of the arithmetic; weights stay float32 or wider"
    )
    seed: int = option(0, "of all that is random: weights, split, order, augmentation", low=0, below=2**31 - 1, val=True)

    def __post_init__(self):
        check(self)
        if self.batch_norm == "fused" and (self.bn_epsilon < 1.001e-5 or self.precision == "float64"):
            lacks = "float64 kernel" if self.precision == "float64" else f"epsilon below 1.001e-5, got {self.bn_epsilon}"
            raise UserError(f"the fused batch normalization has no {lacks}: add --batch-norm explicit")

    @property
    def bands(self):
        """The channels of an image, in words."""
        return {1: "gray", 3: "RGB"}.get(self.channels, f"{self.channels} bands")

    @property
    def variable_dtype(self):
        """Of weights, moving statistics and optimizer state: arithmetic in 16 bits keeps float32 master weights."""
        return "float64" if self.precision == "float64" else "float32"


@dataclasses.dataclass(frozen=True)
class Training:
    """How the weights are learnt, and what a run writes. Raises: UserError for values that make no training."""

    loss: Literal["dice", "cross_entropy", "dice_ce"] = option("dice", "soft dice, cross entropy, or the sum of both")
    class_weights: Weights | None = option(None, "in the loss: 1,2,0.5, or balanced by their frequency", found=True)
    optimizer: Literal["adam", "sgd"] = option("adam", "Kingma and Ba 2015, or gradient descent with momentum")
    learning_rate: float = option(1e-3, "step size", above=0)
    beta_1: float = option(0.9, "Adam: decay of the mean of the gradients", low=0, below=1, hidden=True)
    beta_2: float = option(0.999, "Adam: decay of the mean of their squares", low=0, below=1, hidden=True)
    epsilon: float = option(1e-7, "Adam: added to the root of the mean square", above=0, hidden=True)
    momentum: float = option(0.9, "SGD: share of the last step that is kept", above=0, below=1)
    weight_map: bool = option(
        False, "borders between cells weigh more, the paper's equation 2", needs=("loss", "cross_entropy", "dice_ce")
    )
    clip_norm: float | None = option(None, "scale the gradients down to this global norm where theirs is larger", above=0)
    schedule: Literal["constant", "cosine"] = option("constant", "of the learning rate after the warm-up")
    warmup: int = option(0, "steps in which the learning rate grows to its full size", low=0)
    patience: int | None = option(None, "stop after so many epochs without a better validation dice", low=1, free=True)
    batch_size: int = option(8, "images per step", low=1)
    epochs: int = option(16, "passes over the training images", low=1, free=True)
    # XLA chooses its own order, and on a CPU "MaxPoolGrad is not yet deterministic" under it
    jit: bool = option(False, "compile the steps with XLA", excludes=("deterministic",))
    deterministic: bool = option(False, "equal graphs give equal bits in every run; slower")
    run_dir: Path | None = option(None, "where everything is written (default: %(default)s)", free=True)
    resume: bool = option(False, "go on with the run in --run-dir where it stopped, with its options")
    checkpoint: Path | None = option(None, "start from best.safetensors of any run, or from last with its optimizer")
    checkpoint_every: int | None = option(None, "steps between checkpoints (default: an epoch)", low=1, free=True)
    devices: int = option(1, "of this host that share each batch, or the folds: GPUs, or copies of the CPU", low=1, free=True)
    workers: Addresses | None = option(
        None, "several hosts, HOST:PORT,HOST:PORT, the chief first (default: TF_CONFIG)", needs=("worker",), free=True
    )
    worker: int | None = option(None, "which of --workers this is, from 0", low=0, needs=("workers",), free=True)

    @property
    def replicas(self):
        """How many devices share the batch of a step."""
        return self.devices * len(self.workers or [0])

    def __post_init__(self):
        check(self)
        if self.workers and self.worker >= len(self.workers):
            raise UserError(f"--worker counts from 0 to --workers - 1, got {self.worker} of {len(self.workers)}")
        if self.jit and self.replicas > 1:
            raise UserError(
                "--jit is for one device: XLA does not see the variables of several, and on a CPU has no collectives"
            )


FOLDER = ("dataset", "folder")
COLORED = (*FOLDER, "voc", "camvid", "cityscapes")  # masks may hold colours
PAIRED = (*COLORED, "carvana", "oxford_pet", "dsb2018", "isbi")  # by two patterns
ON_DISK = (*PAIRED, "nyuv2")


@dataclasses.dataclass(frozen=True)
class Data:
    """Which images, in which order and form. Raises: UserError for values that make no data set."""

    dataset: Literal[
        "synthetic", "folder", "carvana", "oxford_pet", "dsb2018", "cityscapes", "voc", "camvid", "isbi", "nyuv2"
    ] = option("synthetic", "drawn cells, images and masks of your own, or a data set as it is published; docs/data.md")
    data_dir: Path | None = option(None, "folder of the data set", needs=ON_DISK, free=True)
    image_files: str | None = option(None, "of --data-dir: 'images/{name}.*' (default: as found)", needs=PAIRED, found=True)
    mask_files: str | None = option(None, "of them: 'masks/{name}_mask.*' (default: as found)", needs=PAIRED, found=True)
    colors: ColorTable | None = option(
        None, "FILE has a line for each class, a name and its colour in the masks, or its value; class lists of others, too",
        needs=COLORED, excludes=("objects",),
    )  # fmt: skip
    objects: bool = option(
        False, "masks number objects of one class, 0 being the background: the borders between them are known",
        needs=(*FOLDER, "dsb2018"),
    )  # fmt: skip
    white: float | int | None = option(  # once the data is known, an int where its images hold whole numbers
        None, "value that is white in images of 16 bits or of floats (default: the brightest)",
        low=1e-30, high=1e30, needs=ON_DISK, found=True,
    )  # fmt: skip
    stretch: bool = option(
        False, "each image: the darkest hundredth becomes black, the brightest two thousandths white", needs=ON_DISK
    )
    void_label: int | None = option(
        None, "mask value that is ignored in loss and metrics (default: as found); beside --colors all that FILE does not name",
        low=-(2**31), high=2**31 - 1, needs=ON_DISK, found=True,
    )  # fmt: skip
    mask_values: Values | None = option(
        None, "values that stand for the classes in masks, in order: 1,2,3 (default: as found)",
        needs=(*FOLDER, "carvana", "isbi"), excludes=("colors", "objects"), found=True,
    )  # fmt: skip
    class_names: Names | None = option(
        None, "background,cell, or a class list in a file (default: as the data set has them)", free=True, found=True, val=False
    )
    show_bands: Bands | None = option(
        None, "which bands pictures show as red, green and blue: 3,2,1, or 4 as gray (default: 1,2,3)", free=True, val=False
    )
    images: int = option(250, "synthetic: how many to draw", low=2)
    validation: float = option(0.2, "share of the images held back to validate on", above=0, below=1)
    split: Path | None = option(
        None, "a run's split.json, or a folder with train.txt and val.txt: names, one a line", free=True
    )
    folds: int | None = option(None, "split into so many, and validate on number --fold", low=2, excludes=("split",))
    fold: int | None = option(None, "validate on this one, from 0 (default: all in turn)", low=0, needs=("folds",))
    cache: Path | None = option(None, "folder that keeps the decoded and resized images for the next run", free=True, val=False)
    skip_bad: bool = option(False, "go on without images that cannot be read or have no mask, and list them", val=False)
    image_size: Size | None = option(None, "resize to WIDTHxHEIGHT or NxN pixels (synthetic: draw so large; default: 128)")
    crop_size: Size | None = option(
        None, "train on random crops of WIDTHxHEIGHT or NxN; validation sees whole images", val=False
    )
    augment: Literal["none", "flips", "elastic", "paper", "photo", "recolor"] = option(
        "flips",
        "flips: mirrored, and turned by right angles; elastic: scaled, tilted a little, elastically deformed, in other light; "
        "paper: and mirrored, turned by any angle; photo: and mirrored, near or far, of other exposure and hue, less sharp; "
        "recolor: and mirrored, half of the regions in random colours",
        val=False,
    )

    def __post_init__(self):
        if isinstance(self.colors, Path):
            object.__setattr__(self, "colors", ColorTable.parse(self.colors))
        if self.class_names and len(self.class_names) == 1:  # a file, for there are two classes at least
            object.__setattr__(self, "class_names", names_in(self.class_names[0]))
        if self.dataset == "dsb2018":
            object.__setattr__(self, "objects", True)
        check(self)
        if self.cache and self.data_dir and self.cache.resolve() == self.data_dir.resolve():
            raise UserError(f"--cache {self.cache} is the --data-dir too: name a folder of its own")
        if self.dataset != "synthetic" and self.data_dir is None:
            raise UserError(f"--dataset {self.dataset} needs --data-dir DIR")
        if self.dataset == "folder" and (self.image_files is None) != (self.mask_files is None):
            raise UserError("--image-files and --mask-files go together: a pattern for the images, and one for their masks")
        if self.fold is not None and self.fold >= self.folds:
            raise UserError(f"--fold counts from 0 to --folds - 1, got {self.fold}")
        if self.void_label is not None and self.void_label in (self.mask_values or ()):
            raise UserError(f"--mask-values {self.mask_values} has the --void-label {self.void_label}: it is no class")

    @property
    def scale(self):
        """What white is in decoded images, which hold 0 to that: 255 of 8 bits, --white of 16, 65535 of floats."""
        return 65535 if isinstance(self.white, float) else self.white or 255


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that decides what a run computes. The defaults are the project's own network on its drawn cells.

    Raises: UserError when values of two groups do not fit together.
    """

    network: Network = Network()
    training: Training = Training()
    data: Data = Data()

    def __post_init__(self):
        network, training, data = self.network, self.training, self.data
        if data.dataset == "synthetic" and None in (network.channels, network.classes):
            known = dict(channels=network.channels or 1, classes=network.classes or 1)
            network = dataclasses.replace(network, **known)
            object.__setattr__(self, "network", network)
        # with "valid" padding the loader mirrors an image around its border, a crop it cannot
        for name, smallest in ("image_size", 2**network.depth), ("crop_size", min_size(network)):
            size = getattr(data, name)
            if size and min(size) < smallest:
                raise UserError(
                    f"{flag(name)} {size} is too small: {network.depth} poolings with {network.padding!r} padding need "
                    f"at least {smallest} pixels; use a larger size or a smaller --depth"
                )
        if data.crop_size and any(missing(side, network) for side in data.crop_size):
            fits = Size(*(side + missing(side, network) for side in data.crop_size))
            raise UserError(f"--crop-size {data.crop_size} does not halve {network.depth} times: {fits} does")
        if data.show_bands and network.channels and max(data.show_bands) > network.channels:
            raise UserError(f"--show-bands {data.show_bands} needs more bands than the {network.channels} of the images")
        if data.objects and network.classes not in (None, 1, 2):
            raise UserError(f"objects are of one class, beside the background: --classes 1 or 2, got {network.classes}")
        batch, devices = training.batch_size, training.replicas
        if data.folds and data.fold is None:  # each fold has a device, and its batches whole
            if training.workers:
                raise UserError("--folds runs on one host: leave --workers out, or add --fold")
        elif batch % devices:
            fits = -(-batch // devices) * devices
            raise UserError(f"--batch-size {batch} cannot be shared evenly by {devices} devices: {fits} can")
        for name in ("class_names", "class_weights", "mask_values"):
            values, needed = self.flat[name], max(network.classes or 0, 2)
            if values and network.classes and len(values) != needed:
                raise UserError(f"{flag(name)} needs one for each of {needed} classes, got {len(values)}")

    @property
    def flat(self):
        """name -> value of every field of the three."""
        return {name: getattr(getattr(self, group), name) for name, (group, _) in FIELDS.items()}

    @classmethod
    def of(cls, **values):
        """From flat names, the rest by default. Raises: UserError for a name that there is not."""
        unknown = values.keys() - FIELDS.keys()
        if unknown:
            raise UserError(f"unknown in this version: {', '.join(map(printable, sorted(unknown)))}")
        groups = {"network": {}, "training": {}, "data": {}}
        for name, value in values.items():
            groups[FIELDS[name][0]][name] = value
        return cls(Network(**groups["network"]), Training(**groups["training"]), Data(**groups["data"]))

    def replace(self, **changes):
        """The same but for `changes`, by flat names."""
        return Config.of(**{**self.flat, **changes})

    @property
    def shown_values(self):
        """What stands for each class, in order, in pictures and in masks of many classes: what does in the user's masks."""
        n = max(self.network.classes, 2)
        return self.data.mask_values if self.data.mask_values and n > 2 else tuple(range(n))

    @property
    def kept(self):
        """What a run's files keep of it: all but the hosts that take part this time, and whether it goes on."""
        return self.replace(resume=False, workers=None, worker=None)

    def as_dict(self):
        """The fields as JSON has them, flat: sizes and paths in the words of the command line."""
        return {
            name: value if value is None or type(value) in (bool, int, float, str) else str(value)
            for name, value in self.flat.items()
        }

    @classmethod
    def from_dict(cls, values):
        """The inverse of `as_dict`. Raises: UserError for a field that there is not, or a value that it does not take."""
        if not isinstance(values, dict):
            raise UserError(f"{reprlib.repr(values)[:100]} is no list of options")
        return cls.of(**{name: _from_json(name, value) if name in FIELDS else value for name, value in values.items()})


# flat name -> (group of `Config`, field)
FIELDS = {
    field.name: (group, field)
    for group, kind in (("network", Network), ("training", Training), ("data", Data))
    for field in dataclasses.fields(kind)
}


def marked(mark):
    """The flat names of the fields that carry a mark, see `option`."""
    return [name for name, (_, field) in FIELDS.items() if field.metadata.get(mark)]


# Ronneberger et al. 2015, section 3: one tile of 572 pixels a step, and a high momentum that makes up for it. The learning rate
# and the scale of the augmentation are not in the paper.
PAPER = dict(filters=64, classes=2, activation="relu", padding="valid", batch_norm="none", dropout=0.5, batch_size=1)
PAPER |= dict(loss="cross_entropy", weight_map=True, class_weights=Weights(), optimizer="sgd", momentum=0.99, augment="paper")
PRESETS = {"paper": PAPER | {"crop_size": Size(572, 572)}}
