"""What the three compute on each rung, from the shapes of the weights to a hundred training steps, and how far it is apart."""

import dataclasses
import itertools

from common.device import be_deterministic, tf
from common.losses import segmentation_loss
from common.weights import assign_weights, fold_batch_norm, initial_weights, is_trainable
from comparison import columns
from comparison.benchmark import worker
from comparison.proof import exact, finder, rounding
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
    config, steps = case.config, case.steps
    code = (exact if case.exact else columns).load(implementation)
    model = code.UNet(config.network)
    weights = code.named_weights(model)
    initial = initial or initial_weights(config.network)
    trainable = {name: w for name, w in weights.items() if is_trainable(name)}
    forward, (images, masks) = worker.forward(model, config), batches[0]

    @tf.function(jit_compile=config.training.jit, autograph=False)
    def forward_and_gradients(images, masks):
        with tf.GradientTape() as tape:
            logits = model(images, training=True)
            loss = segmentation_loss(masks, logits, config)
        return logits, loss, tape.gradient(loss, trainable)

    def values(trained):
        return {name: w.numpy() for name, w in weights.items() if is_trainable(name) == trained}

    rungs = {"structure": {name: np.zeros(w.shape) for name, w in weights.items()}}
    assign_weights(weights, initial)
    rungs["logits in inference"] = {"logits": forward(images).numpy()}
    logits, loss, gradients = forward_and_gradients(images, masks)
    rungs["logits in training"] = {"logits": logits.numpy()}
    rungs["loss"] = {"loss": loss.numpy()}
    rungs["gradients"] = {name: gradient.numpy() for name, gradient in gradients.items()}
    rungs["moving statistics, 1 step"] = values(trained=False)
    assign_weights(weights, initial)  # takes back the moving statistics
    optimizer = code.make_optimizer(model, config)
    train_step = code.make_train_step(model, config, optimizer)
    losses = {}
    state = code.named_state(model, optimizer)
    for k in range(steps):
        if case.halve_rate and k == steps // 2:
            optimizer.learning_rate.assign(config.training.learning_rate / 2)
        losses[f"step {k + 1}"] = train_step(*batches[k % len(batches)]).numpy()
        if k == 0:
            rungs["moments, 1 step"] = {name: v.numpy() for name, v in state.items()}
    rungs["losses, first 5 steps"] = dict(itertools.islice(losses.items(), 5))
    rungs[f"losses, {steps} steps"] = losses
    rungs[f"weights, {steps} steps"] = values(trained=True)
    rungs[f"moving statistics, {steps} steps"] = values(trained=False)
    rungs[f"inference, {steps} steps"] = {"logits": forward(images).numpy()}
    if config.network.batch_norm != "none":
        network, folded = fold_batch_norm(config.network, {name: w.numpy() for name, w in weights.items()})
        model = code.UNet(network)
        assign_weights(code.named_weights(model), folded)
        rungs[f"inference, {steps} steps, folded"] = {"logits": worker.forward(model, config)(images).numpy()}
    return rungs


def ulp_distance(a, b):
    """Units in the last place between two numbers of one float type: how many numbers of that type lie between them."""

    def rank(x):
        integer = int(x.view(f"i{x.dtype.itemsize}"))  # of the bits; it grows with the number, away from zero
        return integer if integer >= 0 else -(2 ** (8 * x.dtype.itemsize - 1)) - integer

    return abs(rank(a) - rank(b))


def difference(a, b):
    """(name, largest absolute difference, its ulp) of the name where `a` and `b` differ most."""
    odd = sorted(a.keys() ^ b.keys()) or [name for name in a if np.shape(a[name]) != np.shape(b[name])]
    if odd:
        return odd[0], np.inf, 0
    worst = "", 0.0, 0
    for name in a:
        x, y = np.ravel(a[name]), np.ravel(b[name])
        d = np.abs(x.astype(np.float64) - y.astype(np.float64))
        d = np.where(np.isfinite(d), d, np.inf)  # not a number equals nothing
        k = d.argmax() if d.size else None
        if k is not None and d[k] > worst[1]:
            worst = name, float(d[k]), ulp_distance(x[k], y[k])
    return worst


FIRST_STEP = ("logits in inference", "logits in training", "loss", "gradients", "moments, 1 step")


def tolerance(rung, pair, case, scale):
    """(largest absolute difference, reason) that a rung may show.

    Infinite where nothing can be claimed, with the reason: the rung is then shown and not counted as a check.

    pair: the two implementations. scale: the largest absolute value among the numbers compared.
    """
    if rung == "structure":
        return 0.0, "names and shapes are the contract"
    if case.exact:
        return 0.0, "the same kernels on the same numbers in the same order"
    training, precision = case.config.training, case.config.network.precision
    unit = ROUNDING[precision]
    if rung == "moments, 1 step" and "highlevel" in pair:
        return 2e-5 * scale, "v1's kernel takes beta in float32, so that 1 - beta_2 is up to 1.3e-5 off"
    if rung == "moments, 1 step" and precision == "float64":
        return 2**-20 * scale, "Keras takes its constants through float32, so that 1 - beta_1 is 2**-24 / 0.1 off"
    if rung in FIRST_STEP:
        return (
            rounding.SUM * unit * scale,
            "128 roundings make a sum, see rounding.py: each may round another way",
        )
    if rung == "moving statistics, 1 step":
        if precision == "float64" and "highlevel" in pair:
            return 2**-22 * scale, "tf.layers take 1 - momentum through float32"
        return 4 * max(
            unit, 2**-53 if precision == "float64" else 2**-24
        ) * scale, "m - (m - x)(1 - k) and m k + x (1 - k) round apart"
    if rung == "losses, first 5 steps":
        if precision == "bfloat16":
            return 5 * unit * scale, "every step starts from weights that a rounding of 2**-9 has moved, and adds its own"
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
    tf.get_logger().setLevel("ERROR")  # "triggered retracing": the three models are traced by the same lines
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
        unit = rounding.of_a_sum(rounding.arithmetic(case.config.network.precision))
        explained = rounding.explained(observe, case, batches, initial_weights(case.config.network), unit)
    for rung, values in rungs["lowlevel"].items():
        scale = float(max((np.abs(value.astype(np.float64)).max(initial=0) for value in values.values()), default=0))
        for a, b in itertools.combinations(columns.IMPLEMENTATIONS, 2):
            allowed, reason = tolerance(rung, (a, b), case, scale)
            if (rounded := max(explained.get(rung, {}).values(), default=0.0)) > allowed:
                allowed, reason = rounded, rounding.REASON
            worst, d, ulp = difference(rungs[a][rung], rungs[b][rung])
            checks.append(Check(case, rung, f"{a} - {b}", worst, d, ulp, allowed, reason))
    losses = {name: [float(loss) for loss in rungs[name][f"losses, {case.steps} steps"].values()] for name in rungs}
    failed = [check.pair.split(" - ") for check in checks if not check.passed]
    return checks, losses, f"{' and '.join(failed[0])}: {finder.locate(*failed[0], case, batches)}" if failed else ""


def climb_apart(case, batches, connection):
    """`climb`, in a process of its own."""
    connection.send(climb(case, batches))
