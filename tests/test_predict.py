"""Prediction from a checkpoint: tiles without seams, what is written, what is measured, and what bad input gets."""

import csv
import functools
import json
import os
import re
import unicodedata
from pathlib import Path

import predict
from common.checkpoint import read_checkpoint
from common.config import VOID, Config, Names, Size, UserError
from common.metrics import predicted_classes
from common.output import write_text
from common.padding import any_size
from common.pictures import CLASS_COLORS
from common.shapes import margin, missing
from common.weights import initial_weights
from data.files import read_image, read_mask
from data.layouts import Item
from data.loader import load_examples
from prediction import FIXED
from prediction.evaluation import find_masks, truth_reader
from prediction.images import Source, array_file, find_images, predict_mask
from prediction.network import make_predict
from prediction.tiles import HALO, cut, predict_tiles, smallest_image, smallest_tile, symmetries
from tests.conftest import IMPLEMENTATIONS, save_network
from tests.helpers import python, refused
from training.report import best_threshold

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

ROUNDING = 1e-6  # of probabilities, sums of a few hundred products of order 1 in float32; the order may vary with the size


def noise(height, width, channels=1, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def random_network(implementation="lowlevel", **options):
    """-> (the network's options, a function that predicts with random weights)."""
    network = Config.of(**{"filters": 2, "depth": 2, "channels": 1, "classes": 1, **options}).network
    return network, make_predict(implementation, network, initial_weights(network))


def untiled(predict, image, network):
    """The prediction in one piece, as training validates: padded to a size that fits, and cropped."""
    seen = tf.constant(image[np.newaxis].astype(np.float32) / 255)
    return any_size(lambda images, training: predict(images.numpy()), seen, network)[0]


def assembled(parts, shape):
    """One array out of parts that cover it exactly once."""
    whole, covered = np.full(shape, np.nan, np.float32), np.zeros(shape[:2], int)
    for rows, columns, part in parts:
        whole[rows, columns] = part
        covered[rows, columns] += 1
    assert (covered == 1).all()
    return whole


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("depth", [1, 2, 4])
def test_windows_of_an_axis(depth, padding):
    network = Config.of(depth=depth, padding=padding).network
    unit, lost = 2**depth, margin(depth, padding)
    for tile in (smallest_tile(network), smallest_tile(network) + unit + 1):
        for size in range(smallest_image(network), 4 * tile, 7):
            windows = cut(size, tile, network)
            assert [i for w in windows for i in range(w.target.start, w.target.stop)] == list(range(size))
            length = len(windows[0].pixels)
            assert all(len(w.pixels) == length for w in windows) and length <= tile and missing(length, network) == 0
            for w in windows:
                logits = w.pixels[lost // 2 : length - lost // 2]
                np.testing.assert_array_equal(logits[w.source], np.arange(size)[w.target])
            starts = [w.target.start - w.source.start for w in windows]
            assert all((start - starts[0]) % unit == 0 for start in starts), "the poolings lie on one grid"


def test_tiled_equals_untiled(implementation):
    network, predict = random_network(implementation, classes=3, channels=3)
    for height, width in [(117, 75), *[(60, 200), (53, 4)] * (implementation == "lowlevel")]:
        image = noise(height, width, 3)
        whole = untiled(predict, image, network)
        tiled = assembled(predict_tiles(predict, image, network, smallest_tile(network)), whole.shape)
        np.testing.assert_allclose(tiled, whole, rtol=0, atol=ROUNDING)


def test_a_name_in_a_progress_bar_is_text(monkeypatch):
    network, predict = random_network()
    seen = []
    monkeypatch.setattr("prediction.tiles.tqdm", lambda windows, desc, **_: [seen.append(desc), *windows][1:])
    for name in ("\x1b[2Jcell.png", None):
        assembled(predict_tiles(predict, noise(40, 40), network, 1000, name=name), (40, 40, 1))
    assert seen == [r"\x1b[2Jcell.png", None]


def test_a_smaller_halo_shows_seams(monkeypatch):
    """What the test above can see: 4 pixels less are too few."""
    network, predict = random_network()
    image = noise(117, 75)
    whole = untiled(predict, image, network)
    monkeypatch.setattr("prediction.tiles.HALO", HALO - 1)
    tiled = assembled(predict_tiles(predict, image, network, 52), whole.shape)
    assert np.abs(tiled - whole).max() > 1e-3


def test_what_training_validates_on_is_what_is_predicted(implementation):
    """The smallest images that training takes, and "valid" padding in tiles: mirrored by the margin."""
    for padding, size, tile in (("same", (4, 9), 100), ("valid", (1, 2), 100), ("valid", (117, 75), 52)):
        network, predict = random_network(implementation, padding=padding)
        assert tile == smallest_tile(network) or min(size) == smallest_image(network)
        image, lost = noise(*size), margin(2, padding) // 2
        found = assembled(predict_tiles(predict, image, network, tile), (*size, 1))
        mirrored = np.pad(image, ((lost, lost), (lost, lost), (0, 0)), mode="reflect")
        np.testing.assert_allclose(found, untiled(predict, mirrored, network), rtol=0, atol=ROUNDING)


@pytest.mark.parametrize(
    "height, width, augment, number",
    [(64, 64, "flips", 8), (64, 96, "paper", 4), (64, 64, "photo", 2), (64, 96, "recolor", 2)],
)
def test_tta_is_the_mean_over_the_symmetries_of_the_training(height, width, augment, number):
    network, predict = random_network(classes=3)
    image = noise(height, width)
    seen = image[np.newaxis].astype(np.float32) / 255
    flips = [lambda x, a=axes: np.flip(x, a) for axes in ((), (1,), (2,), (1, 2))]
    views = [(flip, flip) for flip in flips]
    if number == 8:
        transpose = lambda x: x.transpose(0, 2, 1, 3)  # noqa: E731
        views += [(lambda x, f=flip: transpose(f(x)), lambda p, f=flip: f(transpose(p))) for flip in flips]
    if number == 2:
        views = [views[0], views[2]]  # along the rows
    expected = np.mean([back(predict(there(seen))) for there, back in views], axis=0)[0]
    for tile in (1000, smallest_tile(network)):
        result = assembled(predict_tiles(predict, image, network, tile, augment), expected.shape)
        np.testing.assert_allclose(result, expected, rtol=0, atol=ROUNDING)
    assert np.abs(expected - predict(seen)[0]).max() > 1e-3, "this network is not symmetric"


@pytest.fixture
def trained(tmp_path):
    """make(**options) -> the path of a checkpoint."""
    return functools.partial(save_network, tmp_path / "best.safetensors")


@pytest.fixture
def same(monkeypatch):
    """A network that answers with its image: the foreground is what is brighter than the middle."""
    monkeypatch.setattr(predict, "make_predict", lambda *_: lambda images: images)


def save(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(values, np.uint8)).save(path)


def noise_file(path):
    save(path, noise(60, 60)[..., 0])


@pytest.fixture
def folder(tmp_path):
    """Four files in four formats, of odd sizes; a name that is not ASCII, one that macOS hides, one that is no image."""
    path = tmp_path / "images"
    path.mkdir()
    for k, name in enumerate(["a.png", "b.tif", "c.gif", "größe 図.jpg"]):
        Image.fromarray(noise(61 + 2 * k, 90 - k, seed=k)[..., 0]).save(path / name)
    (path / "._a.png").write_bytes(b"")
    (path / "notes.txt").write_text("")
    return path


def run(checkpoint, *arguments, output, overwrite=True):
    more = ["--overwrite"] * overwrite
    return predict.main(["--checkpoint", str(checkpoint), "--output", str(output), *map(str, arguments), *more])


def test_masks_of_a_folder_through_every_implementation(trained, folder, tmp_path, capsys):
    """With all that is written; and tiles give the same files as the whole image."""
    results = {}
    for name in IMPLEMENTATIONS:
        out = tmp_path / name
        extra = ["--implementation", name, "--probabilities", "--overlay", *(["--tile", "52"] if name == "highlevel" else [])]
        assert run(trained(), folder, *extra, output=out) == 0
        stems = ["a", "b", "c", "größe 図"]
        assert sorted(path.name for path in out.glob("[!.]*.*")) == [f"{stem}.png" for stem in stems]
        results[name] = [np.load(out / "probabilities" / f"{stem}.npy") for stem in stems]
        for stem, p in zip(stems, results[name]):
            with Image.open(out / f"{stem}.png") as mask:
                assert mask.mode == "L"
                np.testing.assert_array_equal(np.asarray(mask), 255 * predicted_classes(p[np.newaxis])[0])
    lines = capsys.readouterr().out.splitlines()
    share = 100 * (results["lowlevel"][0] >= 0.5).mean()
    assert lines[0] == f"a.png  90x61  foreground {share:.1f}%"
    assert lines[4].startswith("4 of 4 images")
    for name in IMPLEMENTATIONS[1:]:
        for p, q in zip(results["lowlevel"], results[name]):
            np.testing.assert_allclose(p, q, rtol=0, atol=ROUNDING, err_msg=name)


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.51, 1])
def test_a_threshold_of_ones_own(threshold, trained, tmp_path):
    """Of one class; and what a training says of the best one is what predict.py makes of it."""
    save(tmp_path / "in/a.png", noise(64, 64)[..., 0])
    command = [str(tmp_path / "in"), "--checkpoint", str(trained()), "--output", str(tmp_path / "out"), "--probabilities"]
    assert predict.main([*command, "--threshold", str(threshold)]) == 0
    p = np.load(tmp_path / "out/probabilities/a.npy")[..., 0]
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out/a.png")) == 255, p >= np.float32(threshold))
    command[command.index("--checkpoint") + 1] = str(save_network(tmp_path / "many.safetensors", classes=3))
    with pytest.raises(UserError, match="--threshold is for one class: of several each pixel has the largest"):
        predict.main([*command, "--threshold", str(threshold), "--overwrite"])


