"""A record that travels: what the ladder saw on one machine, and where another, or a version or precision, departs from it.

The record holds no arrays but of each its size, a checksum, its largest value and a sample. What another machine needs to make
them again follows from the configuration: weights, images and masks are drawn by numpy from its seed, and need no data set.
It holds no path of the machine that wrote it.
"""

import hashlib
import itertools
import json
from typing import NamedTuple

from common.config import Config, UserError, flag
from common.device import be_deterministic
from common.output import write_json, write_text
from comparison import columns, machine
from comparison.proof import rounding
from comparison.proof.apart import Apart, apart, print_by_layer
from comparison.proof.by_layer import look
from comparison.proof.ladder import observe
from comparison.proof.outside import draw
from comparison.proof.ways import Case

import numpy as np

SAMPLE = 16  # numbers of each array, evenly spaced
PATHS = ("run_dir", "data_dir", "cache")
FREE = {"precision", "batch_norm", "jit", "deterministic", "run_dir"}  # what may change beside a record


def see(implementation, case, batches, weights):
    """All that is recorded of one implementation, in the order of a training step. -> rung -> {name -> array}"""
    ladder = observe(implementation, case, batches, weights)
    known = ("structure", "count of steps", "gradients", "losses, first 5 steps", "moving statistics, 2 passes")
    ladder = {rung: values for rung, values in ladder.items() if rung not in known and "beside" not in rung}
    return look(implementation, case, batches, weights) | ladder


def draw_inputs(case):
    """-> (weights, [(images, masks)]). Weights as after some training: no bias, gamma or moving statistic is at 0 or 1."""
    weights, batches = draw(case, case.config.training.batch_size)
    return weights, [(images, masks) for images, masks, _ in batches]


def summarize(array):
    """As the record has it. Numbers of every float type are written so that they are read as the same."""
    array = np.asarray(array)
    sample = np.ravel(array)[np.linspace(0, array.size - 1, min(array.size, SAMPLE)).astype(int)]
    return {
        **dict(shape=list(array.shape), dtype=str(array.dtype), checksum=hashlib.sha256(array.tobytes()).hexdigest()[:16]),
        **dict(largest=float(str(np.abs(array).max(initial=0))), sample=[float(str(x)) for x in sample]),
    }


def take(config, steps):
    """The record of the three, as written, as JSON has it."""
    case = Case("record", config, steps, exact=False)
    weights, batches = draw_inputs(case)
    drawn = {f"{what}, step {k + 1}": x for k, batch in enumerate(batches) for what, x in zip(("images", "masks"), batch)}
    default, seen = Config().as_dict(), {"inputs": {"weights": weights, "batches": drawn}}
    seen |= {name: see(name, case, batches, weights) for name in columns.IMPLEMENTATIONS}
    return {
        "config": {name: value for name, value in config.as_dict().items() if value != default[name] and name not in PATHS},
        **dict(steps=steps, arithmetic=machine.arithmetic(config)),
        "environment": machine.environment(),
        "seen": {
            who: {rung: {name: summarize(x) for name, x in values.items()} for rung, values in rungs.items()}
            for who, rungs in seen.items()
        },
    }


def run(config, args):
    """`compare.py parity --save` and `--against`. Returns: whether what departs is explained."""
    if config.training.deterministic:
        be_deterministic()
    if args.against:
        given = {name: getattr(args, name) for name in args.given} | ({"precision": args.only} if args.only else {})
        return against(args.against, given | {"run_dir": config.training.run_dir})
    config = config.replace(precision=args.only or "float32")
    args.save.parent.mkdir(parents=True, exist_ok=True)
    write_text(args.save, json.dumps(take(config, args.steps or 2)) + "\n")
    print(f"what the three compute, in {config.network.precision}, written to {args.save}; read it with --against {args.save}")
    return True


