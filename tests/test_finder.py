"""Planted faults: the ladder must fail on each, and the finder must name the layer or the term where it sits."""

import functools
from types import SimpleNamespace

import highlevel.model
import lowlevel.model
import lowlevel.train
from common.config import Config
from comparison import columns
from comparison.proof import finder, ladder
from comparison.proof.ways import EXACT_CONSTANTS, Case
from tests.test_network import random_batch

import pytest
import tensorflow as tf


class Patched:
    """A module with some of its functions replaced, for one implementation only."""

    def __init__(self, module, **changes):
        self.module, self.changes = module, changes

    def __getattr__(self, name):
        return self.changes[name] if name in self.changes else getattr(self.module, name)


def kernel_off(monkeypatch):
    right = lowlevel.model.UNet.conv2d

    def conv2d(self, x, name, padding="valid"):
        if name == "down1/conv2":
            kernel = self.weights[f"{name}/kernel"]
            off = kernel + tf.one_hot(0, kernel.shape[-1], dtype=kernel.dtype) * 1e-3
            self = SimpleNamespace(weights={**self.weights, f"{name}/kernel": off})
        return right(self, x, name, padding)

    monkeypatch.setattr(lowlevel.model.UNet, "conv2d", conv2d)


def batch_norm(moments, normalize, moving):
    """lowlevel's explicit batch normalization, with parts to be replaced."""

    def wrong(self, x, name, training):
        gamma, beta, moving_mean, moving_variance = (
            self.weights[f"{name}/{s}"] for s in ("gamma", "beta", "moving_mean", "moving_variance")
        )
        momentum, epsilon = self.network.bn_momentum, self.network.bn_epsilon
        mean, variance = moments(x) if training else (moving_mean, moving_variance)
        if training:
            moving_mean.assign(moving_mean * momentum + mean * (1 - momentum))
            moving_variance.assign(moving_variance * momentum + moving(variance, x) * (1 - momentum))
        return normalize(x, mean, variance, beta, gamma, epsilon)

    return wrong


def moments(x):
    return tf.nn.moments(x, axes=[0, 1, 2])


def unbiased(variance, x):
    n = tf.cast(tf.size(x[..., 0]), x.dtype)
    return variance * n / (n - 1)


def unbiased_moving_variance(monkeypatch):
    wrong = batch_norm(moments, tf.nn.batch_normalization, unbiased)
    monkeypatch.setattr(lowlevel.model.UNet, "batch_norm", wrong)


def unbiased_variance_everywhere(monkeypatch):
    def unbiased_moments(x):
        mean, variance = moments(x)
        return mean, unbiased(variance, x)

    wrong = batch_norm(unbiased_moments, tf.nn.batch_normalization, lambda variance, x: variance)
    monkeypatch.setattr(lowlevel.model.UNet, "batch_norm", wrong)


def epsilon_outside_the_normalization_root(monkeypatch):
    def normalize(x, mean, variance, beta, gamma, epsilon):
        return (x - mean) / (tf.sqrt(variance) + epsilon) * gamma + beta

    monkeypatch.setattr(lowlevel.model.UNet, "batch_norm", batch_norm(moments, normalize, lambda variance, x: variance))


def epsilon_inside_the_update_root(monkeypatch):
    # m * alpha / (sqrt(v + epsilon) + epsilon); the scalar roots are those of alpha
    epsilon = 1e-6
    monkeypatch.setattr(lowlevel.train, "tf", Patched(tf, sqrt=lambda v: tf.sqrt(v + epsilon) if v.shape.rank else tf.sqrt(v)))


def pooling_padded_before(monkeypatch):
    def max_pool2d(x, size, strides, padding):
        return tf.nn.max_pool2d(x, size, strides, padding=[[0, 0], [1, 0], [1, 0], [0, 0]])

    monkeypatch.setattr(lowlevel.model, "tf", Patched(tf, nn=Patched(tf.nn, max_pool2d=max_pool2d)))


def concat_swapped(monkeypatch):
    monkeypatch.setattr(lowlevel.model, "tf", Patched(tf, concat=lambda values, axis: tf.concat(values[::-1], axis)))


