"""Where do two implementations part? The first activation, gradient, step or term of the update that differs."""

from common.device import tf
from common.layers import table
from common.losses import segmentation_loss
from common.weights import assign_weights, initial_weights, is_trainable
from comparison import columns
from comparison.proof import exact, rounding

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


def differs(x, y, allowed, share=0.0):
    """Whether two arrays differ in shape, or more than a `share` of their values by more than `allowed` times the largest."""
    if x.shape != y.shape:
        return True
    if not x.size:
        return False
    x, y = x.astype(np.float64), y.astype(np.float64)
    return not np.quantile(np.abs(x - y), 1 - share) <= allowed * np.abs(x).max()  # true for not a number


class Probe:
    """One implementation, to be looked into."""

    def __init__(self, implementation, case):
        self.code = code = (exact if case.exact else columns).load(implementation)
        config = case.config
        self.config, self.model = config, code.UNet(config.network)
        self.weights = code.named_weights(self.model)
        self.optimizer = code.make_optimizer(self.model, config)
        self.train_step = code.make_train_step(self.model, config, self.optimizer)
        self.start()

    def start(self, weights=None):
        """From `weights`, canonical name -> array, or from the first ones."""
        assign_weights(self.weights, weights or initial_weights(self.config.network))

    def gradients(self, images, masks):
        """Canonical name -> array, from the head backwards: the order in which the chain rule goes."""
        trainable = {name: w for name, w in reversed(self.weights.items()) if is_trainable(name)}
        with tf.GradientTape() as tape:
            loss = segmentation_loss(masks, self.model(images, training=True), self.config)
        return {name: gradient.numpy() for name, gradient in tape.gradient(loss, trainable).items()}

    def values(self):
        """Weights, moving statistics and the optimizer's moments, by name."""
        state = {name: v.numpy() for name, v in self.code.named_state(self.model, self.optimizer).items()}
        return {name: v.numpy() for name, v in self.weights.items()}, state


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
    probes = [Probe(name, case) for name in (a, b)]
    first, second = probes
    if first.weights.keys() != second.weights.keys():
        return f"the weights' names: {sorted(first.weights.keys() ^ second.weights.keys())}"
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
                return f"activation {name} in {mode}: {apart(x, y)}"
        for probe in probes:
            probe.start()
    pixels = {name: int(np.prod(x.shape[:3])) for name, x in layers[0]}  # over which a layer normalizes
    gradients, others = (probe.gradients(images, masks) for probe in probes)
    for name, x in gradients.items():
        if differs(x, others[name], first_step):
            return f"gradient of {name}: {apart(x, others[name])}"
    for probe in probes:
        probe.start()
    for k in range(case.steps):
        before = first.values()[0]
        if case.halve_rate and k == case.steps // 2:
            for probe in probes:
                probe.optimizer.learning_rate.assign(config.training.learning_rate / 2)
        losses = [float(probe.train_step(*batches[k % len(batches)])) for probe in probes]
        (weights, state), (others, other_state) = (probe.values() for probe in probes)
        for name, x in state.items():
            if differs(x, other_state[name], moved, share):
                slot = {"m": "m, the mean of the gradients (beta_1, momentum)", "v": "v, the mean of their squares (beta_2)"}
                term = "the count of the steps" if name == "iterations" else f"{slot[name[-1]]}, of {name[:-2]}"
                return f"step {k + 1}, {term}: {apart(x, other_state[name])}"
        for name, x in weights.items():
            # the moves, which are small beside the weights, if not to the last bit
            old = before[name] if moved else np.zeros_like(x)
            allowed = moved if is_trainable(name) else moved / 10  # N / (N - 1) is 1e-3 apart for a thousand pixels
            if differs(x - old, others[name] - old, allowed, share):
                if not is_trainable(name):
                    hint = variance_hint(x, others[name], before[name], config.network, pixels.get(name.rpartition("/")[0]))
                    return f"step {k + 1}, {name}: {apart(x, others[name])}{hint}"
                return f"step {k + 1}, {update_term(name, before, weights, others, state)}, of {name}: {apart(x, others[name])}"
        if differs(np.array(losses[0]), np.array(losses[1]), max(first_step, moved)):
            return f"step {k + 1}, the loss: {losses[0]} and {losses[1]}"
    return f"none in {case.steps} steps"


def apart(x, y):
    """How two arrays differ, in a few words."""
    if x.shape != y.shape:
        return f"shapes {x.shape} and {y.shape}"
    d = np.abs(x.astype(np.float64) - y.astype(np.float64))
    return f"{np.count_nonzero(d)} of {d.size} values, by up to {d.max():.1e} at {np.abs(x.astype(np.float64)).max():.1e}"


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
