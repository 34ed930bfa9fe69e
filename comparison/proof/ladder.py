"""What the three compute on each rung, from the shapes of the weights to a hundred training steps, and how far it is apart."""

import dataclasses
import itertools

from common.device import be_deterministic, tf
from common.weights import initial_weights
from comparison import columns
from comparison.machine import arithmetic
from comparison.proof import exact, finder, rounding
from comparison.proof.apart import difference
from comparison.proof.rounding import ROUNDING
from comparison.proof.ways import Case

import numpy as np


@dataclasses.dataclass(frozen=True)
class Check:
    """One rung of the ladder between two implementations: equal within the tolerance, or not."""

    case: Case
    rung: str  # what was compared: "gradients"
    pair: str  # "lowlevel - highlevel"
    worst: str  # the canonical name, or the step, with the largest difference
    difference: float  # the largest absolute difference; infinite where names, shapes or not-a-numbers disagree
    ulp: int  # that difference in units in the last place
    tolerance: float  # of the absolute difference
    reason: str  # for the tolerance

    @property
    def passed(self):
        return self.difference <= self.tolerance

    def as_dict(self):
        """For JSON, which knows no infinity: None where nothing can be claimed, or where nothing could be compared."""
        values = {**vars(self), "case": self.case.title, "exact": self.case.exact, "passed": self.passed}
        return {name: None if value == np.inf else value for name, value in values.items()}


def observe(implementation, case, batches, initial=None):
    """Runs one implementation up the ladder, from the canonical initial weights, or from others.

    batches: list of (images, masks), of which step k takes number k, over and over. initial: canonical name -> array.

    Returns: rung -> {name -> array}.
    """
    config, steps, (images, masks) = case.config, case.steps, batches[0]
    built = exact.build(implementation, case)
    initial = initial or initial_weights(config.network)
    backward = tf.function(built.backward, jit_compile=config.training.jit, autograph=False)
    rungs = {"structure": {name: np.zeros(w.shape) for name, w in built.weights.items()}}
    built.start(initial)
    rungs["logits in inference"] = {"logits": built.forward(images).numpy()}
    logits, loss, gradients = backward(images, masks)
    rungs |= {"logits in training": {"logits": logits.numpy()}, "loss": {"loss": loss.numpy()}}
    rungs["gradients"] = {name: gradient.numpy() for name, gradient in gradients.items()}
    rungs["moving statistics, 1 step"] = built.values(trained=False)
    built.start(initial)  # takes back the moving statistics
    losses = {}
    for k in range(steps):
        if case.halve_rate and k == steps // 2:
            built.optimizer.learning_rate.assign(config.training.learning_rate / 2)
        losses[f"step {k + 1}"] = built.train_step(*batches[k % len(batches)]).numpy()
        if k == 0:
            state = {name: v.numpy() for name, v in built.state.items()}
            rungs["count of steps"] = {name: value for name, value in state.items() if "/" not in name}
            for slot in sorted(
                {name[-1] for name in state.keys() - rungs["count of steps"]}
            ):  # apart: v is as small as a square
                rungs[f"{slot}, 1 step"] = {name: value for name, value in state.items() if name.endswith(f"/{slot}")}
    rungs["losses, first 5 steps"] = dict(itertools.islice(losses.items(), 5))
    rungs[f"losses, {steps} steps"] = losses
    rungs[f"weights, {steps} steps"] = built.values(trained=True)
    rungs[f"moving statistics, {steps} steps"] = built.values(trained=False)
    rungs[f"inference, {steps} steps"] = {"logits": built.forward(images).numpy()}
    if config.network.batch_norm != "none":
        rungs[f"inference, {steps} steps, folded"] = {"logits": built.folded().forward(images).numpy()}
    if "loss_scale" in built.state:
        rungs |= {rung: scaled_step(built, batches[0], scale) for rung, scale in SCALES.items()}
    return rungs


SCALES = {"a step that overflows": 2.0**120, "the loss scale grows": 2.0**10}  # rung -> `scaled_step` with that scale


def scaled_step(built, batch, scale):
    """Of a step of float16 from that scale, the 2000th since it changed: what it makes of scale and counts, and what moves."""
    trained = {name: w for name, w in built.weights.items() if w.trainable}
    trained |= {name: moment for name, moment in built.state.items() if "/" in name}
    before, steps = {name: value.numpy() for name, value in trained.items()}, built.state["iterations"].numpy()
    built.state["loss_scale"].assign(scale)
    built.state["finite_steps"].assign(1999)
    built.train_step(*batch)
    after = {"iterations": built.state["iterations"].numpy() - steps, "loss_scale": built.state["loss_scale"].numpy() / scale}
    after["finite_steps"] = built.state["finite_steps"].numpy()
    after["moved"] = np.any([(value.numpy() != before[name]).any() for name, value in trained.items()])
    return {name: np.float64(value) for name, value in after.items()}


HEAD_BIAS = ", head/bias"


def head_bias_apart(rungs):
    """A rung more for each that holds the gradient of the head's bias, or its moments, which Keras adds up in another way."""
    found = {}
    for rung, values in rungs.items():
        bias = {name: value for name, value in values.items() if name.startswith("head/bias")}
        if rung in ("gradients", "m, 1 step", "v, 1 step"):
            found |= {rung: {name: value for name, value in values.items() if name not in bias}, f"{rung}{HEAD_BIAS}": bias}
        else:
            found[rung] = values
    return found


