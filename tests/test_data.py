"""The data: what is drawn, what is read and refused, and that batches are aligned, repeatable and of one shape."""

import collections
import contextlib
import hashlib
import multiprocessing
import os
from pathlib import Path

from common.config import PRESETS, VOID, Config, Size, UserError, Weights
from common.shapes import margin
from common.streams import AUGMENT, CELLS, ORDER, SPLIT, WEIGHTS, generator
from common.weights import initial_weights
from data import synthetic
from data.augment import flips, random_crop
from data.files import has_color, in_8_bits
from data.loader import Examples, augmented, batch_names, load_examples, steps_per_epoch, training_batches, validation_batches
from data.synthetic import draw_ahead, make_cells, otsu_dice, scene
from prediction.images import Source, find_images, predict_mask
from tests.drawn import BLOBS, NOISE, RNG, save, save_pairs
from tests.helpers import refused

import numpy as np
import pytest
import tifffile
from scipy.ndimage import label

SMALL = dict(depth=2, batch_size=2)


def coded_examples(n, *size):
    """Image i is its own name: 200 in the foreground, and i everywhere."""
    masks = [np.random.default_rng(i).integers(0, 2, size, dtype=np.uint8) for i in range(n)]
    images = [(200 * mask + i)[..., None] for i, mask in enumerate(masks)]
    return Examples([str(i) for i in range(n)], images, masks, [Size(*size)] * n)


def decode(images, masks):
    """Batches of `coded_examples` -> their indices; fails where a mask has left its image."""
    values = np.rint(images.numpy()[..., 0] * 255).astype(int)
    cut = (values.shape[1] - masks.shape[1]) // 2
    inner = values[:, cut : values.shape[1] - cut, cut : values.shape[2] - cut]
    np.testing.assert_array_equal(inner >= 200, masks.numpy()[..., 0] == 1)
    indices = values[:, 0, 0] % 200
    assert (values % 200 == indices[:, None, None]).all()
    return indices.tolist()


def digest(batches):
    return [hashlib.sha256(images.numpy().tobytes() + masks.numpy().tobytes()).hexdigest() for images, masks in batches]


# random numbers


def test_streams_have_no_numbers_in_common():
    numbers = [(), *[(i,) for i in range(5)], *np.ndindex(3, 3)]
    streams = (WEIGHTS, CELLS, SPLIT, ORDER, AUGMENT)
    keys = [(seed, stream, *rest) for seed in (0, 1, 7) for stream in streams for rest in numbers]
    assert len({generator(*key).bytes(16) for key in keys}) == len(keys)


def test_nothing_is_drawn_from_the_numbers_of_something_else(monkeypatch):
    """All generators of a run that has one step an epoch, so that it needs no order twice."""
    drawn, default_rng = [], np.random.default_rng

    def record(seed):
        drawn.append(default_rng(seed).bytes(16))
        return default_rng(seed)

    monkeypatch.setattr(np.random, "default_rng", record)
    config, training, _ = load_examples(Config.of(depth=2, images=7, image_size=Size(16, 16), batch_size=6, epochs=3))
    initial_weights(config.network)
    assert len(list(training_batches(config, training))) == 3
    images, weights, split, orders, augmented = 7, 1, 1, 3, 3 * 6
    assert len(drawn) == images + weights + split + orders + augmented
    assert len(set(drawn)) == len(drawn)


# augmentation


