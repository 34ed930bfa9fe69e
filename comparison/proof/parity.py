"""Is it the same network three times? Every weight, gradient and training step, every pair, in two tiers.

As written: the columns as they stand, with the constants that users train with, within tolerances that have reasons.
To the last bit: without the few freedoms that `exact` names, with constants that binary fractions hold, and one operation at a
time.
"""

import dataclasses
import itertools
import json
from pathlib import Path

from common.cli import count
from common.config import VOID, Config, Size, UserError, marked
from common.output import write_text
from common.pictures import save_figure, styled
from comparison import columns
from comparison.proof import replicas
from comparison.proof.ways import ARCHITECTURES, cases

import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm

SMALL = dict(filters=8, batch_size=4, image_size=Size(64, 64))  # a long way to go with --all: with a small network
NOTHING = "nothing to compare with this --config and --precision: bfloat16 and float16 are for the default alone"

SETS = {"epochs"}


def add_options(parser):
    """Adds the options of `compare.py parity` to those of the configuration."""
    group = parser.add_argument_group("parity")
    group.add_argument(
        "--config", choices=[*ARCHITECTURES, "all"], default="default", help="which network (default: %(default)s)"
    )
    group.add_argument(
        "--all", action="store_const", const="all", dest="config", help="the same as --config all: 10 to 30 minutes"
    )
    group.add_argument("--steps", type=count, metavar="N", help="training steps (default: 10; with --all 100, with --save 2)")
    what = group.add_mutually_exclusive_group()
    what.add_argument("--layers", action="store_true", help="every activation and gradient by layer, as a table and a picture")
    what.add_argument("--save", type=Path, metavar="FILE", help="write what the three compute, for another machine to compare")
    what.add_argument("--against", type=Path, metavar="FILE", help="where this machine, version or precision departs from FILE")


def run(config, args):
    """The command. Returns: whether every check passed. Raises: UserError when there is nothing to compare."""
    if args.save or args.against:
        return run_record(config, args)
    if args.layers and args.config == "all":
        raise UserError("--layers looks into one network: choose it with --config")
    names, steps = [args.config], args.steps or 10
    if args.config == "all":
        names, steps = list(ARCHITECTURES), args.steps or 100
        config = columns.shrunk(config, SMALL, args.given)
    todo = [case for name in names for case in cases(name, config, steps, args.only)]
    if args.layers:
        return run_layers(todo, config.training.run_dir / "layers.png")
    passed = climb_all(todo, config.training.run_dir / "parity.json")
    if args.config == "all" and not args.only:
        of_devices = Config.of(**replicas.SMALL, images=40)
        passed &= replicas.climb_all(of_devices, replicas.STEPS, config.training.run_dir / "replicas.json")
    return passed


def run_record(config, args):
    """--save and --against. Returns: whether what departs is explained."""
    from common.device import be_deterministic
    from comparison.proof import record

    if config.training.deterministic:
        be_deterministic()
    precision = args.only or "float32"
    if args.against:
        given = {name: getattr(args, name) for name in args.given} | ({"precision": precision} if args.only else {})
        return record.against(args.against, given | {"run_dir": config.training.run_dir})
    record.save(config.replace(precision=precision), args.steps or 2, args.save)
    return True


def run_layers(todo, path):
    """--layers: the first case of each tier, layer by layer; the picture goes to `path`. Returns: True."""
    from common.device import be_deterministic
    from comparison.proof import by_layer

    tables, batches = {}, {}
    for exact in (False, True):  # determinism cannot be switched off again
        case = next((case for case in todo if case.exact == exact and not case.config.training.jit), None)
        if case is None:
            continue
        if exact:
            be_deterministic()
        case, examples = prepare(case, batches)
        tables[case.title] = by_layer.compare(case, examples)
        by_layer.print_table(case.title, tables[case.title])
    if not tables:
        raise UserError(NOTHING)
    by_layer.draw(tables, path)
    print(f"\ndrawn to {path}")
    return True


