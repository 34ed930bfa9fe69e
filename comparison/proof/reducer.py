"""Where a column of the reader's own fails: the smallest options with which it still does, and the command that shows it."""

import dataclasses
import shlex

from common.config import FIELDS, Config, Size, UserError, flag
from common.shapes import min_size
from comparison.own import short
from comparison.proof import ladder
from comparison.proof.ways import EXACT_CONSTANTS, prepare

SMALLEST = dict(depth=1, filters=1, batch_size=1, steps=1, images=8)
STRUCTURE = ("filters", "depth", "batch_size", "images", "image_size", "precision", "batch_norm")  # written out, come what may


def changes(case):
    """Yields {option: value}, each smaller than `case`: options back to their defaults, then sizes, from the least on."""
    flat, default = case.config.flat | {"steps": case.steps}, Config()
    for name, (group, field) in FIELDS.items():
        kept = name in (*STRUCTURE, *EXACT_CONSTANTS, "channels", "classes") or field.metadata.get("hidden") or group == "data"
        if not kept and flat[name] != default.flat[name]:
            yield {name: default.flat[name]}
    for name, least in SMALLEST.items():
        value = flat[name]
        while least < value:
            yield {name: least}
            least = min(2 * least, value)
    side = min_size(case.config.network)
    while case.config.data.dataset == "synthetic" and side < min(flat["image_size"]):
        yield {"image_size": Size(side, side)}
        side *= 2


def changed(case, steps=None, **change):
    return dataclasses.replace(case, steps=steps or case.steps, config=case.config.replace(**change))


def first_failure(case):
    """The rung on which `case` fails first; None where it does not, or where no such network is made."""
    try:
        checks, _, _ = ladder.climb(*prepare(case, {}))
    except (UserError, ValueError):
        return None
    return next((check.rung for check in checks if not check.passed), None)


def run(case):
    """Prints the command of the smallest case that fails on the same rung as `case`."""
    case = dataclasses.replace(case, beside=case.beside[:1])
    if not (rung := first_failure(case)):
        print("--reduce: beside lowlevel alone it does not fail")
        return
    while change := next((change for change in changes(case) if first_failure(changed(case, **change)) == rung), None):
        case = changed(case, **change)
        print(f"--reduce: still fails with {', '.join(f'{name} {value}' for name, value in change.items())}", flush=True)
    print(f"\nthe smallest that fails on the rung {rung!r}, of {short(case.own)}:\n    {command(case)}")


def command(case):
    """The command line that climbs `case`, in both tiers."""
    default = Config().as_dict()
    words = [f"{flag(name)} {value}" for name, value in case.config.as_dict().items() if name in STRUCTURE]
    for name, value in case.config.as_dict().items():
        hidden = name in STRUCTURE or name in ("run_dir", "deterministic", "jit") or FIELDS[name][1].metadata.get("hidden")
        of_tier = case.exact and value == EXACT_CONSTANTS.get(name)
        found = name in ("channels", "classes") and value == 1
        if not hidden and not of_tier and not found and value not in (default[name], None):
            words.append(flag(name) if value is True else f"{flag(name)} {shlex.quote(str(value))}")
    return f"python compare.py parity --column {shlex.quote(case.own)} --steps {case.steps} " + " ".join(words)
