"""The canonical weights: their names, their shapes, and values drawn once for all three implementations.

The same seed gives different numbers in TensorFlow's, tf.layers' and Keras's initializers, so none of them is used.
"""

import dataclasses

from common.layers import STATISTICS, table
from common.streams import WEIGHTS, generator

import numpy as np


def weight_shapes(network):
    """Canonical name -> shape of every weight and moving statistic, in the order of the forward pass."""
    return {f"{layer.name}/{part}": shape for layer in table(network) for part, shape in layer.weights.items()}


def is_trainable(name):
    """Whether gradients change the weight: all but the moving statistics and the state of the dropout."""
    return not name.endswith(("/moving_mean", "/moving_variance", "dropout/state"))


def initial_weights(network):
    """Canonical name -> array of `network.variable_dtype`, kernels from a normal distribution.

    They are drawn in float32 and in the order of `weight_shapes`.

    stddev = sqrt(2 / fan_in), He et al. 2015 (arXiv 1502.01852), equation 10. Every output pixel of the 2x2
    up-convolution with stride 2 sees one input pixel, so its fan-in is its number of input channels.
    """
    rng = generator(network.seed, WEIGHTS)

    def draw(name, shape):
        if name.endswith("/kernel"):
            fan_in = shape[3] if "/deconv/" in name else shape[0] * shape[1] * shape[2]
            kernel = rng.standard_normal(shape, dtype=np.float32) * np.float32((2 / fan_in) ** 0.5)
            return kernel.astype(network.variable_dtype)
        if name == "dropout/state":
            return with_dropout({}, network)[name]
        return np.full(shape, 1 if name.endswith(("/gamma", "/moving_variance")) else 0, network.variable_dtype)

    return {name: draw(name, shape) for name, shape in weight_shapes(network).items()}


def with_dropout(weights, network):
    """`weights` with the state of `network`'s dropout, new if they have none; without one if it has no dropout.

    A dropout has no weights, but the seed and the number of its calls.
    """
    state = {"dropout/state": np.array([network.seed, 0], np.int64)} if network.dropout else {}
    return {name: value for name, value in (state | weights).items() if name != "dropout/state" or state}


def fold_batch_norm(network, weights):
    """The network for inference: every batch normalization becomes part of the convolution before it.

    gamma (k * x - mean) / sqrt(variance + epsilon) + beta is a convolution by a scaled kernel k, and a bias. Without the
    normalization between them TensorFlow runs convolution, bias and activation as one kernel on a CPU (`_FusedConv2D`).

    weights: canonical name -> array, moving statistics among them. Returns: (network, weights) of a network with
    batch_norm "none", which `UNet` and `assign_weights` take; both as they were if there is nothing to fold.
    """
    if network.batch_norm == "none":
        return network, weights
    network = dataclasses.replace(network, batch_norm="none")
    folded = {}
    for name in weight_shapes(network):
        block, part = name.rpartition("/")[::2]
        norm = block.replace("/conv", "/bn")
        if norm == block:  # an up-convolution or the head: nothing behind it to fold
            folded[name] = weights[name]
            continue
        gamma, beta, mean, variance = (weights[f"{norm}/{statistic}"].astype(np.float64) for statistic in STATISTICS)
        scale = gamma / np.sqrt(variance + network.bn_epsilon)
        value = weights[name] * scale if part == "kernel" else beta - mean * scale
        folded[name] = value.astype(network.variable_dtype)
    return network, folded


def assign_weights(variables, values):
    """Assigns `values` to `variables`, both by canonical name.

    Raises: ValueError that names what is missing, left over, or of another shape.
    """
    if variables.keys() != values.keys():
        raise ValueError(f"weights differ in their names: {sorted(variables.keys() ^ values.keys())}")
    for name, variable in variables.items():
        if tuple(variable.shape) != values[name].shape:
            raise ValueError(f"{name} has shape {tuple(variable.shape)}, the value for it has {values[name].shape}")
        variable.assign(values[name])
