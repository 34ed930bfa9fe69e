"""How far apart float arithmetic alone may carry two computations of the same formulas: on two machines, devices or compilers.

Every bound in `comparison` that is neither 0 nor measured by itself is made here, of the precision and of the network.

What an operation adds. A sum of n products, in any order, is off by 4 sqrt(n) u of the sum of their absolute values at most,
but for a case in thousands (Higham and Mary 2019, "A new approach to probabilistic rounding error analysis", SIAM J. Sci.
Comput. 41, theorem 2.4 with lambda = 4); u is the rounding of one operation. Kernels sum in vectors, in blocks and on several
threads: n, what comes one after the other, is 1024 at most, however large the sum, but for one kernel
(`one_by_one`). That makes 128 u. What has 16 bits, and TF32, is summed in float32, and stored in fewer bits:
kernel, convolution, normalization and activation, 4 times up to twice the usual rounding.

What the network makes of it. An operation that is off by 128 u of its products has computed with weights that are 128 u off
(Higham 2002, "Accuracy and stability of numerical algorithms", section 1.5). So two runs in float64, one with all weights and
pixels off by that in random directions, the other by as much in the opposite ones, show how far that carries each layer:
through its depth, a normalization that divides by little, a maximum that another pixel wins, the steps of Adam.
"""

import dataclasses

import numpy as np

# of one operation, relative
ROUNDING = {"float32": 2**-24, "float64": 2**-53, "bfloat16": 2**-9, "float16": 2**-11, "tf32": 2**-11}
TERMS = 1024  # that a kernel adds one after the other, at most
SUM = 4 * TERMS**0.5  # roundings of such a sum
REASON = "what rounding does: two float64 runs, weights and pixels off by the rounding of a sum, part as far"


def of_a_sum(precision, terms=TERMS):
    """The rounding of a sum of so many products, relative to them."""
    of_sum = 4 * min(terms, TERMS) ** 0.5
    if precision in ("bfloat16", "float16", "tf32"):
        return 8 * ROUNDING[precision] + of_sum * ROUNDING["float32"]
    return of_sum * ROUNDING[precision]


def longest_sum(network, images):
    """How many products the longest sum of a training step has: a kernel's gradient is one over all pixels of the batch."""
    return max(int(np.prod(np.shape(images)[:3])), 9 * network.filters * 2**network.depth)


def one_by_one(images):
    """By what a sum over all pixels of the batch is further off where a kernel adds them up one by one, as BiasAddGrad does.

    It is not what Keras takes where there is one channel, nor need a column of the reader's own take it.
    docs/differences.md, "The bias of one output channel", has how large it gets.
    """
    return max(1.0, (int(np.prod(np.shape(images)[:3])) / TERMS) ** 0.5)


def in_float64(case):
    """The case that `explained` runs."""
    batch_norm = "none" if case.config.network.batch_norm == "none" else "explicit"  # the fused has no float64 kernel
    return dataclasses.replace(case, config=case.config.replace(precision="float64", batch_norm=batch_norm, jit=False))


def explained(look, case, batches, weights, unit):
    """How far apart rounding by `unit`, see `of_a_sum`, may carry two runs. -> rung -> {name -> largest absolute difference}

    look: function(implementation, case, batches, weights) -> rung -> {name -> array}, as `ladder.observe`.
    batches: [(images, masks)]. weights: canonical name -> array.
    """
    rng = np.random.default_rng(0)
    signs = {name: rng.choice([-1, 1], w.shape) for name, w in weights.items() if name != "dropout/state"}
    pixels = [rng.choice([-1, 1], np.shape(images)) for images, _ in batches]
    ahead, behind = (
        look(
            "lowlevel",
            in_float64(case),
            [(np.asarray(images) * (1 + step * sign), masks) for (images, masks), sign in zip(batches, pixels)],
            weights | {name: weights[name] * (1 + step * sign) for name, sign in signs.items()},
        )
        for step in (unit, -unit)
    )
    found = {rung: {name: bound(x, behind[rung][name], unit) for name, x in values.items()} for rung, values in ahead.items()}
    if case.config.network.batch_norm != "none":
        # a normalization takes out what a bias before it adds: of its gradient is left the rounding of the terms, of which
        # the gradient of the kernel beside it is made, too
        for rung, of in found.items():
            kernels = {name: name.replace("/bias", "/kernel") for name in of if "deconv/bias" in name}
            found[rung] |= {name: max(of[name], of[kernel]) for name, kernel in kernels.items()}
    return found


def bound(x, y, unit):
    """How far apart rounding by `unit` may carry two runs where runs that are off by it either way end in `x` and `y`."""
    return float(2 * unit * np.abs(x).max(initial=0) + np.abs(x - y).max(initial=0))