def test_the_best_threshold():
    """By all of 0.01 to 0.99; 0.5 where none is better. Void counts nowhere."""
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, (3, 8, 8)).astype(np.float32)
    p = np.clip(0.2 * truth + rng.uniform(0.1, 0.4, truth.shape), 0, 1).astype(np.float32)
    truth[:, 0] = VOID
    batches = [(p[k : k + 2, ..., None], tf.constant(truth[k : k + 2, ..., None])) for k in (0, 2)]
    best, dice, usual = best_threshold(lambda images, masks: (0, tf.constant(images)), batches)
    inside = truth != VOID

    def dice_of(threshold):
        found, true = (p >= np.float32(threshold))[inside], truth[inside] == 1
        return 2 * (found & true).sum() / (found.sum() + true.sum())

    found = {k / 100: dice_of(k / 100) for k in range(1, 100)}
    assert (dice, usual) == pytest.approx((max(found.values()), found[0.5])) and dice > usual
    assert found[best] == pytest.approx(dice)
    perfect = [(truth[..., None] * (truth[..., None] == 1), tf.constant(truth[..., None]))]
    assert best_threshold(lambda images, masks: (0, tf.constant(images)), perfect) == (0.5, 1, 1)


@pytest.mark.parametrize("augment", ["none", "elastic"])
def test_tta_needs_a_training_that_mirrored(augment):
    with pytest.raises(UserError, match=f"--tta.*--augment {augment}"):
        symmetries(True, augment)


