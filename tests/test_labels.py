"""Masks that number objects: label images, and a mask for every nucleus; what of that reaches the loss and the pictures."""

import os
import shutil

from common.config import VOID, Config, Size, UserError
from data import overview
from data.borders import border_weights, part_touching
from data.files import nearest, numbered, read_objects
from data.layouts import Item, find_channels, find_layout
from data.loader import load_examples, training_batches, validation_batches
from prediction.evaluation import find_masks, truth_reader
from prediction.images import Source, find_images
from tests.drawn import save, save_pairs

import numpy as np
import pytest
import tifffile

SMALL = dict(depth=2, filters=4, batch_size=2, epochs=1)
TOUCHING = np.zeros((32, 40), np.int32)  # two that touch, one apart, and a pixel of the second beside it
TOUCHING[4:14, 4:12], TOUCHING[4:14, 12:22], TOUCHING[20:28, 25:35], TOUCHING[31, 39] = 1, 2, 3, 2
NOISE = np.random.default_rng(0).integers(0, 256, (32, 40), np.uint8)


def nuclei(folder, labels=TOUCHING, image=None):
    """ID/images/ID.png, RGBA with a constant alpha, and ID/masks/*.png in `folder`."""
    gray = np.dstack([NOISE, NOISE, NOISE, np.full_like(NOISE, 255)]) if image is None else image
    save(folder / "images" / f"{folder.name}.png", gray)
    for k in range(1, labels.max() + 1):
        save(folder / "masks" / f"{k}.png", np.uint8(255) * (labels == k))
    return folder


@pytest.fixture
def bowl(tmp_path):
    for name in "abcde":
        nuclei(tmp_path / "stage1_train" / name)
    return tmp_path


@pytest.fixture
def folder(tmp_path):
    return save_pairs(tmp_path, [(300 * TOUCHING).astype(np.uint16)] * 5, NOISE)


@pytest.mark.parametrize(
    "name, dtype, gaps",
    [("a.png", np.uint8, [0, 7, 9, 200]), ("a.png", np.uint16, [0, 300, 5, 65535]), ("a.tif", np.uint16, [0, 1, 2, 3]),
     ("a.tif", np.uint8, [0, 255, 1, 2]), ("a.tif", np.int32, [0, 9, 70000, 2]), ("a.tif", np.float32, [0, 1, 2, 3])],
)  # fmt: skip
def test_label_images_number_objects(tmp_path, name, dtype, gaps):
    """Whatever the numbers are: they come as 1 to n, in order."""
    path, values = tmp_path / name, np.array(gaps, dtype)[TOUCHING]
    tifffile.imwrite(path, values) if name.endswith("tif") else save(path, values)
    found = numbered(read_objects([path]))
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, np.unique(np.array(gaps)[TOUCHING], return_inverse=True)[1].reshape(TOUCHING.shape))
    assert sorted(np.unique(numbered(nearest(read_objects([path]), Size(16, 20))))) == [0, 1, 2, 3]
    everywhere = save(tmp_path / "full.png", np.full((4, 4), 3, np.uint8))
    assert read_objects([everywhere]).min() == 3, "no background at all"


def test_values_that_number_nothing_are_refused(tmp_path):
    for values in (TOUCHING.astype(np.float32) / 2, -TOUCHING, np.full((4, 4), np.nan, np.float32)):
        tifffile.imwrite(tmp_path / "a.tif", values)
        with pytest.raises(UserError, match="--objects a mask holds 0, 1, 2"):
            read_objects([tmp_path / "a.tif"])


def test_a_mask_for_every_nucleus(bowl):
    for data_dir in (bowl, bowl / "stage1_train"):
        config = Config.of(dataset="dsb2018", data_dir=data_dir)
        layout = find_layout(config)
        assert [item.name[-14:] for item in layout.items] == [f"{k}/images/{k}.png" for k in "abcde"] and config.data.objects
        image, objects = layout.read(layout.items[0], find_channels(layout), None)
        assert image.shape == (32, 40, 1), "gray, though stored as RGBA"
        np.testing.assert_array_equal(objects, TOUCHING)
    color = np.dstack([NOISE, 255 - NOISE, NOISE, np.full_like(NOISE, 255)])
    nuclei(bowl / "stage1_train/b", image=color)
    assert find_channels(layout) == 3, "one of five has colour"


