"""Are the three implementations the same network, and how fast is each?

    python compare.py              both questions, the short way, 2 to 5 minutes on 2 cores
    python compare.py parity       weights, logits, loss, gradients, training steps: every pair compared
        parity --column FOLDER     the same of a column of your own, a folder with model.py, beside the three
    python compare.py graph        what each really executes: operations as traced, as optimized, as StableHLO
    python compare.py relay        an epoch in each, from checkpoint to checkpoint, against three epochs in one
    python compare.py replicas     several devices and hosts against one: the same training?
    python compare.py seeds        trained with several seeds each, do their results differ by more than chance?
    python compare.py bench        images per second in training and in inference, on the GPU if there is one
    python compare.py runs DIR...  what the train scripts made of it: curves on each other, predictions side by side

Each has a --help of its own. The options of the train scripts work here too, such as --depth 3 or --dataset folder.
"""

import importlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # python -P and PYTHONSAFEPATH leave it out

from common.cli import OF_A_RUN, count, given_options, make_parser, parse, read_config, refuse_idle, run_script
from common.config import FIELDS, UserError
from common.output import prepare, take_results
from common.text import printable

COMMANDS = ("parity", "graph", "relay", "replicas", "seeds", "bench", "runs")


def read_command_line(argv):
    """-> (command, `Config`, all arguments). Raises: UserError for options that do not fit.

    Command: a module of a room of `comparison` with `add_options(parser)`, `run(config, args)`, and in `SETS` the options of
    the configuration that it sets itself or has no use for; None without a name.
    """
    name = argv[0] if argv and not argv[0].startswith("-") else None
    if name and name not in COMMANDS:
        raise UserError(f"compare.py {printable(name[:60])}: the commands are {', '.join(COMMANDS)}")
    room = "benchmark" if name == "bench" else "proof"
    command = importlib.import_module(f"comparison.{room}.{name}") if name else None
    sets = command.SETS if name else {"jit", "deterministic", "epochs"}
    names = {"preset", *FIELDS} - OF_A_RUN - sets
    parser = make_parser(f"compare.py {name}" if name else "compare.py", command.__doc__ if name else __doc__, names)
    parser.set_defaults(images=40, run_dir=Path("runs/compare"))
    if name:
        argv = argv[1:]
        command.add_options(parser)
    else:
        parser.add_argument("--rounds", type=count, default=5, metavar="N", help="of the benchmark (default: %(default)s)")
    args = parse(parser, argv)
    args.given, args.command = given_options(parser, argv), name
    if name == "parity" and not (args.save or args.against) and (args.jit or args.deterministic):
        raise UserError("parity sets --jit and --deterministic itself, but for --save and --against")
    args.only = args.precision if "precision" in args.given else None
    if name in ("parity", None):  # which chooses the normalization that goes with a precision
        args.precision = "float32"
    config = read_config(args)
    refuse_idle(config, args.given - {"momentum", "bn_momentum"})  # which some of the ways of parity use
    return command, config, args


def run_short(config, args):
    """The default network up the ladder in both tiers, and `bench --quick` in one precision."""
    from comparison.benchmark import bench
    from comparison.proof import parity

    ways = list(parity.cases("default", config, steps=5, precision=args.only))
    chosen = [case for case in ways if case.title.split(": ")[1] in SHORT] or ways[:2]
    passed = parity.climb_all(chosen, config.training.run_dir / "parity.json")
    files = (config.training.run_dir / name for name in ("bench.json", "roofline.png"))
    in_64_bits = {"batch_norm": "explicit"} if args.only == "float64" and config.network.batch_norm == "fused" else {}
    config = config.replace(precision=args.only or "float32", **in_64_bits)  # for which there is no fused kernel
    bench.run_matrix(config, {"precision", "jit"}, "quick", args.rounds, *files)
    return passed


SHORT = ("float32, fused, as written", "float32, explicit, to the last bit", "float32, fused, to the last bit")


def main(argv=None):
    """Returns the exit code: 0 when every check passed, 1 when one failed."""
    command, config, args = read_command_line(sys.argv[1:] if argv is None else list(argv))
    take_results(config.training.run_dir.resolve())  # before the work, not after it
    if args.command == "parity" and args.save:
        prepare([args.save])
    if args.command == "graph" and args.save:
        take_results(args.save)
    passed = command.run(config, args) if command else run_short(config, args)
    return 0 if passed else 1


if __name__ == "__main__":
    run_script(main)