def test_the_default_is_the_implementation_that_trained(trained, folder, tmp_path, monkeypatch):
    built = []
    monkeypatch.setattr(predict, "make_predict", lambda name, *_: built.append(name) or (lambda images: images))
    run(trained("highlevel"), folder / "a.png", output=tmp_path / "out")
    run(trained("highlevel"), folder / "a.png", "--implementation", "lowlevel", output=tmp_path / "out")
    assert built == ["highlevel", "lowlevel"]


def test_masks_of_many_classes_can_be_read_back(trained, folder, tmp_path, capsys):
    """A palette for the eye, in the colours of all pictures; the numbers are the class indices."""
    out = tmp_path / "out"
    checkpoint = trained(classes=3, class_names=Names(("sky", "road", "car")))
    run(checkpoint, folder / "a.png", "--probabilities", "--overlay", output=out)
    classes = np.load(out / "probabilities" / "a.npy").argmax(-1)
    assert set(np.unique(classes)) == {0, 1, 2}, "the test needs all of them"
    np.testing.assert_array_equal(read_mask(out / "a.png"), classes)
    with Image.open(out / "a.png") as mask:
        shown = np.asarray(mask.convert("RGB"))
    np.testing.assert_array_equal(shown, np.rint(255 * CLASS_COLORS[classes]))
    assert "sky" in capsys.readouterr().out

    image = np.repeat(read_image(folder / "a.png", 1), 3, axis=-1).astype(float)
    overlay = read_image(out / "overlays" / "a.png", 3)
    np.testing.assert_array_equal(overlay[classes == 0], image[classes == 0])
    mixed = (image + 255 * CLASS_COLORS[classes]) / 2
    np.testing.assert_allclose(overlay[classes > 0], mixed[classes > 0], atol=1.5)  # both halves are rounded down