def dropout_left_on(monkeypatch):
    right = highlevel.model.UNet.dropout
    monkeypatch.setattr(highlevel.model.UNet, "dropout", lambda self, x, training: right(self, x, True))


def bias_of_the_head_summed_twice(monkeypatch):
    right = lowlevel.model.UNet.conv2d

    def conv2d(self, x, name, padding="valid"):
        y = right(self, x, name, padding)
        if name != "head":
            return y
        bias = self.weights["head/bias"]
        return y + (bias - tf.stop_gradient(bias)) / 100  # adds nothing, but a hundredth to its gradient

    monkeypatch.setattr(lowlevel.model.UNet, "conv2d", conv2d)


def in_keras(name, wrong):
    """Plants `wrong(right function)` in the place of a function of keras_impl."""

    def plant(monkeypatch, load=columns.load):
        def load_wrong(implementation):
            code = load(implementation)
            if implementation == "keras_impl":
                setattr(code, name, wrong(getattr(code, name)))
            return code

        monkeypatch.setattr(columns, "load", load_wrong)

    return plant


def other_constant(**changes):
    return in_keras("make_optimizer", lambda right: lambda model, config: right(model, config.replace(**changes)))


FAULTS = [
    (kernel_off, {}, "activation down1/conv2 in inference"),
    (unbiased_moving_variance, {}, "a forward pass in training, down0/bn1/moving_variance"),
    (unbiased_variance_everywhere, {}, "activation down0/bn1 in training"),
    (epsilon_outside_the_normalization_root, {}, "activation down0/bn1 in inference"),
    (epsilon_inside_the_update_root, {}, "step 1, epsilon of the update"),
    (pooling_padded_before, {}, "activation down0/pool in inference"),
    (concat_swapped, {}, "activation up0/concat in inference"),
    (dropout_left_on, dict(dropout=0.5), "activation dropout in inference"),
    (bias_of_the_head_summed_twice, {}, "gradient of head/bias"),
    (other_constant(beta_2=0.99), {}, "step 1, v, the mean of their squares (beta_2)"),
    (other_constant(beta_1=0.75), {}, "step 1, m, the mean of the gradients (beta_1, momentum)"),
    (other_constant(learning_rate=2**-9), {}, "step 1, alpha of the update"),
    (other_constant(momentum=0.5), dict(optimizer="sgd"), "step 2, m, the mean of the gradients (beta_1, momentum)"),
]


@functools.cache
def clean(name, case):
    """(what a column without a fault makes of the case, its batches); asked for before the fault is planted."""
    batches = [random_batch(case.config, 16, 16, n=4, seed=k) for k in range(2)]
    return ladder.observe(name, case, batches), batches


def climb_with(plant, monkeypatch, column="lowlevel", exact=True, steps=3, **options):
    """-> (checks, the finder's words), of the column in which `plant` puts a fault, and of another."""
    config = Config.of(**{**dict(filters=4, depth=1, batch_norm="explicit"), **(EXACT_CONSTANTS if exact else {}), **options})
    beside = ("lowlevel", "keras_impl" if column == "lowlevel" else column)
    case = Case("planted", config, steps, exact, beside=beside)
    (other,) = {*beside} - {column}
    rungs, batches = clean(other, case)
    plant(monkeypatch)
    checks, _, first = ladder.climb(case, batches, {other: rungs})
    return checks, first


@pytest.mark.parametrize("exact", [pytest.param(False, marks=pytest.mark.slow), True], ids=["as-written", "to-the-last-bit"])
@pytest.mark.parametrize(
    ("plant", "options", "found"),
    [  # one of each kind; the others take their turn with -m slow
        pytest.param(*fault, marks=pytest.mark.slow if k in (0, 1, 3, 5, 6, 9, 10, 11) else (), id=fault[2].replace(" ", "-"))
        for k, fault in enumerate(FAULTS)
    ],
)
def test_planted_fault_is_named(plant, options, found, exact, monkeypatch):
    column = {dropout_left_on: "highlevel"}.get(plant, "keras_impl" if plant.__name__ == "plant" else "lowlevel")
    checks, first = climb_with(plant, monkeypatch, column, exact, **options)
    assert not all(check.passed for check in checks), "the ladder does not see the fault"
    assert first.split(": ", 1)[1].startswith(found), first


