"""The losses against the same formulas in numpy, and the measures of a segmentation by hand."""

import types

from common.config import VOID, Config, Names, UserError, Weights
from common.losses import segmentation_loss
from common.metrics import balanced_weights, class_scores, confusion, mean_over_classes, scores
from training.report import evaluate, list_classes, write_confusion

import numpy as np
import pytest
import tensorflow as tf

WEIGHTS = {1: (0.5, 2.0), 3: (0.5, 2.0, 1.25)}


def loss_config(loss="dice", class_weights=None, void_label=None):
    """The fields of a `Config` that the losses read."""
    training = types.SimpleNamespace(loss=loss, class_weights=class_weights, weight_map=False)
    return types.SimpleNamespace(training=training, data=types.SimpleNamespace(void_label=void_label))


def random_case(classes, void=False, weight_map=False, n=3, size=(4, 5), seed=0):
    """(masks, logits) in float64. Class 2 is absent from image 0. With `void`, image 1 is void all over, the others in part."""
    rng = np.random.default_rng(seed)
    masks = rng.integers(0, max(classes, 2), (n, *size, 1)).astype(np.float64)
    masks[0][masks[0] == 2] = 1
    if void:
        masks[1] = VOID
        masks[:, :2, :3] = VOID
    if weight_map:
        masks = np.concatenate([masks, rng.uniform(0.5, 3, masks.shape)], -1)
    return masks, rng.normal(0, 2, (n, *size, classes))


def by_hand(masks, logits, config):
    """The definition of each loss, pixel by pixel and class by class, in numpy."""
    classes = logits.shape[-1]
    p = 1 / (1 + np.exp(-logits)) if classes == 1 else np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    of_class = np.concatenate([1 - p, p], -1) if classes == 1 else p  # [N, H, W, 2 or more]
    weights = config.training.class_weights or (1,) * of_class.shape[-1]
    dices, above, below = [], 0.0, 0.0
    for n in range(len(masks)):
        pixels = [(h, w, int(masks[n, h, w, 0])) for h, w in np.ndindex(masks.shape[1:3]) if masks[n, h, w, 0] != VOID]
        terms = []  # of the classes: (weight, 1 - dice)
        for c in [1] if classes == 1 else sorted({label for *_, label in pixels}):
            often = [weights[label] if classes == 1 else 1 for *_, label in pixels]
            g = [float(label == c) for *_, label in pixels]
            q = [of_class[n, h, w, c] for h, w, _ in pixels]
            both, total = np.dot(often, np.multiply(g, q)), np.dot(often, np.add(g, q))
            terms.append((1 if classes == 1 else weights[c], 1 - (2 * both + 1) / (total + 1)))
        dices.append(sum(w * t for w, t in terms) / sum(w for w, _ in terms) if terms else 0.0)
        for h, w, label in pixels:
            weight = weights[label] * (masks[n, h, w, 1] if masks.shape[-1] == 2 else 1)
            above -= weight * np.log(of_class[n, h, w, label])
            below += weight
    terms = {"dice": np.mean(dices), "cross_entropy": above / below if below else 0.0}
    return terms.get(config.training.loss, sum(terms.values()))


