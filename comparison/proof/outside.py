"""The rung outside: each implementation, as written, beside the formulas in NumPy (`oracle`), on a tiny network.

Three equal implementations share kernels, losses and shapes, and could be wrong together; this is where that would show.
"""

import dataclasses
from pathlib import Path

from common.config import VOID, Config, Weights
from common.device import be_deterministic, tf
from common.layers import table
from common.shapes import margin, min_size, missing
from common.weights import initial_weights
from comparison import columns, own
from comparison.proof import ladder, oracle, rounding
from comparison.proof.apart import difference
from comparison.proof.ways import EXACT_CONSTANTS, Case

import numpy as np

STEPS = 3
KEPT = ("activation", "padding", "batch_norm", "dropout", "seed", "loss", "weight_map", "optimizer", "clip_norm")


def tiny(case):
    """The case as a tiny network in float64, or in float32 where its normalization is fused, which has no other kernel.

    Constants are binary-exact: v1 and Keras take some through float32, and what that costs is for the ladder to say.
    """
    network, training = case.config.network, case.config.training
    kept = {name: case.config.flat[name] for name in KEPT}
    kept |= dict(filters=2, depth=min(network.depth, 2), channels=network.channels or 1, classes=network.classes or 1)
    if training.class_weights is not None:
        kept["class_weights"] = Weights(2.0**-k for k in range(max(kept["classes"], 2)))
    if case.void:
        kept |= dict(void_label=VOID, dataset="folder", data_dir=Path())  # drawn cells have none, says `Config`
    fused = network.batch_norm == "fused"
    said = [network.batch_norm.replace("none", "no batch norm"), training.loss, "SGD" * (training.optimizer == "sgd")]
    said += ["weights" * ("class_weights" in kept), "weight map" * training.weight_map, "void" * case.void]
    said += ["dropout" * bool(network.dropout), "clipped" * bool(training.clip_norm)]
    title = ", ".join(filter(None, ["NumPy", *said]))
    config = Config.of(precision="float32" if fused else "float64", **EXACT_CONSTANTS, **kept)
    return Case(
        f"{case.title.split(': ')[0]}: {title}", config, 0 if fused else STEPS, exact=False, void=case.void, own=case.own
    )


def cases(todo):
    """Every case of `todo` made tiny, each once; steps of training where the optimizer is new to the architecture."""
    trained = set()
    for case in dict.fromkeys(map(tiny, todo)):
        update = case.title.split(": ")[0], case.config.training.optimizer, case.config.training.clip_norm
        yield dataclasses.replace(case, steps=0 if update in trained else case.steps)
        trained |= {update} if case.steps else set()


def draw(case, n=3, larger=(0, 4)):
    """-> (weights, [(images, masks, keep)] for every step). Gamma, beta and moving statistics too, to be told from 1 and 0.

    larger: height and width, in pixels, above the smallest that make sense.
    """
    network, training = case.config.network, case.config.training
    rng = np.random.default_rng(network.seed)
    weights = initial_weights(network)
    for name, w in weights.items():
        if not name.endswith(("/kernel", "dropout/state")):
            weights[name] = (w + 0.25 * rng.uniform(-1, 1, w.shape)).astype(w.dtype)
    cut, classes = margin(network.depth, network.padding), max(network.classes, 2)
    height, width = (side + missing(side, network) for side in np.add(larger, max(8, min_size(network) + 2)))
    bottom = [layer.outputs for layer in table(network, (height, width)) if layer.kind == "dropout"]
    batches = []
    for step in range(max(case.steps, 1)):
        images = rng.random((n, height, width, network.channels), dtype=np.float32)
        masks = rng.integers(0, classes, (n, height - cut, width - cut, 1)).astype(np.float32)
        masks[0] = np.minimum(masks[0], classes - 2)  # an image that lacks a class
        if network.classes > 1:  # and one with a pixel of it, which is enough to count
            masks[1] = np.minimum(masks[1], classes - 2)
            masks[1, 1, 1] = classes - 1
        if case.void:
            masks[-1], masks[:, ::2] = VOID, VOID
        if training.weight_map:
            masks = np.concatenate([masks, 1 + rng.random(masks.shape, dtype=np.float32)], axis=-1)
        keep = 1.0
        if network.dropout:  # what the seed and the number of calls give
            ones = tf.ones([n, *bottom[0]], network.precision)
            keep = tf.nn.experimental.stateless_dropout(ones, network.dropout, [network.seed, step]).numpy() > 0
        batches.append((images, masks, keep))
    return weights, batches


