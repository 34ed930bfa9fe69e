"""What a run is: a network, its training, its data, in three frozen dataclasses of which one holds the others.

`Config.of(filters=8, precision="float64")` makes the whole from flat names; the command line (`common.cli`) and config.json are
as flat. Networks take `config.network` alone.
"""

import argparse
import contextlib
import dataclasses
import os
import re
import reprlib
import types
import typing
from pathlib import Path
from typing import Literal

from common.shapes import min_size, missing
from common.text import printable

IMPLEMENTATIONS = ("lowlevel", "highlevel", "keras_impl")
VOID = 255  # the class index of pixels that nobody labelled, whatever their value is in the files


class UserError(ValueError):
    """A mistake that the user can mend. The scripts print it as one line and exit with code 2."""


class Stopped(Exception):
    """The user has stopped a run, and all that it takes to go on is saved. `signal`: the number of what stopped it."""

    def __init__(self, message, signal):
        super().__init__(message)
        self.signal = signal


class Size(typing.NamedTuple):
    """An image size in pixels, in array order. On the command line: `WIDTHxHEIGHT`, or one number for a square."""

    height: int
    width: int

    @classmethod
    def parse(cls, text):
        match = re.fullmatch(r"(\d+)(?:x(\d+))?", text)
        if not match or int(match[1]) == 0 or int(match[2] or 1) == 0:
            raise argparse.ArgumentTypeError(f"{text!r} is not a size: write WIDTHxHEIGHT, such as 480x320, or one number")
        return cls(height=int(match[2] or match[1]), width=int(match[1]))

    def __str__(self):
        return f"{self.width}x{self.height}"


class Names(tuple):
    """Names of classes. On the command line: `background,cell,nucleus`."""

    @classmethod
    def parse(cls, text):
        names = cls(name.strip() for name in text.split(","))
        if not all(names) or len(set(names)) < len(names):
            raise argparse.ArgumentTypeError(f"{text!r} must be names with commas between them, each once")
        return names

    def __str__(self):
        return ",".join(self)


class Values(tuple):
    """The values in masks that stand for the classes, in order. On the command line: `1,2,3`."""

    @classmethod
    def parse(cls, text):
        values = cls(int(number) if re.fullmatch(r"\d{1,3}", number) else VOID for number in text.split(","))
        if len(set(values)) < max(len(values), 2) or max(values) >= VOID:
            raise argparse.ArgumentTypeError(f"{text!r} must be two or more values of masks, 0 to {VOID - 1}, each once: 1,2,3")
        return values

    def __str__(self):
        return ",".join(map(str, self))


class Bands(tuple):
    """Numbers of bands, from 1: one to show as gray, or three as red, green and blue. On the command line: `3,2,1`."""

    @classmethod
    def parse(cls, text):
        if not re.fullmatch(r"[1-9]\d{0,4}(,[1-9]\d{0,4},[1-9]\d{0,4})?", text):
            raise argparse.ArgumentTypeError(f"{text!r} must be one or three numbers of bands, from 1, such as 3,2,1")
        return cls(map(int, text.split(",")))

    def __str__(self):
        return ",".join(map(str, self))


class Addresses(tuple):
    """The hosts of a training, the chief first. On the command line: `host1:2222,host2:2222`."""

    @classmethod
    def parse(cls, text):
        addresses = cls(text.split(","))
        found = [re.fullmatch(r"[^\s:,]+:(\d{1,5})", address) for address in addresses]
        if not all(match and 0 < int(match[1]) < 2**16 for match in found) or len(set(addresses)) < len(addresses):
            raise argparse.ArgumentTypeError(f"{text!r} must be HOST:PORT with commas between them, each once")
        return addresses

    def __str__(self):
        return ",".join(self)


class Weights(tuple):
    """A weight for every class. On the command line: `1,2,0.5`, or `balanced`, which is empty until the data is known."""

    @classmethod
    def parse(cls, text):
        try:
            weights = cls() if text == "balanced" else cls(float(number) for number in text.split(","))
        except ValueError:
            weights = cls([-1.0])
        if any(not 0 <= w < float("inf") for w in weights) or len(weights) and not sum(weights):
            raise argparse.ArgumentTypeError(f"{text!r} must be 'balanced' or a number per class, such as 1,2,0.5")
        return weights

    def __str__(self):
        return ",".join(map(str, self)) or "balanced"


