"""The oracle in NumPy: its gradients by finite differences, and faults that all three share, which it alone can see."""

import itertools
import sys
from pathlib import Path

import common.losses
from common.config import VOID, Config, Weights
from comparison import columns
from comparison.proof import oracle, outside, parity
from comparison.proof.apart import difference
from comparison.proof.ways import EXACT_CONSTANTS, Case
from tests.test_columns import imports

import numpy as np
import pytest
import tensorflow as tf

SMALL = dict(filters=2, depth=1, channels=1, classes=1, batch_norm="explicit", precision="float64", **EXACT_CONSTANTS)
WITH_VOID = dict(void_label=VOID, dataset="folder", data_dir=Path())


def tiny_case(steps=0, **changes):
    config = Config.of(**{**SMALL, **changes})
    return Case("planted: NumPy", config, steps, exact=False, void=config.data.void_label is not None)


def test_oracle_stands_alone():
    """It knows nothing that the three share with each other."""
    found = {name.split(".")[0] for name in imports(Path(oracle.__file__))}
    assert found - set(sys.stdlib_module_names) == {"numpy"}


PAPER = dict(depth=2, padding="valid", batch_norm="none", classes=2, loss="cross_entropy", weight_map=True, dropout=0.5)


@pytest.mark.parametrize(
    "changes",
    [
        dict(depth=2),
        PAPER,
        dict(classes=3, channels=3, loss="dice_ce", class_weights=Weights((0.5, 1, 2.5))),
        dict(loss="dice_ce", class_weights=Weights((1, 3)), **WITH_VOID),
        dict(classes=3, activation="relu", loss="dice", batch_norm="none", **WITH_VOID),
    ],
    ids=["default", "paper", "classes", "void", "relu"],
)
def test_gradients_by_finite_differences(changes):
    """Along a direction d a weight's gradient g says (loss(w + h d) - loss(w - h d)) / 2h = g d + O(h**2)."""
    case = tiny_case(**changes)
    weights, [batch] = outside.draw(case)
    weights.pop("dropout/state", None)
    network, training = case.config.network, case.config.training
    _, _, gradients, _ = oracle.loss_and_gradients(network, training, weights, *batch)
    assert gradients.keys() == {name for name in weights if "/moving_" not in name}
    # The loss, near 1, is rounded to 1e-16, which the division by 2h makes 1e-16 / h; the term left out is h**2 times a third
    # derivative. Both are small where h is the cube root of the rounding, 5e-6: 1e-11 each, or some 1e-10 where the derivative
    # is not 1. A unit vector d keeps h the distance in which a maximum or a ReLU may switch: these seeds have none there. At
    # the 0 of an ELU its second derivative jumps by 1, which leaves h / 4 of what comes back there, some 1e-3 of the loss.
    h, tolerance = 5e-6, 5e-9
    rng = np.random.default_rng(1)
    for name, g in gradients.items():
        d = rng.standard_normal(g.shape)
        d /= np.linalg.norm(d)
        ahead, behind = (
            oracle.loss_and_gradients(network, training, {**weights, name: weights[name] + step * d}, *batch)[0]
            for step in (h, -h)
        )
        assert abs((ahead - behind) / (2 * h) - (g * d).sum()) < tolerance, name


def test_the_three_are_the_formulas():
    weighted = dict(classes=3, loss="dice_ce", class_weights=Weights((0.5, 1, 2)), **WITH_VOID)
    for case in (
        tiny_case(3, **{**PAPER, "depth": 1}),
        tiny_case(3, optimizer="sgd", clip_norm=0.125, **weighted),
        tiny_case(batch_norm="fused", precision="float32"),
    ):
        checks = outside.climb(case)
        assert len(checks) == 3 * (4 + (case.config.network.batch_norm != "none") + 2 * bool(case.steps))
        assert not [check for check in checks if not check.passed]


def everywhere(monkeypatch, function, replacement):
    """Replaces a function of TensorFlow by whatever name its modules and Keras's know it."""
    for module in list(sys.modules.values()):
        for name, value in list(vars(module).items()) if hasattr(module, "__dict__") else ():
            if value is function:
                monkeypatch.setattr(module, name, replacement)


def moving_variance_over_n(monkeypatch):
    """Fused: as the explicit normalization has it, without N / (N - 1)."""
    from tensorflow.python.ops import gen_nn_ops

    right = gen_nn_ops.fused_batch_norm_v3

    def fused_batch_norm_v3(x, scale, offset, mean, variance, exponential_avg_factor=1.0, **options):
        out = right(x, scale, offset, mean, variance, exponential_avg_factor=exponential_avg_factor, **options)
        if not options["is_training"]:
            return out
        n, kept = tf.cast(tf.size(x[..., 0]), tf.float32), (1 - exponential_avg_factor) * variance
        return out._replace(batch_variance=kept + (out.batch_variance - kept) * (n - 1) / n)

    everywhere(monkeypatch, right, fused_batch_norm_v3)