def read(path):
    """What `save` wrote. Raises: UserError for a file that is none."""
    try:
        record = json.loads(path.read_text())
        record["seen"]["lowlevel"], record["environment"]["packages"], record["arithmetic"], record["steps"]
        return record | {"config": Config.from_dict(record["config"])}
    except OSError as error:
        raise UserError(f"--against {path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise UserError(f"--against {path} was not written by compare.py parity --save") from None


class Departure(NamedTuple):
    """How far one array is from its record."""

    apart: Apart  # of the samples and the largest values
    same: bool  # by the checksum
    allowed: float  # of `apart.relative`

    @property
    def over(self):
        """How many times as large as rounding explains."""
        return self.apart.relative and self.apart.relative / (self.allowed or np.finfo(float).tiny)

    def __str__(self):
        return "0" if self.same else str(self.apart) if self.apart.relative else "beside the sample"


def depart(before, now, allowed):
    """`Departure` of an array, both as `summarize` has them. allowed: largest difference that rounding explains."""
    coarser = min(before["dtype"], now["dtype"], key=lambda dtype: np.dtype(dtype).itemsize)
    samples = (np.array([*summary["sample"], summary["largest"]], coarser) for summary in (before, now))
    distance = apart(*samples) if before["shape"] == now["shape"] else Apart(np.inf)
    return Departure(distance, before["checksum"] == now["checksum"], allowed / (before["largest"] or 1))


def compare(old, new, explained, unit):
    """-> {(rung, name): {implementation, or "inputs": `Departure`}}, in the order of a training step.

    old, new: "seen" of two records. explained: of `rounding.explained`; inputs may differ by `unit`, as numpy's logarithms do.

    Raises: UserError where the names differ.
    """
    found = {}
    for who, rungs in new.items():
        for rung, values in rungs.items():
            before = old[who].get(rung, {})
            if odd := sorted(before.keys() ^ values.keys()):
                raise UserError(f"--against: the record has other names in {who}, {rung}: {odd[0]}")
            for name, now in values.items():
                allowed = 2 * unit * now["largest"] if who == "inputs" else explained[rung][name]
                found.setdefault((rung, name), {})[who] = depart(before[name], now, allowed)
    return found


def print_table(found):
    """Activations and gradients layer by layer, of the other rungs the worst name: over the largest value, and in ulp."""
    rows = {}
    for rung, keys in itertools.groupby(found, key=lambda key: key[0]):
        over = {key: max(departure.over for departure in found[key].values()) for key in keys}
        for key in over if rung.startswith(("activations", "gradients")) else [max(over, key=over.get)]:
            cells = [found[key].get(who, found[key].get("inputs")) for who in columns.IMPLEMENTATIONS]
            rows[key] = [*cells, f"{cells[0].allowed:.0e}" + "  MORE" * (over[key] > 1)]
    print_by_layer([*columns.IMPLEMENTATIONS, "explained"], rows)


def against(path, given):
    """Computes what the record `path` holds, here and now, and says where it departs. Returns: whether rounding explains it.

    given: what stands on the command line beside it, name -> value. Raises: UserError for an option that the record decides.
    """
    old = read(path)
    if odd := sorted(given.keys() - FREE):
        raise UserError(f"--against {path}: the record decides {flag(odd[0])}, leave it out")
    config = old["config"].replace(**given)
    new = json.loads(json.dumps(take(config, old["steps"])))
    unit = max(rounding.of_a_sum(record["arithmetic"]) for record in (old, new))
    case = Case("record", config, old["steps"], exact=False)
    weights, batches = draw_inputs(case)
    found = compare(old["seen"], new["seen"], rounding.explained(see, case, batches, weights, unit), unit)
    machine.print_environment(old["environment"], new["environment"])
    print_table(found)
    flat = [(who, *key, departure) for key, row in found.items() for who, departure in row.items()]
    parted, beyond = ([row for row in flat if test(row[-1])] for test in (lambda d: not d.same, lambda d: d.over > 1))
    print(f"\n{len(flat) - len(parted)} of {len(flat)} arrays are equal to the last bit, by their checksums")
    if parted:
        print(f"first difference: {' '.join(parted[0][:3])}: {parted[0][-1]}")
    if beyond:
        who, rung, name, departure = beyond[0]
        where = f"{who}, {rung}, {name}: {departure}, {departure.over:.1f} times the bound"
        print(f"NOT the same: {len(beyond)} arrays depart by more than rounding explains; the first: {where}")
    else:
        share = max(departure.over for *_, departure in flat)
        print(f"the same network: what departs is at most {100 * share:.2g} % of what rounding explains")
    output = config.training.run_dir / "against.json"
    fields = ("who", "rung", "name", "relative", "ulp", "same", "allowed")
    rows = [dict(zip(fields, (*row, d.apart.relative, d.apart.ulp, d.same, d.allowed))) for *row, d in flat]
    write_json(output, {"record": str(path), "environment": new["environment"], "departures": rows})
    print(f"every array in {output}")
    return not beyond