def with_void(masks):
    """[N, H, W, 1] class indices with VOID all over the first image and in the upper quarter of the others."""
    masks = masks.copy()
    masks[0] = VOID
    masks[:, : masks.shape[1] // 4] = VOID
    return masks


def print_table(checks):
    """A row for every rung: the differences of the three pairs, the tolerance, the verdict."""
    pairs = list(dict.fromkeys(check.pair for check in checks))
    print(f"\n{checks[0].case.title:<56}" + "".join(f"{pair:>24}" for pair in pairs) + f"{'tolerance':>16}")
    for rung, row in itertools.groupby(checks, key=lambda check: check.rung):
        row = list(row)
        cells = "".join(f"{c.difference:>12.1e} {c.ulp:>7} ulp" if c.difference else f"{'0':>24}" for c in row)
        words = {0: "0", np.inf: "none"}
        allowed = " / ".join(words.get(t, f"{t:.0e}") for t in sorted({c.tolerance for c in row}))
        failed = sorted({c.worst for c in row if not c.passed})
        verdict = f"DIFFERENT at {', '.join(failed)}" if failed else "ok"
        print(f"{rung:<56}{cells}{allowed:>16}  {verdict}", flush=True)


@styled
def draw(losses, path):
    """How far apart the losses of each pair are over the steps, on a logarithmic axis; equal losses lie on the floor.

    losses: case -> implementation -> list over the steps.
    """
    figure = Figure(figsize=(13, 3.2 * -(-len(losses) // 3)))
    floor = 1e-17  # below the last place of float64
    axes = list(figure.subplots(-(-len(losses) // 3), 3, squeeze=False).flat)
    for axis in axes[len(losses) :]:
        axis.set_axis_off()
    for axis, (title, of_case) in zip(axes, losses.items()):
        for k, (a, b) in enumerate(itertools.combinations(of_case, 2)):
            apart = np.abs(np.subtract(of_case[a], of_case[b]))
            axis.semilogy(
                range(1, len(apart) + 1), np.maximum(apart, floor), lw=3 - k, ls=("-", "--", ":")[k], label=f"{a} - {b}"
            )
        if len({tuple(values) for values in of_case.values()}) == 1:
            axis.text(0.5, 0.5, "0 at every step", transform=axis.transAxes, ha="center", color="0.4")
        axis.set(title=title, xlabel="training step", ylabel="difference of the losses", ylim=(floor / 2, 1))
        axis.title.set_fontsize(9)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    figure.tight_layout()
    save_figure(figure, path)


def prepare(case, batches):
    """-> (the case with what its data says, [(images, masks)] as numpy arrays). `batches` keeps what was drawn before."""
    from data.loader import load_examples, training_batches

    network, training = case.config.network, case.config.training
    key = case.config.data, network.channels, network.classes, network.padding, network.depth, network.seed
    key += training.batch_size, training.weight_map
    if key not in batches:
        config, examples, _ = load_examples(case.config)
        found = {name: config.flat[name] for name in marked("found")}
        batches[key] = found, [(i.numpy(), m.numpy()) for i, m in training_batches(config, examples).take(10)]
    found, examples = batches[key]
    if training.class_weights:  # given, or of the case
        found = {**found, "class_weights": training.class_weights}
    if case.void:
        # drawn cells hold no void and `Config` would refuse it; where masks come from is all one behind the loader
        found = {**found, "void_label": VOID, "dataset": "folder", "data_dir": case.config.data.data_dir or Path()}
        examples = [(images, with_void(masks)) for images, masks in examples]
    return dataclasses.replace(case, config=case.config.replace(**found)), examples


def climb_all(todo, path):
    """Climbs in the ways `todo`, a list of `Case`s; prints them, writes JSON to `path`, and draws the losses beside it.

    Returns: whether every check passed.
    """
    from comparison.proof import ladder, outside

    if not todo:
        raise UserError(NOTHING)
    checks, losses, batches = [], {}, {}
    todo = sorted(todo, key=lambda case: case.exact)  # determinism cannot be switched off again
    for case in tqdm(todo, desc="parity", unit="case", leave=False, disable=None):
        case, examples = prepare(case, batches)
        if case.config.training.jit:  # XLA and determinism exclude each other, and that cannot be switched off again
            of_case, losses[case.title], first = columns.call(ladder.climb, repr(case.title), case, examples)
        else:
            of_case, losses[case.title], first = ladder.climb(case, examples)
        print_table(of_case)
        checks += of_case
        if first:
            print(f"first difference between {first}", flush=True)
    beside = []  # the formulas in NumPy
    for case in outside.cases(todo):
        beside += (of_case := outside.climb(case))
        print_table(of_case)
    record = [check.as_dict() for check in checks + beside]
    write_text(path, json.dumps({"checks": record, "losses": losses}, indent=2) + "\n")
    if any(losses.values()):  # a structural fault leaves none
        draw({title: of_case for title, of_case in losses.items() if of_case}, path.with_suffix(".png"))
    print()
    for line in [*summarize(checks), outside.summarize(beside)]:
        print(line)
    print(f"every name and reason in {path}, the losses in {path.with_suffix('.png')}")
    return all(check.passed for check in checks + beside)


def summarize(checks):
    """A line for each tier, for who reads nothing else."""
    for exact, words in ((False, "as written, within rounding"), (True, "to the last bit")):
        tier = [check for check in checks if check.case.exact == exact and np.isfinite(check.tolerance)]
        failed = sum(not check.passed for check in tier)
        if not tier:
            continue
        verdict = f"{failed} of {len(tier)} checks FAILED" if failed else f"{len(tier)} checks, the same network three times"
        if not failed and not exact:
            losses = [c.difference for c in tier if c.rung == "losses, first 5 steps" and "float32" in c.case.title]
            verdict += f"; in float32 the first losses part by {max(losses, default=0):.0e} at most"
        yield f"{words}: {verdict}"
