"""Layer by layer, also when all is well: each activation and gradient of the three, how far apart, how much, and where."""

import itertools

from common.device import be_deterministic
from common.weights import initial_weights
from comparison import columns
from comparison.proof import exact, finder
from comparison.proof.apart import apart, head, print_by_layer
from comparison.proof.ways import prepare


def look(implementation, case, batches, weights):
    """What one implementation makes of the first batch, layer by layer. -> rung -> {name -> array}

    Activations from the image on, gradients from the head backwards.
    """
    built, (images, masks), rungs = exact.build(implementation, case), batches[0], {}
    for training, mode in ((False, "inference"), (True, "training")):
        built.start(weights)
        rungs[f"activations in {mode}"] = dict(finder.layers(built.model, case.config, images, training)[0])
    built.start(weights)
    return rungs | {"gradients": finder.gradients_backwards(built, images, masks)[1]}


def compare(case, batches):
    """-> {(rung, layer): {pair: `Apart`}}"""
    weights = initial_weights(case.config.network)
    seen = {name: look(name, case, batches, weights) for name in columns.IMPLEMENTATIONS}
    return {
        (rung, name): {
            f"{a} - {b}": apart(seen[a][rung][name], seen[b][rung][name])
            for a, b in itertools.combinations(columns.IMPLEMENTATIONS, 2)
        }
        for rung, layers in seen["lowlevel"].items()
        for name in layers
    }


def print_table(title, rows):
    """A row for each layer: largest difference over the largest value, in ulp, and the percentage of the elements that differ.

    Behind it, where the largest lies. rows: of `compare`.
    """
    print(f"\n{title}")
    found = {}
    for key, pairs in rows.items():
        worst = max(pairs.values(), key=lambda a: a.relative)
        found[key] = [f"{a} {100 * a.share:.0f}%" if a.relative else "0" for a in pairs.values()]
        found[key].append(list(worst.where) if worst.where else "")
    print_by_layer([*map(head, next(iter(rows.values()))), "the largest at"], found)


def run(todo):
    """`compare.py parity --layers`: the first of the cases `todo` in each tier. Returns: whether there is one."""
    batches, found = {}, [case for case in todo if not case.config.training.jit]
    for exact_tier in (False, True):  # determinism cannot be switched off again
        for case in [case for case in found if case.exact == exact_tier][:1]:
            if exact_tier:
                be_deterministic()
            case, examples = prepare(case, batches)
            print_table(case.title, compare(case, examples))
    return bool(found)