def test_the_first_of_two_masks_that_overlap_has_the_pixels(tmp_path):
    square = np.zeros((8, 8), np.uint8)
    for name, part in {"a": np.s_[1:5, 1:5], "b": np.s_[3:7, 3:7], "c": np.s_[2:4, 2:4], "d": np.s_[0, 0]}.items():
        mask = square.copy()
        mask[part] = 255
        save(tmp_path / f"{name}.png", mask)
    objects = numbered(read_objects([tmp_path / f"{name}.png" for name in "abcd"]))
    assert [(objects == k).sum() for k in range(4)] == [64 - 16 - 12 - 1, 16, 12, 1], "c lies under a altogether"
    assert objects[3, 3] == 1 and objects[0, 0] == 3


def test_bowls_that_are_damaged(bowl):
    a = bowl / "stage1_train/a"
    config = Config.of(dataset="dsb2018", data_dir=bowl)
    for spoil, text in {
        lambda: save(a / "masks/1.png", NOISE): "1.png holds 2.. values: the mask of one object holds 0 and 255",
        lambda: save(a / "masks/1.png", NOISE[:9] // 255): "1.png is 40x9 pixels, but its|2.png is 40x32 pixels",
        lambda: [path.unlink() for path in (a / "masks").iterdir()]: "/a/images/a.png has no mask",
        lambda: (bowl / "stage1_train/b/images/b.png").rename(a.parent / "b/images/b.xyz"): "/b/masks/1.png has no image",
        lambda: shutil.rmtree(a.parent / "c/images"): "/c/masks/1.png has no image",
    }.items():
        spoil()
        with pytest.raises(UserError, match=text):
            layout = find_layout(config)
            layout.read(layout.items[0], 1, None)
    layout = find_layout(config.replace(skip_bad=True))
    assert len(layout.items) == 2 and len(layout.left_out) == 1 + 3 + 3
    with pytest.raises(UserError, match="no file fits"):
        find_layout(Config.of(dataset="dsb2018", data_dir=a))


def test_a_nucleus_that_is_not_read_is_named(bowl, capsys):
    a, b, c = (bowl / f"stage1_train/{name}/masks" for name in "abc")
    (a / "1.png").rename(a / "1.heic")
    (b / "2.png").unlink()
    os.mkfifo(b / "2.png")
    (c / "3.png").unlink()
    (c / "3.png").symlink_to("nowhere")
    layout = find_layout(Config.of(dataset="dsb2018", data_dir=bowl))
    _, line = layout.over
    assert line.endswith(": stage1_train/a/masks/1.heic, stage1_train/b/masks/2.png")
    with pytest.raises(UserError, match="c/masks/3.png: it is a broken link, to nowhere"):
        layout.read(layout.items[2], 1, None)


def test_one_object_in_a_mask_is_pointed_out(folder, capsys):
    load_examples(Config.of(dataset="folder", data_dir=folder, objects=True, **SMALL))
    assert "leave --objects out" not in capsys.readouterr().out
    for path in (folder / "masks").iterdir():
        save(path, np.uint8(255) * (TOUCHING > 0))
    load_examples(Config.of(dataset="folder", data_dir=folder, objects=True, **SMALL))
    assert "5 objects, one object in a mask at most: if the masks hold classes, leave --objects out" in capsys.readouterr().out


@pytest.mark.parametrize("dataset, cache", [("dsb2018", None), ("folder", "cache")])
def test_objects_reach_the_border_weights(dataset, cache, tmp_path, request, capsys):
    """Between two that touch there is a line of background, and it weighs most."""
    data_dir = request.getfixturevalue("bowl" if dataset == "dsb2018" else "folder")
    options = dict(dataset=dataset, data_dir=data_dir, objects=True, cache=cache and tmp_path / cache)
    config = Config.of(**options, **SMALL, loss="cross_entropy", weight_map=True, augment="none")
    for _ in range(2):  # the second time from the cache
        found, training, validation = load_examples(config)
        assert "15 objects" in capsys.readouterr().out and (found.network.classes, found.data.objects) == (1, True)
        np.testing.assert_array_equal(training.objects[0], TOUCHING)
        np.testing.assert_array_equal(training.masks[0], TOUCHING > 0)
        parted = np.where(np.isin(np.arange(40), (11, 12)) & (np.arange(32) < 14)[:, np.newaxis], 0, TOUCHING)
        np.testing.assert_array_equal(part_touching(TOUCHING), parted)
        expected = border_weights((parted > 0).astype(np.uint8), (1, 1), parted)
        for batches in (training_batches(found, training), validation_batches(found, validation)):
            for masks in next(iter(batches))[1].numpy():
                np.testing.assert_array_equal(masks[..., 0], parted > 0)
                np.testing.assert_array_equal(masks[..., 1], expected)
    parts = border_weights((TOUCHING > 0).astype(np.uint8))
    assert expected[8, 12] > 9 and expected[3, 12] > 6 and parts[3, 12] < 3, "in the line between two that touch, and above it"
    without = np.where(TOUCHING == 2, 0, TOUCHING)  # of a crop
    np.testing.assert_array_equal(border_weights(np.uint8(without > 0), (1, 1), without), border_weights(np.uint8(without > 0)))


@pytest.mark.parametrize("kind", ["flips", "elastic", "paper", "recolor"])
def test_numbers_are_never_mixed_by_augmentation(kind, folder):
    config = Config.of(dataset="folder", data_dir=folder, objects=True, crop_size=Size(16, 20), augment=kind, **SMALL)
    found, training, _ = load_examples(config)
    for epoch in range(5):
        image, mask = overview.augmented(found, training, epoch, 0)
        assert mask.dtype == np.int32 and set(np.unique(mask)) <= {0, 1, 2, 3} and image.shape == (16, 20, 1)
    masks = next(iter(training_batches(found, training)))[1].numpy()
    assert set(np.unique(masks)) <= {0.0, 1.0}


def test_the_overview_counts_and_outlines_objects(bowl, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(overview, "draw_overview", lambda *_: None)
    overview.main(["--dataset", "dsb2018", "--data-dir", str(bowl), "--output", str(tmp_path / "o"), "--depth", "2"])
    assert "objects    15, 3 to 3" in capsys.readouterr().out
    picture = overview.overlay(np.zeros((32, 40, 3), np.uint8), TOUCHING, 1)
    assert picture[8, 11].max() > 0.8 > picture[8, 8].max() > 0, "the line between two that touch"


def test_what_nobody_labelled_is_no_object(tmp_path, capsys):
    """255 is the border of VOC's objects: pointed out, and with --void-label 255 void in training, in truth and in weights."""
    labels = TOUCHING.astype(np.uint8)
    labels[:, 30] = 255
    folder = save_pairs(tmp_path, [labels] * 4, NOISE)
    config = Config.of(dataset="folder", data_dir=folder, objects=True, **SMALL)
    load_examples(config)
    assert "16 objects, in 4 masks one has the number 255: --void-label 255 if" in capsys.readouterr().out
    found, training, _ = load_examples(config.replace(void_label=255))
    assert "12 objects" in (said := capsys.readouterr().out) and "255: --void" not in said and "255 is void" in said
    assert found.data.void_label == 255 and found.network.classes == 1
    np.testing.assert_array_equal(training.masks[0], np.where(labels == 255, VOID, labels > 0))
    masks = next(iter(validation_batches(found, training)))[1].numpy()[..., 0]
    parted = np.where(labels == 255, VOID, part_touching(np.where(labels == 255, -1, TOUCHING)) > 0)
    np.testing.assert_array_equal(masks[0] == VOID, parted == VOID)
    assert (border_weights(np.uint8(parted), (1, 1), np.where(labels == 255, -1, TOUCHING))[:, 30] >= 0).all()
    truth = truth_reader({"0": Item("0", folder / "0.png", folder / "masks/0.png")}, found, False)
    np.testing.assert_array_equal(truth(Source(folder / "0.png", None, "0")), training.masks[0])


def test_no_border_between_the_parts_of_one_object(tmp_path):
    """The weights of the loss know the numbers, and not only what hangs together."""
    labels = np.zeros((32, 40), np.uint8)
    labels[8:20, 8:16], labels[8:20, 18:26], labels[26:30, 2:6] = 1, 1, 2
    config = Config.of(
        dataset="folder", data_dir=save_pairs(tmp_path, [labels] * 4, NOISE), objects=True, augment="none", **SMALL
    )
    found, training, _ = load_examples(config.replace(loss="cross_entropy", weight_map=True))
    weights = next(iter(training_batches(found, training)))[1].numpy()[0, ..., 1]
    assert weights[12, 16:18].max() < 1.1 < border_weights(np.uint8(labels > 0))[12, 16]


def test_true_objects_of_an_evaluation(bowl, folder):
    """Images and masks are found where the Data Science Bowl has them; label images by their names."""
    config = Config.of(dataset="dsb2018", data_dir=bowl, classes=1, channels=1)
    config = config.replace(**find_layout(config).patterns)
    sources = find_images([bowl / "stage1_train"], config)
    assert [source.stem for source in sources] == [*"abcde"]
    masks = find_masks(bowl / "stage1_train", sources, config)
    np.testing.assert_array_equal(truth_reader(masks, config, False)(sources[0]), TOUCHING > 0)
    config = Config.of(dataset="folder", data_dir=folder, objects=True, classes=1, channels=1)
    sources = find_images([folder / "images"], config)
    read = truth_reader(find_masks(folder / "masks", sources, config), config, False)
    np.testing.assert_array_equal(read(sources[0]), TOUCHING > 0)
