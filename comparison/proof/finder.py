"""Where do two implementations part? The first activation, gradient, step or term of the update that differs."""

from common.device import tf
from common.layers import table
from common.weights import is_trainable
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


def activations(model, config, images, training):
    """[(name, array)] of what happens to `images`, in order: every layer's output, and what enters it where that is news.

    What enters an activation function is the batch normalization's output (the bias's, without normalization); what
    enters an up-convolution is the dropout's. Read off the traced graph, so that the models need no hooks.

    Raises: ValueError when the graph does not hold the layers that `config` asks for.
    """
    names, kinds = [], []

    @tf.function(jit_compile=False)  # XLA would fuse the activations away
    def trace(images):
        model(images, training=training)
        operations = tf.compat.v1.get_default_graph().get_operations()
        found = [op for op in operations if op.type in KINDS and op.outputs[0].shape.rank == 4]
        expected = [(layer.kind, layer.name) for layer in table(config.network) if layer.kind in KINDS.values()]
        kinds.extend(KINDS[op.type] for op in found)
        tensors = []
        if kinds != [kind for kind, _ in expected]:
            return tensors
        for op, (kind, name) in zip(found, expected):
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
    if not values:
        raise ValueError(f"the layers do not come in the order of the U-Net: {', '.join(kinds)}")
    return list(zip(names, values))


def gradients_backwards(built, images, masks):
    """Canonical name -> array, from the head on: the order in which the chain rule goes."""
    _, _, gradients = built.backward(images, masks)
    return {name: gradients[name].numpy() for name in reversed(gradients)}


def locate(a, b, case, batches):
    """Says in words where implementations `a` and `b` first differ, from the names of the weights to the last step.

    To the last bit equal means equal, but for what XLA may choose. As written it means within rounding, and in a step but for a
    fiftieth of the values: where a gradient is rounding alone, Adam makes a whole step of it.
    """
    config = case.config
    first_step, moved, share = 0.0, 0.0, 0.0
    if not case.exact:
        first_step, moved, share = rounding.SUM * rounding.ROUNDING[config.network.precision], 1e-3, 0.02
    elif config.training.jit:
        first_step, moved = 1e-4, 1e-3
    probes = [exact.build(name, case) for name in (a, b)]
    first, second = probes
    if first.weights.keys() != second.weights.keys():
        return f"the weights' names: {sorted(first.weights.keys() ^ second.weights.keys())}"
    for probe in probes:
        probe.start()
    for name, weight in first.weights.items():
        if differs(weight.numpy(), second.weights[name].numpy(), 0.0):
            return f"the value of {name}, before anything is computed"
    images, masks = batches[0]
    for training in (False, True):
        mode = "training" if training else "inference"
        layers = []
        for name, probe in zip((a, b), probes):
            try:
                layers.append(activations(probe.model, config, images, training))
            except ValueError as error:
                return f"{name} in {mode}: {error}"
        for (name, x), (_, y) in zip(*layers):
            if differs(x, y, first_step):
                return f"activation {name} in {mode}: {words(x, y)}"
        for probe in probes:
            probe.start()
    pixels = {name: int(np.prod(x.shape[:3])) for name, x in layers[0]}  # over which a layer normalizes
    gradients, others = (gradients_backwards(probe, images, masks) for probe in probes)
    for name, x in gradients.items():
        allowed = first_step
        if name == "head/bias" and config.network.classes == 1 and "keras_impl" in (a, b) and not case.exact:
            allowed += rounding.of_the_head_bias(config, layers[0][-1][1], masks, x)
        if differs(x, others[name], allowed):
            return f"gradient of {name}: {words(x, others[name])}"
    for probe in probes:
        probe.start()
    for k in range(case.steps):
        before = first.values()
        if case.halve_rate and k == case.steps // 2:
            for probe in probes:
                probe.optimizer.learning_rate.assign(config.training.learning_rate / 2)
        losses = [float(probe.train_step(*batches[k % len(batches)])) for probe in probes]
        weights, others = (probe.values() for probe in probes)
        state, other_state = ({name: v.numpy() for name, v in probe.state.items()} for probe in probes)
        for name, x in state.items():
            if differs(x, other_state[name], moved, share):
                slot = {"m": "m, the mean of the gradients (beta_1, momentum)", "v": "v, the mean of their squares (beta_2)"}
                term = f"{slot[name[-1]]}, of {name[:-2]}" if "/" in name else f"the count of the steps, {name}"
                return f"step {k + 1}, {term}: {words(x, other_state[name])}"
        for name, x in weights.items():
            # the moves, which are small beside the weights, if not to the last bit
            old = before[name] if moved else np.zeros_like(x)
            allowed = moved if is_trainable(name) else moved / 10  # N / (N - 1) is 1e-3 apart for a thousand pixels
            if differs(x - old, others[name] - old, allowed, share):
                if not is_trainable(name):
                    hint = variance_hint(x, others[name], before[name], config.network, pixels.get(name.rpartition("/")[0]))
                    return f"step {k + 1}, {name}: {words(x, others[name])}{hint}"
                return f"step {k + 1}, {update_term(name, before, weights, others, state)}, of {name}: {words(x, others[name])}"
        if differs(np.array(losses[0]), np.array(losses[1]), max(first_step, moved)):
            return f"step {k + 1}, the loss: {losses[0]} and {losses[1]}"
    return f"none in {case.steps} steps"


def words(x, y):
    """How two arrays differ."""
    found = apart(x, y)
    if not np.isfinite(found.difference):
        return f"shapes {x.shape} and {y.shape}, or not a number"
    return f"{100 * found.share:.2g} % of the values, by up to {found.difference:.1e} at {found.scale:.1e}"


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