class ColorTable(str):
    """The text of a file that names the colours of masks, and where it came from. On the command line: the file's path.

    The text, and not the path, is what a run stores: the file may change.
    """

    path = "of the run"  # for messages

    @classmethod
    def parse(cls, path):
        try:
            if os.path.exists(path) and not os.path.isfile(path):  # a pipe would be waited for without end
                raise UserError(f"{path} is no file: name one with a line `name r g b` for each class")
            table = cls(Path(path).read_text(encoding="utf-8-sig").rstrip("\n") + "\n")
        except UnicodeDecodeError:
            raise UserError(f"{path} is no text in UTF-8") from None
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}") from None
        table.path = path
        return table

    @classmethod
    def restore(cls, text):
        """From JSON, where the version before had the path: it is read if it is still there, and else when it is needed."""
        if "\n" in text:
            return cls(text)
        with contextlib.suppress(UserError):
            if Path(text).is_file():
                return cls.parse(text)
        table = cls()
        table.path = text
        return table


class Every(typing.NamedTuple):
    """How often. On the command line: `100` for every 100 steps, `1epoch` or `5epochs`."""

    count: int
    unit: str  # "step" or "epoch"

    @classmethod
    def parse(cls, text):
        match = re.fullmatch(r"([1-9]\d*) ?(?:(step|epoch)s?)?", text)
        if not match:
            raise argparse.ArgumentTypeError(f"{text!r} says not how often: write 100 for steps, or 1epoch, or 5epochs")
        return cls(int(match[1]), match[2] or "step")

    def __str__(self):
        return f"{self.count}{self.unit}{'s' * (self.count > 1)}"


def option(default, help, group=None, **marks):
    """A field with its meaning and unit, which is also its --help text.

    group: where --help lists it, "output" or "devices"; by default under the name of its dataclass. Marks:
    found: the data says it where the command line does not. free: may change when a run goes on. hidden: it has no option.
    val: decides which images validate and how they are read, as every field of `Data` does where it does not say False.
    """
    return dataclasses.field(default=default, metadata={"help": help, "group": group, **marks})


def flag(name):
    """The command line's word for a field."""
    return "--" + name.replace("_", "-")


def _require(condition, message):
    if not condition:
        raise UserError(message)


def _at_least(values, **lowest):
    for name, low in lowest.items():
        value = getattr(values, name)
        _require(value is None or value >= low, f"{flag(name)} must be at least {low}, got {value}")


def _shares(values, *names):
    for name in names:
        _require(0 <= getattr(values, name) < 1, f"{flag(name)} must be in [0, 1), got {getattr(values, name)}")


def _above_0(values, *names):
    for name in names:
        value = getattr(values, name)
        _require(value is None or 0 < value < float("inf"), f"{flag(name)} must be above 0 and finite, got {value}")


def _from_json(name, value):
    """The value of the field `name` as JSON has it. Raises: UserError for one that the field does not take."""
    kind = FIELDS[name][1].type
    kinds = typing.get_args(kind) if typing.get_origin(kind) is types.UnionType else (kind,)  # Path | None
    if value is None and type(None) in kinds:
        return None
    try:
        if kinds[0] in (bool, str) and type(value) is kinds[0]:
            return value
        if int in kinds and type(value) is int and abs(value) < 2**63:
            return value
        if kinds[0] is float and type(value) in (int, float) and abs(value) < float("inf"):
            return float(value)
        if typing.get_origin(kinds[0]) is Literal and value in typing.get_args(kinds[0]):
            return value
        if kinds[0] not in (bool, int, float, str) and isinstance(value, str) and "\0" not in value:
            return getattr(kinds[0], "restore", getattr(kinds[0], "parse", kinds[0]))(value)
    except (argparse.ArgumentTypeError, TypeError, ValueError, OverflowError):
        pass
    raise UserError(f"{name!r} is {reprlib.repr(value)[:100]}, which {flag(name)} does not take")