FIRST_STEP = ("logits in inference", "logits in training", "loss", "gradients", "m, 1 step", "v, 1 step")


def tolerance(rung, pair, case, scale, of_bias=0.0):
    """(largest absolute difference, reason) that a rung may show.

    Infinite where nothing can be claimed, with the reason: the rung is then shown and not counted as a check.

    pair: the two implementations. scale: the largest absolute value among the numbers compared. of_bias: how far from right the
    gradient of the head's bias may be where BiasAddGrad adds it up, relative to it.
    """
    if rung in ("structure", "count of steps", *SCALES):
        return 0.0, "names, shapes and whole numbers are the contract"
    if case.exact:
        return 0.0, "the same kernels on the same numbers in the same order"
    training, precision = case.config.training, case.config.network.precision
    unit = ROUNDING[precision]
    if rung.endswith(HEAD_BIAS):
        allowed, reason = tolerance(rung.removesuffix(HEAD_BIAS), pair, case, scale)
        if "keras_impl" not in pair:
            return allowed, reason
        twice = 2 if rung.startswith("v") else 1  # v is a square
        return allowed + twice * of_bias * scale, f"{reason}; BiasAddGrad adds up all pixels one by one, see rounding.py"
    if rung in ("m, 1 step", "v, 1 step") and "highlevel" in pair:
        return 2e-5 * scale, "v1's kernel takes beta in float32, so that 1 - beta_2 is up to 1.3e-5 off"
    if rung in ("m, 1 step", "v, 1 step") and precision == "float64":
        return 2**-20 * scale, "Keras takes its constants through float32, so that 1 - beta_1 is 2**-24 / 0.1 off"
    if rung in FIRST_STEP:
        return rounding.SUM * unit * scale, "128 roundings make a sum, see rounding.py: each may round another way"
    if rung == "moving statistics, 1 step":
        if precision == "float64" and "highlevel" in pair:
            return 2**-22 * scale, "tf.layers take 1 - momentum through float32"
        unit = unit if precision == "float64" else max(unit, 2**-24)
        return 4 * unit * scale, "m - (m - x)(1 - k) and m k + x (1 - k) round apart"
    if rung == "losses, first 5 steps":
        if precision in ("bfloat16", "float16"):
            return 5 * unit * scale, "every step starts from weights that a rounding to 16 bits has moved, and adds its own"
        return 2e-5, "a step of v1's Adam is 6e-6 longer, and rounding decides where a gradient is nothing else; then it grows"
    if rung.startswith("weights") and training.optimizer == "adam":
        reason = "a step of Adam is as long as its learning rate, and where a gradient is rounding alone it goes either way"
        return 2 * training.learning_rate * case.steps, reason
    if rung.startswith("weights"):
        reason = "a step of SGD is linear in its gradient, so that rounding stays rounding; constants pass through float32"
        return 4 * case.steps * max(unit, 2**-24) * scale, reason
    return np.inf, "training makes any difference grow"


def climb(case, batches):
    """Runs the three implementations in one way and compares every pair of them.

    Returns: (list of `Check`s, {implementation: losses over the steps}, where they first differ if a check fails).
    """
    if case.exact and not case.config.training.jit:  # XLA and op determinism exclude each other
        be_deterministic()
    rungs = {}
    for name in columns.IMPLEMENTATIONS:
        try:
            rungs[name] = observe(name, case, batches)
        except ValueError as error:  # of `assign_weights`, or of operations whose shapes do not fit
            words = " ".join(str(error).split())[:300]
            failed = Check(case, "structure", name, words, np.inf, 0, 0.0, "names and shapes are the contract")
            return [failed], {}, f"{name}: {words}"
    checks, explained = [], {}
    if tf.config.list_physical_devices("GPU"):  # whose libraries may choose another algorithm for each graph
        unit = rounding.of_a_sum(arithmetic(case.config))
        explained = rounding.explained(observe, case, batches, initial_weights(case.config.network), unit)
    of_bias = 0.0
    if case.config.network.classes == 1 and not case.exact:  # for one channel Keras does not take BiasAdd
        logits, gradient = (rungs["lowlevel"][rung] for rung in ("logits in training", "gradients"))
        of_bias = rounding.of_the_head_bias(case.config, logits["logits"], batches[0][1], gradient["head/bias"])
        rungs, explained = {name: head_bias_apart(of) for name, of in rungs.items()}, head_bias_apart(explained)
    for rung, values in rungs["lowlevel"].items():
        scale = float(max((np.abs(value.astype(np.float64)).max(initial=0) for value in values.values()), default=0))
        for a, b in itertools.combinations(columns.IMPLEMENTATIONS, 2):
            allowed, reason = tolerance(rung, (a, b), case, scale, of_bias)
            if (rounded := max(explained.get(rung, {}).values(), default=0.0)) > allowed:
                allowed, reason = rounded, rounding.REASON
            worst, d, ulp = difference(rungs[a][rung], rungs[b][rung])
            checks.append(Check(case, rung, f"{a} - {b}", worst, d, ulp, allowed, reason))
    losses = {name: [float(loss) for loss in rungs[name][f"losses, {case.steps} steps"].values()] for name in rungs}
    failed = [check.pair.split(" - ") for check in checks if not check.passed]
    return checks, losses, f"{' and '.join(failed[0])}: {finder.locate(*failed[0], case, batches)}" if failed else ""
