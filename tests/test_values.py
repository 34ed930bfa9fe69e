"""Masks whose values are not the indices of their classes: what is shown, written and stored are the values."""

from common.colors import CLASS_COLORS
from common.config import VOID, Config, UserError, Values
from common.pictures import in_values, legend, names_of_values
from data import overview
from data.layouts import Item
from data.loader import load_examples
from prediction.evaluation import find_masks, truth_reader
from prediction.images import find_images, save_mask, save_overlay
from training.report import draw_predictions

import numpy as np
import pytest
from PIL import Image

RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 256, (32, 40), np.uint8)
SMALL = dict(depth=2, filters=4, batch_size=2, epochs=1, dataset="folder")


def data_set(folder, *values, n=5):
    """Masks that hold each of the `values` in a column of their own."""
    mask = np.repeat(np.array(values, np.uint8), -(-40 // len(values)))[:40]
    for k in range(n):
        for kind, image in (("images", NOISE), ("masks", np.tile(mask, (32, 1)))):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / kind / f"{k}.png")
    return folder


@pytest.fixture(scope="module")
def rooms(tmp_path_factory):
    """-> (folder, config, training `Examples`): 0 is what nobody labelled, 1 to 4 are classes, as in NYU Depth."""
    folder = data_set(tmp_path_factory.mktemp("rooms"), 0, 1, 2, 3, 4)
    config, training, _ = load_examples(Config.of(**SMALL, data_dir=folder, void_label=0))
    return folder, config, training


def test_void_below_the_classes_leaves_no_empty_class(rooms, capsys):
    found, training, _ = load_examples(Config.of(**SMALL, data_dir=rooms[0], void_label=0))
    assert "4 classes from mask values 1 to 4, 0 is void" in capsys.readouterr().out
    assert found.network.classes == 4 and found.data.mask_values == (1, 2, 3, 4) and found.shown_values == (1, 2, 3, 4)
    assert found.data.class_names == ("class 1", "class 2", "class 3", "class 4")
    np.testing.assert_array_equal(training.masks[0][0, ::8], [VOID, 0, 1, 2, 3])
    stored = Config.from_dict(found.as_dict())
    assert stored == found
    again, training_again, _ = load_examples(stored.replace(class_names=("a", "b", "c", "d")))
    assert again == found.replace(class_names=("a", "b", "c", "d"))
    np.testing.assert_array_equal(training_again.masks[0], training.masks[0])


def test_predicted_masks_hold_the_values_of_the_true_ones(rooms, tmp_path):
    folder, config, _ = rooms
    indices = np.tile(np.arange(40, dtype=np.uint8) % 4, (32, 1))
    save_mask(tmp_path / "0.png", indices, config, {})
    with Image.open(tmp_path / "0.png") as written:
        np.testing.assert_array_equal(np.asarray(written), indices + 1)
        colors = np.asarray(written.convert("RGB"))
    np.testing.assert_array_equal(colors, np.rint(255 * CLASS_COLORS[indices + 1]))
    # they can be evaluated, against themselves and against the masks to train on
    (source,) = find_images([tmp_path / "0.png"], config)
    np.testing.assert_array_equal(truth_reader({"0": Item("0", source.path, source.path)}, config, False)(source), indices)
    truth = truth_reader(find_masks(folder / "masks", [source], config), config, False)(source)
    np.testing.assert_array_equal(truth[0, ::8], [VOID, 0, 1, 2, 3])
    save_overlay(tmp_path / "o.png", np.zeros((32, 40, 1), np.uint8), indices, config)
    shown = np.asarray(Image.open(tmp_path / "o.png")).astype(int)
    np.testing.assert_allclose(shown, np.rint(255 * CLASS_COLORS[indices + 1]) // 2, atol=1)


def test_two_classes_beside_void(tmp_path):
    config, training, _ = load_examples(Config.of(**SMALL, data_dir=data_set(tmp_path / "d", 0, 1, 2), void_label=0))
    assert config.network.classes == 1 and config.data.mask_values == (1, 2)
    np.testing.assert_array_equal(np.unique(training.masks[0]), [0, 1, VOID])
    save_mask(tmp_path / "a.png", np.array([[0, 1]], np.uint8), config, {})
    assert np.asarray(Image.open(tmp_path / "a.png")).tolist() == [[1, 2]]
    save_mask(tmp_path / "b.png", np.array([[0, 1]], np.uint8), config.replace(mask_values=None), {})
    assert np.asarray(Image.open(tmp_path / "b.png")).tolist() == [[0, 255]]


def test_pictures_have_the_colours_of_the_values(rooms, tmp_path, monkeypatch):
    folder, config, training = rooms
    np.testing.assert_array_equal(in_values(np.array([[0, 3, VOID]]), config), [[1, 4, VOID]])
    names = names_of_values(config)
    assert names == {1: "class 1", 2: "class 2", 3: "class 3", 4: "class 4"}
    assert [name for name, _ in legend(names, [1, 4, VOID])] == ["class 1", "class 4", "void"]
    drawn = []
    for module in ("data.overview", "training.report"):
        monkeypatch.setattr(f"{module}.draw_grid", lambda path, rows, title, legend: drawn.append((rows, legend)))
    options = ["--dataset", "folder", "--data-dir", str(folder), "--void-label", "0", "--depth", "2"]
    overview.main([*options, "--output", str(tmp_path / "o")])
    overview.draw_augmentations(tmp_path / "a.png", training, config.replace(augment="none"))
    for shown, key in drawn:
        assert np.ptp(shown[0][0][1][5, 10]) > 0, "class 1, whose index is 0, is tinted"
        assert [name for name, _ in key] == ["class 1", "class 2", "class 3", "class 4", "void"]
        assert tuple(key[0][1]) == tuple(CLASS_COLORS[1])
    truth, prediction = np.array([[0, 1, VOID]]), np.array([[0, 3, 0]])
    draw_predictions(tmp_path / "p.png", {"one": [("a", np.zeros((1, 3, 1)), truth, prediction, 0.5)]}, "", config)
    shown, key = drawn[-1]
    np.testing.assert_array_equal(shown[0][1][1][0], CLASS_COLORS[[1, 2, VOID]])
    np.testing.assert_array_equal(shown[0][2][1][0], CLASS_COLORS[[1, 4, 1]])
    assert [name for name, _ in key] == ["class 1", "class 2", "class 4", "void"]


@pytest.mark.parametrize(
    "values, options, words",
    [
        ((0, 255), dict(mask_values=Values((0, 1))), "only the value 0 of a class (and void)"),
        ((1,), dict(mask_values=Values((1, 2, 7))), "only the value 1 of a class"),
        ((0,), dict(objects=True), "only the value 0 of a class"),
    ],
)
def test_one_class_is_nothing_to_learn(tmp_path, values, options, words):
    data_set(tmp_path, *values)
    with pytest.raises(UserError) as error:
        load_examples(Config.of(**SMALL, data_dir=tmp_path, **options))
    assert f"all 5 masks hold {words}, so there is nothing to learn" in str(error.value)
    load_examples(Config.of(**SMALL, data_dir=tmp_path, classes=len(options.get("mask_values", "12")), **options))
