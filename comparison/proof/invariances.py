"""What must not change a number: company in the batch, a part of the image, another run, threads, and that a run was resumed.

0 where the same operations meet the same numbers in the same order; what rounding explains where a kernel divides its sums
otherwise. How many devices train is for `replicas`.
"""

import dataclasses
import functools
import tempfile
from pathlib import Path

from common.device import be_deterministic, tf
from comparison import columns, own
from comparison.proof import exact, ladder, rounding

import numpy as np

SAME = 0.0, "the same operations on the same numbers in the same order"
HALO = 6  # * 2**depth pixels, beyond which a padded border is not seen: prediction/tiles.py has the reckoning


def climb_all(case, batches):
    """[[`Check`]] of each column of the case, or of the reader's own alone."""
    case = dataclasses.replace(case, title=f"invariances: {case.title.split(': ')[1]}", steps=3)
    explained = ladder.rounded(dataclasses.replace(case, exact=False), batches)
    return [climb(name, case, batches, explained) for name in ([case.own] if case.own else case.columns)]


def climb(name, case, batches, explained):
    """The checks of one column. explained: of `ladder.rounded`."""
    with own.blamed(name):
        built = exact.build(name, case)
        built.start(ladder.start_weights(case))
        found = [(f"{what}, and within {of}", *pair, "logits in inference") for what, of, pair in looks(built, batches[0][0])]
        found += [("resumed, and straight", *resumed(name, case, batches), "")] if built.trains else []
    one, again = (columns.call(observe_on, own.short(name), name, case, batches, threads) for threads in (1, 0))
    here = observe_on(name, case, batches)
    found += [(f"two runs, {rung}", here[rung], again[rung], "") for rung in here]
    found += [("one thread, and all: gradients", one["gradients"], here["gradients"], "gradients")]
    checks = []
    for rung, values, others, rounds in found:
        known = explained.get(rounds, {})
        bound = functools.partial(allowed, known, rounding.one_by_one(batches[0][0]) if rounds == "gradients" else 1.0)
        checks.append(ladder.compare(case, rung, (name,), values, others, bound))
    return checks


def allowed(known, one_by_one, name, _):
    """(largest difference, reason); a bias's gradient is added up pixel by pixel, or in parts by several threads."""
    if not known:
        return SAME
    return known[name] * (one_by_one if name.endswith("/bias") else 1.0), f"kernels divide a sum otherwise: {rounding.REASON}"


def looks(built, images):
    """[(what, within what, ({"logits": array}, the same))], in inference."""
    eight = np.resize(images, (8, *images.shape[1:]))
    found = [("an image alone", "a batch of 8", (built.forward(eight[:1]), built.forward(eight)[:1]))]
    network = built.config.network
    if network.padding == "same":
        halo, unit = HALO * 2**network.depth, 2**network.depth
        more = [(0, 0), (0, 0), (0, max(0, 2 * halo + unit - images.shape[2])), (0, 0)]
        whole = np.pad(images[:1], more, mode="symmetric")
        part = built.forward(whole[:, :, : halo + unit])[:, :, :unit]  # what lies beyond its halo
        found.append(("a tile", "the whole image", (part, built.forward(whole)[:, :, :unit])))
    return [(what, of, tuple({"logits": np.asarray(logits)} for logits in pair)) for what, of, pair in found]


def resumed(name, case, batches):
    """-> (weights and moments after a step, a checkpoint and a step; the same after two steps without)."""
    built, other = exact.build(name, case), exact.build(name, case)
    built.start(ladder.start_weights(case))
    with tempfile.TemporaryDirectory() as folder:
        baton = Path(folder) / "baton.safetensors"
        built.carry_on(batches[:1], baton)
        other.carry_on(batches[-1:], baton)
    built.carry_on(batches[-1:])
    return [each.values() | each.moments() for each in (other, built)]


def observe_on(name, case, batches, threads=None):
    """Of `ladder.observe`, on so many threads in a process that has none yet: gradients, losses and weights."""
    if threads:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
    be_deterministic()
    with own.blamed(name):
        rungs = ladder.observe(name, case, batches)
    return {rung: values for rung, values in rungs.items() if rung == "gradients" or rung.startswith(("losses, 3", "weights"))}
