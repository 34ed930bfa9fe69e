"""The network itself: its size, its shapes, its mathematics, and that the three are one."""

from common import shapes
from common.config import Config
from common.losses import dice_loss, probabilities
from common.metrics import predicted_classes, scores
from common.padding import any_size
from common.weights import assign_weights, initial_weights, is_trainable, weight_shapes
from comparison import columns
from comparison.proof import ladder
from comparison.proof.apart import difference
from comparison.proof.ways import EXACT_CONSTANTS, Case
from training.report import make_eval_step

import numpy as np
import pytest
import tensorflow as tf


def random_batch(config, height=32, width=32, n=2, seed=0):
    rng = np.random.default_rng(seed)
    cut = shapes.margin(config.network.depth, config.network.padding)
    images = rng.random((n, height, width, config.network.channels), dtype=np.float32)
    masks = rng.integers(0, max(config.network.classes, 2), (n, height - cut, width - cut, 1)).astype(np.float32)
    return tf.constant(images), tf.constant(masks)


def test_a_network_starts_from_the_canonical_weights(implementation):
    """The ladder gives them to all three anew, and would not miss them."""
    config, code = Config.of(filters=2, depth=1, channels=1, classes=1, dropout=0.5, seed=3), columns.load(implementation)
    weights = code.named_weights(code.UNet(config.network))
    for name, value in initial_weights(config.network).items():
        np.testing.assert_array_equal(weights[name].numpy(), value, err_msg=name)


@pytest.mark.parametrize(
    ("config", "count"),
    [
        # Counted by hand for filters 2, depth 1, one channel, one class. Convolutions 9(1*2 + 2*2) + 9(2*4 + 4*4)
        # + 9(4*2 + 2*2) = 378, up-convolution 4*2*4 + 2 = 34, head 2 + 1 = 3; two per normalized channel:
        # 2(2*2 + 2*4 + 2*2) = 32. Without normalization a bias per channel instead: 16.
        (Config.of(filters=2, depth=1), 378 + 34 + 3 + 32),
        (Config.of(filters=2, depth=1, batch_norm="none"), 378 + 34 + 3 + 16),
        (Config(), 1_942_289),
    ],
)
def test_number_of_parameters(implementation, config, count):
    code = columns.load(implementation)
    weights = code.named_weights(code.UNet(config.network))
    assert {name: tuple(w.shape) for name, w in weights.items()} == weight_shapes(config.network)
    assert list(weights) == list(weight_shapes(config.network)), "the order is the forward pass's"
    assert sum(w.shape.num_elements() for name, w in weights.items() if is_trainable(name)) == count


# Small, but every option of the architecture in some combination with the others, and sizes that are no squares.
slow = pytest.mark.slow
PARITY = [
    pytest.param(Config.of(filters=4), (32, 32), marks=slow),
    pytest.param(Config.of(filters=4, depth=2, batch_norm="explicit"), (32, 32), marks=slow),
    pytest.param(Config.of(filters=4, batch_norm="none", optimizer="sgd"), (32, 32), marks=slow),
    pytest.param(Config.of(filters=4, depth=2, channels=3), (36, 20), marks=slow),
    (Config.of(filters=4, depth=1, channels=3, classes=4, batch_norm="explicit", activation="relu"), (2, 4)),
    pytest.param(Config.of(filters=4, depth=3, classes=4, batch_norm="explicit"), (40, 48), marks=slow),
    (Config.of(filters=4, depth=2, padding="valid", batch_norm="none", activation="relu", classes=2), (56, 48)),
    pytest.param(
        Config.of(filters=4, depth=1, padding="valid", batch_norm="explicit", precision="float64"), (24, 30), marks=slow
    ),
    pytest.param(Config.of(filters=4, depth=2, precision="bfloat16"), (32, 32), marks=slow),  # and in tests/test_scripts.py
]


@pytest.mark.parametrize(("config", "size"), PARITY)
def test_parity(config, size):
    config = config.replace(**EXACT_CONSTANTS)
    batches = [random_batch(config, *size, seed=k) for k in range(3)]
    checks, _, _ = ladder.climb(Case("test", config, steps=3), batches)
    assert not [check for check in checks if not check.passed]
    margin = shapes.margin(config.network.depth, config.network.padding)
    logits = columns.load("lowlevel").UNet(config.network)(batches[0][0])
    assert logits.shape == (2, size[0] - margin, size[1] - margin, config.network.classes)