def epsilon_outside_of_the_root(monkeypatch):
    def batch_normalization(x, mean, variance, offset, scale, variance_epsilon, name=None):
        return scale * (x - mean) / (tf.sqrt(variance) + variance_epsilon) + offset

    everywhere(monkeypatch, tf.nn.batch_normalization, batch_normalization)


def loss_summed(monkeypatch):
    summed = lambda values, weights=None: tf.reduce_sum(values)  # noqa: E731
    monkeypatch.setattr(common.losses.segmentation_loss, "__defaults__", (summed,))


def dice_with_squares(monkeypatch):
    def dice_loss(masks, logits, *_):
        g, p = tf.cast(masks, logits.dtype), common.losses.probabilities(logits)
        overlap, total = (tf.reduce_sum(x, axis=(1, 2)) for x in (g * p, g**2 + p**2))
        return tf.reduce_mean(1 - (2 * overlap + 1) / (total + 1))

    monkeypatch.setattr(common.losses, "dice_loss", dice_loss)


def class_weights_ignored(monkeypatch):
    right = common.losses.cross_entropy
    monkeypatch.setattr(common.losses, "cross_entropy", lambda masks, logits, weights, *rest: right(masks, logits, None, *rest))


def crop_off_by_one(monkeypatch):
    class Crop(int):
        """From c - 1 to -(c + 1): as much as from c to -c, a pixel further up and left."""

        def __neg__(self):
            return -(int(self) + 2)

    for name in columns.IMPLEMENTATIONS:
        module = sys.modules[f"{name}.model"]
        right = module.skip_crop
        monkeypatch.setattr(module, "skip_crop", lambda network, level, right=right: Crop(right(network, level) - 1))


def no_bias_correction(monkeypatch):
    load = columns.load

    def load_wrong(implementation):
        code = load(implementation)
        right = code.make_optimizer

        def make_optimizer(model, config):
            optimizer = right(model, config)
            optimizer.iterations.assign(10**6)  # beta**t is 0
            return optimizer

        code.make_optimizer = make_optimizer
        return code

    monkeypatch.setattr(columns, "load", load_wrong)


def dropout_not_scaled(monkeypatch):
    right = tf.nn.experimental.stateless_dropout
    monkeypatch.setattr(tf.nn.experimental, "stateless_dropout", lambda x, rate, seed, **_: right(x, rate, seed) * (1 - rate))


FAULTS = [
    (moving_variance_over_n, dict(batch_norm="fused", precision="float32"), "moving statistics, 1 step"),
    (epsilon_outside_of_the_root, {}, "logits in inference"),
    (loss_summed, dict(loss="cross_entropy"), "loss"),
    (dice_with_squares, {}, "loss"),
    (class_weights_ignored, dict(loss="cross_entropy", class_weights=Weights((1, 3))), "loss"),
    (crop_off_by_one, dict(padding="valid"), "logits in inference"),
    (no_bias_correction, {}, "losses"),
    (dropout_not_scaled, dict(dropout=0.5), "logits in training"),
]


LONG = (epsilon_outside_of_the_root, dice_with_squares, no_bias_correction)  # by hand: another of their rung is among the rest


@pytest.mark.parametrize(
    ("plant", "changes", "rung"),
    [pytest.param(*fault, marks=pytest.mark.slow if fault[0] in LONG else (), id=fault[0].__name__) for fault in FAULTS],
)
def test_a_fault_of_all_three_is_seen_by_the_oracle_alone(plant, changes, rung, monkeypatch):
    case, seen, observe = tiny_case(3 * (plant is no_bias_correction), **changes), {}, outside.observe
    plant(monkeypatch)
    monkeypatch.setattr(outside, "observe", lambda name, *of: seen.setdefault(name, observe(name, *of)))
    failed = [check for check in outside.climb(case) if not check.passed]
    same = 1e-12 if case.config.network.precision == "float64" else 1e-5  # of numbers about 1
    for a, b in itertools.combinations(columns.IMPLEMENTATIONS, 2):
        assert all(difference(values, seen[b][of])[1] < same for of, values in seen[a].items()), "they are equally wrong"
    assert {check.pair for check in failed if check.rung == rung} == set(columns.IMPLEMENTATIONS)
    assert failed[0].rung == rung, "the first rung that the fault reaches"


def test_parity_fails_when_the_three_are_equally_wrong(monkeypatch, tmp_path, capsys):
    config = Config.of(**SMALL, image_size=parity.Size(16, 16), images=6, batch_size=2)
    dice_with_squares(monkeypatch)
    monkeypatch.setattr(outside, "STEPS", 0)  # the loss is wrong before any
    case = Case("default: float64, explicit", config, steps=0, beside=("lowlevel", "keras_impl"))
    assert not parity.climb_all([case], tmp_path / "parity.json")
    printed = capsys.readouterr().out
    assert "The three are the same network three times, but NOT a right one: " in printed
    assert "the first: default: NumPy, explicit, dice: lowlevel, loss, at loss" in printed and "checks FAILED" in printed