@pytest.mark.parametrize("extras", ["", "weighted", "void", "weight_map", "weighted void weight_map"])
@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("loss", ["dice", "cross_entropy", "dice_ce"])
def test_losses_and_gradients(loss, classes, extras):
    weighted, void, weight_map = (name in extras.split() for name in ("weighted", "void", "weight_map"))
    config = loss_config(loss, WEIGHTS[classes] if weighted else None, VOID if void else None)
    masks, logits = random_case(classes, void, weight_map)
    variable = tf.constant(logits)
    with tf.GradientTape() as tape:
        tape.watch(variable)
        value = segmentation_loss(masks, variable, config)
    gradient = tape.gradient(value, variable).numpy()
    assert value.dtype == tf.float64
    np.testing.assert_allclose(value, by_hand(masks, logits, config), rtol=1e-12, err_msg="some hundred float64 roundings")
    assert not gradient[masks[..., 0] == VOID].any(), "a void pixel pulls"
    for index in np.random.default_rng(1).permutation(list(np.ndindex(logits.shape)))[:20]:
        step = np.zeros_like(logits)
        step[tuple(index)] = 1e-5
        slope = (by_hand(masks, logits + step, config) - by_hand(masks, logits - step, config)) / 2e-5
        # a central difference errs by step**2, 1e-10, and by the rounding of the losses, 1e-16 / step
        np.testing.assert_allclose(gradient[tuple(index)], slope, atol=1e-9)
    for dtype, rtol in ((tf.float32, 1e-5), (tf.bfloat16, 0.02)):  # the logits are rounded: 8 bits leave 0.4 % of each
        narrow = segmentation_loss(tf.cast(masks, tf.float32), tf.cast(logits, dtype), config)
        assert narrow.dtype == tf.float32
        np.testing.assert_allclose(narrow, value, rtol=rtol)


@pytest.mark.parametrize("classes", [1, 3])
def test_losses_compile(classes):
    config = loss_config("dice_ce", WEIGHTS[classes], VOID)
    masks, logits = random_case(classes, void=True, weight_map=True)

    @tf.function(jit_compile=True)
    def compiled(masks, logits):
        loss = segmentation_loss(masks, logits, config)
        return loss, tf.gradients(loss, logits)[0]

    logits = tf.constant(logits)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        value = segmentation_loss(masks, logits, config)
    for mine, plain in zip(compiled(tf.constant(masks), logits), (value, tape.gradient(value, logits))):
        np.testing.assert_allclose(mine, plain, rtol=1e-9, atol=1e-12, err_msg="XLA has its own exp and order, in float64")


def test_the_default_loss_has_no_operation_more():
    """Void, weights and weight maps cost nothing where there are none."""

    def operations(function):
        graph = tf.function(function).get_concrete_function(tf.TensorSpec([8, 16, 16, 1]), tf.TensorSpec([8, 16, 16, 1])).graph
        return [op.type for op in graph.get_operations() if op.type not in ("Const", "Placeholder", "Identity", "NoOp")]

    # p; sum(g p); sum(g); sum(p), added; 2 * i + 1, t + 1, their ratio, 1 - ratio; the mean
    dice = ["Sigmoid", "Mul", "Sum", "Sum", "Sum", "AddV2", "Mul", "AddV2", "AddV2", "RealDiv", "Sub", "Mean"]
    assert operations(lambda masks, logits: segmentation_loss(masks, logits, loss_config())) == dice


@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("loss", ["dice", "cross_entropy", "dice_ce"])
def test_nothing_labelled_and_extreme_logits(loss, classes):
    config = loss_config(loss, WEIGHTS[classes], VOID)
    labelled, small = random_case(classes)
    nothing, extreme = np.full_like(labelled, VOID), 1e4 * small
    for masks, logits in ((nothing, small), (labelled, extreme), (nothing, extreme)):
        logits = tf.constant(logits, tf.float32)
        with tf.GradientTape() as tape:
            tape.watch(logits)
            value = segmentation_loss(masks, logits, config)
        gradient = tape.gradient(value, logits)
        assert np.isfinite(value) and np.isfinite(gradient).all()
        if masks is nothing:
            assert float(value) == 0 and not np.any(gradient)


# --- measures ---


def test_confusion_by_hand():
    masks = np.array([[[0, 0, 1, VOID]], [[1, 2, 2, VOID]]], np.float32)
    predictions = np.array([[[0, 1, 1, 2]], [[1, 2, 0, 0]]], np.uint8)
    matrix = confusion(masks, predictions, 4)
    assert matrix.tolist() == [[1, 1, 0, 0], [0, 2, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]]
    iou, dice = class_scores(matrix)
    np.testing.assert_allclose(iou, [1 / 3, 2 / 3, 1 / 2, np.nan])
    np.testing.assert_allclose(dice, [2 / 4, 4 / 5, 2 / 3, np.nan])
    np.testing.assert_allclose(mean_over_classes(iou, 4), (1 / 3 + 2 / 3 + 1 / 2) / 3, err_msg="class 3 occurs nowhere")
    np.testing.assert_array_equal(sum(confusion(m, p, 4) for m, p in zip(masks, predictions)), matrix)


