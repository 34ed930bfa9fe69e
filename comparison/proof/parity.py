"""Is it the same network three times? Every weight, gradient and training step, every pair, in two tiers.

As written: the columns as they stand, with the constants that users train with, within tolerances that have reasons.
To the last bit: without the few freedoms that `exact` names, with constants that binary fractions hold, and one operation at a
time.
"""

import dataclasses
import itertools
import math
import sys
from pathlib import Path

from common.cli import count
from common.config import Config, Size, UserError
from common.output import write_json
from common.weights import is_trainable, weight_shapes
from comparison import columns
from comparison.own import short
from comparison.proof import replicas
from comparison.proof.apart import head
from comparison.proof.ways import ARCHITECTURES, cases, own_cases, prepare

import numpy as np
from tqdm import tqdm

SMALL = dict(filters=8, batch_size=4, image_size=Size(64, 64))  # a long way to go with --all: with a small network
SMALLER = dict(filters=4, depth=2, batch_size=4, images=12, image_size=Size(32, 32))  # a column that is being written waits
NOTHING = "nothing to compare with this --config and --precision: bfloat16 and float16 are for the default alone"

SETS = {"epochs"}


def add_options(parser):
    """Adds the options of `compare.py parity` to those of the configuration."""
    group = parser.add_argument_group("parity")
    words = "which network (default: default; with --column the one that the options say)"
    group.add_argument("--config", choices=[*ARCHITECTURES, "all"], help=words)
    group.add_argument(
        "--all", action="store_const", const="all", dest="config", help="the same as --config all: 10 to 30 minutes"
    )
    group.add_argument("--steps", type=count, metavar="N", help="training steps (default: 10; with --all 100, with --save 2)")
    group.add_argument("--verbose", action="store_true", help="every rung of every way, and not only those that fail")
    group.add_argument("--column", metavar="FOLDER", help="a column of your own: a folder with model.py, and perhaps train.py")
    words = "start from the weights in a safetensors file, with canonical names; with its images and logits, if it has some"
    group.add_argument("--weights", type=Path, metavar="FILE", help=words)
    group.add_argument(
        "--reduce", action="store_true", help="with --column: find the smallest options with which it still fails"
    )
    what = group.add_mutually_exclusive_group()
    what.add_argument("--layers", action="store_true", help="every activation and gradient, layer by layer")
    what.add_argument("--save", type=Path, metavar="FILE", help="write what the three compute, for another machine to compare")
    what.add_argument("--against", type=Path, metavar="FILE", help="where this machine, version or precision departs from FILE")


def run(config, args):
    """The command. Returns: whether every check passed. Raises: UserError when there is nothing to compare."""
    if (args.column or args.weights) and (args.save or args.against or args.layers):
        raise UserError("--column and --weights climb the ladder: leave out --save, --against and --layers")
    if args.reduce and not args.column:
        raise UserError("--reduce is for a column of your own: add --column FOLDER")
    if args.save or args.against:
        from comparison.proof import record

        return record.run(config, args)
    if args.layers and args.config == "all":
        raise UserError("--layers looks into one network: choose it with --config")
    names, steps = [args.config or "default"], args.steps or (5 if args.column else 10)
    if args.config == "all":
        names, steps = list(ARCHITECTURES), args.steps or 100
    if args.column or args.config == "all":
        config = columns.shrunk(config, SMALLER if args.column else SMALL, args.given)
    todo = [case for name in names for case in cases(name, config, steps, args.only)]
    if args.column and not args.config:
        todo = [*own_cases(config, steps, args.only, args.given)]
    todo = [dataclasses.replace(case, own=args.column or "", weights=args.weights) for case in todo]
    if args.layers and todo:
        from comparison.proof import by_layer

        return by_layer.run(todo)
    dropped = [case for case in todo if args.config == "all" and case.exact and case.config.network.dropout]
    invariant = dropped[0] if dropped else None
    passed = climb_all(todo, config.training.run_dir / "parity.json", args.verbose, args.reduce, invariant)
    if args.config == "all" and not args.only and not args.column:
        of_devices = Config.of(**replicas.SMALL, images=40)
        passed &= replicas.climb_all(of_devices, replicas.STEPS, config.training.run_dir / "replicas.json")
    return passed


def print_table(checks):
    """A row for every rung: the differences of the pairs, the tolerance, the verdict."""
    pairs = list(dict.fromkeys(check.pair for check in checks))
    print(f"\n{checks[0].case.title}\n{'':<30}" + "".join(f"{head(pair):>17}" for pair in pairs) + f"{'tolerance':>10}")
    for rung, row in itertools.groupby(checks, key=lambda check: check.rung):
        row = list(row)
        cells = (f"{c.difference:.0e}" + (f" {c.ulp} ulp" if 0 < c.ulp < 1e6 else "") if c.difference else "0" for c in row)
        tolerance = max(c.tolerance for c in row)
        allowed = {0: "0", np.inf: "none"}.get(tolerance, f"{tolerance:.0e}")
        failed = sorted({c.worst for c in row if not c.passed})
        print(f"{rung:<30}{''.join(f'{cell:>17}' for cell in cells)}{allowed:>10}  {'FAILED' if failed else 'ok'}")
        if failed:
            print(f"    at {', '.join(failed)}"[:100])