@dataclasses.dataclass(frozen=True)
class Network:
    """What the weights and the function of the network follow from. `channels` and `classes` may be known by the data alone.

    Raises: UserError when a value, or two values together, make no network.
    """

    channels: int | None = option(
        None, "image channels: 1 gray, 3 RGB, or other bands (default: as the images are; synthetic: 1)", found=True, val=True
    )
    classes: int | None = option(
        None, "1: sigmoid, foreground; more: softmax over so many (default: as the masks are)", found=True, val=True
    )
    filters: int = option(16, "feature maps of the first level; every level below has twice as many")
    depth: int = option(4, "poolings, so that the bottom of the U is 2**depth times smaller than the image", val=True)
    activation: Literal["elu", "relu"] = option("elu", "after every 3x3 convolution")
    padding: Literal["same", "valid"] = option(
        "same", "same: logits as large as the image; valid: the paper's, smaller", val=True
    )
    batch_norm: Literal["fused", "explicit", "none"] = option("fused", "fused: one kernel; explicit: tf.nn.moments")
    bn_momentum: float = option(0.9, "share of the old moving statistic that an update keeps")
    bn_epsilon: float = option(1e-3, "added to the variance", hidden=True)
    dropout: float = option(0.0, "share of values dropped at the end of the contracting path")
    precision: Literal["float32", "bfloat16", "float64"] = option("float32", "of the arithmetic; weights stay float32 or wider")
    seed: int = option(0, "of the weights and the dropout, the cells, the split, the order and the augmentation", val=True)

    def __post_init__(self):
        _at_least(self, channels=1, classes=1, filters=1, depth=1)
        # an image of 2**14 pixels a side, the largest that is read, is 1 pixel at the bottom then
        _require(self.depth <= 14 and self.filters <= 2**16, "--depth must be at most 14, --filters at most 65536")
        _shares(self, "bn_momentum", "dropout")
        _above_0(self, "bn_epsilon")
        # more OpenCV neither turns nor deforms
        _require(self.channels is None or self.channels <= 512, f"--channels must be at most 512, got {self.channels}")
        _require(self.classes is None or self.classes <= VOID, f"--classes must be at most {VOID}, got {self.classes}")
        _require(0 <= self.seed < 2**31 - 1, f"--seed must be at least 0 and below 2**31 - 1, got {self.seed}")
        _require(
            self.batch_norm != "fused" or self.bn_epsilon >= 1.001e-5,
            f"the fused batch normalization has no epsilon below 1.001e-5, got --bn-epsilon {self.bn_epsilon}: "
            "add --batch-norm explicit",
        )
        _require(
            self.precision != "float64" or self.batch_norm != "fused",
            "the fused batch normalization has no float64 kernel: add --batch-norm explicit",
        )

    @property
    def bands(self):
        """The channels of an image, in words."""
        return {1: "gray", 3: "RGB"}.get(self.channels, f"{self.channels} bands")

    @property
    def variable_dtype(self):
        """Of weights, moving statistics and optimizer state: bfloat16 arithmetic keeps float32 master weights."""
        return "float64" if self.precision == "float64" else "float32"