def test_confusion_of_one_class():
    matrix = confusion(np.array([1, 1, 0, VOID]), np.array([1, 0, 0, 1]), 1)
    assert matrix.tolist() == [[1, 0], [1, 1]]
    assert mean_over_classes(class_scores(matrix)[0], 1) == 0.5, "the foreground's"
    empty = confusion(np.zeros(4), np.zeros(4, int), 1)
    assert mean_over_classes(class_scores(empty)[0], 1) == 1


@pytest.mark.parametrize("classes", [1, 2])
def test_scores_leave_void_out(classes):
    masks = np.array([[[1, 1, 0, VOID, VOID]], [[VOID] * 5]])
    predictions = np.array([[[1, 0, 0, 1, 0]], [[0, 1, 0, 1, 0]]])
    result = scores(masks, predictions, classes)
    expected = scores(masks[:1, :, :3], predictions[:1, :, :3], classes)
    for name, value in result.items():
        np.testing.assert_allclose(value, [*expected[name], np.nan], err_msg=name)


def test_balanced_weights_by_hand():
    # Class 0: 60 + 90 of 200 pixels; class 1: 40 of 100; class 2: 10 of 100; class 3 never. Median 0.4.
    weights = balanced_weights([[60, 40, 0, 0], [90, 0, 10, 0]])
    assert isinstance(weights, Weights)
    assert weights == (0.533333, 1.0, 4.0, 0.0)
    with pytest.raises(UserError, match="labelled"):
        balanced_weights(np.zeros((2, 3), int))


def test_report_of_classes(tmp_path, capsys):
    """Void counts in no measure; an image of nothing else is left out; what occurs nowhere has no IoU."""
    config = Config.of(classes=3, class_names=Names(("sky", "road", "car")), run_dir=tmp_path)
    masks = np.array([[0, 0, 1, 1], [VOID] * 4, [0, 0, 0, VOID]], np.float32).reshape(3, 1, 4, 1)
    predictions = np.array([[0, 1, 1, 1], [2, 2, 2, 2], [0, 0, 0, 2]]).reshape(3, 1, 4)
    batches = [(np.zeros((2, 1, 4, 1)), tf.constant(masks[:2])), (np.zeros((1, 1, 4, 1)), tf.constant(masks[2:]))]
    answers = iter([(1.0, tf.one_hot(predictions[:2], 3)), (4.0, tf.one_hot(predictions[2:], 3))])
    means, matrix = evaluate(lambda images, masks: next(answers), batches, 3)
    assert matrix.tolist() == [[4, 1, 0], [0, 2, 0], [0, 0, 0]]
    ious = (4 / 5, 2 / 3)
    expected = {"loss": 2, "dice": (np.mean([2 / 3, 4 / 5]) + 1) / 2, "iou": (np.mean([1 / 2, 2 / 3]) + 1) / 2}
    assert means == pytest.approx({**expected, "accuracy": (3 / 4 + 1) / 2, "mean_iou": np.mean(ious)})
    list_classes(config, means, matrix)
    assert (tmp_path / "classes.csv").read_text().split() == [
        "name,iou,dice,pixels",
        "sky,0.8,0.8888889,5",
        "road,0.6666667,0.8,2",
        "car,nan,nan,0",
    ]
    write_confusion(tmp_path, matrix, config)
    assert (tmp_path / "confusion.csv").read_text().split("\n")[:3] == ["true class,sky,road,car", "sky,4,1,0", "road,0,2,0"]
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert printed[1:] == [
        ["sky", "0.8000", "0.8889", "5"],
        ["road", "0.6667", "0.8000", "2"],
        ["car", "-", "-", "0"],
        ["mean", "IoU", "0.7333", "7"],
    ]
