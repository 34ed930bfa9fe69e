"""The overview of a data set: it counts right, names every problem, and its pictures show the mask where it lies."""

import json

from common.cli import make_parser, parse, read_config
from common.config import VOID, Config, Size
from data import overview
from data.loader import Examples, load_examples, training_batches
from data.overview import draw_augmentations, main, overlay, size_advice
from tests.drawn import NOISE, save, save_pairs
from tests.helpers import refused

import numpy as np
import pytest
import tifffile
from PIL import Image

HALF = np.repeat([[0] * 36 + [1] * 12], 40, axis=0).astype(np.uint8)  # a quarter of it foreground


def examples(*images):
    """A training set like the loader's `Examples`; the masks are cut out of HALF."""
    masks = [HALF[: len(image), : image.shape[1]] for image in images]
    names, sizes = [f"{i}.png" for i in range(len(images))], [Size(*mask.shape) for mask in masks]
    return Examples(names, images, masks, sizes)


def run(capsys, folder, *options, dataset="folder"):
    """-> (exit code, what was printed, overview.json)"""
    output = folder.parent / "output"
    code = main(["--dataset", dataset, "--data-dir", str(folder), "--output", str(output), "--overwrite", *options])
    assert (output / "overview.png").exists()
    return code, capsys.readouterr().out, json.loads((output / "overview.json").read_text(encoding="utf-8"))


def test_a_good_folder(tmp_path, capsys, no_figures):
    folder = save_pairs(tmp_path / "data", [255 * HALF] * 9 + [255 * HALF[:32, 4:]], NOISE)
    code, printed, summary = run(capsys, folder, "--class-names", "sea,island", "--batch-size", "4")
    assert code == 0 and summary["problems"] == []
    assert summary["images"] == summary["readable"] == summary["color_images"] == 10
    assert summary["channels"] == 3 and summary["classes"] == 1
    assert summary["split"] == {"train": 8, "val": 2}
    assert summary["sizes"] == {"48x40": 9, "44x32": 1}
    assert [summary[name] for name in ("smallest", "median", "largest")] == ["44x32", "48x40", "48x40"]
    share = (9 * 12 * 40 + 12 * 32) / (9 * 48 * 40 + 44 * 32)
    sea, island = summary["class_frequencies"]
    assert (sea["name"], island["name"], island["images"]) == ("sea", "island", 10)
    assert island["pixels"] == pytest.approx(share) and sea["pixels"] == pytest.approx(1 - share)
    assert island["balanced_weight"] == pytest.approx(2, rel=0.1)  # (3/4 + 1/4) / 2 over 1/4; one image is smaller
    for text in ("10 images", "8 to train on, 2 to validate", "44x32 to 48x40", "10 RGB", "0/255 read as 0/1", "no problems"):
        assert text in printed
    assert "--crop-size 32" in printed


def test_every_problem_has_its_line_and_the_rest_is_still_counted(tmp_path, capsys, no_figures):
    folder = save_pairs(tmp_path / "data", [HALF] * 8, NOISE)
    (folder / "images/0.png").write_bytes(b"no image")
    save(folder / "masks/1.png", HALF[:, :40])
    save(folder / "masks/2.png", 0 * HALF)
    save(folder / "images/3.png", np.full_like(NOISE, 7))
    code, printed, summary = run(capsys, folder, "--depth", "2")
    assert code == 1 and summary["images"] == 8 and summary["readable"] == 6
    assert (
        "3 problems:" in printed
        and "1 of 6 masks (16.7%) hold only the value 0" in printed
        and "2 of them cannot be read" in printed
    )
    lines = printed.splitlines()
    for name, reason in {"0.png": "cannot read", "1.png": "40x40", "3.png": "are equal"}.items():
        assert sum(name in line and reason in line for line in lines) == 1, name
        assert sum(name in problem and reason in problem for problem in summary["problems"]) == 1
    assert summary["class_frequencies"][1]["images"] == 5
    assert summary["class_frequencies"][1]["pixels"] == pytest.approx(5 / 6 / 4)


def test_masks_that_mean_nothing_clear(tmp_path, capsys, no_figures):
    folder = save_pairs(tmp_path / "data", [100 * HALF, 37 * HALF, HALF])
    code, printed, summary = run(capsys, folder)
    assert code == 1 and summary["classes"] is None and len(summary["problems"]) == 1
    assert "unclear, they hold 4 values: 0, 1, 37, 100" in printed
    assert summary["mask_values"] == {"0": 3 * 36 * 40, "1": 12 * 40, "37": 12 * 40, "100": 12 * 40}


def test_classes_void_and_a_class_that_never_occurs(tmp_path, capsys, no_figures):
    masks = [HALF * 4, np.where(HALF, 2, 3).astype(np.uint8), np.where(HALF, 255, 1).astype(np.uint8)]
    code, printed, summary = run(capsys, save_pairs(tmp_path / "data", masks), "--classes", "6")
    assert code == 0 and [row["images"] for row in summary["class_frequencies"]] == [1, 1, 1, 1, 1, 0]
    assert [row["pixels"] for row in summary["class_frequencies"]] == pytest.approx(np.array([3, 3, 1, 3, 1, 0]) / 11)
    assert summary["void_pixels"] == pytest.approx(1 / 12) and "void, ignored: 8.33%" in printed