@pytest.mark.parametrize("shape, count", [((4, 4), 8), ((4, 6), 4)])
def test_flips_reach_every_symmetry_equally_often(shape, count):
    image = np.arange(shape[0] * shape[1], dtype=np.uint8).reshape(*shape, 1)
    rng, seen = np.random.default_rng(0), collections.Counter()
    for _ in range(400):
        flipped, mask = flips(image, image[..., 0], rng)
        assert flipped.shape == image.shape
        np.testing.assert_array_equal(flipped[..., 0], mask)
        many = flips(np.repeat(image, 13, axis=-1), image[..., 0], np.random.default_rng(len(seen)))  # OpenCV turns no 13 bytes
        np.testing.assert_array_equal(many[0], np.repeat(many[1][..., None], 13, axis=-1))
        seen[mask.tobytes()] += 1
    expected = {np.rot90(m, k).tobytes() for m in (image[..., 0], image[:, ::-1, 0]) for k in range(0, 4, 8 // count)}
    assert seen.keys() == expected and len(expected) == count
    assert min(seen.values()) > 0.6 * 400 / count  # of 50, by some 3 sigma


def test_random_crop_reaches_every_window_and_keeps_the_mask_with_the_image():
    mask = np.arange(30).reshape(5, 6)
    rng, corners = np.random.default_rng(0), set()
    for _ in range(300):
        image, window = random_crop(mask[..., None], mask, Size(3, 5), rng)
        assert window.shape == (3, 5)
        np.testing.assert_array_equal(image[..., 0], window)
        corners.add(int(window[0, 0]))
    assert corners == {0, 1, 6, 7, 12, 13}


# batches


@pytest.mark.parametrize("options", [{}, {"crop_size": Size(32, 24)}, {"padding": "valid", "depth": 1, "augment": "none"}])
def test_training_batches_are_aligned_named_and_of_one_shape(options):
    config, examples = Config.of(**{**SMALL, "batch_size": 3, "epochs": 3, **options}), coded_examples(8, 40, 40)
    batches = training_batches(config, examples)
    m = margin(config.network.depth, config.network.padding)
    height, width = config.data.crop_size or (40 + m, 40 + m)  # mirrored where "valid" padding predicts no margin
    assert [spec.shape for spec in batches.element_spec] == [(3, height, width, 1), (3, height - m, width - m, 1)]
    assert [spec.dtype.name for spec in batches.element_spec] == ["float32", "float32"]
    assert steps_per_epoch(config, examples) == 2 and len(batches) == 6

    drawn = [decode(*batch) for batch in batches]
    assert drawn == [[int(name) for name in batch_names(config, examples, step)] for step in range(6)]
    epochs = [drawn[i] + drawn[i + 1] for i in (0, 2, 4)]
    assert all(len(set(epoch)) == 6 for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def test_batches_follow_from_seed_and_step():
    examples = coded_examples(9, 40, 40)
    config = Config.of(**SMALL, epochs=3, seed=7, crop_size=Size(24, 24))
    whole = digest(training_batches(config, examples))
    assert len(whole) == len(set(whole)) == 12
    assert digest(training_batches(config, examples)) == whole
    assert digest(training_batches(config, examples, first_step=5)) == whole[5:]  # in the middle of an epoch
    assert digest(training_batches(config, examples, first_step=12)) == []
    assert not set(digest(training_batches(config.replace(seed=8), examples))) & set(whole)


def test_every_image_of_every_epoch_is_augmented_anew():
    one = coded_examples(1, 64, 64)
    config = Config.of(depth=2, batch_size=1, epochs=40)
    assert len(set(digest(training_batches(config, one)))) == 8
    assert len(set(digest(training_batches(config.replace(augment="none"), one)))) == 1
    two = Examples(["a", "b"], one.images * 2, one.masks * 2, one.sizes * 2)
    twins = training_batches(config.replace(batch_size=2), two)
    assert any((images[0] != images[1]).numpy().any() for images, _ in twins)


def test_validation_sees_whole_images_in_order():
    config, examples = Config.of(depth=2, batch_size=4, crop_size=Size(16, 16)), coded_examples(6, 40, 48)
    batches = validation_batches(config, examples)
    assert [spec.shape.as_list() for spec in batches.element_spec] == [[None, 40, 48, 1]] * 2
    assert [decode(*batch) for batch in batches] == [[0, 1, 2, 3], [4, 5]]
    assert validation_batches(Config.of(depth=2, batch_size=3), examples).element_spec[0].shape == (3, 40, 48, 1)

    mixed = coded_examples(2, 40, 48), coded_examples(3, 36, 44)
    mixed = Examples(*(a + b[2:] for a, b in zip(*(vars(part).values() for part in mixed))))
    batches = validation_batches(Config.of(depth=1, batch_size=4, padding="valid"), mixed)
    found = [(decode(*batch), batch[1].shape[1:3]) for batch in batches]
    assert found == [([0], [40, 48]), ([1], [40, 48]), ([2], [36, 44])], "all of it, by a mirrored margin"


# files


@pytest.mark.parametrize("white, suffix, note", [(1, ".png", "values 0/1"), (255, ".png", "0/255"), (255, ".jpg", "JPEG")])
def test_foreground_may_be_1_or_255(tmp_path, capsys, white, suffix, note):
    disk = (np.hypot(*np.mgrid[-20:20, -24:24]) < 12).astype(np.uint8)
    save_pairs(tmp_path, [disk * white, 0 * disk, disk * white], suffix=suffix)  # an empty mask reads the same either way
    _, training, validation = load_folder(tmp_path, channels=1, classes=1)
    masks = dict(zip(training.names + validation.names, [*training.masks, *validation.masks]))
    for name, expected in {"images/0.png": disk, "images/1.png": 0 * disk, "images/2.png": disk}.items():
        np.testing.assert_array_equal(masks[name], expected)
    printed = capsys.readouterr().out
    for text in (str(tmp_path), "2 images to train on, 1 to validate", "48x40 gray", note, "--channels 3 keeps the colour"):
        assert text in printed
    assert printed.count("\n") == 2


def test_resizing_invents_no_classes(tmp_path):
    mask = np.kron(RNG.choice([0, 2, 7], (5, 6)), np.ones((8, 8))).astype(np.uint8)
    data_dir = save_pairs(tmp_path, [mask] * 4)
    _, training, validation = load_folder(data_dir, classes=8, channels=3, image_size=Size(28, 36))
    assert len(training.names) == 3 and len(validation.names) == 1
    for image, resized in zip(training.images, training.masks):
        assert image.shape == (28, 36, 3) and resized.shape == (28, 36)
        assert image.dtype == resized.dtype == np.uint8
        assert set(np.unique(resized)) == {0, 2, 7}
        rows, columns = (np.arange(28) + 0.5) * 40 / 28, (np.arange(36) + 0.5) * 48 / 36
        np.testing.assert_array_equal(resized, mask[np.ix_(rows.astype(int), columns.astype(int))])
        np.testing.assert_allclose(image.mean((0, 1)), NOISE.mean((0, 1)), atol=5)


# bad input: what is done to a good folder of four, the options, and what the message must name. What is wrong with files,
# folders and values is in tests/test_layouts.py: here that one of each arrives


def load_folder(data_dir, **options):
    return load_examples(Config.of(**{"dataset": "folder", "data_dir": data_dir, **SMALL, **options}))


BAD = {
    "missing data_dir": (lambda d: None, {"data_dir": Path("nowhere")}, ["nowhere", "--data-dir"]),
    "empty file": (lambda d: (d / "images/1.png").write_bytes(b""), {}, ["cannot read", "images/1.png"]),
    "0 and 2": (lambda d: save(d / "masks/2.png", BLOBS * 2), {}, ["2.png holds 2 values (0, 2)", "--classes 3"]),
    "batch": (lambda d: None, {"batch_size": 4}, ["3 images to train on", "--batch-size is 4"]),
    "one image": (lambda d: [p.unlink() for p in d.glob("*/[123].png")], {"batch_size": 1}, ["holds 1 images"]),
    "sizes differ": (
        lambda d: save_pairs(d, [BLOBS[: 30 + i] for i in range(4)]),
        {},
        [".png is 48x3", "--crop-size", "--image-size"],
    ),
    "below crop": (
        lambda d: [save(d / f"{kind}/3.png", BLOBS[:, :30]) for kind in ("images", "masks")],
        {"crop_size": Size(32, 32)},
        ["3.png is 30x40", "--crop-size 32x32"],
    ),
    "below network": (lambda d: None, {"depth": 6}, [".png is 48x40", "64", "--depth"]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named_in_one_line(tmp_path, case):
    spoil, options, texts = BAD[case]
    spoil(save_pairs(tmp_path, [BLOBS] * 4))
    with refused(*texts):
        load_folder(**{"data_dir": tmp_path, "channels": 1, "classes": 1, **options})


def test_different_sizes_train_on_crops_or_resized(tmp_path):
    save_pairs(tmp_path, [BLOBS[: 30 + i] for i in range(4)])
    for options in ({"crop_size": Size(24, 24)}, {"image_size": Size(24, 24)}):
        config, training, _ = load_folder(tmp_path, channels=1, **options)
        assert training_batches(config, training).element_spec[0].shape == (2, 24, 24, 1)


# 16 bits: one scale for the data set


def save_deep(folder, peaks, value=1000):
    """Images of 16 bits that hold `value` in one corner and are as bright as `peaks` in the other; 8 bits for a peak of 0."""
    for i, peak in enumerate(peaks):
        image = np.linspace(0, peak, 40 * 48).round().astype(np.uint16).reshape(40, 48) if peak else NOISE[..., 0].copy()
        image[:4, :4] = min(value, 255 if not peak else value)
        save(folder / f"images/{i}.png", image)
        save(folder / f"masks/{i}.png", BLOBS)
    return folder


@pytest.mark.parametrize(
    "peaks, white, note",
    [
        ([4000, 16000, 2000, 65000], None, "16 bits with 65000 as white"),
        ([4095, 1200, 5100, 3000], 4095, "16 bits with 4095 as white, and so is what lies above in 1 images"),
        ([4095, 1200, 5100, 3000], 500, "and so is what lies above in 4 images"),
        ([1000, 1000, 1000, 1000], 65535, "16 bits with 65535 as white"),
    ],
)
def test_a_value_is_the_same_in_every_image(tmp_path, capsys, peaks, white, note):
    save_deep(tmp_path / "data", peaks)
    for cache in (None, tmp_path / "c", tmp_path / "c"):  # the third time from the cache
        found = load_folder(tmp_path / "data", epochs=1, white=white, cache=cache)
        top = found[0].data.white
        assert top == (white or max(peaks)) and note in capsys.readouterr().out
        for image in [*found[1].images, *found[2].images]:
            assert image[1, 1, 0] == min(1000, top) and image.dtype == np.uint16, "no level is lost"
    again = load_examples(found[0])  # what a run has stored decides when it goes on
    assert again[0] == found[0]
    (images, _), *_ = training_batches(*again[:2])
    assert float(images.numpy().max()) <= 1 and np.isclose(images.numpy(), min(1000 / top, 1), rtol=1e-6).any()


def test_8_bits_among_16_are_said_and_8_alone_change_nothing(tmp_path, capsys):
    config, *_ = load_folder(save_deep(tmp_path / "mixed", [4000, 0, 3000, 4000]))
    assert config.data.white == 4000 and "16 bits with 4000 as white, in 1 of 8 bits 255" in capsys.readouterr().out
    config, training, _ = load_folder(save_deep(tmp_path / "eight", [0] * 4))
    assert config.data.white is None and training.images[0].dtype == np.uint8 and " bits" not in capsys.readouterr().out
    with refused("--white 4095 is for images of 16 bits or floats, and all have 8 bits"):
        load_folder(tmp_path / "eight", white=4095)


def test_white_is_a_value_of_16_bits(tmp_path):
    save_deep(tmp_path, [4095] * 4)
    for white in (0, -1.0, float("inf"), float("nan"), 1e300, 1e-40, 65536, 0.5):
        with pytest.raises(UserError, match="--white (must be|.* is no value of images of 16 bits)"):
            load_folder(tmp_path, white=white)


@pytest.mark.parametrize("size", [None, Size(20, 24)])
def test_prediction_reads_on_the_scale_of_the_training(tmp_path, capsys, size):
    """By a network that shows what it gets: the probability is the brightness."""

    def predict(image, white):
        config = Config.of(channels=1, classes=1, depth=1, dataset="folder", data_dir=tmp_path, white=white, image_size=size)
        source = Source(save(tmp_path / "a.png", image), None, "a")
        return predict_mask(lambda window: window[..., :1], source, config, 64, False)

    image = np.full((40, 48), 1500, np.uint16)
    assert predict(image, 2000)[1].all() and not predict(image, 5000)[1].any()
    shown, *_ = predict(image, 2000)
    assert (in_8_bits(shown, 2000) == 191).all(), "for the overlay"
    assert capsys.readouterr().err == ""
    image[:2] = 2100
    assert predict(image, 2000)[1].all()
    assert "a.png: 5.00% of its values lie above 2000" in capsys.readouterr().err or size
    with refused("a.png has 16 bits, but the images to train on had 8"):
        predict(image, None)
    assert predict(np.full((40, 48), 150, np.uint8), 2000)[1].all() and predict(np.full((40, 48), 150, np.uint8), None)[1].all()


@pytest.mark.parametrize("name, among", [("images", True), ("masks/r", True), ("images/../masks", True), ("r", False)])
def test_no_run_among_the_images(tmp_path, name, among):
    save_pairs(tmp_path, [BLOBS] * 4)
    with refused("--run-dir", "lies among the images") if among else contextlib.nullcontext():
        load_folder(tmp_path, run_dir=tmp_path / name)


def test_prediction_says_what_it_passed_over(tmp_path, capsys):
    save(tmp_path / "a.bmp", NOISE)
    (tmp_path / "b.heic").write_bytes(b"")
    assert [str(source) for source in find_images([tmp_path], Config.of())] == ["a.bmp"]
    assert capsys.readouterr().err.endswith(": not predicted: b.heic\n")


# what is said


def test_what_was_passed_over_and_left_out_is_said(tmp_path, capsys):
    save_pairs(tmp_path, [BLOBS] * 4)
    for i in range(3):
        save(tmp_path / f"images/x{i}.png", NOISE)
        (tmp_path / f"images/x{i}.heic").write_bytes(b"")
    (tmp_path / "masks/\x1b[2J.txt").write_bytes(b"")
    _, training, _ = load_folder(tmp_path, skip_bad=True)
    printed = capsys.readouterr().out
    assert "not used in" in printed and "images/*.heic (3)" in printed
    assert r"\x1b[2J.txt" in printed and "\x1b" not in printed
    assert printed.count("left out: images/x") == 3 and len(training.left_out) == 3
    with refused("images/x0.png has no mask, ", "--skip-bad goes on without"):
        load_folder(tmp_path)


def test_checksums_are_of_what_the_files_hold(tmp_path):
    def checksums():
        _, *parts = load_folder(tmp_path)
        return {name: checksum for part in parts for name, checksum in zip(part.names, part.checksums)}

    save_pairs(tmp_path, [BLOBS] * 4)
    before, changed = checksums(), BLOBS.copy()
    changed[3, 5] ^= 1
    save(tmp_path / "masks/2.png", changed)
    save(tmp_path / "masks/1.png", BLOBS, compress_level=0)  # other bytes, the same mask
    after = checksums()
    assert [name for name in before if before[name] != after[name]] == ["images/2.png"]


@pytest.mark.parametrize("dtype, void", [(np.int16, -1), (np.int32, -9999), (np.float32, -9999), (np.uint16, 65534)])
def test_values_outside_of_8_bits_may_be_void(tmp_path, dtype, void):
    save_pairs(tmp_path, [BLOBS] * 4)
    masks = BLOBS.astype(dtype)
    masks[:4] = void
    for k in range(4):
        (tmp_path / f"masks/{k}.png").unlink()
        tifffile.imwrite(tmp_path / f"masks/{k}.tif", masks)
    with refused(f"--void-label {void} if that" if void < 0 else f"holds the value {void}"):
        load_folder(tmp_path)
    config, training, _ = load_folder(tmp_path, void_label=void)
    expected = BLOBS.copy()
    expected[:4] = VOID
    np.testing.assert_array_equal(training.masks[0], expected)
    assert config.data.void_label == void and config.network.classes == 1
    again, training, _ = load_examples(Config.from_dict(config.as_dict()))
    np.testing.assert_array_equal(training.masks[0], expected)


def test_label_images_are_pointed_out(tmp_path, capsys):
    """Every image has five numbers of one piece each; of five classes most would have several pieces."""
    labels = np.kron(np.arange(6).reshape(2, 3), np.ones((20, 16))).astype(np.uint8)
    for name, mask, hint in (("labels", labels, True), ("classes", np.tile(labels[::2, ::2], (2, 2)), False)):
        load_folder(save_pairs(tmp_path / name, [mask] * 4))
        assert ("which may be numbers of objects: if so, --objects" in capsys.readouterr().out) == hint


def test_what_decides_is_in_the_files(tmp_path):
    """Before --image-size shrinks them: a class of single pixels, the brightest pixel."""
    image, mask = np.full((40, 48), 100, np.uint16), BLOBS // BLOBS.max() * 0
    mask[:20], mask[3, 3], image[5, 5] = 1, 2, 4095
    save_pairs(tmp_path, [mask] * 4, image)
    config, _, _ = load_folder(tmp_path, image_size=Size(8, 8))
    assert config.network.classes == 3 and config.data.white == 4095


def test_a_cache_does_not_lie_in_the_run(tmp_path):
    save_pairs(tmp_path / "d", [BLOBS] * 4)
    with refused("--cache ", "lies in --run-dir ", ": name a folder elsewhere"):
        load_folder(tmp_path / "d", run_dir=tmp_path / "r", cache=tmp_path / "r/cache")
    assert not (tmp_path / "r").exists()


def test_balanced_weights_are_those_of_the_images_to_train_on(tmp_path):
    half = np.repeat([0, 1], 24)[None].repeat(40, 0).astype(np.uint8)
    save_pairs(tmp_path / "val", [0 * half + (np.arange(48) == 0)] * 2)
    save_pairs(tmp_path / "train", [half] * 3)
    config, *_ = load_folder(tmp_path, class_weights=Weights())
    assert config.training.class_weights == (1, 1)


def test_the_odd_pixel_of_a_mirrored_border_comes_after(tmp_path):
    """As in `any_size`, which pads for validation and prediction."""
    config, training, _ = load_folder(save_pairs(tmp_path, [BLOBS[:37, :45]] * 4), augment="none")
    image, mask = augmented(config, training, 0, 0)
    np.testing.assert_array_equal(mask, np.pad(BLOBS[:37, :45], [(1, 2), (1, 2)], "reflect"))
    assert image.shape[:2] == (40, 48)


def test_faint_colours_of_floats_are_colours():
    faint = np.full((4, 4, 3), 0.5, np.float32)
    assert not has_color(faint) and not has_color(np.uint8([[[7, 9, 8]]])) and has_color(np.uint8([[[7, 10, 8]]]))
    faint[0, 0, 1] += 0.01
    assert has_color(faint)


# drawn cells


@pytest.mark.parametrize(
    "options", [{"depth": 2, "crop_size": Size(204, 148)}, {"padding": "same", "crop_size": Size(64, 256)}]
)
def test_cells_are_as_large_as_the_crop(options):
    """`--preset paper` on the default data."""
    options = {**PRESETS["paper"], "images": 3, "filters": 2, **options}
    config, training, _ = load_examples(Config.of(**options))
    (images, masks), *_ = training_batches(config, training).take(1)
    assert images.shape[1:3] == config.data.crop_size
    smaller = config.replace(image_size=Size(*(side - 16 for side in training.sizes[0])))
    if smaller.data.image_size.height >= 128:
        with pytest.raises(UserError, match="smaller than --crop-size"):
            load_examples(smaller)


@pytest.mark.parametrize("augment", ["elastic", "photo", "paper", "recolor", "flips"])
def test_strips_that_opencv_does_not_take_are_refused(augment, tmp_path):
    strip = np.arange(8 * 32766).reshape(8, -1) % 2 == 0
    save_pairs(tmp_path, [strip, ~strip], strip)
    for crop, long in ((Size(8, 8), False), (None, augment != "flips")):  # which is mirrored up to 32768
        with refused("32766x8 pixels, and --augment ", " 32766") if long else contextlib.nullcontext():
            config, training, _ = load_folder(tmp_path, batch_size=1, crop_size=crop, augment=augment, validation=0.5)
            assert next(iter(training_batches(config, training)))[0].shape == (1, *(crop or (8, 32768)), 1)


def test_cells_follow_from_seed_and_number_alone():
    images, masks = make_cells(3, Size(48, 64), seed=5)
    assert images.shape == (3, 48, 64, 1) and masks.shape == (3, 48, 64) and images.dtype == masks.dtype == np.uint8
    more_images, more_masks = make_cells(5, Size(48, 64), seed=5, classes=3)
    np.testing.assert_array_equal(images, more_images[:3])
    np.testing.assert_array_equal(masks, more_masks[:3] > 0)
    assert set(np.unique(more_masks)) == {0, 1, 2}
    colour_images, colour_masks = make_cells(3, Size(48, 64), seed=5, channels=3)
    assert colour_images.shape == (3, 48, 64, 3)
    np.testing.assert_array_equal(masks, colour_masks)
    assert (make_cells(3, Size(48, 64), seed=6)[1] != masks).any()
    with pytest.raises(UserError, match="at most 3 classes.*--classes 4"):
        make_cells(1, Size(48, 64), seed=5, classes=4)


def test_background_lies_between_any_two_cells():
    _, masks = make_cells(5, Size(128, 128), seed=0)
    for i, mask in enumerate(masks):
        _, _, cells = scene(Size(128, 128), generator(0, CELLS, i))
        np.testing.assert_array_equal(mask, cells > 0)
        assert label(mask)[1] == label(mask, np.ones((3, 3)))[1] == cells.max(), "not even corners touch"
        assert np.bincount(cells.ravel()).min() > 50, "a whole cell, not what another one leaves of it"


def test_of_every_cell_three_quarters_show(monkeypatch):
    outlines, shares = [], []
    draw = synthetic.polygon
    monkeypatch.setattr(synthetic, "polygon", lambda *args: outlines.append(draw(*args)) or outlines[-1])
    for i in range(5):
        outlines.clear()
        _, _, cells = scene(Size(128, 128), generator(0, CELLS, i))
        for number, area in enumerate(np.bincount(cells.ravel())[1:], start=1):
            shown = [(cells[outline] == number) for outline in outlines]
            shares.append(max(found.mean() for found in shown if found.sum() == area))  # its own outline holds all of it
    assert 0.75 <= min(shares) < 0.85 and max(shares) == 1


def test_masks_of_cells_are_exact():
    """Inside and outside differ most in brightness where the mask lies, not a pixel beside it; the same for the nuclei."""
    images, masks = make_cells(6, Size(128, 128), seed=1, classes=3)
    for low in (0, 1):
        contrast = {}
        for shift in [(0, 0), (1, 0), (-1, 0), (0, 1), (0, -1)]:
            shifted = np.roll(masks, shift, axis=(1, 2))
            contrast[shift] = images[shifted > low].mean() - images[shifted == low].mean()
        assert max(contrast, key=contrast.get) == (0, 0)
        assert contrast[0, 0] > 10


@pytest.mark.parametrize("channels", [1, 3])
def test_a_threshold_does_not_solve_the_cells(channels):
    images, masks = make_cells(8, Size(128, 128), seed=0, channels=channels)
    assert 0.4 < otsu_dice(images, masks) < 0.85
    assert 0.1 < masks.mean() < 0.6
    assert 0 < (images == 255).mean() < 0.02
    disk = np.zeros((1, 16, 16), np.uint8)
    disk[:, 4:9, 4:9] = 1
    assert otsu_dice(disk[..., None] * 200, disk) == 1
    assert otsu_dice(0 * disk[..., None], 0 * disk) == 1, "nothing, and nothing found"


@pytest.mark.parametrize("size", [Size(16, 16), Size(17, 40), Size(200, 64)])
def test_cells_of_any_size(size):
    images, masks = make_cells(8, size, seed=0, classes=3)
    assert images.shape == (8, *size, 1)
    assert all(0.05 < (mask > 0).mean() < 0.8 for mask in masks)
    assert {0, 1, 2} == set(np.unique(masks))


@pytest.mark.parametrize("way", ["ahead", "killed", "no process"])
def test_cells_drawn_ahead_are_the_same(way, monkeypatch):
    """Another process draws; if it dies or cannot be, this one does. None is left over."""
    asked = dict(n=11, size=Size(48, 64), seed=5, classes=3, channels=3)
    images, masks = make_cells(**asked)
    if way == "no process":
        monkeypatch.setattr(os, "fork", lambda: (_ for _ in ()).throw(BlockingIOError()))
    draw_ahead(**asked)
    helpers = multiprocessing.active_children()
    assert len(helpers) == (way != "no process")
    if way == "killed":
        helpers[0].kill()
    elif way == "ahead":
        monkeypatch.setattr(synthetic, "scene", None)  # nothing is drawn here
    again = make_cells(**asked)
    np.testing.assert_array_equal(again[0], images)
    np.testing.assert_array_equal(again[1], masks)
    for helper in helpers:
        helper.join(60)
    assert not synthetic._ahead and not multiprocessing.active_children()


def test_drawn_cells_are_read_as_any_data_set(tmp_path):
    """What `load_examples` hands out is what `make_cells` draws; a cache, whose key is made of files, is left alone."""
    for classes, names in ((1, ("background", "cell")), (3, ("background", "cell", "nucleus"))):
        config = Config.of(images=6, image_size=Size(32, 48), classes=classes, seed=classes, batch_size=2, cache=tmp_path)
        images, masks = make_cells(6, Size(32, 48), classes, classes)
        found, training, validation = load_examples(config)
        assert found.data.class_names == names and found.replace(class_names=None) == config
        for part in (training, validation):
            for k, name in enumerate(part.names):
                i = int(name.removeprefix("synthetic image "))
                np.testing.assert_array_equal(part.images[k], images[i])
                np.testing.assert_array_equal(part.masks[k], masks[i])
    assert not list(tmp_path.iterdir())
