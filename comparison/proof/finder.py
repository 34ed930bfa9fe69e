"""Where do two implementations part? The first activation, gradient, step or term of the update that differs."""

import itertools

from common.device import tf
from common.layers import table
from common.weights import initial_weights, is_trainable
from comparison.own import short
from comparison.proof import exact, rounding
from comparison.proof.apart import apart, differs

import numpy as np

# The operations that every implementation of a layer ends in, whatever API called it.
KINDS = {
    "Conv2D": "conv",
    "Conv2DBackpropInput": "deconv",
    "MaxPool": "pool",
    "ConcatV2": "concat",
    "Elu": "act",
    "Relu": "act",
}


def layers(model, config, images, training):
    """([(name, array)] of what happens to `images`, what is wrong behind the last of them; "" where nothing is).

    Every layer's output, and what enters it where that is news: what enters an activation function is the batch
    normalization's output (the bias's, without normalization); what enters the first up-convolution is the dropout's. Read off
    the traced graph, so that the models need no hooks, as far as its operations come in the order of the U.
    """
    names, odd, raised = [], [""], []

    @tf.function(jit_compile=False, autograph=False)  # XLA would fuse the activations away
    def trace(images):
        try:
            model(images, training=training)
        except Exception as error:  # what stands before the line that raises it may tell why
            raised.append(error)
        operations = tf.compat.v1.get_default_graph().get_operations()
        found = [op for op in operations if op.type in KINDS and op.outputs[0].shape.rank == 4]
        expected = [(layer.kind, layer.name) for layer in table(config.network) if layer.kind in KINDS.values()]
        tensors = []
        for op, (kind, name) in itertools.zip_longest(found, expected, fillvalue=(None, "")):
            comes = KINDS[op.type] if hasattr(op, "type") else "nothing"
            if comes != kind:
                odd[0] = f"comes {comes}, where {name or 'the end'} should be" + (f" ({kind})" if kind else "")
                break
            if kind == "act":
                before = "bias" if config.network.batch_norm == "none" else "bn"
                names.append(name.replace("act", before))
                tensors.append(op.inputs[0])
            if kind == "deconv" and name == f"up{config.network.depth - 1}/deconv":
                names.append("dropout")
                tensors.append(op.inputs[2])
            names.append(name)
            tensors.append(op.outputs[0])
        return tensors

    values = [np.asarray(value) for value in trace(images)]
    if raised and (not odd[0] or odd[0].startswith("comes nothing")):
        behind = f"behind {names[-1] if names else 'the image'} {odd[0]}" if odd[0] else "behind the head"
        words = f"{behind}: {type(raised[0]).__name__}: {raised[0]}"
        raise ValueError(words).with_traceback(raised[0].__traceback__)
    return list(zip(names, values)), odd[0]


def gradients_backwards(built, images, masks):
    """(loss, canonical name -> gradient), from the head on: the order in which the chain rule goes."""
    _, loss, gradients = built.backward(images, masks)
    return loss.numpy(), {name: gradients[name].numpy() for name in reversed(gradients)}