def climb_all(todo, path, verbose=False, reduce=False, invariant=None):
    """Climbs in the ways `todo`, a list of `Case`s; writes JSON to `path`, prints what it found.

    The verdict comes first, then a line for each way, or with `verbose` all rungs, and those that failed. With a column of the
    reader's own it ends at the first way that fails; `reduce`: and looks for the smallest that does. invariant: the `Case` with
    which the `invariances` are climbed, if it is not that of the reader's own.

    Returns: whether every check passed.
    """
    if not todo:
        raise UserError(NOTHING)
    print(f"parity: {len(todo)} ways to climb; the verdict comes first when all are done", flush=True)
    from common.device import on_gpu
    from comparison.machine import precisions
    from comparison.proof import invariances, ladder, outside, reducer

    if "bfloat16" not in precisions(on_gpu()) and any("16" in case.config.network.precision for case in todo):
        words = "those in 16 bits take up to ten times as long: this processor has no instructions for them"
        print(words, file=sys.stderr, flush=True)

    own, losses, batches, known, climbed, first = todo[0].own, {}, {}, {}, [], ""
    todo = sorted(todo, key=lambda case: case.exact)  # determinism cannot be switched off again
    for case in progress(todo):
        case, examples = last = prepare(case, batches)
        explained = ladder.rounded(case, examples, known)
        if case.config.training.jit:  # XLA and determinism exclude each other, and that cannot be switched off again
            found = columns.call(ladder.climb, repr(case.title), case, examples, None, explained)
        else:
            found = ladder.climb(case, examples, None, explained)
        climbed.append(found[0])
        losses[case.title], first = found[1], first or found[2]
        if own and first:
            break
    inside = len(climbed)
    if not (own and first):
        climbed += [outside.climb(case) for case in progress([*outside.cases(todo)])]  # the formulas in NumPy
        climbed += [ladder.beside_file(case)] if case.weights else []
        climbed += invariances.climb_all(*(last if own else prepare(invariant, batches))) if own or invariant else []
    every = [check for of_case in climbed for check in of_case]
    write_json(path, {"checks": [check.as_dict() for check in every], "losses": losses})
    print(verdict(climbed[:inside], climbed[inside:], first))
    print()
    for of_case in climbed:
        failed, counted = sum(not check.passed for check in of_case), sum(np.isfinite(check.tolerance) for check in of_case)
        words = f"{failed} of {counted} checks FAILED" if failed else f"{counted} checks, ok"
        print(f"{of_case[0].case.title:<76}{words:>23}")
    for of_case in climbed:
        if len(of_case) > 1 and (verbose or not all(check.passed for check in of_case)):  # the one is in the verdict
            print_table(of_case)
    print(f"\nevery name and reason in {path}")
    if own and first and reduce:
        reducer.run(case)
    return all(check.passed for check in every)


def progress(cases):
    """Yields the cases, under a bar, or, where there is no terminal to draw it on, behind a line for each."""
    for k, case in enumerate(tqdm(cases, desc="parity", unit="case", leave=False, disable=None), 1):
        if not sys.stderr.isatty():
            print(f"{k:>4} of {len(cases)}: {case.title}", file=sys.stderr, flush=True)
        yield case


def verdict(inside, outside, first):
    """In a sentence or two, for who reads nothing else. inside, outside: lists of `Check`s, of the ladder and beside it."""
    case = inside[0][0].case
    who = f"{short(case.own)} and the three are" if case.own else "The three are"
    every = [check for of_case in (*inside, *outside) for check in of_case if np.isfinite(check.tolerance)]
    if case.own and inside[-1][0].rung == "structure" and len(inside[-1]) == 1:
        return f"NOT the same network: {first}"
    network = "the same network" if case.own else "the same network three times"
    if failed := [check for check in every if not check.passed]:
        number, worst = f"{len(failed)} of {len(every)} checks failed", failed[0]
        if first:
            return f"{who} NOT the same network: {number};\nfirst difference between {first}"
        where = f"{worst.case.title}: {worst.pair}, {worst.rung}, at {worst.worst}"
        return f"{who} {network}, but NOT a right one: {number};\nthe first: {where}"
    said = []
    for of_case in sorted(inside, key=lambda of_case: -of_case[0].case.exact):
        of, found = of_case[0].case, [c for c in of_case if c.rung.startswith("weights")]
        if found and not max(c.difference for c in found) and (of.exact or of.own):
            n = sum(math.prod(shape) for name, shape in weight_shapes(of.config.network).items() if is_trainable(name))
            said.append(f"none of {n:,} weights differs after {of.steps} steps, to the last bit")
            break
    losses = [
        c.difference for c in every if c.rung.startswith("losses, first") and "float32" in c.case.title and not c.case.exact
    ]
    said += [f"as written the first losses part by {max(losses):.0e} at most"] if losses else []
    formulas = [c.difference for c in every if "NumPy, " in c.case.title and c.case.config.network.precision == "float64"]
    said += [f"beside NumPy the largest difference is {max(formulas):.0e}"] if formulas else []
    return ";\n".join([f"{who} {network}, in {len(every)} checks", *said])