@dataclasses.dataclass(frozen=True)
class Training:
    """How the weights are learnt, and what a run writes. Raises: UserError for values that make no training."""

    loss: Literal["dice", "cross_entropy", "dice_ce"] = option("dice", "soft dice, cross entropy, or the sum of both")
    class_weights: Weights | None = option(
        None, "of the classes in the loss: 1,2,0.5, or balanced by their frequency", found=True
    )
    optimizer: Literal["adam", "sgd"] = option("adam", "Kingma and Ba 2015, or gradient descent with momentum")
    learning_rate: float = option(1e-3, "step size")
    beta_1: float = option(0.9, "Adam: decay of the mean of the gradients", hidden=True)
    beta_2: float = option(0.999, "Adam: decay of the mean of their squares", hidden=True)
    epsilon: float = option(1e-7, "Adam: added to the root of the mean square", hidden=True)
    momentum: float = option(0.9, "SGD: share of the last step that is kept")
    weight_map: bool = option(False, "cross entropy: borders between cells weigh more; the paper's equation 2")
    clip_norm: float | None = option(None, "scale the gradients down to this global norm where theirs is larger")
    schedule: Literal["constant", "cosine", "plateau"] = option("constant", "of the learning rate after the warm-up")
    warmup: int = option(0, "steps in which the learning rate grows to its full size")
    plateau_factor: float = option(0.5, "plateau: what the learning rate is multiplied by")
    plateau_patience: int = option(5, "plateau: epochs without a better validation dice before that")
    patience: int | None = option(None, "stop after so many epochs without a better validation dice", free=True)
    batch_size: int = option(8, "images per step")
    epochs: int = option(16, "passes over the training images", free=True)
    jit: bool = option(False, "compile the steps with XLA")
    deterministic: bool = option(False, "equal graphs give equal bits in every run; slower")
    run_dir: Path | None = option(None, "where everything is written (default: runs/<implementation>)", free=True)
    resume: bool = option(False, "go on with the run in --run-dir where it stopped, with its options")
    checkpoint: Path | None = option(
        None, "start from this file: best.safetensors of any run, or last with its optimizer", "output"
    )
    checkpoint_every: Every = option(
        Every(1, "epoch"), "when last.safetensors is written: 100 for steps, or 1epoch", "output", free=True
    )
    keep: int = option(1, "how many of these to keep: last.safetensors and, before it, step-N.safetensors", "output", free=True)
    summary: bool = option(False, "print the layers with their shapes and parameters", "output")
    devices: int = option(
        1, "of this host to share each batch, or with --folds to train the folds on: its GPUs, or else copies of the CPU",
        "devices", free=True,
    )  # fmt: skip
    workers: Addresses | None = option(
        None, "train on several hosts, HOST:PORT,HOST:PORT, the chief first; the same command on each (default: TF_CONFIG)",
        "devices", free=True,
    )  # fmt: skip
    worker: int | None = option(None, "which of --workers this is, from 0", "devices", free=True)
    local_workers: int | None = option(None, "try several hosts out: start so many processes on this one", "devices", free=True)
    wait: int = option(300, "seconds in which all --workers have to come", "devices", free=True)

    @property
    def replicas(self):
        """How many devices share the batch of a step."""
        return self.devices * len(self.workers or [0] * (self.local_workers or 1))

    def __post_init__(self):
        _at_least(self, devices=1, worker=0, local_workers=1, wait=1)
        workers = len(self.workers or ())
        _require(not self.workers or self.worker is not None, "--workers needs --worker, the number of this one, from 0")
        _require(
            self.worker is None or self.worker < workers,
            f"--worker counts from 0 to --workers - 1, got {self.worker} of {workers}",
        )
        _require(not (self.workers and self.local_workers), "--workers and --local-workers exclude each other")
        _at_least(self, batch_size=1, epochs=1, warmup=0, plateau_patience=1, patience=1, keep=1)
        _shares(self, "beta_1", "beta_2", "momentum")
        _above_0(self, "learning_rate", "epsilon", "clip_norm")
        _require(0 < self.plateau_factor < 1, f"--plateau-factor must be above 0 and below 1, got {self.plateau_factor}")
        _require(not self.weight_map or self.loss != "dice", "--weight-map needs --loss cross_entropy or dice_ce")
        _require(self.optimizer != "sgd" or self.momentum > 0, "--optimizer sgd needs a --momentum above 0")
        _require(
            not (self.jit and self.replicas > 1),
            "--jit is for one device: XLA does not see the variables of several, and on a CPU has no collectives",
        )
        # on a CPU too: "MaxPoolGrad is not yet deterministic" under XLA
        _require(
            not (self.jit and self.deterministic), "--jit and --deterministic exclude each other: XLA chooses its own order"
        )