def locate(a, b, case, batches, initial=None):
    """Says in words where implementations `a` and `b` first differ, from the names of the weights to the last step.

    To the last bit equal means equal, but for what XLA may choose. As written it means within rounding, and in a step but for a
    fiftieth of the values: where a gradient is rounding alone, Adam makes a whole step of it.
    """
    config = case.config
    first_step, moved, share = 0.0, 0.0, 0.0
    if case.own or not case.exact:
        first_step, moved, share = rounding.SUM * rounding.ROUNDING[config.network.precision], 1e-3, 0.02
    elif config.training.jit:
        first_step, moved = 1e-4, 1e-3
    of_moments = 2e-5 if case.own and case.exact else moved  # binary fractions pass through float32 as they are
    probes = [exact.build(name, case) for name in (a, b)]
    first, second = probes
    if first.weights.keys() != second.weights.keys():
        return f"the weights' names: {sorted(first.weights.keys() ^ second.weights.keys())}"
    initial = initial_weights(config.network) if initial is None else initial
    for probe in probes:
        probe.start(initial)
    for name, weight in first.weights.items():
        if differs(weight.numpy(), second.weights[name].numpy(), 0.0):
            return f"the value of {name}, before anything is computed"
    images, masks = batches[0]
    for training in (False, True):
        mode = "training" if training else "inference"
        (seen, odd), (others, other_odd) = (layers(probe.model, config, images, training) for probe in probes)
        for (name, x), (_, y) in zip(seen, others):
            if differs(x, y, first_step):
                return f"activation {name} in {mode}: {words(x, y)}"
    pixels = {name: int(np.prod(x.shape[:3])) for name, x in seen}  # over which a layer normalizes
    pixels = {name: n for (name, n), _ in zip(pixels.items(), others)}
    found = statistics_apart(initial, *(probe.values() for probe in probes), config.network, pixels, moved)
    if found:
        return f"a forward pass in training, {found}"
    if odd or other_odd:
        who, layer = (b, others) if other_odd else (a, seen)
        behind = f"behind {layer[-1][0]}, as far as all is well," if layer else "behind the image"
        return f"{short(who)}: {behind} {other_odd or odd}"
    for probe in probes:
        probe.start(initial)
    (loss, gradients), (other_loss, others) = (gradients_backwards(probe, images, masks) for probe in probes)
    if differs(loss, other_loss, first_step):
        return f"the loss: {loss} and {other_loss}"
    for name, x in gradients.items():
        allowed = first_step
        if name.endswith("/bias") and case.loosened((a, b), "keras_impl"):
            allowed *= rounding.one_by_one(images)
        if differs(x, others[name], allowed):
            return f"gradient of {name}: {words(x, others[name])}"
    for probe in probes:
        probe.start(initial)
    for k in range(case.steps if first.trains and second.trains else 0):
        before = first.values()
        if case.halve_rate and k == case.steps // 2:
            for probe in probes:
                probe.optimizer.learning_rate.assign(config.training.learning_rate / 2)
        losses = [np.asarray(probe.train_step(*batches[k % len(batches)])) for probe in probes]
        weights, others = (probe.values() for probe in probes)
        state, other_state = (probe.moments() for probe in probes)
        for name, x in state.items():
            if differs(x, other_state[name], of_moments, share):
                slot = {"m": "m, the mean of the gradients (beta_1, momentum)", "v": "v, the mean of their squares (beta_2)"}
                term = f"{slot[name[-1]]}, of {name[:-2]}" if "/" in name else f"the count of the steps, {name}"
                return f"step {k + 1}, {term}: {words(x, other_state[name])}"
        for name, x in weights.items():
            # the moves, which are small beside the weights, if not to the last bit
            old = before[name] if moved else np.zeros_like(x)
            if is_trainable(name) and differs(x - old, others[name] - old, moved, share):
                return f"step {k + 1}, {update_term(name, before, weights, others, state)}, of {name}: {words(x, others[name])}"
        if found := statistics_apart(before, weights, others, config.network, pixels, moved):
            return f"step {k + 1}, {found}"
        if differs(*losses, max(first_step, moved)):
            return f"step {k + 1}, the loss: {losses[0]} and {losses[1]}"
    return f"none in {case.steps} steps"


def statistics_apart(before, values, others, network, pixels, moved):
    """Which moving statistic of the layers in `pixels` has moved another way, or the state of the dropout, in words; or ""."""
    for name, x in values.items():
        if is_trainable(name) or name.rpartition("/")[0] not in pixels:
            continue
        old = before[name] if moved else np.zeros_like(x)
        if differs(x - old, others[name] - old, moved / 10):  # N / (N - 1) is 1e-3 apart for a thousand pixels
            hint = variance_hint(x, others[name], before[name], network, pixels[name.rpartition("/")[0]])
            return f"{name}: {words(x, others[name])}{hint if name.endswith('variance') else ''}"
    return ""


def words(x, y):
    """How two arrays differ."""
    found = apart(x, y)
    if not np.isfinite(found.difference):
        return f"shapes {x.shape} and {y.shape}, or not a number"
    return f"{100 * found.share:.3g} % of the values, by up to {found.difference:.1e} at {found.scale:.1e}"


def update_term(name, before, weights, others, state):
    """Which factor of w -= alpha m / (sqrt(v) + epsilon) differs when m and v do not.

    alpha scales every step alike; epsilon shows only where v is small.
    """
    if f"{name}/v" not in state:
        return "the learning rate of the update"
    moved, other = (np.ravel(w[name].astype(np.float64) - before[name]) for w in (weights, others))
    v = np.ravel(state[f"{name}/v"])
    usable = moved != 0
    ratio, order = other[usable] / moved[usable], np.argsort(v[usable])
    large = np.median(ratio[order[-max(len(order) // 10, 1) :]])
    small = np.median(ratio[order[: max(len(order) // 10, 1)]])
    return (
        "epsilon of the update"
        if abs(small - 1) > 2 * abs(large - 1)
        else "alpha of the update (learning rate, powers of beta)"
    )


def variance_hint(x, y, before, network, pixels):
    """Says so when two moving variances are N / (N - 1) apart, the two conventions of batch normalization.

    pixels: N, over which the layer normalizes, in all images of the batch.
    """
    moved = [values.astype(np.float64) - network.bn_momentum * before.astype(np.float64) for values in (x, y)]
    ratio = float(np.median(moved[1] / moved[0]))
    n = 1 / (1 - min(ratio, 1 / ratio)) if ratio not in (0, 1) else 0
    return f"; their ratio is that of N and N - 1 for N = {pixels}" if pixels and abs(n / pixels - 1) < 0.05 else ""