def test_the_sheet_of_many_classes_names_those_that_it_shows(tmp_path, monkeypatch, capsys):
    """150, of which four pictures hold a few each; a legend of all of them would be larger than the pictures."""
    masks = [np.where(HALF, 30 * k + 9, np.arange(48) % 3 + 10 * k).astype(np.uint8) for k in range(4)]
    shown = []
    monkeypatch.setattr(overview, "draw_grid", lambda path, *_: shown.append(_[-1]) or path.write_bytes(bytes(10_001)))
    run(capsys, save_pairs(tmp_path / "data", masks), "--classes", "150")
    assert [name for name, _ in shown[0]][:4] == ["class 0 (not tinted)", "class 1", "class 2", "class 9"] and len(
        shown[0]
    ) == 16
    masks = [np.where(HALF, 0, np.arange(48) + 48 * k).astype(np.uint8) for k in range(3)]
    run(capsys, save_pairs(tmp_path / "more", masks), "--classes", "150")
    assert len(shown[1]) == 41 and shown[1][-1] == (f"and {1 + 3 * 36 - 41} more", "none")


def test_parts_and_groups(tmp_path, capsys, no_figures):
    for part, n in (("train", 3), ("val", 2), ("test", 1)):
        save_pairs(tmp_path / "data" / part, [HALF if part == "train" else 1 - HALF] * n)
    _, printed, summary = run(capsys, tmp_path / "data")
    assert summary["class_frequencies"][1]["balanced_weight"] == 2  # (3/4 + 1/4) / 2 over 1/4, as in training alone
    assert summary["published_parts"] == {"train": 3, "val": 2, "test": 1} and summary["split"] == {"train": 3, "val": 2}
    for i in range(6):
        save(tmp_path / f"cars/train/{'ab'[i % 2]}_{i}.png", NOISE)
        save(tmp_path / f"cars/train_masks/{'ab'[i % 2]}_{i}_mask.png", HALF)
    _, printed, summary = run(capsys, tmp_path / "cars", dataset="carvana")
    assert summary["groups"] == {"a": 3, "b": 3} and "2 of 3 to 3 images; each stays on one side" in printed


