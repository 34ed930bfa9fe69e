"""One frozen dataclass that describes a run, and the command line made from it."""

import argparse
import dataclasses
import os
import re
import sys
import types
import typing
from pathlib import Path
from typing import Literal

from common.shapes import min_size

import tensorflow as tf


class UserError(ValueError):
    """A mistake that the user can mend. The scripts print it as one line and exit with code 2."""


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


class Stopped(Exception):
    """The user has stopped a run, and all that it takes to go on is saved. `signal`: the number of what stopped it."""

    def __init__(self, message, signal):
        super().__init__(message)
        self.signal = signal


def option(default, help):
    """A field with its meaning and unit, which is also its --help text."""
    return dataclasses.field(default=default, metadata={"help": help})


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that decides what a run computes. The defaults are the project's own network.

    Raises: UserError when a value, or two values together, make no network.
    """

    # the network
    channels: int | None = option(None, "image channels: 1 gray, 3 RGB (default: as the images are; synthetic: 1)")
    classes: int | None = option(None, "1: sigmoid, foreground; more: softmax over so many (default: as the masks are)")
    filters: int = option(16, "feature maps of the first level; every level below has twice as many")
    depth: int = option(4, "poolings, so that the bottom of the U is 2**depth times smaller than the image")
    activation: Literal["elu", "relu"] = option("elu", "after every 3x3 convolution")
    padding: Literal["same", "valid"] = option("same", "same: logits as large as the image; valid: the paper's, smaller")
    batch_norm: Literal["fused", "explicit", "none"] = option("fused", "fused: one kernel; explicit: tf.nn.moments")
    bn_momentum: float = option(0.875, "share of the old moving statistic that an update keeps; binary-exact on purpose")
    bn_epsilon: float = option(1e-3, "added to the variance")
    dropout: float = option(0.0, "share of values dropped at the end of the contracting path")
    precision: Literal["float32", "bfloat16", "float64"] = option("float32", "of the arithmetic; weights stay float32 or wider")
    jit: bool = option(False, "compile the steps with XLA")
    deterministic: bool = option(False, "equal graphs give equal bits in every run; slower")

    # training
    loss: Literal["dice", "cross_entropy", "dice_ce"] = option("dice", "soft dice, cross entropy, or the sum of both")
    class_weights: Weights | None = option(None, "of the classes in the loss: 1,2,0.5, or balanced by their frequency")
    optimizer: Literal["adam", "sgd"] = option("adam", "Kingma and Ba 2015, or gradient descent with momentum")
    learning_rate: float = option(1e-3, "step size")
    beta_1: float = option(0.9, "Adam: decay of the mean of the gradients")
    beta_2: float = option(0.999, "Adam: decay of the mean of their squares")
    epsilon: float = option(1e-7, "Adam: added to the root of the mean square")
    momentum: float = option(0.9, "SGD: share of the last step that is kept")
    weight_map: bool = option(False, "cross entropy: borders between cells weigh more; the paper's equation 2")
    clip_norm: float | None = option(None, "scale the gradients down to this global norm where theirs is larger")
    schedule: Literal["constant", "cosine", "plateau"] = option("constant", "of the learning rate after the warm-up")
    warmup: int = option(0, "steps in which the learning rate grows to its full size")
    plateau_factor: float = option(0.5, "plateau: what the learning rate is multiplied by")
    plateau_patience: int = option(5, "plateau: epochs without a better validation dice before that")
    patience: int | None = option(None, "stop after so many epochs without a better validation dice")
    batch_size: int = option(8, "images per step")
    epochs: int = option(16, "passes over the training images")
    resume: bool = option(False, "go on with the run in --run-dir where it stopped, with its options")
    checkpoint: Path | None = option(None, "start from this file: best.safetensors of any run, or last with its optimizer")
    checkpoint_every: Every = option(Every(1, "epoch"), "when last.safetensors is written: 100 for steps, or 1epoch")
    keep: int = option(1, "how many of these to keep: last.safetensors and, before it, step-N.safetensors")
    seed: int = option(0, "of the weights, the cells, the split, the order and the augmentation")

    # data
    dataset: Literal["synthetic", "folder", "carvana", "oxford_pet", "isbi", "nyuv2"] = option(
        "synthetic", "drawn cells, or the layout of --data-dir; the README shows the trees"
    )
    data_dir: Path | None = option(None, "folder of the data set")
    colors: Path | None = option(None, "folder: masks are colour images; FILE has a line `name r g b` for every class")
    void_label: int | None = option(None, "mask value that means nothing: ignored in loss and metrics (default: as found)")
    class_names: Names | None = option(None, "for the legends: background,cell (default: as the data set has them)")
    images: int = option(250, "synthetic: how many to draw")
    validation: float = option(0.2, "share of the images held back to validate on, above 0 and below 1")
    group: str | None = option(None, "regular expression on file names: what its (...) matches stays on one side of the split")
    split: Path | None = option(None, "a run's split.json, or a folder with train.txt and val.txt: names, one a line")
    folds: int | None = option(None, "split into that many folds, and validate on number --fold")
    fold: int | None = option(None, "which of --folds to validate on, from 0 (default: all in turn)")
    cache: Path | None = option(None, "folder that keeps the decoded and resized images for the next run")
    skip_bad: bool = option(False, "go on without images that cannot be read, and list them")
    image_size: Size | None = option(None, "resize to WIDTHxHEIGHT or NxN pixels (synthetic: draw at this size, or 128)")
    crop_size: Size | None = option(None, "train on random crops of WIDTHxHEIGHT or NxN pixels; validation sees whole images")
    augment: Literal["none", "flips", "elastic", "paper", "recolor"] = option(
        "flips",
        "flips: and right-angle rotations; elastic: scale, brightness, contrast, elastic deformation, neither mirrored nor "
        "turned; paper: also mirrored and turned; recolor: mirrored, upright, with random colours for every class",
    )

    # where results go
    summary: bool = option(False, "print the layers with their shapes and parameters")
    run_dir: Path | None = option(None, "where everything is written (default: runs/<implementation>)")

    def __post_init__(self):
        def require(condition, message):
            if not condition:
                raise UserError(message)

        if self.dataset == "synthetic":
            for name in ("channels", "classes"):
                object.__setattr__(self, name, 1 if getattr(self, name) is None else getattr(self, name))
        lowest = dict(classes=1, filters=1, depth=1, batch_size=1, epochs=1, images=2, void_label=0, folds=2, fold=0)
        lowest |= dict(warmup=0, plateau_patience=1, patience=1, keep=1)
        for name, low in lowest.items():
            value = getattr(self, name)
            require(value is None or value >= low, f"--{name.replace('_', '-')} must be at least {low}, got {value}")
        for name in ("bn_momentum", "beta_1", "beta_2", "momentum", "dropout"):
            require(0 <= getattr(self, name) < 1, f"--{name.replace('_', '-')} must be in [0, 1), got {getattr(self, name)}")
        for name in ("learning_rate", "epsilon", "bn_epsilon", "clip_norm"):
            value = getattr(self, name)
            require(value is None or value > 0, f"--{name.replace('_', '-')} must be above 0, got {value}")
        require(0 < self.plateau_factor < 1, f"--plateau-factor must be above 0 and below 1, got {self.plateau_factor}")
        require(not self.weight_map or self.loss != "dice", "--weight-map needs --loss cross_entropy or dice_ce")
        require(0 < self.validation < 1, f"--validation is a share above 0 and below 1, got {self.validation}")
        require(self.channels in (None, 1, 3), f"--channels must be 1 (gray) or 3 (RGB), got {self.channels}")
        require(0 <= self.seed < 2**31 - 1, f"--seed must be at least 0 and below 2**31 - 1, got {self.seed}")
        require(
            self.precision != "float64" or self.batch_norm != "fused",
            "the fused batch normalization has no float64 kernel: add --batch-norm explicit",
        )
        # on a CPU too: "MaxPoolGrad is not yet deterministic" under XLA
        require(
            not (self.jit and self.deterministic), "--jit and --deterministic exclude each other: XLA chooses its own order"
        )
        for name in ("image_size", "crop_size"):
            size = getattr(self, name)
            # with "valid" padding the loader mirrors an image around its border, a crop it cannot
            smallest = 2**self.depth if name == "image_size" else min_size(self)
            require(
                size is None or min(size) >= smallest,
                f"--{name.replace('_', '-')} {size} is too small: {self.depth} poolings with {self.padding!r} padding need at "
                f"least {smallest} pixels; use a larger size or a smaller --depth",
            )
        on_disk = self.dataset != "synthetic"
        require(not on_disk or self.data_dir is not None, f"--dataset {self.dataset} needs --data-dir DIR")
        require(self.data_dir is None or on_disk, "--data-dir needs --dataset folder, or another that lies on disk")
        require(self.colors is None or self.dataset == "folder", "--colors needs --dataset folder")
        require(self.void_label is None or on_disk and self.void_label < 256, "--void-label is a mask value, 0 to 255")
        require(self.classes is None or self.classes <= 255, f"--classes must be at most 255, got {self.classes}")
        require(self.folds is None or self.split is None, "--folds and --split exclude each other")
        require(self.fold is None or self.fold < (self.folds or 0), f"--fold counts from 0 to --folds - 1, got {self.fold}")
        for name in ("class_names", "class_weights"):
            values = getattr(self, name)
            if values and self.classes is not None:
                needed = max(self.classes, 2)
                flag = "--" + name.replace("_", "-")
                require(len(values) == needed, f"{flag} needs one for each of {needed} classes, got {len(values)}")
        require(self.optimizer != "sgd" or self.momentum > 0, "--optimizer sgd needs a --momentum above 0")

    @property
    def variable_dtype(self):
        """Of weights, moving statistics and optimizer state: bfloat16 arithmetic keeps float32 master weights."""
        return "float64" if self.precision == "float64" else "float32"

    @classmethod
    def from_dict(cls, values):
        """The inverse of `as_dict`. Raises: UserError for a field that there is not."""
        fields = {field.name: field for field in dataclasses.fields(cls)}
        unknown = values.keys() - fields.keys()
        if unknown:
            raise UserError(f"unknown in this version: {', '.join(sorted(unknown))}")
        parsers = {kind | None: getattr(kind, "parse", kind) for kind in (Path, Size, Names, Weights)} | {Every: Every.parse}

        def read(name, value):
            parse = parsers.get(fields[name].type)
            return parse(value) if parse and value is not None else value

        return cls(**{name: read(name, value) for name, value in values.items()})

    def as_dict(self):
        """The fields as JSON has them: sizes and paths in the words of the command line."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        worded = (Path, Size, Names, Weights, Every)
        return {name: str(value) if isinstance(value, worded) else value for name, value in values.items()}


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


