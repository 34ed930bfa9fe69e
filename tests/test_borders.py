"""The weight map of the paper's loss, against its formula written down naively."""

from common.config import Config, Size, Weights
from data.borders import border_weights
from data.loader import load_examples, training_batches, validation_batches
from data.synthetic import make_cells

import numpy as np
from scipy.ndimage import label


def by_hand(mask, class_weights):
    """Equation 2, pixel by pixel and cell by cell."""
    cells, count = label(mask == 1)
    weights = np.empty(mask.shape)
    for pixel in np.ndindex(mask.shape):
        d = sorted(np.linalg.norm(np.argwhere(cells == k) - pixel, axis=1).min() for k in range(1, count + 1))
        border = 10 * np.exp(-((d[0] + d[1]) ** 2) / (2 * 5**2)) if len(d) > 1 and not mask[pixel] else 0
        weights[pixel] = class_weights[mask[pixel]] + border
    return weights


def test_weights_follow_equation_2():
    mask = np.zeros((30, 40), np.uint8)
    mask[2:12, 2:10] = mask[2:20, 12:20] = mask[24:28, 5:30] = mask[0:3, 38:] = 1
    weights = border_weights(mask, (0.5, 2.0))
    # a cell further than 20 pixels away is passed over: 10 exp(-8) = 0.0034
    np.testing.assert_allclose(weights, by_hand(mask, (0.5, 2.0)), atol=0.004)
    assert weights[5, 10] > 8, "between two cells that nearly touch"
    assert weights[15, 30] < 0.6, "far from any"


def test_one_cell_or_none_has_no_borders():
    mask = np.zeros((20, 20), np.uint8)
    np.testing.assert_array_equal(border_weights(mask), 1)
    mask[5:9, 5:9] = 1
    np.testing.assert_array_equal(border_weights(mask), 1)
    mask[0, 0] = 255  # what nobody labelled is no cell and weighs nothing
    np.testing.assert_array_equal(border_weights(mask), mask < 255)


def test_drawn_cells_have_borders_to_weigh():
    _, masks = make_cells(6, Size(128, 128), seed=0)
    assert np.mean([border_weights(mask) > 6 for mask in masks]) > 0.02


def test_batches_carry_the_weights_behind_the_classes(capsys):
    config = Config.of(images=6, image_size=Size(32, 40), depth=1, batch_size=2, loss="cross_entropy", weight_map=True)
    three = dict(classes=3, class_weights=Weights((0.5, 2.0, 4.0)))
    for options in ({}, dict(padding="valid", augment="paper"), dict(classes=3), three):
        changed, training, validation = load_examples(config.replace(**options))
        for batches in (training_batches(changed, training), validation_batches(changed, validation)):
            images, masks = next(iter(batches))
            assert masks.shape[1:] == (32, 40, 2), "with a mirrored margin the whole image is predicted"
            for mask in masks.numpy():
                weights = options.get("class_weights", [1.0] * 3)
                np.testing.assert_array_equal(mask[..., 1], border_weights(mask[..., 0], weights))