def a_layer_too_many(monkeypatch):
    double_conv = highlevel.model.UNet.double_conv

    def with_layer(self, x, filters, name, training):
        x = double_conv(self, x, filters, name, training)
        return highlevel.model.layers.conv2d(x, x.shape[-1], 1, name=f"{name}/extra") if name == "down1" else x

    monkeypatch.setattr(highlevel.model.UNet, "double_conv", with_layer)


def test_a_structural_fault_is_a_failed_check(monkeypatch):
    """A layer too many raises where the weights are assigned; the ladder reports it like any other difference."""
    checks, first = climb_with(a_layer_too_many, monkeypatch, "highlevel")
    assert [check.passed for check in checks] == [False] and first.startswith("highlevel: ") and "down1/extra" in first


def a_relu_too_many(monkeypatch):
    monkeypatch.setattr(lowlevel.model, "tf", Patched(tf, nn=Patched(tf.nn, elu=lambda x: tf.nn.relu(tf.nn.elu(x)))))


def test_an_operation_too_many_is_named(monkeypatch):
    checks, first = climb_with(a_relu_too_many, monkeypatch)
    assert not all(check.passed for check in checks)
    assert "lowlevel: behind down0/act1, as far as all is well, comes act, where down0/conv2 should be (conv)" in first, first


def test_finder_names_both_conventions_of_the_variance(monkeypatch):
    config = Config.of(filters=4, depth=1, batch_norm="explicit", **EXACT_CONSTANTS)
    unbiased_moving_variance(monkeypatch)
    batch = random_batch(config, 16, 16, n=4)
    words = finder.locate("lowlevel", "keras_impl", Case("planted", config, 1), [batch])
    assert words.endswith("N and N - 1 for N = 1024"), words  # 4 images of 16 x 16


def test_finder_finds_nothing_where_there_is_nothing():
    config = Config.of(filters=4, depth=1, batch_norm="explicit", **EXACT_CONSTANTS)
    case = Case("sound", config, steps=3, halve_rate=True)
    assert finder.locate("lowlevel", "highlevel", case, [random_batch(config)]) == "none in 3 steps"


def climb_on_one_thread(config, batches):
    tf.config.threading.set_intra_op_parallelism_threads(1)
    return ladder.climb(Case("one thread", config, steps=1, exact=False), batches)[0]


@pytest.mark.slow
@pytest.mark.parametrize("size", [128, 384])
def test_one_thread_and_large_images_agree(size):
    """BiasAddGrad, which Keras does not take for one channel, adds up 2 million pixels one by one: 3e-5 of the sum."""
    config = Config.of(filters=2, depth=1, batch_norm="explicit")
    batch = [tensor.numpy() for tensor in random_batch(config, size, size, n=14)]  # a tensor would start the threads
    checks = columns.call(climb_on_one_thread, "the ladder", config, [batch])
    assert [(c.rung, c.pair, c.worst, c.difference) for c in checks if not c.passed] == []
    of = {(check.rung, check.pair): check for check in checks}
    bias, others = (of["gradients", pair] for pair in ("lowlevel - keras_impl", "lowlevel - highlevel"))
    assert bias.worst == "head/bias" and "BiasAddGrad" in bias.reason and "BiasAddGrad" not in others.reason, "for Keras alone"
    assert 0 < bias.difference < bias.tolerance < 1000 * bias.difference


def test_a_second_moment_that_stands_still_is_seen(monkeypatch):
    """v is as small as a square: beside m, or the count of the steps, anything would be within rounding."""
    still = in_keras(
        "named_state",
        lambda right: lambda *of: {name: tf.zeros_like(v) if name.endswith("/v") else v for name, v in right(*of).items()},
    )
    monkeypatch.setattr(finder, "locate", lambda *_: "none")  # its words are not looked at
    checks, _ = climb_with(still, monkeypatch, "keras_impl", exact=False, steps=1)
    assert {check.rung for check in checks if not check.passed} >= {"v beside its formula"}
