"""Are the three implementations the same network, and how fast is each?

    python compare.py              both questions, the short way, within 3 minutes on 2 cores
    python compare.py parity       weights, logits, loss, gradients, training steps: every pair compared
    python compare.py bench        images per second in training and in inference, on the GPU if there is one
    python compare.py graph        what each really executes: operations as traced, as optimized, as StableHLO
    python compare.py relay        an epoch in each, from checkpoint to checkpoint, against three epochs in one
    python compare.py runs DIR...  what the train scripts made of it: curves on each other, predictions side by side

Every option of the train scripts works here too, such as --depth 3 or --dataset folder --data-dir DIR.
"""

import sys
from pathlib import Path

from common.config import Size, make_parser, read_config, run_script
from comparison import IMPLEMENTATIONS, bench, graph, parity, relay, runs

COMMANDS = ("parity", "bench", "graph", "relay", "runs")
OUTPUT = Path("runs/compare")


def main(argv=None):
    """Returns the exit code: 0 when every check passed, 1 when one failed."""
    argv = sys.argv[1:] if argv is None else list(argv)
    command = argv.pop(0) if argv and argv[0] in COMMANDS else None
    parser = make_parser(f"compare.py {command}" if command else "compare.py", __doc__)
    parser.set_defaults(images=40, run_dir=OUTPUT)
    if command == "runs":
        parser.add_argument(
            "run_dirs", type=Path, nargs="*", metavar="DIR", default=[Path("runs") / i for i in IMPLEMENTATIONS]
        )
    if command in ("parity", None):
        parser.set_defaults(**parity.EXACT_CONSTANTS, precision=None)
        architectures = [*parity.ARCHITECTURES, "all"]
        parser.add_argument("--config", choices=architectures, default="default", help="parity: the network, see the README")
        parser.add_argument("--all", action="store_const", const="all", dest="config", help="parity: the same as --config all")
        parser.add_argument("--steps", type=int, metavar="N", default=10 if command else 5, help="parity: training steps")
        if {"all", "--all"} & set(argv):  # the whole ladder is high: a small network, and a hundred steps
            parser.set_defaults(filters=8, image_size=Size(64, 64), batch_size=4, steps=100)
    if command == "relay":
        parser.set_defaults(**parity.EXACT_CONSTANTS, image_size=Size(64, 64), filters=8, batch_size=4)
    if command == "graph":
        parser.add_argument("--save", type=Path, metavar="DIR", help="graph: write the StableHLO texts there")
    if command in ("bench", None):
        parser.add_argument("--rounds", type=int, metavar="N", default=15 if command else 6, help="bench: interleaved rounds")
    args = parser.parse_args(argv)
    precision, args.precision = args.precision, args.precision or "float32"
    config = read_config(args)
    passed = True
    if command == "runs":
        runs.run(args.run_dirs, config.run_dir)
    if command == "graph":
        passed = graph.run(config, config.run_dir / "graph.json", args.save)
    if command == "relay":
        passed = relay.run(config, config.run_dir / "relay.json")
    if command in ("parity", None):
        names = list(parity.ARCHITECTURES) if args.config == "all" else [args.config]
        cases = [case for name in names for case in parity.cases(name, config, args.steps, precision)]
        passed = parity.run(cases if command else cases[:2], config.run_dir / "parity.json")
    if command in ("bench", None):
        bench.run(config, args.rounds, {"train": 3, "infer": 5}, config.run_dir / "bench.json")
    return 0 if passed else 1


if __name__ == "__main__":
    run_script(main)