def test_difference_sees_shapes_names_and_nan():
    a = {"x": np.zeros(3, np.float32)}
    assert difference(a, {"x": np.zeros(4, np.float32)})[:2] == ("x", np.inf)
    assert difference(a, {"y": np.zeros(3, np.float32)})[1] == np.inf
    assert difference(a, {"x": np.array([0, np.nan, 0], np.float32)})[1] == np.inf


def test_assign_weights_names_what_differs():
    weights = {"a": tf.Variable([1.0]), "b": tf.Variable([1.0, 2.0])}
    with pytest.raises(ValueError, match="'c'"):
        assign_weights(weights, {"a": np.ones(1), "b": np.ones(2), "c": np.ones(1)})
    with pytest.raises(ValueError, match="b has shape"):
        assign_weights(weights, {"a": np.ones(1), "b": np.ones(3)})


# --- shapes ---


@pytest.mark.parametrize(("padding", "too_small"), [("same", 3), ("valid", 40)])
def test_any_size_gives_logits_of_the_right_size(implementation, padding, too_small):
    config = Config.of(filters=2, depth=2, padding=padding)
    model = columns.load(implementation).UNet(config.network)
    least, margin = shapes.min_size(config.network), shapes.margin(2, padding)
    for height, width in ((least, least + 3), (least + 1, least + 2), (least + 2, least + 1), (least + 3, least)):
        logits = any_size(model, tf.zeros([1, height, width, 1]), config.network)
        assert logits.shape == (1, height - margin, width - margin, 1)
    words = f"is 64x{too_small} pixels, but 2 poolings with '{padding}' padding need at least {too_small + 1}"
    with pytest.raises(ValueError, match=words):
        any_size(model, tf.zeros([1, too_small, 64, 1]), config.network)


def test_padding_moves_nothing(implementation):
    """A network padded for an odd size sees every pixel where an evenly sized image would show it."""
    config = Config.of(filters=2, depth=1)
    model = columns.load(implementation).UNet(config.network)
    image = np.random.default_rng(0).random((1, 31, 40, 1)).astype(np.float32)
    by_hand = np.pad(image, [(0, 0), (0, 1), (0, 0), (0, 0)], mode="reflect")
    np.testing.assert_array_equal(
        any_size(model, image, config.network), model(by_hand)[:, :31], err_msg="reflected at the lower border"
    )


def test_inference_leaves_no_trace(implementation):
    config = Config.of(filters=2, depth=1, dropout=0.5)
    code = columns.load(implementation)
    model = code.UNet(config.network)
    images, masks = random_batch(config)
    before = {name: w.numpy() for name, w in code.named_weights(model).items()}
    first, second = model(images), model(images)
    loss, p = make_eval_step(model, config)(images, masks)
    np.testing.assert_array_equal(first, second, err_msg="dropout must be off")
    np.testing.assert_allclose(p, tf.sigmoid(first), rtol=1e-6)  # a graph may fuse what eager code does not
    np.testing.assert_allclose(loss, dice_loss(masks, first), rtol=1e-6)
    for name, w in code.named_weights(model).items():
        np.testing.assert_array_equal(w.numpy(), before[name], err_msg=name)


# --- loss and metrics ---


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
def test_dice_is_summed_in_float32_or_wider(dtype):
    """In bfloat16 a sum of ones stops growing at 256."""
    masks, logits = tf.ones([1, 64, 64, 1]), tf.fill([1, 64, 64, 1], tf.constant(100, dtype))
    loss = dice_loss(masks, logits)
    assert loss.dtype == ("float64" if dtype == "float64" else "float32") == probabilities(logits).dtype
    assert float(loss) == 0


def test_scores_by_hand():
    masks = np.array([[[1, 1, 0, 0]], [[0, 0, 0, 0]]])
    predictions = np.array([[[1, 0, 1, 0]], [[0, 0, 0, 0]]])
    result = scores(masks, predictions, classes=1)
    np.testing.assert_allclose(result["dice"], [0.5, 1])
    np.testing.assert_allclose(result["iou"], [1 / 3, 1])
    np.testing.assert_allclose(result["accuracy"], [0.5, 1])
    # Two of three classes occur in the first image: 2/4 each; only the background in the second.
    result = scores(masks, predictions, classes=3)
    np.testing.assert_allclose(result["dice"], [0.5, 1])


def test_predicted_classes():
    assert predicted_classes(np.array([[[[0.49], [0.5]]]])).tolist() == [[[0, 1]]]
    assert predicted_classes(np.array([[[[0.2, 0.5, 0.3]]]])).tolist() == [[[1]]]
