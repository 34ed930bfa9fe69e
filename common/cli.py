"""The command line made from the configuration, and how a script ends: no TensorFlow is needed to print --help."""

import argparse
import contextlib
import os
import signal
import sys
import typing
from pathlib import Path
from typing import Literal

from common.config import FIELDS, ON_DISK, PRESETS, ColorTable, Config, Stopped, UserError, flag, kind_of, range_of
from common.text import printable, say

GROUPS = {"first": "what most runs set", "network": "the network", "training": "the training", "data": "the data"}
FIRST = ("preset", "dataset", "data_dir", "crop_size", "filters", "epochs", "batch_size", "learning_rate", "run_dir", "resume")

ONLY_BESIDE = (  # an option, another, and the values of that beside which alone it does anything
    ("momentum", "optimizer", ["sgd"]), ("bn_momentum", "batch_norm", ["fused", "explicit"]),
    ("images", "dataset", ["synthetic"]), ("cache", "dataset", ON_DISK), ("skip_bad", "dataset", ON_DISK),
    ("validation", "split", [None]), ("validation", "folds", [None]),
)  # fmt: skip

# whatever else trains begins anew, at one learning rate, and saves nothing
OF_A_RUN = {"resume", "checkpoint", "checkpoint_every", "patience", "schedule", "warmup", "devices", "workers", "worker"}
OF_A_RUN |= {"folds", "fold"}

OUT_OF_MEMORY = "out of memory: use a smaller --batch-size or --crop-size, or --precision bfloat16; what was saved before stays"


class Parser(argparse.ArgumentParser):
    """Raises `UserError` and never exits by itself, but for --help."""

    def __init__(self, **options):
        # resolve: a command may have an option of the configuration in a form of its own
        options |= dict(conflict_handler="resolve", formatter_class=argparse.RawDescriptionHelpFormatter)
        super().__init__(allow_abbrev=False, **options)

    def error(self, message):
        message = printable(message)
        raise UserError(f"{message if len(message) < 500 else message[:500] + '...'} (see {self.prog} --help)")


def make_parser(prog, description, names=None):
    """A `Parser` with, in groups, an option for every field of `Config` and --preset, or for `names` of them alone.

    What has no option keeps its default, or what `parser.set_defaults` says.
    """
    parser = Parser(prog=prog, usage="%(prog)s [options]", description=description)
    groups = {name: parser.add_argument_group(title) for name, title in GROUPS.items()}
    for name in dict.fromkeys((*FIRST, *FIELDS)):
        group, field = FIELDS.get(name, (None, None))
        if names is not None and name not in names or field and field.metadata.get("hidden"):
            continue
        group = groups["first" if name in FIRST else group]
        if field:
            group.add_argument(flag(name), default=field.default, **as_option(field))
        else:
            group.add_argument("--preset", choices=PRESETS, help="Ronneberger et al. 2015; options beside it count")
    return parser


def as_option(field):
    """What `add_argument` takes for a field."""
    kind, text, bounds = kind_of(field), field.metadata["help"], range_of(field)
    if kind is bool:
        twin = any(field.name in preset for preset in PRESETS.values())  # what a preset switches on can be switched off
        return dict(help=text, action=argparse.BooleanOptionalAction if twin else "store_true")
    notes = [bounds] * ("to" in bounds or "below" in bounds) + ["default: %(default)s"] * (field.default is not None)
    if notes and not text.endswith(")"):
        text += f" ({'; '.join(notes)})"
    if typing.get_origin(kind) is Literal:
        return dict(help=text, choices=typing.get_args(kind))
    metavar = {Path: "PATH", int: "N", float: "X", str: "TEXT", ColorTable: "FILE"}.get(kind, kind.__name__.upper())
    return dict(help=text, type=getattr(kind, "parse", kind), metavar=metavar)


def parse(parser, argv):
    """The arguments, with the options of `--preset` where the command line is silent."""
    preset = getattr(parser.parse_args(argv), "preset", None)
    parser.set_defaults(**PRESETS.get(preset, {}))
    return parser.parse_args(argv)


def given_options(parser, argv):
    """The names of the `Config` fields that stand on the command line itself."""
    silent = argparse.Namespace(**dict.fromkeys(FIELDS))
    parser.parse_args(argv, silent)
    return {name for name in FIELDS if getattr(silent, name) is not None}


def refuse_idle(config, given):
    """Raises: UserError for an option among the names `given` that does nothing beside the others."""
    for name, other, values in ONLY_BESIDE:
        if name in given and (has := config.flat[other]) not in values:
            raise UserError(f"{flag(name)} does nothing beside {flag(other)} {has}: leave one of them out")


def read_config(args):
    """The `Config` in parsed arguments, which may hold other options too.

    Raises: UserError for values that do not fit together.
    """
    return Config.of(**{name: value for name, value in vars(args).items() if name in FIELDS})


def count(text):
    """A whole number above 0, as an argument's type."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def add_format(parser):
    parser.add_argument("--format", choices=("png", "svg", "pdf"), default="png", help="of the pictures (default: png)")


def in_a_line(error):
    """What to tell the user of an error; None for one that needs its traceback."""
    tf = sys.modules.get("tensorflow")
    if isinstance(error, MemoryError) or tf and isinstance(error, tf.errors.ResourceExhaustedError):
        return OUT_OF_MEMORY
    if isinstance(error, RuntimeError) and str(error).startswith("Symlink loop"):  # of Path.resolve
        return f"{error}: name another path"
    if isinstance(error, OSError) and error.filename is not None and error.strerror:  # a full disk, a folder not to be written
        return f"{os.fsdecode(error.filename)}: {error.strerror}"
    return str(error) if isinstance(error, (UserError, OSError)) else None


@contextlib.contextmanager
def handling(handler, *numbers):
    """Meanwhile `handler` answers the signals with these numbers, but for those that are ignored, as under nohup."""
    heard = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, handler) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_script(main):
    """Runs `main`; a `UserError` becomes one line on the standard error and exit code 2. Ctrl-C: 130, as in a shell."""
    interrupted = []

    def interrupt(*_):
        interrupted.append(True)  # an import may make any error of the other
        raise KeyboardInterrupt

    for stream in (sys.stdout, sys.stderr):  # a name may hold what a terminal's encoding has not
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        with handling(interrupt, signal.SIGINT):
            sys.exit(main())
    except Stopped as stopped:
        print(file=sys.stderr)
        say(stopped, sys.stderr)
        sys.exit(128 + stopped.signal)
    except (KeyboardInterrupt, Exception) as error:
        if interrupted or isinstance(error, KeyboardInterrupt):
            print("\nstopped; what was saved before stays", file=sys.stderr)
            sys.exit(130)
        if isinstance(error, BrokenPipeError):  # `| head` has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)
        if (line := in_a_line(error)) is None:
            raise
        say(f"error: {line}", sys.stderr)
        sys.exit(2)