def make_parser(prog, description):
    """An argument parser with an option for every field of `Config`. It raises `UserError` and never exits by itself."""
    parser = argparse.ArgumentParser(
        prog=prog, description=description, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )

    def error(message):
        raise UserError(f"{message} (see {prog} --help)")

    parser.error = error
    parser.add_argument("--preset", choices=PRESETS, help="paper: Ronneberger et al. 2015; options beside it count")
    for field in dataclasses.fields(Config):
        flag, text, kind = "--" + field.name.replace("_", "-"), field.metadata["help"], field.type
        if typing.get_origin(kind) is types.UnionType:  # Path | None
            kind = typing.get_args(kind)[0]
        if field.default is not None:
            text += " (default: %(default)s)"
        if kind is bool:
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=field.default, help=text)
        elif typing.get_origin(kind) is Literal:
            parser.add_argument(flag, choices=typing.get_args(kind), default=field.default, help=text)
        else:
            metavar = {Path: "PATH", int: "N", float: "X", str: "TEXT"}.get(kind, kind.__name__.upper())
            parser.add_argument(flag, type=getattr(kind, "parse", kind), metavar=metavar, default=field.default, help=text)
    return parser


def parse(parser, argv):
    """The arguments, with the options of `--preset` where the command line is silent."""
    preset = parser.parse_args(argv).preset
    parser.set_defaults(**PRESETS.get(preset, {}))
    return parser.parse_args(argv)


def given_options(parser, argv):
    """The names of the `Config` fields that stand on the command line itself."""
    silent = argparse.Namespace(**{field.name: None for field in dataclasses.fields(Config)})
    nothing = vars(silent).copy()
    parser.parse_args(argv, silent)
    return {name for name in nothing if getattr(silent, name) is not None}


def read_config(args):
    """The `Config` in parsed arguments, which may hold other options too.

    Raises: UserError for values that do not fit together.
    """
    return Config(**{field.name: getattr(args, field.name) for field in dataclasses.fields(Config)})


def run_script(main):
    """Runs `main`; a `UserError` becomes one line on the standard error and exit code 2. Ctrl-C: 130, as in a shell."""
    try:
        sys.exit(main())
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:  # a full disk, a folder that cannot be written
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\nstopped; what was saved before stays", file=sys.stderr)
        sys.exit(130)
    except Stopped as stopped:
        print(f"\n{stopped}", file=sys.stderr)
        sys.exit(128 + stopped.signal)
    except (MemoryError, tf.errors.ResourceExhaustedError):
        advice = "use a smaller --batch-size or --crop-size, or --precision bfloat16"
        print(f"error: out of memory: {advice}; what was saved before stays", file=sys.stderr)
        sys.exit(2)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
