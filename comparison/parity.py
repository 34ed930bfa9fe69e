"""Is it the same network three times? A ladder of checks, from the shapes of the weights to training steps."""

import dataclasses
import itertools
import json

import comparison
from common.loop import be_deterministic
from common.losses import dice_loss
from common.weights import assign_weights, initial_weights, is_trainable
from data.loader import load_examples, training_batches

import numpy as np
import tensorflow as tf

# Sums of few powers of two, which float32, float64 and every detour between them hold alike. The usual 0.9 and 0.999 are
# rounded by each API at another place: v1's Adam computes 1 - beta_2 in float32, 5e-5 beside Keras's 0.001.
EXACT_CONSTANTS = dict(learning_rate=2**-10, beta_1=0.875, beta_2=1 - 2**-10, epsilon=2**-23, momentum=0.875, bn_epsilon=2**-10)


@dataclasses.dataclass(frozen=True)
class Check:
    """One rung of the ladder between two implementations. Equal within the tolerance, or not."""

    case: str  # what was run: "explicit batch normalization, float32"
    rung: str  # what was compared: "gradients"
    pair: str  # "lowlevel - highlevel"
    worst: str  # the canonical name, or the step, with the largest difference
    difference: float  # the largest absolute difference; infinite where names, shapes or not-a-numbers disagree
    ulp: float  # the largest distance in units in the last place
    tolerance: float  # of the absolute difference
    reason: str  # for the tolerance

    @property
    def passed(self):
        return self.difference <= self.tolerance


def observe(implementation, config, batches):
    """Runs one implementation up the ladder, from the canonical initial weights.

    batches: list of (images, masks); a training step is made with each.

    Returns: rung -> {name -> array}.
    """
    code = comparison.load(implementation)
    model = code.UNet(config)
    weights = code.named_weights(model)
    initial = initial_weights(config)
    trainable = {name: w for name, w in weights.items() if is_trainable(name)}
    images, masks = batches[0]

    @tf.function(jit_compile=config.jit)
    def forward(images):
        return model(images, training=False)

    @tf.function(jit_compile=config.jit)
    def forward_and_gradients(images, masks):
        with tf.GradientTape() as tape:
            logits = model(images, training=True)
            loss = dice_loss(masks, logits)
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
    train_step = code.make_train_step(model, config)
    losses = [train_step(*batch).numpy() for batch in batches]
    rungs[f"losses, {len(batches)} steps"] = {f"step {k + 1}": loss for k, loss in enumerate(losses)}
    rungs[f"weights, {len(batches)} steps"] = values(trained=True)
    rungs[f"moving statistics, {len(batches)} steps"] = values(trained=False)
    rungs[f"inference, {len(batches)} steps"] = {"logits": forward(images).numpy()}
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
        return odd[0], np.inf, np.inf
    worst = "", 0.0, 0
    for name in a:
        x, y = np.ravel(a[name]), np.ravel(b[name])
        d = np.abs(x.astype(np.float64) - y.astype(np.float64))
        d = np.where(np.isfinite(d), d, np.inf)  # not a number equals nothing
        k = d.argmax() if d.size else None
        if k is not None and d[k] > worst[1]:
            worst = name, float(d[k]), ulp_distance(x[k], y[k])
    return worst


def is_binary_exact(config):
    """Whether float32 holds the optimizer's constants, and what they lack to 1, without rounding."""
    constants = [config.learning_rate, config.epsilon]
    for share in (config.beta_1, config.beta_2, config.momentum):
        constants += [share, 1 - share]
    return all(float(np.float32(x)) == x for x in constants)


