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


def option(default, help):
    """A field with its meaning and unit, which is also its --help text."""
    return dataclasses.field(default=default, metadata={"help": help})


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that decides what a run computes. The defaults are the project's own network.

    Raises: UserError when a value, or two values together, make no network.
    """

    # the network
    channels: int = option(1, "image channels: 1 gray, 3 RGB; images are converted")
    classes: int = option(1, "1: sigmoid, foreground against background; more: softmax over that many class indices")
    filters: int = option(16, "feature maps of the first level; every level below has twice as many")
    depth: int = option(4, "poolings, so that the bottom of the U is 2**depth times smaller than the image")
    activation: Literal["elu", "relu"] = option("elu", "after every 3x3 convolution")
    padding: Literal["same", "valid"] = option("same", "same: logits as large as the image; valid: the paper's, smaller")
    batch_norm: Literal["fused", "explicit", "none"] = option("fused", "fused: one kernel; explicit: tf.nn.moments")
    bn_momentum: float = option(0.875, "share of the old moving statistic that an update keeps; binary-exact on purpose")
    bn_epsilon: float = option(1e-3, "added to the variance")
    dropout: float = option(0.0, "share of values dropped at the end of the contracting path; each API draws its own")
    precision: Literal["float32", "bfloat16", "float64"] = option("float32", "of the arithmetic; weights stay float32 or wider")
    jit: bool = option(False, "compile the steps with XLA")
    deterministic: bool = option(False, "equal graphs give equal bits in every run; slower")

    # training
    loss: Literal["dice"] = option("dice", "soft dice per image and class")
    optimizer: Literal["adam", "sgd"] = option("adam", "Kingma and Ba 2015, or gradient descent with momentum")
    learning_rate: float = option(1e-3, "step size")
    beta_1: float = option(0.9, "Adam: decay of the mean of the gradients")
    beta_2: float = option(0.999, "Adam: decay of the mean of their squares")
    epsilon: float = option(1e-7, "Adam: added to the root of the mean square")
    momentum: float = option(0.9, "SGD: share of the last step that is kept")
    batch_size: int = option(8, "images per step")
    epochs: int = option(16, "passes over the training images")
    checkpoint: Path | None = option(None, "go on from this file of any implementation: last.safetensors of a run, or best")
    seed: int = option(0, "of the weights, the cells, the split, the order and the augmentation")

    # data
    dataset: Literal["synthetic", "folder"] = option("synthetic", "drawn cells, or the folder --data-dir")
    data_dir: Path | None = option(None, "folder with images/ and masks/, paired by file stem")
    images: int = option(250, "synthetic: how many to draw")
    validation: float = option(0.2, "share of the images held back to validate on, above 0 and below 1")
    image_size: Size | None = option(None, "resize to WIDTHxHEIGHT or NxN pixels (synthetic: draw at this size, or 128)")
    crop_size: Size | None = option(None, "train on random crops of WIDTHxHEIGHT or NxN pixels; validation sees whole images")
    augment: Literal["none", "flips"] = option("flips", "flips: random flips and right-angle rotations in training")

    # where results go
    run_dir: Path | None = option(None, "where everything is written (default: runs/<implementation>)")

    def __post_init__(self):
        def require(condition, message):
            if not condition:
                raise UserError(message)

        for name, low in dict(channels=1, classes=1, filters=1, depth=1, batch_size=1, epochs=1, images=2).items():
            require(getattr(self, name) >= low, f"--{name.replace('_', '-')} must be at least {low}, got {getattr(self, name)}")
        for name in ("bn_momentum", "beta_1", "beta_2", "momentum", "dropout"):
            require(0 <= getattr(self, name) < 1, f"--{name.replace('_', '-')} must be in [0, 1), got {getattr(self, name)}")
        for name in ("learning_rate", "epsilon", "bn_epsilon"):
            require(getattr(self, name) > 0, f"--{name.replace('_', '-')} must be above 0, got {getattr(self, name)}")
        require(0 < self.validation < 1, f"--validation is a share above 0 and below 1, got {self.validation}")
        require(self.channels in (1, 3), f"--channels must be 1 (gray) or 3 (RGB), got {self.channels}")
        require(self.seed >= 0, f"--seed must not be negative, got {self.seed}")
        require(
            self.precision != "float64" or self.batch_norm != "fused",
            "the fused batch normalization has no float64 kernel: add --batch-norm explicit",
        )
        # on a CPU too: "MaxPoolGrad is not yet deterministic" under XLA
        require(
            not (self.jit and self.deterministic), "--jit and --deterministic exclude each other: XLA chooses its own order"
        )
        smallest = min_size(self)
        for name in ("image_size", "crop_size"):
            size = getattr(self, name)
            require(
                size is None or min(size) >= smallest,
                f"--{name.replace('_', '-')} {size} is too small: {self.depth} poolings with {self.padding!r} padding need at "
                f"least {smallest} pixels; use a larger size or a smaller --depth",
            )
        require(
            self.image_size is None or self.crop_size is None or all(c <= i for c, i in zip(self.crop_size, self.image_size)),
            f"--crop-size {self.crop_size} does not fit into --image-size {self.image_size}",
        )
        require(self.dataset != "folder" or self.data_dir is not None, "--dataset folder needs --data-dir DIR")
        require(self.data_dir is None or self.dataset == "folder", "--data-dir needs --dataset folder")
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
        parsers = {Path | None: Path, Size | None: Size.parse}

        def read(name, value):
            parse = parsers.get(fields[name].type)
            return parse(value) if parse and value is not None else value

        return cls(**{name: read(name, value) for name, value in values.items()})

    def as_dict(self):
        """The fields as JSON has them: sizes and paths in the words of the command line."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: str(value) if isinstance(value, (Size, Path)) else value for name, value in values.items()}


def make_parser(prog, description):
    """An argument parser with an option for every field of `Config`. It raises `UserError` and never exits by itself."""
    parser = argparse.ArgumentParser(
        prog=prog, description=description, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )

    def error(message):
        raise UserError(f"{message} (see {prog} --help)")

    parser.error = error
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
            metavar = {Path: "PATH", Size: "SIZE", int: "N", float: "X"}[kind]
            parser.add_argument(flag, type=getattr(kind, "parse", kind), metavar=metavar, default=field.default, help=text)
    return parser


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
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