@dataclasses.dataclass(frozen=True)
class Data:
    """Which images, in which order and form. Raises: UserError for values that make no data set."""

    dataset: Literal["synthetic", "folder", "carvana", "oxford_pet", "isbi", "nyuv2", "dsb2018"] = option(
        "synthetic", "drawn cells, or the layout of --data-dir; docs/data.md shows the trees"
    )
    data_dir: Path | None = option(None, "folder of the data set", free=True)
    colors: ColorTable | None = option(None, "folder: masks are colour images; FILE has a line `name r g b` for every class")
    objects: bool = option(
        False, "folder: masks number objects of one class, 0 being the background: the borders between them are known"
    )
    mask_suffix: str | None = option(
        None, "folder: with _mask, a_mask.png is the mask of a.png, beside it or in masks/ (default: as found)", found=True
    )
    white: float | int | None = option(
        None, "value that is white in images of 16 bits or of floats (default: the brightest of the data set)", found=True
    )  # once the data is known, an int where its images hold whole numbers
    stretch: bool = option(
        False, "spread the values of each image: the darkest hundredth becomes black, the brightest two thousandths white"
    )
    void_label: int | None = option(
        None, "mask value that means nothing: ignored in loss and metrics (default: as found)", found=True
    )
    mask_values: Values | None = option(
        None, "the values of masks that stand for the classes, in order: 1,2,3 (default: as found)", found=True
    )
    class_names: Names | None = option(
        None, "for the legends: background,cell (default: as the data set has them)", found=True, val=False
    )
    show_bands: Bands | None = option(
        None, "which bands pictures show as red, green and blue: 3,2,1, or 4 as gray (default: 1,2,3)", free=True, val=False
    )
    images: int = option(250, "synthetic: how many to draw")
    validation: float = option(0.2, "share of the images held back to validate on, above 0 and below 1")
    group: str | None = option(None, "regular expression on file names: what its (...) matches stays on one side of the split")
    split: Path | None = option(None, "a run's split.json, or a folder with train.txt and val.txt: names, one a line")
    folds: int | None = option(None, "split into that many folds, and validate on number --fold")
    fold: int | None = option(None, "which of --folds to validate on, from 0 (default: all in turn)")
    cache: Path | None = option(None, "folder that keeps the decoded and resized images for the next run", free=True, val=False)
    skip_bad: bool = option(False, "go on without images that cannot be read or have no mask, and list them", val=False)
    image_size: Size | None = option(
        None, "resize to WIDTHxHEIGHT or NxN pixels (synthetic: draw at this size, or 128, or as large as the crop)"
    )
    crop_size: Size | None = option(
        None, "train on random crops of WIDTHxHEIGHT or NxN pixels; validation sees whole images", val=False
    )
    augment: Literal["none", "flips", "elastic", "mirror", "paper", "recolor"] = option(
        "flips",
        "flips: mirrored, and turned by right angles; elastic: scaled, tilted a little, elastically deformed, in other light; "
        "mirror: and mirrored; paper: and turned by any angle; recolor: as mirror, half of the regions in random colours",
        val=False,
    )

    def __post_init__(self):
        _at_least(self, images=2, void_label=0, folds=2, fold=0)
        _require(self.white is None or 1e-30 <= self.white <= 1e30, f"--white must be 1e-30 to 1e30, got {self.white}")
        _require(0 < self.validation < 1, f"--validation is a share above 0 and below 1, got {self.validation}")
        if isinstance(self.colors, Path):
            object.__setattr__(self, "colors", ColorTable.parse(self.colors))
        on_disk = self.dataset != "synthetic"
        _require(not on_disk or self.data_dir is not None, f"--dataset {self.dataset} needs --data-dir DIR")
        _require(self.data_dir is None or on_disk, "--data-dir needs --dataset folder, or another that lies on disk")
        _require(self.colors is None or self.dataset == "folder", "--colors needs --dataset folder")
        if self.dataset == "dsb2018":
            object.__setattr__(self, "objects", True)
        _require(
            not self.objects or self.dataset in ("folder", "dsb2018"), "--objects needs --dataset folder; dsb2018 has it anyway"
        )
        _require(
            not self.objects or self.colors is None and self.void_label is None,
            "where masks number objects every number above 0 is one: leave --colors and --void-label out",
        )
        _require(self.mask_suffix is None or self.dataset == "folder", "--mask-suffix needs --dataset folder")
        _require(
            self.mask_suffix is None or re.fullmatch(r"[^/\\]+", self.mask_suffix), "--mask-suffix is a part of a name: _mask"
        )
        _require(self.white is None or on_disk, "--white is for images on disk: it needs --dataset folder, or another")
        _require(not self.stretch or on_disk, "--stretch is for images on disk: it needs --dataset folder, or another")
        _require(self.void_label is None or on_disk and self.void_label <= 255, "--void-label is a mask value, 0 to 255")
        _require(
            self.mask_values is None
            or self.dataset in ("folder", "carvana", "isbi")
            and self.colors is None
            and not self.objects,
            "--mask-values needs --dataset folder, and masks that hold classes",
        )
        _require(self.folds is None or self.split is None, "--folds and --split exclude each other")
        _require(self.fold is None or self.fold < (self.folds or 0), f"--fold counts from 0 to --folds - 1, got {self.fold}")

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
        network, data = self.network, self.data
        for name, value in self.flat.items():  # of 32 bits: products of two are still whole numbers everywhere
            _require(type(value) is not int or value < 2**31, f"{flag(name)} must be below 2**31, got {value}")
        if data.dataset == "synthetic" and None in (network.channels, network.classes):
            known = dict(channels=network.channels or 1, classes=network.classes or 1)
            object.__setattr__(self, "network", dataclasses.replace(network, **known))
        for name, size in (("--image-size", data.image_size), ("--crop-size", data.crop_size)):
            # with "valid" padding the loader mirrors an image around its border, a crop it cannot
            smallest = 2**network.depth if name == "--image-size" else min_size(network)
            _require(
                size is None or min(size) >= smallest,
                f"{name} {size} is too small: {network.depth} poolings with {network.padding!r} padding need at least "
                f"{smallest} pixels; use a larger size or a smaller --depth",
            )
        _require(
            None in (data.show_bands, network.channels) or max(data.show_bands) <= network.channels,
            f"--show-bands {data.show_bands} needs more bands than the {network.channels} of the images",
        )
        _require(
            not data.objects or network.classes in (None, 1, 2),
            f"objects are of one class, beside the background: --classes 1 or 2, got {network.classes}",
        )
        training = self.training
        side_by_side = data.folds is not None and data.fold is None  # each fold has a device, and its batches whole
        _require(
            not side_by_side or training.replicas == training.devices,
            "--folds runs on one host: leave --workers out, or add --fold",
        )
        _require(
            side_by_side or training.batch_size % training.replicas == 0,
            f"--batch-size {training.batch_size} cannot be shared evenly by {training.replicas} devices: "
            f"{-(-training.batch_size // training.replicas) * training.replicas} can",
        )
        if data.crop_size and any(missing(side, network) for side in data.crop_size):
            fits = Size(*(side + missing(side, network) for side in data.crop_size))
            raise UserError(f"--crop-size {data.crop_size} does not halve {network.depth} times: {fits} does")
        for word, values in (
            ("--class-names", data.class_names),
            ("--class-weights", self.training.class_weights),
            ("--mask-values", data.mask_values),
        ):
            if values and network.classes is not None:
                needed = max(network.classes, 2)
                _require(len(values) == needed, f"{word} needs one for each of {needed} classes, got {len(values)}")

    @property
    def seed(self):
        """Of all that is random: `network.seed`."""
        return self.network.seed

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

    @property
    def shown_values(self):
        """What stands for each class, in order, in pictures and in masks of many classes: what does in the user's masks."""
        n = max(self.network.classes, 2)
        return self.data.mask_values if self.data.mask_values and n > 2 else tuple(range(n))

    @property
    def kept(self):
        """What a run's files keep of it: all but the hosts that take part this time, and whether it goes on.

        And but for the cache that the folds of a cross-validation share, which is gone after the last.
        """
        cache = self.data.cache if ".unet" not in (self.data.cache or Path()).parts else None
        return self.replace(resume=False, workers=None, worker=None, local_workers=None, cache=cache)

    def replace(self, **changes):
        """The same but for `changes`, by flat names."""
        return Config.of(**{**self.flat, **changes})

    @classmethod
    def from_dict(cls, values):
        """The inverse of `as_dict`. Raises: UserError for a field that there is not, or a value that it does not take."""
        if not isinstance(values, dict):
            raise UserError(f"{reprlib.repr(values)[:100]} is no list of options")
        classes, void = values.get("classes"), values.get("void_label")
        of_masks = values.get("dataset") in ("folder", "carvana", "isbi") and not values.get("colors")
        if "mask_values" not in values and of_masks and {type(classes), type(void)} == {int} and void < classes > 2:
            values = {**values, "mask_values": ",".join(map(str, range(classes)))}  # a class of no pixels stood for void then
        return cls.of(**{name: _from_json(name, value) if name in FIELDS else value for name, value in values.items()})

    def as_dict(self):
        """The fields as JSON has them, flat: sizes and paths in the words of the command line."""
        worded = (Path, Size, Names, Values, Bands, Weights, Addresses, ColorTable, Every)
        return {name: str(value) if isinstance(value, worded) else value for name, value in self.flat.items()}


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
PRESETS = {
    "paper": dict(
        filters=64,
        classes=2,
        activation="relu",
        padding="valid",
        batch_norm="none",
        dropout=0.5,
        loss="cross_entropy",
        weight_map=True,
        class_weights=Weights(),
        optimizer="sgd",
        momentum=0.99,
        batch_size=1,
        crop_size=Size(572, 572),
        augment="paper",
    )
}