def test_drawn_cells_have_an_overview_too(tmp_path, capsys):
    assert main(["--images", "6", "--classes", "3", "--image-size", "32", "--output", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "synthetic cells: 6 images" in printed and "nucleus" in printed and "6 gray" in printed


def test_unusable_input_is_one_line(tmp_path):
    folder = save_pairs(tmp_path / "data", [HALF] * 3)
    for path in folder.glob("images/*"):
        path.write_bytes(b"no image")
    with refused("none of 3 images can be read; the first: ", "0.png"):
        main(["--dataset", "folder", "--data-dir", str(folder), "--output", str(tmp_path / "output")])
    with refused("nowhere"):
        main(["--dataset", "folder", "--data-dir", str(tmp_path / "nowhere"), "--output", str(tmp_path / "output")])
    with refused("cannot write to ", "0.png"):
        main(["--images", "2", "--output", str(folder / "masks/0.png")])


@pytest.mark.parametrize(
    "sizes, options, problems, advice",
    [
        ([(64, 64)] * 3, {}, [], []),
        ([(64, 64), (80, 96)], {}, [], ["one size: train on windows, --crop-size 64, or resize all, --image-size 80x64"]),
        ([(64, 64), (80, 96)], {"crop_size": Size(64, 64)}, [], []),
        ([(1280, 1920)], {}, [], ["150 times the work of one on 128x128: shrink them, --image-size 512x336, or"]),
        ([(64, 8), (64, 64)], {}, ["1 images are smaller than 16x16, the least for --depth 4"], ["one size"]),
        ([(64, 64), (32, 64)], {"crop_size": Size(48, 48)}, ["1 images are smaller than --crop-size 48x48: b (64x32)"], []),
        ([(388, 388)], {"padding": "valid", "crop_size": Size(572, 572)}, [], []),  # which is mirrored up to 572
    ],
)
def test_what_the_network_needs(sizes, options, problems, advice):
    for found, expected in zip(size_advice([Size(*s) for s in sizes], "abc", Config.of(**options)), (problems, advice)):
        assert len(found) == len(expected)
        for text, part in zip(found, expected):
            assert part in text


def test_what_is_advised_is_taken():
    """Sizes that the advice names fit the network without padding, and the crop fits into every image."""
    config = Config.of(depth=3)
    for low, high in [((70, 45), (300, 200)), ((1000, 1500), (2000, 1500)), ((17, 900), (18, 901))]:
        _, (advice, *_) = size_advice([Size(*low), Size(*high)], "ab", config)
        words = advice.replace(",", "").split()
        crop, image = (Size.parse(words[words.index(flag) + 1]) for flag in ("--crop-size", "--image-size"))
        assert all(c <= n for c, n in zip(crop, low)) and not any(n % 8 for n in (*crop, *image))


def test_overlay_tints_the_mask_where_it_lies():
    image = np.full((40, 48, 3), 100, np.uint8)
    mask = np.where(HALF, 2, 0).astype(np.uint8)
    mask[:10, :10] = VOID
    picture = overlay(image, mask, 3)
    assert picture.shape == (40, 48, 3) and picture.min() >= 0 and picture.max() <= 1
    tinted = (np.abs(picture - 100 / 255) > 1e-9).any(axis=-1)
    np.testing.assert_array_equal(tinted, mask > 0)
    assert len({tuple(picture[y, x]) for y, x in ((20, 40), (20, 36), (5, 5), (20, 20))}) == 4  # class, outline, void, nothing
    large = overlay(np.zeros((600, 1000, 3), np.uint8), np.kron(2 * HALF, np.ones((15, 21), np.uint8))[:, :1000], 3)
    assert large.shape == (154, 256, 3)
    assert len(np.unique(large.reshape(-1, 3), axis=0)) == 3  # class, outline, nothing: no class 1 between 0 and 2


def test_the_sheet_of_augmentations_shows_what_the_network_sees(tmp_path, monkeypatch, no_figures):
    training = examples(NOISE[:, :40])
    config = Config.of(depth=2, batch_size=1, epochs=5, augment="paper", channels=3, classes=1, crop_size=Size(32, 32))
    shown = []
    monkeypatch.setattr(overview, "overlay", lambda *args: shown.append(args) or overlay(*args))
    draw_augmentations(tmp_path / "augmentations.png", training, config)
    assert len(shown) == 6 and shown[0][0] is training.images[0]
    for (image, mask, _), (images, masks) in zip(shown[1:], training_batches(config, training), strict=True):
        np.testing.assert_allclose(images[0] * 255, image, atol=1e-4)  # float32 of 255
        np.testing.assert_array_equal(masks[0, ..., 0], mask)
    assert any((shown[1][0] != other[0]).any() for other in shown[2:])


def test_the_sheet_of_augmentations_takes_many_images_of_many_sizes(tmp_path):
    config = Config.of(depth=2, augment="paper", channels=3, classes=12, crop_size=Size(24, 28))
    draw_augmentations(tmp_path / "augmentations.png", examples(*(NOISE[: 30 + i] for i in range(9))), config)
    with Image.open(tmp_path / "augmentations.png") as sheet:
        assert sheet.width > sheet.height > 800  # six columns, four rows


def test_names_that_are_no_text(tmp_path, capsys, no_figures):
    folder = save_pairs(tmp_path / "data", [HALF] * 3)
    for kind in ("images", "masks"):
        (folder / kind / "0.png").rename(folder / kind / "\x1b[2J\udcff$x$.png")
    save(folder / "images/\x1b[2J\udcff$x$.png", 0 * NOISE)
    code, printed, summary = run(capsys, folder)
    assert code == 1 and r"\x1b[2J\udcff$x$.png: all pixels of the image are equal" in printed and "\x1b" not in printed
    assert "\x1b[2J\udcff$x$.png" in summary["problems"][0]


def test_the_training_finds_what_the_overview_says(tmp_path, capsys, no_figures):
    """White, where colours are read as gray: that of the gray. And that there is nothing to validate on."""
    folder, options = tmp_path / "data", ["--void-label", "255", "--channels", "1", "--batch-size", "1"]
    command = ["--dataset", "folder", "--data-dir", str(folder), *options]
    for part in ("train", "val"):
        (folder / part / "images").mkdir(parents=True)
        save(folder / part / "masks/a.png", HALF)
        colour = np.dstack([np.uint16(v) + HALF for v in (3000, 200, 100)])
        tifffile.imwrite(folder / part / "images/a.tif", colour, photometric="rgb")
    code, _, summary = run(capsys, folder, *options)
    config, *_ = load_examples(read_config(parse(make_parser("train", ""), command)))
    assert code == 0 and config.data.white == summary["white"] == 1027  # of 3001, 201, 101 by 0.299, 0.587, 0.114
    save(folder / "val/masks/a.png", 0 * HALF + 255)
    code, _, summary = run(capsys, folder, *options)
    assert code == 1 and "no pixel of the masks to validate on is labelled" in summary["problems"][0]
    with refused("no pixel of the masks to validate on is labelled"):
        load_examples(read_config(parse(make_parser("train", ""), command)))


def test_classes_weigh_as_the_training_counts_them(tmp_path):
    """Where two objects touch, both sides of their border are background."""
    labels = np.zeros((16, 16), np.uint16)
    labels[4:12, 2:8], labels[4:12, 8:14] = 1, 2
    layout = overview.open_layout(Config.of(dataset="folder", data_dir=save_pairs(tmp_path, [labels]), objects=True))
    index, _ = overview.decode(layout, layout.items, 3, None, False)
    assert index["objects"][0] == 2 and index["counts"][0, 1] == 96 - 2 * 8