def tolerance(rung, pair, config, steps, scale):
    """(largest absolute difference, reason) that a rung may show under `be_deterministic`.

    scale: the largest absolute value among the numbers compared.
    """
    rounding = 2.0 ** {"bfloat16": -24, "float32": -24, "float64": -53}[config.precision]  # of weights and statistics
    exact = 0.0, "the same kernels on the same numbers in the same order"
    if rung == "structure":
        return 0.0, "names and shapes are the contract"
    if tf.config.list_physical_devices("GPU"):
        return 1e-4 * max(scale, 1), "a GPU may choose another algorithm for each graph"
    if rung in ("logits in inference", "logits in training", "loss", "gradients") or "highlevel" not in pair:
        return exact
    if rung.startswith(("losses", "weights")) and is_binary_exact(config):
        return exact
    if not is_binary_exact(config) and rung != "moving statistics, 1 step":
        if rung.startswith("losses"):
            return 1e-5 * steps, "v1's Adam computes 1 - beta_2 in float32: 5e-5 beside 0.001, so its steps are 2e-5 shorter"
        if rung.startswith("weights"):
            return config.learning_rate * steps, "the same; and where a gradient is about 0, its sign decides a whole step"
        return 0.1 * scale, "the same, grown by all layers"
    if config.batch_norm != "explicit":
        return exact
    if rung.startswith("moving"):
        moves = 1 if rung.endswith("1 step") else steps
        return 4 * moves * rounding * scale, "tf.layers: m - (m - x)(1 - k), Keras: m k + x (1 - k); each move rounds apart"
    return 1e3 * steps * rounding * scale, "the moving statistics above, through every normalization"


def compare_all(case, config, batches):
    """Runs the three implementations and compares every pair of them: a list of `Check`s."""
    rungs = {name: observe(name, config, batches) for name in comparison.IMPLEMENTATIONS}
    checks = []
    for rung in rungs["lowlevel"]:
        values = rungs["lowlevel"][rung].values()
        scale = float(max((np.abs(value.astype(np.float64)).max(initial=0) for value in values), default=0))
        for a, b in itertools.combinations(comparison.IMPLEMENTATIONS, 2):
            allowed, reason = tolerance(rung, f"{a} - {b}", config, len(batches), scale)
            worst, d, ulp = difference(rungs[a][rung], rungs[b][rung])
            checks.append(Check(case, rung, f"{a} - {b}", worst, d, ulp, allowed, reason))
    return checks


def print_table(checks):
    """A row for every rung: the differences of the three pairs, the tolerance, the verdict."""
    pairs = list(dict.fromkeys(check.pair for check in checks))
    for case, of_case in itertools.groupby(checks, key=lambda check: check.case):
        print(f"\n{case:<32}" + "".join(f"{pair:>24}" for pair in pairs) + f"{'tolerance':>11}")
        for rung, row in itertools.groupby(of_case, key=lambda check: check.rung):
            row = list(row)
            cells = "".join(f"{c.difference:>12.1e} {c.ulp:>7.0f} ulp" if c.difference else f"{'0':>24}" for c in row)
            failed = [c for c in row if not c.passed]
            verdict = "ok" if not failed else "DIFFERENT at " + ", ".join(sorted({c.worst for c in failed}))
            print(f"{rung:<32}{cells}{max(c.tolerance for c in row):>11.0e}  {verdict}")


def run(config, steps, path):
    """Climbs the ladder with the explicit and the fused batch normalization, prints it, writes it to `path` as JSON.

    Returns: whether every check passed.
    """
    be_deterministic()
    tf.get_logger().setLevel("ERROR")  # "triggered retracing": the three models are traced by the same lines
    training, _ = load_examples(config)
    batches = list(training_batches(dataclasses.replace(config, epochs=steps), training).take(steps))
    checks = []
    for batch_norm in ("explicit", "fused") if config.precision != "float64" else ("explicit",):
        case = f"{batch_norm} batch normalization"
        checks += compare_all(case, dataclasses.replace(config, batch_norm=batch_norm), batches)
    print_table(checks)
    failed = sum(not check.passed for check in checks)
    verdict = "the same network three times" if not failed else f"{failed} of {len(checks)} checks FAILED"
    path.parent.mkdir(parents=True, exist_ok=True)
    record = [{**dataclasses.asdict(check), "passed": check.passed} for check in checks]
    path.write_text(json.dumps(record, indent=2) + "\n")
    print(f"\n{len(checks)} checks, {verdict}; every name and reason in {path}")
    return not failed
