"""Are the three implementations the same network, and how fast is each?

    python compare.py              both questions, the short way, within 3 minutes on 2 cores
    python compare.py parity       weights, logits, loss, gradients, training steps: every pair compared
    python compare.py graph        what each really executes: operations as traced, as optimized, as StableHLO
    python compare.py relay        an epoch in each, from checkpoint to checkpoint, against three epochs in one
    python compare.py bench        images per second in training and in inference, on the GPU if there is one
    python compare.py bench --data --dataset ...  images per second of the input pipeline, and whether training waits
    python compare.py bench --profile             where the time of a step goes, by kind of operation
    python compare.py bench --loop                what training costs besides the step: the loop, fit, the pipeline
    python compare.py runs DIR...  what the train scripts made of it: curves on each other, predictions side by side

The options of the train scripts work here too, such as --depth 3 or --dataset folder --data-dir DIR.
"""

import sys
from pathlib import Path

from common.cli import count, given_options, make_parser, parse, read_config, run_script
from common.config import Size, UserError
from comparison import IMPLEMENTATIONS, bench, graph, parity, relay, runs

COMMANDS = ("parity", "bench", "graph", "relay", "runs")
OUTPUT = Path("runs/compare")


def read_command_line(argv):
    """-> (command or None, `Config`, all arguments). Raises: UserError for options that do not fit the command."""
    command = argv.pop(0) if argv and argv[0] in COMMANDS else None
    parser = make_parser(f"compare.py {command}" if command else "compare.py", __doc__)
    parser.set_defaults(images=40, run_dir=OUTPUT)
    if command == "runs":
        trained = [Path("runs") / implementation for implementation in IMPLEMENTATIONS]
        parser.add_argument("run_dirs", type=Path, nargs="*", metavar="DIR", default=trained, help="run directories")
    if command == "graph":
        parser.add_argument("--save", type=Path, metavar="DIR", help="graph: write the StableHLO texts there")
    if command == "parity":
        architectures = [*parity.ARCHITECTURES, "all"]
        parser.add_argument("--config", choices=architectures, default="default", help="parity: the network, see the README")
        parser.add_argument("--all", action="store_const", const="all", dest="config", help="parity: the same as --config all")
    if command in ("parity", None):
        parser.set_defaults(precision=None)
        steps = "10; with --all 100" if command else "5"
        parser.add_argument("--steps", type=count, metavar="N", help=f"parity: training steps (default: {steps})")
    if command in ("parity", "relay", None):
        parser.set_defaults(**parity.EXACT_CONSTANTS)
    if command == "bench":
        bench.add_options(parser)
    if command is None:
        parser.add_argument("--rounds", type=count, metavar="N", help="bench: interleaved rounds (default: 5)")
        parser.set_defaults(what="quick", against=None)
    if command == "relay" or command == "parity" and parse(parser, argv).config == "all":
        parser.set_defaults(filters=8, batch_size=4)  # a long way to go: with a small network
        given = parse(parser, argv)
        if given.dataset == "synthetic" and not given.image_size and not given.crop_size:
            parser.set_defaults(image_size=Size(64, 64))
    args = parse(parser, argv)
    if command in ("parity", "relay", "graph", None) and (args.jit or args.deterministic):
        raise UserError("compare.py sets --jit and --deterministic itself")
    args.given = given_options(parser, argv)
    if command == "relay" and "precision" in args.given:
        raise UserError("relay hands on in float32 and in float64, one after the other: leave --precision out")
    args.cases = args.precision  # of parity; the configuration that they are made from is in float32
    if command in ("parity", None):
        args.precision = "float32"
    return command, read_config(args), args


def main(argv=None):
    """Returns the exit code: 0 when every check passed, 1 when one failed."""
    command, config, args = read_command_line(sys.argv[1:] if argv is None else list(argv))
    output, passed = config.training.run_dir, True
    output.mkdir(parents=True, exist_ok=True)  # before the work, not after it
    if command == "runs":
        runs.run(args.run_dirs, output)
    if command == "graph":
        passed = graph.run(config, output / "graph.json", args.save)
    if command == "relay":
        passed = relay.run(config, output / "relay.json")
    if command == "parity":
        names = list(parity.ARCHITECTURES) if args.config == "all" else [args.config]
        steps = args.steps or (100 if args.config == "all" else 10)
        cases = [case for name in names for case in parity.cases(name, config, steps, args.cases)]
        passed = parity.run(cases, output / "parity.json")
    if command is None:
        passed = parity.run(list(parity.cases("default", config, args.steps or 5, args.cases))[:2], output / "parity.json")
    if command == "bench":
        passed = bench.run(config, args)
    if command is None:
        args.given = {"precision", "jit"}
        bench.run(config.replace(precision=args.cases or "float32"), args)
    return 0 if passed else 1


if __name__ == "__main__":
    run_script(main)