def observe(implementation, case, weights, batches):
    """What one implementation makes of it. -> rung -> {name -> array}"""
    built, (images, masks, _) = columns.Built(implementation, case.config), batches[0]
    built.start(weights)
    rungs = ladder.first_pass(built.model, built.backward, built, images, masks)
    if case.steps and built.trains:
        built.start(weights)
        losses = (built.train_step(images, masks).numpy() for images, masks, _ in batches)
        rungs["losses"] = {f"step {k}": loss for k, loss in enumerate(losses, 1)}
        rungs[f"weights and statistics, {case.steps} steps"] = built.values()
    for values in rungs.values():
        values.pop("dropout/state", None)  # which the formulas are given
    return {rung: values for rung, values in rungs.items() if values}


def formulas(case, weights, batches):
    """What the oracle makes of it, as `observe`."""
    network, training = case.config.network, case.config.training
    weights = {name: w.astype(np.float64) for name, w in weights.items() if name != "dropout/state"}
    inference, *_ = oracle.forward(network, weights, batches[0][0])
    loss, logits, gradients, moved = oracle.loss_and_gradients(network, training, weights, *batches[0])
    rungs = {"logits in inference": {"logits": inference}, "logits in training": {"logits": logits}, "loss": {"loss": loss}}
    rungs |= {"gradients": gradients, "moving statistics, 1 step": moved}
    if case.steps:
        after, losses = oracle.train(network, training, weights, batches)
        rungs["losses"] = {f"step {k + 1}": loss for k, loss in enumerate(losses)}
        rungs[f"weights and statistics, {case.steps} steps"] = after
    return rungs


def right_within(case, weights, batches):
    """What `formulas` says, and how far from it float arithmetic may end. -> (rungs, rung -> (largest difference, reason))

    Rounding does what a change of the weights by some units in the last place would do (Higham 2002, section 1.5); how much
    that is, the oracle shows with weights a little off: where a channel hardly varies its normalization divides by little.
    """
    nudge, training, rng = 2.0**-30, case.config.training, np.random.default_rng(0)
    right = formulas(case, weights, batches)
    nudged = formulas(case, {name: w * (1 + nudge * rng.choice([-1, 1], w.shape)) for name, w in weights.items()}, batches)
    unit, allowed = rounding.of_a_sum(case.config.network.precision), {}
    for rung, values in right.items():
        scale = max((float(np.abs(value).max()) for value in values.values()), default=0.0)
        moved = max((float(np.abs(nudged[rung][name] - value).max()) for name, value in values.items()), default=0.0)
        difference = unit * (scale + moved / nudge)
        reason = "128 roundings make a sum, see comparison/proof/rounding.py, and these weights make so much of a rounding"
        if training.optimizer == "adam" and rung.startswith(("losses", "weights")):
            # a step is alpha m / (sqrt(v) + epsilon): as a function of the gradient it is steepest where that is 0
            steepest = training.learning_rate * (1 - training.beta_2) ** 0.5 / training.epsilon
            difference += case.steps * steepest * allowed["gradients"][0]
            reason += f"; a step of Adam up to {steepest:.0f} times what it made of the gradient"
        allowed[rung] = difference, reason
    return right, allowed


def climb(case):
    """A tiny case in each of the three and in NumPy. -> [`Check`], whose pair is one implementation, rung by rung"""
    be_deterministic()
    weights, batches = draw(case)
    (right, allowed), checks = right_within(case, weights, batches), []
    for implementation in [case.own] if case.own else columns.IMPLEMENTATIONS:
        try:
            with own.blamed(implementation):
                rungs = observe(implementation, case, weights, batches)
        except ValueError as error:  # of `assign_weights`, or of operations whose shapes do not fit
            return [ladder.misfit(case, implementation, error)]
        for rung, values in rungs.items():
            expected = {name: np.asarray(value, case.config.network.precision) for name, value in right[rung].items()}
            checks.append(ladder.Check(case, rung, own.short(implementation), *difference(values, expected), *allowed[rung]))
    return sorted(checks, key=lambda check: list(right).index(check.rung))