def test_pages_of_a_stack(trained, tmp_path, capsys, no_figures):
    pages = [Image.fromarray(noise(60, 60, seed=k)[..., 0]) for k in range(3)]
    pages[0].save(tmp_path / "stack.tif", save_all=True, append_images=pages[1:])
    pages[1].save(tmp_path / "alone.png")
    run(trained(), tmp_path / "stack.tif", tmp_path / "alone.png", output=tmp_path / "out")
    names = ["alone.png", "stack_1.png", "stack_2.png", "stack_3.png"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    assert (tmp_path / "out" / "alone.png").read_bytes() == (tmp_path / "out" / "stack_2.png").read_bytes()
    assert capsys.readouterr().out.startswith("stack.tif[1]  60x60")
    masks = [Image.open(tmp_path / "out" / f"stack_{k}.png") for k in (1, 2, 3)]
    masks[0].save(tmp_path / "labels.tif", save_all=True, append_images=masks[1:])
    for truth in ("labels.tif", "out"):  # page by page, and by name
        run(trained(), tmp_path / "stack.tif", "--evaluate", tmp_path / truth, output=tmp_path / "second")
        assert [row["dice"] for row in read_metrics(tmp_path / "second").values()] == [1] * 5


def test_a_run_that_resized_predicts_at_its_size(trained, tmp_path):
    """And the probabilities come back bilinearly, in strips that do not show."""
    save(tmp_path / "a.png", noise(600, 90)[..., 0])
    run(trained(image_size=Size(40, 52)), tmp_path / "a.png", "--probabilities", output=tmp_path / "out")
    _, predict_random = random_network()
    small = read_image(tmp_path / "a.png", 1, Size(40, 52))
    p = predict_random(small[np.newaxis].astype(np.float32) / 255)[0, ..., 0]
    expected = np.asarray(Image.fromarray(p).resize((90, 600), Image.Resampling.BILINEAR))
    result = np.load(tmp_path / "out" / "probabilities" / "a.npy")[..., 0]
    # Pillow keeps the place of a strip in float32: of up to 40 rows
    np.testing.assert_allclose(result, expected, rtol=0, atol=40 * 2**-24)
    assert read_mask(tmp_path / "out" / "a.png").shape == (600, 90)


@pytest.mark.parametrize("size", [None, Size(16, 24)])
def test_a_training_on_stretched_images_predicts_on_such(size, tmp_path):
    """What the network gets is the same in both; what is measured and drawn is the image as it is."""
    for k in range(4):
        save(tmp_path / "images" / f"{k}.png", 20 + 10 * k + noise(32, 48, 3, seed=k) // 8)
        save(tmp_path / "masks" / f"{k}.png", 255 * (noise(32, 48)[..., 0] > 99))
    options = dict(dataset="folder", data_dir=tmp_path, stretch=True, image_size=size, filters=2, depth=2, batch_size=1)
    config, training, _ = load_examples(Config.of(**options))
    seen, name = [], training.names[0]
    network = make_predict("lowlevel", config.network, initial_weights(config.network))
    (source,) = find_images([tmp_path / "images" / Path(name).name], config)
    image, _, _ = predict_mask(lambda images: seen.append(images) or network(images), source, config, 1024, False)
    np.testing.assert_array_equal(seen[0][0], training.images[0] / np.float32(255))
    assert training.images[0].min() == 0 and training.images[0].max() == 255 > image.max() and image.min() >= 20
    with pytest.raises(UserError, match="--stretch needs --dataset folder"):
        Config.of(stretch=True)


def test_a_constant_mask_is_warned_of(trained, same, tmp_path, capsys):
    save(tmp_path / "a.png", np.zeros((60, 60)))
    run(trained(), tmp_path / "a.png", output=tmp_path / "out")
    captured = capsys.readouterr()
    assert "warning: a.png: every pixel of the mask is background" in captured.err
    assert "foreground 0.0%" in captured.out


def test_a_full_disk_is_an_error_and_leaves_no_half_of_a_file(tmp_path):
    """A limit on the size of files is met as a disk's end is. Met later, in a mapped file, it would end the process."""
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    path = tmp_path / "a.npy"
    write_text(path, "first")
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large: .*a.npy"), array_file(path, (100, 100, 1)):
            pass
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {file.name for file in tmp_path.rglob("*")} == {"a.npy"} and path.read_text() == "first"
    with array_file(path, (100, 100, 1)):
        (part,) = tmp_path.glob(".unet-*")
        assert 512 * part.stat().st_blocks >= 4 * 100 * 100


@pytest.mark.parametrize(
    "arguments, words", [("--help", "what to predict"), ("a.png --checkpoint nowhere --output out", "nowhere is no readable")]
)
def test_help_and_mistakes_come_without_tensorflow(arguments, words):
    code = "import sys, atexit, predict; from common.cli import run_script\n"
    code += "atexit.register(lambda: print('tensorflow' in sys.modules)); run_script(predict.main)"
    done = python("-c", code, *arguments.split())
    assert words in done.stdout + done.stderr
    assert done.stdout.endswith("False\n"), done.stdout


def read_metrics(path):
    with open(path / "metrics.csv", newline="", encoding="utf-8") as file:
        return {row.pop("image"): {name: float(v) for name, v in row.items()} for row in csv.DictReader(file)}


def test_metrics_by_hand(trained, tmp_path, same, capsys, no_figures):
    """8x8 pixels: 16 predicted; of the first truth 24 pixels 8 are found, of the second all of its 16."""
    images, masks = tmp_path / "images", tmp_path / "masks"
    prediction, truth = np.zeros((2, 8, 8), np.uint8)
    prediction[:4, :4], truth[2:, :4] = 1, 1
    name = unicodedata.normalize("NFC", "é")
    save(images / "a.png", 200 * prediction)
    save(masks / "a_mask.gif", 255 * truth)  # as in Carvana
    save(images / f"{name}.png", 200 * prediction)
    save(masks / f"{unicodedata.normalize('NFD', name)}.gif", 255 * prediction)
    assert run(trained(), images, "--evaluate", masks, output=tmp_path / "out") == 0
    rows = read_metrics(tmp_path / "out")
    assert [*rows] == ["a.png", f"{name}.png", "mean of the images", "all pixels"]
    first = {"dice": 16 / 40, "iou": 8 / 32, "accuracy": 40 / 64, "iou_background": 32 / 56, "iou_foreground": 8 / 32}
    assert rows["a.png"] == pytest.approx(first)
    assert set(rows[f"{name}.png"].values()) == {1.0}
    assert rows["mean of the images"] == pytest.approx({key: (value + 1) / 2 for key, value in first.items()})
    both = {"dice": 48 / 72, "iou": 24 / 48, "accuracy": 104 / 128, "iou_background": 80 / 104, "iou_foreground": 24 / 48}
    assert rows["all pixels"] == pytest.approx(both)
    output = capsys.readouterr().out
    assert "dice 0.4000  iou 0.2500  accuracy 0.6250" in output
    assert re.search(r"^iou_background +0\.7857 +0\.7692$", output, re.MULTILINE)


def test_metrics_of_many_classes_leave_out_void(trained, tmp_path, monkeypatch, no_figures):
    """Classes 0 and 1 predicted half and half; the truth is 1, 2 and void. Mean IoU over the classes that occur."""
    wide = np.zeros((8, 8, 3), np.float32)
    wide[:4, :, 0], wide[4:, :, 1] = 1, 1
    monkeypatch.setattr(predict, "make_predict", lambda *_: lambda images: wide[np.newaxis])
    truth = np.full((8, 8), 1, np.uint8)
    truth[:2], truth[6:] = 255, 2
    save(tmp_path / "truth.png", truth)
    save(tmp_path / "a.png", noise(8, 8)[..., 0])
    run(trained(classes=3), tmp_path / "a.png", "--evaluate", tmp_path / "truth.png", output=tmp_path / "out")
    rows = read_metrics(tmp_path / "out")
    assert rows["a.png"]["accuracy"] == pytest.approx(16 / 48)
    assert rows["a.png"]["iou"] == pytest.approx((0 / 16 + 16 / 48 + 0 / 16) / 3)
    assert rows["a.png"]["dice"] == pytest.approx(2 * 16 / 64 / 3)


@pytest.mark.parametrize("classes", [1, 3])
def test_an_image_of_which_nothing_is_labelled_has_no_score(classes, trained, tmp_path, capsys, no_figures):
    """It counts in no mean, with objects neither, and is not among the worst."""
    for stem, values in (("a", [0, 1]), ("b", [classes + 1])):  # the last value is void
        save(tmp_path / "images" / f"{stem}.png", noise(16, 16)[..., 0])
        save(tmp_path / "masks" / f"{stem}.png", np.resize(values, (16, 16)))
    options = {"dataset": "folder", "data_dir": tmp_path, "classes": classes, "void_label": classes + 1}
    objects = ["--objects", "--object-settings", 0.5, 0, 0, *(["--object-class", 1] if classes > 1 else [])]
    run(trained(**options), tmp_path / "images", "--evaluate", tmp_path / "masks", *objects, output=tmp_path / "out")
    rows = read_metrics(tmp_path / "out")
    assert all(map(np.isnan, rows["b.png"].values()))
    np.testing.assert_equal(rows["mean of the images"], rows["a.png"])
    assert not np.isnan([rows["a.png"][name] for name in ("dice", "iou", "accuracy", "ap")]).any()
    assert "b.png" in capsys.readouterr().out


@pytest.mark.parametrize("suffix", ["", "_segmentation", "_mask", "-seg"])
@pytest.mark.parametrize("stored", [True, False])
def test_masks_are_found_as_the_training_finds_them(suffix, stored, tmp_path):
    for stem in ("a", "b", "é"):
        noise_file(tmp_path / "images" / f"{stem}.png")
        noise_file(tmp_path / "masks" / unicodedata.normalize("NFD", f"{stem}{suffix}.png"))  # as macOS has it
        if stored and suffix:  # what else has the name of the image is not its mask
            noise_file(tmp_path / "masks" / f"{stem}.png")
    patterns = dict(image_files="images/{name}.png", mask_files=f"masks/{{name}}{suffix}.png") if stored else {}
    config = Config.of(dataset="folder", data_dir=tmp_path, **patterns)
    masks = find_masks(tmp_path / "masks", find_images([tmp_path / "images"], config), config)
    assert {stem: unicodedata.normalize("NFC", item.mask.stem) for stem, item in masks.items()} == {
        k: k + suffix for k in "abé"
    }


def test_images_of_one_name_in_two_folders(tmp_path, capsys):
    """Each has a row of its own, and a folder that has one mask for both is no truth."""
    for folder in ("p/images", "q/images", "p/masks", "q/masks", "flat"):
        noise_file(tmp_path / folder / "0.png")
    patterns = dict(image_files="{group}/images/{name}.png", mask_files="{group}/masks/{name}.png")
    checkpoint = save_network(tmp_path / "run/c.safetensors", dataset="folder", data_dir=tmp_path, channels=3, **patterns)
    command = [str(tmp_path), "--checkpoint", str(checkpoint), "--output", str(tmp_path / "out"), "--evaluate"]
    with refused("--evaluate ", "flat holds no mask for "):
        predict.main([*command, str(tmp_path / "flat")])
    config = read_checkpoint(checkpoint)[0]
    sources = find_images([tmp_path], config)
    assert [str(source) for source in sources] == ["p/images/0.png", "q/images/0.png"]
    assert {item.mask for item in find_masks(tmp_path, sources, config).values()} == {
        tmp_path / f"{folder}/masks/0.png" for folder in "pq"
    }
    noise_file(tmp_path / "two/0.png"), noise_file(tmp_path / "two/0.jpg")
    with refused("--evaluate ", "two: 0.jpg and 0.png have the same name: keep one of them"):
        find_masks(tmp_path / "two", find_images([tmp_path / "flat"]))


def test_pages_go_to_images_in_the_order_of_their_numbers(tmp_path):
    pages = [Image.fromarray(np.full((8, 8), k, np.uint8)) for k in range(1, 13)]
    for k, page in enumerate(pages, start=1):
        save(tmp_path / "images" / f"slice_{k}.png", page)
    pages[0].save(tmp_path / "labels.tif", save_all=True, append_images=pages[1:])
    masks = find_masks(tmp_path / "labels.tif", find_images([tmp_path / "images"], Config.of()), Config.of())
    assert {stem: mask.page for stem, mask in masks.items()} == {f"slice_{k}": k - 1 for k in range(1, 13)}


def true_mask(path, **options):
    """A mask as --evaluate reads it."""
    config = Config.of(**{"channels": 1, "classes": 1, "dataset": "folder", "data_dir": path.parent, **options})
    item = Item(path.name, path, path)
    return truth_reader({path.stem: item}, config, False)(Source(path, None, path.stem))


def test_colour_masks_are_read_as_in_training(tmp_path):
    colors = tmp_path / "colors.txt"
    colors.write_text("grass 0 128 0\ncow 200 0 0\n")
    cow = np.tile(np.arange(8) < 2, (8, 1))
    save(tmp_path / "mask.png", np.where(cow[..., np.newaxis], (200, 0, 0), (0, 128, 0)))
    stored = Config.of(dataset="folder", data_dir=tmp_path, colors=colors).as_dict()["colors"]
    for text in ("grass 0 128 0\ncow 200 0 0\n", "cow 0 128 0\ngrass 200 0 0\n", None):  # the run has stored the table
        colors.unlink() if text is None else colors.write_text(text)
        restored = Config.from_dict({"dataset": "folder", "data_dir": str(tmp_path), "colors": stored}).data.colors
        np.testing.assert_array_equal(true_mask(tmp_path / "mask.png", colors=restored), cow)


@pytest.mark.parametrize("void, own", [(None, False), (3, False), (None, True)])
def test_trimaps_are_read_as_in_training(void, own, tmp_path):
    """1 is the pet, 2 the background, 3 the outline; masks that hold a 0 are no trimaps."""
    trimap = np.repeat([[1], [1], [3], [3], [2], [2]], 8, axis=1)
    save(tmp_path / "a.png", 255 * (trimap == 1) if own else trimap)
    truth = true_mask(tmp_path / "a.png", dataset="oxford_pet", void_label=void)
    np.testing.assert_array_equal(truth, np.where(trimap == (void or -1), VOID, trimap == 1))


@pytest.mark.parametrize("values, options", [([0, 1, 7], {}), ([0, 128, 255], {}), ([0, 200], {"classes": 3}), ([255, 1], {})])
def test_a_true_mask_that_does_not_fit_gets_no_advice_of_the_training(values, options, tmp_path):
    save(tmp_path / "a.png", np.resize(values, (61, 90)))
    with pytest.raises(UserError, match="true masks hold what the masks of the training held") as error:
        true_mask(tmp_path / "a.png", **options)
    assert not re.search(r"--(classes|void-label|colors|class-names)", str(error.value)), error.value


def test_bad_files_can_be_skipped(trained, folder, tmp_path, capsys, no_figures):
    masks = tmp_path / "masks"
    run(trained(), folder, output=masks)
    (masks / "a.png").write_bytes(b"")
    save(masks / "c.png", 255 * (noise(3, 50)[..., 0] // 128))
    (folder / "b.tif").write_bytes((folder / "b.tif").read_bytes()[:500])
    for path in (folder, masks):
        save(path / "d.png", 255 * (noise(3, 50)[..., 0] // 128))
    for more, words in (([], "b.tif"), (["--evaluate", masks], "a.png")):
        with pytest.raises(UserError, match=words):
            run(trained(), folder, *more, output=tmp_path / "out")
    assert run(trained(), folder, "--skip-bad", "--probabilities", "--evaluate", masks, output=tmp_path / "out") == 1
    captured = capsys.readouterr()
    assert "1 of 5 images" in captured.out
    left_out = [line for line in captured.err.splitlines() if line.startswith("left out: ")]
    words = ("masks/a.png", "b.tif", "c.gif is 88x65 pixels, its true mask 50x3", "d.png is 50x3 pixels, too small")
    assert len(left_out) == 4 and all(word in line for word, line in zip(words, left_out))
    assert sorted(p.name for p in (tmp_path / "out" / "probabilities").iterdir()) == ["a.npy", "c.npy", "größe 図.npy"]
    assert len(read_metrics(tmp_path / "out")) == 3


@pytest.mark.parametrize(
    ("prepare", "arguments", "words"),
    [
        (None, ["nowhere"], "nowhere does not exist"),
        (lambda path: (path / "empty").mkdir(), ["empty"], "empty holds no images"),
        (lambda path: (path / "empty").mkdir(), ["images", "--evaluate", "empty"], "empty holds no mask for images/a.png"),
        (None, ["images", "--evaluate", "nowhere"], "--evaluate nowhere does not exist"),
        (None, ["images", "--evaluate", "images/a.png"], "holds 1 masks for 4 images"),
        (lambda path: noise_file(path / "images/a.gif"), ["images/a.png", "--evaluate", "images"], "keep one of them"),
        (None, ["images", "--tile", "51"], "--tile must be at least 52"),
        (None, ["images", "--output", "images"], "images/a.png is an input and would be overwritten"),
        (lambda path: noise_file(path / "a.jpg"), ["images", "a.jpg"], "would both become a.png"),
        (lambda path: noise_file(path / "mask/b.png"), ["images/b.tif", "--evaluate", "mask", "--output", "mask"], "an input"),
        (None, ["images", "--implementation", "torch"], "--implementation"),
        (None, [], "name images to predict, or a kind of --export, and not both"),
        (None, ["images", "--export", "keras"], "name images to predict, or a kind of --export, and not both"),
        (None, ["images", "--object-class", "car"], "--object-class goes with --objects"),
        (None, ["--export", "onnx", "--quantize", "int8"], "--quantize goes with --export litert"),
        (None, ["--export", "keras", "--image-size", "32"], "--image-size goes with --export stablehlo, litert and onnx"),
        (None, ["--export", "onnx", "--threshold", "0.3"], "--threshold goes with images to predict"),
        (None, ["images", "--threshold", "0"], "--threshold is a probability above 0 and up to 1, got 0"),
        (None, ["images", "--threshold", "1e-50"], "--threshold is a probability above 0 and up to 1, got 1e-50"),
        (None, ["images", "--threshold", "nan"], "--threshold is a probability above 0 and up to 1, got nan"),
        (None, ["--export", "onnx", "--objects"], "--objects goes with images to predict"),
        (None, ["--export", "keras", "--tile", "512"], "--tile goes with images to predict"),
    ],
)
def test_bad_arguments(prepare, arguments, words, trained, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if prepare:
        prepare(tmp_path)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(UserError, match=words) as error:
        run(trained(), *arguments, output="out")
    assert "\n" not in str(error.value)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_what_comes_while_others_are_predicted_stays(trained, folder, tmp_path, monkeypatch):
    def network(images):
        (tmp_path / "out" / "b.png").write_text("mine")
        return images

    monkeypatch.setattr(predict, "make_predict", lambda *_: network)
    with pytest.raises(UserError, match="b.png is there already"):
        run(trained(), folder, output=tmp_path / "out", overwrite=False)
    assert (tmp_path / "out" / "b.png").read_text() == "mine" and (tmp_path / "out" / "a.png").exists()


@pytest.mark.parametrize(
    "name", ["b.png", "overlays/a.png", "objects/c.tif", "metrics.csv", "evaluation/confusion.csv", "objects.csv"]
)
def test_what_is_there_is_seen_before_the_work(name, trained, folder, tmp_path):
    out = tmp_path / "out"
    (out / name).parent.mkdir(parents=True, exist_ok=True)
    (out / name).write_text("mine")
    arguments = [folder, "--overlay", "--evaluate", folder, "--objects", "--object-settings", "0.5", "0.5", "0"]
    with pytest.raises(UserError, match=rf"{name} is there already \(--overwrite replaces files\)"):
        run(trained(), *arguments, output=out, overwrite=False)
    assert [path for path in out.rglob("*") if path.is_file()] == [out / name] and (out / name).read_text() == "mine"


def test_names_are_text_in_tables_and_on_the_terminal(trained, tmp_path, capsys):
    for name in (b"=1+1.png", b"a\x1b[31mb.png", b"c\xff.png"):
        noise_file(tmp_path / "in" / os.fsdecode(name))
    run(trained(), tmp_path / "in", "--overlay", output=tmp_path / "out")
    Path(tmp_path / "out").rename(tmp_path / "truth")
    run(trained(), tmp_path / "in", "--evaluate", tmp_path / "truth", output=tmp_path / "out")
    assert "\x1b" not in capsys.readouterr().out
    names = [line.split(",")[0] for line in (tmp_path / "out" / "metrics.csv").read_text().splitlines()[1:4]]
    assert names == ["'=1+1.png", "a\\x1b[31mb.png", "c\\udcff.png"]


@pytest.mark.parametrize("kind", ["keras", "stablehlo"])
def test_export_writes_the_network_and_no_masks(kind, trained, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("prediction.export.write_stablehlo", lambda *_: {})  # tests/test_export.py looks at it
    size = ["--image-size", "32"] if kind in FIXED else []
    assert run(trained("highlevel"), "--export", kind, *size, output=tmp_path / "out") == 0
    through = "keras_impl" if kind == "keras" else "highlevel"
    assert f"{through} exported to {tmp_path / 'out'} ({kind}" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "export.json").read_text()) and not list((tmp_path / "out").glob("*.png"))
