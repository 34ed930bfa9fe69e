"""Data sets as people have them: which file is whose mask, what is decoded, what values mean, and what is refused."""

import itertools
import os
import re
import shutil
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from common.colors import class_list
from common.config import VOID, Config, Names, Size, UserError, Values
from data import bands, files
from data.files import in_8_bits, nearest, on_scale, read_image, read_mask, read_pair, stretched
from data.layouts import Item, Layout, find_channels, find_layout
from data.meaning import mask_meaning
from data.patterns import guess
from data.splits import split
from tests.drawn import BLOBS, GRAY, NOISE, RNG, save, save_pairs
from tests.helpers import refused

import cv2
import h5py
import numpy as np
import pytest
import tifffile
from PIL import Image

RAMP = np.stack(np.broadcast_arrays(*np.ogrid[:320, :480], 90), axis=-1).astype(np.float32) / (320, 480, 255) * 255
RAMP = RAMP.round().astype(np.uint8)  # smooth, so that JPEG keeps it


def palette_image(colors, values=BLOBS):
    image = Image.fromarray(values).convert("P")
    image.putdata(values.ravel())
    image.putpalette(colors)
    return image


def layout_of(dataset, data_dir, **options):
    config = Config.of(dataset=dataset, data_dir=data_dir, **options)
    return config, find_layout(config)


def read_all(layout, channels=3, size=None):
    return [layout.read(item, channels, size) for item in layout.items]


def meaning_of(config, layout):
    counts = np.array([np.bincount(mask.ravel(), minlength=256) for _, mask in read_all(layout)])
    return mask_meaning(counts, layout.items, config, layout)


# layouts


def pairs_of(layout):
    return [(item.name, item.mask.name) for item in layout.items]


def test_pairs_have_the_same_stem(tmp_path):
    """Of any letters: the "é" of an image is one letter, that of its mask an e and an accent, as macOS stores it."""
    for image, mask in [(stem, stem) for stem in ("cat1", "cat", "a b.c", "猫 (2)")] + [("\u00e9", "e\u0301")]:
        save(tmp_path / f"images/{image}.JPG", NOISE)
        save(tmp_path / f"masks/{mask}.gif", BLOBS)
    for name in ("images/.DS_Store", "images/Thumbs.db", "masks/notes.txt", "masks/._cat.png"):
        (tmp_path / name).write_text("no image")
    _, layout = layout_of("folder", tmp_path)
    pairs = ["a b.c", "cat", "cat1", "猫 (2)"]
    assert set(pairs_of(layout)) == {
        *((f"images/{stem}.JPG", f"{stem}.gif") for stem in pairs),
        ("images/\u00e9.JPG", "e\u0301.gif"),
    }
    assert [item.image.stem for item in layout.items][:3] == pairs[:3] and len(read_all(layout)) == 5
    assert {(item.group, item.part) for item in layout.items} == {("", "")}


def place(folder, names):
    """An image for each name that ends with no suffix of a mask, a mask for each other, both as small as can be."""
    for name in names:
        save(folder / name, BLOBS)


@pytest.mark.parametrize("suffix", ["_mask", "-seg", ".label", " copy", "_L", "_ground_truth", "_Mask1"])
def test_masks_are_found_by_a_suffix(tmp_path, suffix):
    """In masks/, beside the images in images/, or all in the folder itself; some names begin with others."""
    for where, images in (("masks", "images/"), ("images", "images/"), (".", "")):
        folder, stems = tmp_path / f"with {where}", ["a", "a_1", "a_b", "a_mask_b", "b"]
        place(folder, [f"{images}{stem}.png" for stem in stems] + [f"{where}/{stem}{suffix}.gif" for stem in stems])
        _, layout = layout_of("folder", folder)
        assert sorted(pairs_of(layout)) == sorted((f"{images}{stem}.png", f"{stem}{suffix}.gif") for stem in stems)
        assert layout.patterns["mask_files"].startswith(f"{where.strip('.')}/{{name}}{suffix}.".lstrip("/"))
        assert layout_of("folder", folder, **layout.patterns)[1].items == layout.items


UNPAIRED = """images/cat masks/cat1 | nothing says which file is whose mask
images/cat masks/cat_1 | images/ with 1 .png: images/cat.png, masks/ with 1 .png
images/1 images/2 masks/1 masks/2_mask | images/2.png has no mask
images/a images/b masks/a_mask masks/b_seg | not used in
images/a masks/b_mask | nothing says
images/a images/b masks/a_mask | images/b.png has no mask
a b c a_mask b_mask | c.png has no mask
images/a images/b images/c images/d images/d_copy | --mask-files 'images/{name}_copy.png', or what is right
a b | nothing says
a_1 a_2 a | nothing says"""


@pytest.mark.parametrize("row", UNPAIRED.splitlines())
def test_what_makes_no_pairs(tmp_path, row):
    """A number tells images apart and is no suffix of a mask; two ways of naming are none."""
    names, problem = row.split(" | ")
    place(tmp_path, [f"{name}.png" for name in names.split()])
    with refused(problem):
        layout_of("folder", tmp_path)


@pytest.mark.parametrize("flat", [True, False])
def test_an_image_without_a_mask_and_skip_bad(tmp_path, flat):
    names = ["a.png", "b.png", "c.png", "a_mask.png", "b_mask.png", "d_mask.png"]
    place(tmp_path, [("" if flat else "masks/" if "mask" in name else "images/") + name for name in names])
    with refused("c.png has no mask, ", "d_mask.png has no image (--skip-bad goes on without)"):
        layout_of("folder", tmp_path)
    _, layout = layout_of("folder", tmp_path, skip_bad=True)
    assert [item.mask.name for item in layout.items] == ["a_mask.png", "b_mask.png"]
    image, mask = layout.left_out
    assert "c.png has no mask" in image and "d_mask.png has no image" in mask


@pytest.mark.parametrize("suffix", [".bmp", ".webp", ".BMP", ".WebP"])
def test_files_with_other_extensions_are_read_or_named(tmp_path, suffix):
    save_pairs(tmp_path, [BLOBS] * 2)
    for kind in ("images", "masks"):
        save(tmp_path / kind / f"z{suffix}", BLOBS, **({"lossless": True} if "w" in suffix.lower() else {}))
        for name in ("photo.heic", "scan.dcm", "Thumbs.db", ".DS_Store"):
            (tmp_path / kind / name).write_bytes(b"")
    _, layout = layout_of("folder", tmp_path)
    assert [item.image.name for item in layout.items] == ["0.png", "1.png", f"z{suffix}"]
    np.testing.assert_array_equal(layout.read(layout.items[2], 3, None)[1], BLOBS)
    assert len(layout.over) == 2
    assert layout.over[1].endswith(": images/photo.heic, images/scan.dcm, masks/photo.heic, masks/scan.dcm")


@pytest.mark.parametrize("suffix", [".gif", ".png"])
def test_carvana(tmp_path, suffix):
    for i, name in enumerate(("b_01", "b_02", "a_01")):
        save(tmp_path / f"train/{name}.jpg", NOISE + np.uint8(i))
        save(tmp_path / f"train_masks/{name}_mask{suffix}", palette_image([0, 0, 0, 255, 255, 255]))
    config, layout = layout_of("carvana", tmp_path)
    assert [(item.image.stem, item.group) for item in layout.items] == [("a_01", "a"), ("b_01", "b"), ("b_02", "b")]
    assert layout.items[0].name == "train/a_01.jpg" and layout.class_names == ("background", "car")
    for image, mask in read_all(layout):
        assert image.shape == (40, 48, 3)
        np.testing.assert_array_equal(mask, 255 * BLOBS)
    assert meaning_of(config, layout).classes == 1
    save(tmp_path / "train/c_01.jpg", NOISE)
    save(tmp_path / f"train_masks/c_02_mask{suffix}", BLOBS)
    with refused("train/c_01.jpg has no mask", f"train_masks/c_02_mask{suffix} has no image"):
        layout_of("carvana", tmp_path)


@pytest.fixture
def pets(tmp_path):
    """Four listed pets, one of which nobody lists, beside the litter of the real download."""
    trimap = np.array([2, 3, 1], np.uint8)[np.add.outer(np.arange(40), np.arange(48)) // 30]
    kinds = {"Abyssinian_1": "JPEG", "Bengal_2": "PNG", "Bengal_10": "GIF", "beagle_3": "BMP", "unlisted_4": "JPEG"}
    for name, kind in kinds.items():  # all are named .jpg
        save(tmp_path / f"images/{name}.jpg", GRAY if kind == "GIF" else NOISE, format=kind)
        save(tmp_path / f"annotations/trimaps/{name}.png", trimap)
        (tmp_path / f"annotations/trimaps/._{name}.png").write_bytes(b"\0\5\x16\7")
    (tmp_path / "images/Abyssinian_1.mat").write_bytes(b"MATLAB 5.0")
    (tmp_path / "annotations/trainval.txt").write_text("Bengal_2 6 1 2\nAbyssinian_1 1 1 1\n\nbeagle_3 5 2 2\n")
    (tmp_path / "annotations/test.txt").write_text("#Image CLASS-ID SPECIES BREED ID\nBengal_10 6 1 2\n")
    return tmp_path


def parts_of(layout):
    return {item.image.stem: item.part for item in layout.items}


def test_oxford_pet_follows_its_lists(pets):
    config, layout = layout_of("oxford_pet", pets)
    assert layout.items[0].name == "images/Abyssinian_1.jpg"
    assert parts_of(layout) == {"Abyssinian_1": "", "Bengal_10": "test", "Bengal_2": "", "beagle_3": ""}
    images = [image for image, _ in read_all(layout)]
    np.testing.assert_array_equal(images[1:], [GRAY, NOISE, NOISE])  # decoded by content, not by name
    with refused("--classes 4", "3 classes"):
        layout_of("oxford_pet", pets, classes=4)
    lists = pets / "annotations/trainval.txt"
    for line, texts in {"Bengal_10 1": ["listed before"], "pug_7 1": ["annotations/trainval.txt, has no image"]}.items():
        lists.write_text(line)
        with refused(line.split()[0], *texts):
            layout_of("oxford_pet", pets)
    for path in (lists, pets / "annotations/test.txt"):
        path.write_text("\n")
    assert not any(parts_of(layout_of("oxford_pet", pets)[1]).values())


def test_oxford_pet_without_its_lists(pets):
    """All photos that have a trimap; those of a list of tests stay apart."""
    (pets / "annotations/trainval.txt").unlink()
    (pets / "annotations/trimaps/beagle_3.png").unlink()
    _, layout = layout_of("oxford_pet", pets)
    assert parts_of(layout) == {"Abyssinian_1": "", "Bengal_10": "test", "Bengal_2": "", "unlisted_4": ""}
    assert layout.note == "4 of 5 images have a mask"
    (pets / "annotations/test.txt").unlink()
    _, layout = layout_of("oxford_pet", pets)
    assert {*parts_of(layout).values()} == {""} and layout.note == "4 of 5 images have a mask" and not layout.left_out
    for path in (pets / "annotations/trimaps").glob("[!.]*"):
        path.unlink()
    with refused("--mask-files 'annotations/trimaps/{name}.png' no file fits", "images/ with 5 .jpg"):
        layout_of("oxford_pet", pets)


@pytest.mark.parametrize(
    "options, classes, table, names, void",
    [
        ({}, 3, [1, 0, 2], "background,pet,outline", None),
        ({"classes": 1}, 1, [1, 0, 0], "background,pet", None),
        ({"classes": 2}, 2, [1, 0, 0], "background,pet", None),
        ({"void_label": 3}, 1, [1, 0, VOID], "background,pet", 3),
    ],
)
def test_trimaps(pets, options, classes, table, names, void):
    config, layout = layout_of("oxford_pet", pets, **options)
    meaning = meaning_of(config, layout)
    assert (meaning.classes, meaning.table[1:4].tolist(), str(layout.class_names)) == (classes, table, names)
    assert meaning.void_label == void
    save(pets / "annotations/trimaps/Bengal_2.png", BLOBS)
    with refused("Bengal_2.png", "value 0", "oxford_pet"):
        meaning_of(config, layout)


def save_stack(path, pages):
    first, *rest = [Image.fromarray(page) for page in pages]
    return save(path, first, save_all=True, append_images=rest)


def test_isbi_reads_pages(tmp_path):
    pages = RNG.integers(0, 256, (11, 20, 24), dtype=np.uint8)
    labels = np.where(pages > 99, 255, 0).astype(np.uint8)
    save_stack(tmp_path / "train-volume.tif", pages)
    save_stack(tmp_path / "train-labels.tif", labels)
    config, layout = layout_of("isbi", tmp_path)
    assert [item.name for item in layout.items] == [f"train-volume.tif[{i:02}]" for i in range(11)]
    assert layout.items == sorted(layout.items, key=lambda item: item.name)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda item: layout.read(item, 1, None), layout.items * 5))
    np.testing.assert_array_equal([image[..., 0] for image, _ in found], np.tile(pages, (5, 1, 1)))
    np.testing.assert_array_equal([mask for _, mask in found], np.tile(labels, (5, 1, 1)))
    assert meaning_of(config, layout).table[[0, 255]].tolist() == [0, 1]
    assert layout.class_names == ("membrane", "cell")

    for part in ("train", "val"):  # stacks of one name in two folders are two
        for kind, stack in (("images", pages[:3]), ("masks", labels[:3])):
            save_stack(tmp_path / f"parts/{part}/{kind}/a.tif", stack)
    config, layout = layout_of("folder", tmp_path / "parts")
    assert split(layout.items, config) == {"train": [0, 1, 2], "val": [3, 4, 5]}
    with refused("2 groups do not make 5 parts: use fewer --folds"):
        split(layout.items, config.replace(folds=5, fold=0))
    with refused("is the --data-dir too: name a folder of its own"):
        config.replace(cache=tmp_path / "parts")

    save_stack(tmp_path / "train-labels.tif", labels[:9])
    with refused("train-volume.tif has 11 pages", "train-labels.tif has 9"):
        layout_of("isbi", tmp_path)
    (tmp_path / "train-labels.tif").unlink()
    with refused("train-volume.tif has no mask", "isbi"):
        layout_of("isbi", tmp_path)


@pytest.fixture
def rooms(tmp_path):
    """-> (folder with a small nyu_depth_v2_labeled.mat, images [N, H, W, 3], labels [N, H, W])"""
    images = RNG.integers(0, 256, (10, 24, 32, 3), dtype=np.uint8)
    labels = RNG.choice(np.array([0, 5, 300, 894, 21], np.uint16), (10, 24, 32), p=[0.1, 0.2, 0.4, 0.05, 0.25])
    with h5py.File(tmp_path / "nyu_depth_v2_labeled.mat", "w") as file:
        file["images"] = images.transpose(0, 3, 2, 1)
        file["labels"] = labels.transpose(0, 2, 1)
        for label in range(1, 895):
            file[f"#refs#/{label}"] = np.array([[ord(letter)] for letter in f"thing {label}"], np.uint16)
        references = [file[f"#refs#/{label}"].ref for label in range(1, 895)]
        file.create_dataset("names", data=np.array([references], dtype=h5py.ref_dtype))
    return tmp_path, images, labels


@pytest.mark.parametrize("classes, kept", [(None, [300, 21, 5, 894]), (3, [300, 21, 5]), (1, [300, 21])])
def test_nyuv2_keeps_the_most_frequent_labels(rooms, classes, kept):
    folder, images, labels = rooms
    expected = np.full(labels.shape, VOID, np.uint8)
    for index, label in enumerate(kept):
        expected[labels == label] = index
    for data_dir in (folder, folder / "nyu_depth_v2_labeled.mat"):
        config, layout = layout_of("nyuv2", data_dir, classes=classes)
        assert layout.items[9].name == "nyu_depth_v2_labeled.mat[9]"
        assert layout.class_names == tuple(f"thing {label}" for label in kept)
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(layout.read, layout.items, [3] * 10, [None] * 10))
        np.testing.assert_array_equal([image for image, _ in found], images)
        np.testing.assert_array_equal([mask for _, mask in found], expected)
    image, mask = layout.read(layout.items[0], 1, None)
    assert image.shape == (24, 32, 1) and mask.shape == (24, 32) and find_channels(layout) == 3
    meaning = meaning_of(config, layout)
    assert meaning.classes == (classes or 4) and meaning.void_label == VOID and "255 is void" in meaning.note
    np.testing.assert_array_equal(meaning.table[: len(kept)], range(len(kept)))


def test_nyuv2_that_is_no_nyuv2(rooms):
    folder = rooms[0]
    path = folder / "nyu_depth_v2_labeled.mat"
    with refused(path, "4 labels", "--classes 9"):
        layout_of("nyuv2", folder, classes=9)
    with h5py.File(path, "a") as file:
        del file["labels"]
    with refused(path, "labels"):
        layout_of("nyuv2", folder)
    with h5py.File(path, "a") as file:
        file["labels"] = np.zeros((10, 24, 32), np.uint16)
    with refused(path, "(10, 3, 32, 24)", "(10, 24, 32)"):
        layout_of("nyuv2", folder)
    for content in (b"MATLAB 5.0 MAT-file", b""):
        path.write_bytes(content)
        with refused("cannot read", path):
            layout_of("nyuv2", folder)
    path.unlink()
    with refused(path, "is missing", "--data-dir"):
        layout_of("nyuv2", folder)


COLORS = "# of CamVid\nsky 128 128 128\n\nbuilding  128 0 0  # brick\nroad marking 128 64 128\nvoid 0 0 0\n"


def test_masks_of_colours(tmp_path):
    indices = RNG.choice([0, 1, 2, VOID], (40, 48), p=[0.3, 0.3, 0.3, 0.1]).astype(np.uint8)
    palette = np.zeros((256, 3), np.uint8)
    palette[:3] = (128, 128, 128), (128, 0, 0), (128, 64, 128)
    save_pairs(tmp_path, [palette[indices], palette_image(palette.ravel().tolist(), indices), palette[0 * indices]])
    wide = (palette[indices].astype(np.uint16) << 8) + RNG.integers(0, 256, (40, 48, 1), dtype=np.uint16)
    save(tmp_path / "images/3.png", NOISE)
    cv2.imwrite(str(tmp_path / "masks/3.png"), wide[..., ::-1])  # of 16 bits: the upper 8 tell the class
    colors = tmp_path / "colors.txt"
    colors.write_text("\ufeff" + COLORS, encoding="utf-8")  # as Windows' editor saves it
    config, layout = layout_of("folder", tmp_path, colors=colors)
    for (_, mask), expected in zip(read_all(layout), [indices, indices, 0 * indices, indices]):
        np.testing.assert_array_equal(mask, expected)
    meaning = meaning_of(config, layout)
    assert (meaning.classes, meaning.void_label, layout.class_names) == (3, VOID, ("sky", "building", "road marking"))

    wrong = palette[indices]
    wrong[0, :3], wrong[1, 0] = (1, 2, 3), (9, 9, 9)
    save(tmp_path / "masks/1.png", wrong)
    with refused("1.png", "3 pixels", "1 2 3", "1 more", colors):
        read_all(layout)
    config, layout = layout_of("folder", tmp_path, colors=colors, void_label=255)
    assert (layout.read(layout.items[1], 3, None)[1][0, :3] == VOID).all()
    with refused("3 classes", "--classes is 2"):
        layout_of("folder", tmp_path, colors=colors, classes=2)


@pytest.mark.parametrize(
    "text, problem",
    [
        (b"sky 1 2\n", "line 1"),
        (b"a 0 0 0\nb 0 0 256\n", "line 2"),
        (b"a 0 0 0\n\nb 0 0 0\n", "line 3"),
        (b"a 0 0 0\na 1 1 1\n", "line 2"),
        (b"a 0 0 0\nvoid 1 1 1\n", "names 1 classes"),
        (b"", "names 0 classes"),
        (b"\xff\xfe\x00", "UTF-8"),
        (None, "No such file"),
    ],
)
def test_files_of_colours_that_are_refused(tmp_path, text, problem):
    save_pairs(tmp_path, [BLOBS])
    if text is not None:
        write(tmp_path / "colors.txt", text)
    with refused(tmp_path / "colors.txt", problem):
        layout_of("folder", tmp_path, colors=tmp_path / "colors.txt")


LISTS = {
    "CVAT": "# label:color_rgb:parts:actions\nbackground:0,0,0::\ncar:250,50,83::\nroad sign:51,221,255::\n",
    "class_dict.csv": "name,r,g,b\nbackground,0,0,0\ncar,250,50,83\nroad sign,51,221,255\n",
    "colour first": "0 0 0\tbackground\n250 50 83\tcar\n51 221 255\troad sign\n",
    "numbered": "1;background;0;0;0\n2;car;250;50;83\n3;road sign;51;221;255\n",
    "background last": "car 250 50 83\nroad sign 51 221 255\nbackground 0 0 0\nVoid 9 9 9\n",
    "Roboflow": "Pixel Value, Class\n0, background\n1, car\n2, road sign\n",
    "name and number": "background 0\ncar 1\nroad sign 2\n",
    "number: name": "0: background\n1: car\n2: road sign\n",
    "sparse": "0 background\n7 car\n9 road sign\n",
}


@pytest.mark.parametrize("kind", LISTS)
def test_published_class_lists(tmp_path, kind):
    indices = RNG.choice([0, 1, 2, VOID], (40, 48), p=[0.4, 0.3, 0.2, 0.1]).astype(np.uint8)
    found = class_list(LISTS[kind], "it")[1]
    keys = {index: key for key, index in found.items()}
    unnamed = (1, 2, 3) if isinstance(keys[0], tuple) else 200
    mask = np.array([keys[k] if k < 3 else unnamed for k in indices.ravel()], np.uint8).reshape(*indices.shape, -1)
    save_pairs(tmp_path, [mask.squeeze()] * 2)
    write(tmp_path / "list.txt", LISTS[kind].encode())
    config, layout = layout_of("folder", tmp_path, colors=tmp_path / "list.txt", void_label=255)
    assert layout.class_names == ("background", "car", "road sign") and len(layout.over) == 1, "the list is used"
    table = meaning_of(config, layout).table
    np.testing.assert_array_equal(table[layout.read(layout.items[0], 3, None)[1]], indices)
    with refused(
        "1 2 3" if isinstance(keys[0], tuple) else "holds the value 200"
    ):  # what is not named is void, if that is said
        meaning_of(*layout_of("folder", tmp_path, colors=tmp_path / "list.txt"))
    assert names_of(tmp_path / "list.txt") == layout.class_names


def names_of(path):
    return Config.of(dataset="folder", data_dir=path.parent, class_names=Names([str(path)])).data.class_names


def test_names_alone(tmp_path):
    write(tmp_path / "codes.txt", b"Sky\nBuilding, old\n\nPole\nPole\n")
    assert names_of(tmp_path / "codes.txt") == ("Sky", "Building old", "Pole", "Pole 2")


def test_links_and_pointers(tmp_path):
    save_pairs(tmp_path, [BLOBS] * 2)
    (tmp_path / "images/0.png").unlink()
    (tmp_path / "images/0.png").symlink_to("/gone/0.png")
    write(tmp_path / "images/1.png", b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 20310\n")
    _, layout = layout_of("folder", tmp_path)
    for item, text in zip(
        layout.items, ("it is a broken link, to /gone/0.png", "pointer of Git LFS and not yet the file: git lfs pull")
    ):
        with refused(item.image, text):
            layout.read(item, 3, None)


GUESSED = """img/%.jpg gt/%.png | img/{name}.jpg gt/{name}.png
train_images/%.jpg train_masks/%.png test_images/t%.jpg | {part}_images/{name}.jpg {part}_masks/{name}.png
images/img_%.jpg labels/lbl_%.png | images/img_{name}.jpg labels/lbl_{name}.png
%.png mask_%.png | {name}.png mask_{name}.png
%.jpg %.png | {name}.jpg {name}.png
p%/images/a.png p%/masks/a.png | {group}/images/{name}.png {group}/masks/{name}.png
s/%.jpg s/%_mask.png t/x%.jpg t/x%_mask.png | */{name}.* */{name}_mask.*
img_dir/train/%.jpg ann_dir/train/%.png | img_dir/{part}/{name}.jpg ann_dir/{part}/{name}.png
images/%.png masks/%.png out/%.png | images/{name}.png masks/{name}.png
images/%.png masks/%.png edge_masks/%.png | images/{name}.png masks/{name}.png
s2_tif/%.tif mask/%.mask.tif | s2_tif/{name}.tif mask/{name}.mask.tif"""


@pytest.mark.parametrize("row", GUESSED.splitlines())
def test_common_trees_are_guessed(row):
    """% stands for the numbers of a dozen images."""
    tree, patterns = row.split(" | ")
    files = [pattern.replace("%", f"{i:02}") for pattern in tree.split() for i in range(12)]
    assert guess(sorted(set(files))) == (tuple(patterns.split()), True)


PATTERNS = [("a/{x}.png", "b/{name}.png", "has {x}"), ("a/*.png", "b/{name}.png", "lacks {name}")]
PATTERNS += [("a/{name}.*", "b/{name}.*", "no file fits"), ("images/{name}.*", "masks/{name}_*.*", "images/0.png has no mask")]


@pytest.mark.parametrize("images, masks, text", PATTERNS)
def test_patterns_that_find_nothing(tmp_path, images, masks, text):
    save_pairs(tmp_path, [BLOBS] * 2)
    with refused(text):
        layout_of("folder", tmp_path, image_files=images, mask_files=masks)


def test_lists_lead_nowhere_else(tmp_path):
    """A name in a published list is looked up among the files below --data-dir."""
    for name in "ab":
        save(tmp_path / f"d/JPEGImages/{name}.jpg", NOISE)
        save(tmp_path / f"d/SegmentationClass/{name}.png", BLOBS)
    save(tmp_path / "secret.jpg", NOISE)
    write(tmp_path / "d/ImageSets/Segmentation/train.txt", b"a\n../../secret\n")
    with refused("../../secret, listed in ImageSets/Segmentation/train.txt, has no image"):
        layout_of("voc", tmp_path / "d")


# what is decoded


IMAGES = {  # stored, shown
    "gray.png": (NOISE[..., 0], GRAY),
    "colour.TIF": (NOISE, NOISE),
    "alpha.png": (np.dstack([NOISE, np.full_like(NOISE[..., :1], 200)]), NOISE),
    "gray_alpha.png": (Image.merge("LA", [Image.fromarray(NOISE[..., 0]), Image.new("L", (48, 40), 255)]), GRAY),
    "colour.bmp": (NOISE, NOISE),
    "gray.bmp": (NOISE[..., 0], GRAY),
    "cmyk.tif": (Image.fromarray(NOISE).convert("CMYK"), NOISE),
    "gray.gif": (NOISE[..., 0], GRAY),
    "1bit.png": (BLOBS.astype(bool), np.repeat(255 * BLOBS[..., None], 3, axis=-1)),
    "palette.png": (palette_image([10, 20, 30, 200, 100, 50]), np.array([[10, 20, 30], [200, 100, 50]])[BLOBS]),
}


@pytest.mark.parametrize("name", IMAGES)
def test_images_of_8_bits_come_as_they_are_stored(tmp_path, name):
    stored, shown = IMAGES[name]
    path = save(tmp_path / name, stored)
    for channels, expected in ((3, shown), (1, shown @ [[0.299], [0.587], [0.114]])):
        image = read_image(path, channels)
        assert image.dtype == np.uint8 and image.shape == (40, 48, channels)
        np.testing.assert_allclose(image, expected, atol=0 if channels == 3 else 1)  # 1: rounding


@pytest.mark.parametrize(
    "name, stored, expected",
    [
        ("0_1.png", BLOBS, BLOBS),
        ("0_255.png", 255 * BLOBS, 255 * BLOBS),
        ("rgb.png", np.repeat(255 * BLOBS[..., None], 3, axis=-1), 255 * BLOBS),
        ("rgba.png", np.dstack([7 * BLOBS] * 3 + [0 * BLOBS + 99]), 7 * BLOBS),
        ("mask.bmp", 255 * BLOBS, 255 * BLOBS),
        ("1bit.png", BLOBS.astype(bool), 255 * BLOBS),  # white, as among masks of 8 bits
        ("16bit.png", BLOBS.astype(np.uint16), BLOBS),
        ("16bit.tif", BLOBS.astype(np.uint16) * 65535, 255 * BLOBS),
        ("float.tif", BLOBS.astype(np.float32), BLOBS),
        ("black_white.gif", palette_image([0, 0, 0, 255, 255, 255]), 255 * BLOBS),  # as Carvana's
        ("white_black.png", palette_image([255, 255, 255, 0, 0, 0]), 255 * (1 - BLOBS)),
        ("grays.png", palette_image([0, 0, 0, 7, 7, 7]), 7 * BLOBS),  # a tool has made a gray image smaller
        ("colours.png", palette_image([0, 0, 0, 128, 0, 0]), BLOBS),  # as Pascal VOC's
        # 2 is red in other pixels than these: what 1 means must not depend on them
        ("unused.png", palette_image([0, 0, 0, 255, 255, 255, 255, 0, 0]), BLOBS),
    ],
)
def test_masks_of_all_kinds_keep_their_values(tmp_path, name, stored, expected):
    path = save(tmp_path / name, stored)
    mask = read_mask(path)
    assert mask.dtype == np.uint8
    np.testing.assert_array_equal(mask, expected)
    # of two pixels equally near the later one
    np.testing.assert_array_equal(nearest(mask, Size(20, 24)), expected[1::2, 1::2])


DEEP = RNG.integers(0, 65536, (40, 48, 3), dtype=np.uint16)


def save_deep(path, values, **options):
    """uint16 [H, W] or [H, W, C] as PNG, which Pillow does not write in colours of 16 bits, or as TIFF."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".png":
        path.write_bytes(png(values.shape[1], values.shape[0], values, 16))
    else:
        tifffile.imwrite(path, values, **options)
    return path


@pytest.mark.parametrize("bands", [1, 3])
@pytest.mark.parametrize("compression", [None, "deflate"])
@pytest.mark.parametrize("name, byteorder", [("a.png", None), ("a.tif", "<"), ("a.tif", ">")])
def test_16_bits_stay_16_bits(tmp_path, name, byteorder, compression, bands):
    """Of 16-bit colours Pillow keeps 8 bits."""
    values = DEEP if bands == 3 else DEEP[..., 0]
    options = {"photometric": "rgb" if bands == 3 else "minisblack", "byteorder": byteorder, "compression": compression}
    save_deep(tmp_path / name, values, **options)
    shown = DEEP if bands == 3 else np.repeat(DEEP[..., :1], 3, axis=-1)
    for channels, expected in ((3, shown), (1, shown @ [[0.299], [0.587], [0.114]])):
        image = read_image(tmp_path / name, channels)
        assert image.dtype == np.uint16 and image.shape == (40, 48, channels)
        np.testing.assert_allclose(image, expected, atol=0 if channels == 3 else 1)  # 1: rounding
        half = read_image(tmp_path / name, channels, Size(20, 24))
        means = image.reshape(20, 2, 24, 2, channels).mean(axis=(1, 3))
        assert abs(half[2:-2, 2:-2] - means[2:-2, 2:-2]).mean() < 6000  # triangles weigh four pixels each way, a mean two


@pytest.mark.parametrize("white", [None, 255, 200, 5100, 65535])
def test_the_scale_is_that_of_the_data_set(white):
    """Pixel 1000 is the same in every file, however bright the others in it are; 8 bits end at 255 always."""
    eight, kind = on_scale(np.array([0, 128, 255], np.uint8), white, "a.png"), np.uint8 if (white or 0) < 256 else np.uint16
    assert eight.dtype == kind
    np.testing.assert_allclose(eight / (white or 255), [0, 128 / 255, 1], atol=0.5 / (white or 255))
    np.testing.assert_allclose(in_8_bits(eight, white or 255), [0, 128, 255], atol=1)
    sixteen = np.array([0, 100, 1000, 40000], np.uint16)
    if white is None:
        with refused("b.tif has 16 bits", "8 bits"):
            on_scale(sixteen, white, "b.tif")
    else:
        found = on_scale(sixteen, white, "b.tif")
        assert found.dtype == kind
        np.testing.assert_array_equal(found, np.minimum(sixteen, white))


@pytest.mark.parametrize("white", [255, 4095, 65535])
def test_the_contrast_of_an_image_is_stretched(white):
    """A thousand values, of which the lowest ten become black and the highest two white; all bands of a colour by one curve."""
    values = np.arange(1000).reshape(25, 40, 1)
    image = (values * (white // 255) // 4).astype(np.uint8 if white == 255 else np.uint16)
    for channels in (1, 3):
        found = stretched(image.repeat(channels, -1), white)
        assert found.dtype == image.dtype and found.shape == (25, 40, channels)
        low, high = np.sort(image.ravel())[[9, 997]].astype(float)
        expected = ((image - low) / (high - low)).clip(0, 1) * white
        np.testing.assert_allclose(found, expected.repeat(channels, -1), atol=0.5 + 1e-6)
    dark = np.concatenate([image, image // 8], -1)
    found = stretched(np.concatenate([dark, dark[..., :1] * 0], -1), white)  # a colour: its bands keep their ratio
    assert found[..., 1].max() < white / 3 and (found[..., 2] == 0).all()
    assert (stretched(dark, white).max((0, 1)) == white).all(), "two bands, each by itself"
    empty = np.full((64, 64, 1), 7, np.uint8)
    empty[0, :5] = 8
    np.testing.assert_array_equal(stretched(empty), empty)
    assert stretched(np.zeros((2, 2, 600), np.uint8)).shape == (2, 2, 600)


@pytest.mark.parametrize("compression", [None, "deflate"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_where_0_is_white_the_values_are_turned(tmp_path, dtype, compression):
    most = np.iinfo(dtype).max
    values = NOISE[..., 0].astype(dtype) * dtype(most // 255)
    tifffile.imwrite(tmp_path / "a.tif", most - values, photometric="miniswhite", compression=compression)
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif", 1)[..., 0], values)
    tifffile.imwrite(tmp_path / "m.tif", (1 - BLOBS) * dtype(most), photometric="miniswhite", compression=compression)
    np.testing.assert_array_equal(read_mask(tmp_path / "m.tif"), 255 * BLOBS)


@pytest.mark.parametrize(
    "mode, suffix", [("RGBA", ".png"), ("LA", ".png"), ("RGBA", ".tif"), ("LA", ".tif"), ("RGBA", ".webp")]
)
def test_a_fourth_band_that_varies_is_refused(tmp_path, mode, suffix):
    """It may be infrared as well as transparency; where it is the same everywhere it says nothing."""

    def write_band(band):
        bands = [Image.fromarray(NOISE[..., 0])] * (len(mode) - 1)
        return save(tmp_path / f"a{suffix}", Image.merge(mode, [*bands, band]), lossless=True)

    for alpha in (255, 254):
        path = write_band(Image.new("L", (48, 40), alpha))
        np.testing.assert_allclose(read_image(path, 1)[..., 0], NOISE[..., 0], atol=1)  # 1: rounding to gray
    write_band(Image.fromarray(255 - BLOBS))
    for read in (lambda: read_image(path, 1), lambda: read_image(path, 3, Size(20, 24)), lambda: read_mask(path)):
        with refused(path, f"{len(mode)} bands", "save the image without it"):
            read()


def test_16_bit_transparency_is_refused_or_dropped(tmp_path):
    alpha = np.full((40, 48, 1), 65535, np.uint16)
    np.testing.assert_array_equal(read_image(save_deep(tmp_path / "a.png", np.dstack([DEEP, alpha])), 3), DEEP)
    with refused("a.png", "bands"):
        read_image(save_deep(tmp_path / "a.png", np.dstack([DEEP, DEEP[..., :1]])), 3)
    gray = read_image(save_deep(tmp_path / "a.png", np.dstack([DEEP[..., :1], alpha])), 3)
    np.testing.assert_array_equal(gray, DEEP[..., :1].repeat(3, -1))


@pytest.mark.parametrize("shape, size", [((1280, 1918), (320, 480)), ((640, 960), (600, 900)), ((300, 400), (400, 800))])
def test_a_jpeg_decoded_at_a_smaller_scale_shows_the_same(tmp_path, shape, size):
    photo = Image.fromarray(RAMP).resize(shape[::-1], Image.BICUBIC)
    path = save(tmp_path / "photo.jpg", photo, quality=95)
    for channels, mode in ((1, "L"), (3, "RGB")):
        expected = np.asarray(photo.resize(size[::-1], Image.BOX).convert(mode))
        difference = read_image(path, channels, Size(*size)).astype(int) - expected.reshape(*size, channels)
        # 4: JPEG at 95 and rounding; a shift by a pixel of the small image is worth 1 only, so the mean is bounded as well
        assert abs(difference).max() <= 4 and abs(difference.mean(axis=(0, 1))).max() < 0.3


def test_a_jpeg_decoded_at_a_smaller_scale_keeps_its_place(tmp_path):
    """An eighth of 409 pixels is decoded as 52, of which 51.125 are the image; all 52 would stretch it by 4.5 at the end."""
    ramp = np.tile((np.arange(409) + 0.5) / 409 * 255, (409, 1)).round().astype(np.uint8)
    for axis, image in ((1, ramp), (0, ramp.T.copy())):
        profile = read_image(save(tmp_path / "ramp.jpg", image, quality=95), 1, Size(51, 51))[..., 0].mean(axis=1 - axis)
        np.testing.assert_allclose(profile, (np.arange(51) + 0.5) / 51 * 255, atol=1)  # 1: rounding, twice


def test_a_jpeg_keeps_detail_and_does_not_alias(tmp_path):
    waves = np.tile(127.5 + 100 * np.sin(np.arange(960) * np.pi / 4), (640, 1)).round().astype(np.uint8)
    path = save(tmp_path / "waves.jpg", waves, quality=95)
    shrunk = np.asarray(Image.fromarray(waves).resize((480, 320), Image.BILINEAR))
    assert read_image(path, 1, Size(320, 480)).std() > 0.9 * shrunk.std()  # from a quarter of the size it would be 0.55
    board = (np.indices((640, 960)).sum(axis=0) % 2 * 255).astype(np.uint8)
    image = read_image(save(tmp_path / "board.jpg", board, quality=95), 1, Size(200, 300))
    np.testing.assert_allclose(image, 127.5, atol=4)  # a checkerboard of single pixels is gray from afar


ORIENTED = {  # EXIF orientation: what a viewer does to the stored array to show it upright
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: np.rot90,
}


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif"])
def test_photos_come_upright(tmp_path, suffix):
    for orientation, turn in ORIENTED.items() if suffix == ".jpg" else [(6, ORIENTED[6]), (4, ORIENTED[4])]:
        exif = Image.Exif()
        exif[274] = orientation
        path = save(tmp_path / f"photo{suffix}", RAMP, exif=exif, **({"quality": 95} if suffix == ".jpg" else {}))
        upright = np.ascontiguousarray(turn(RAMP))
        np.testing.assert_allclose(read_image(path, 3).astype(int), upright, atol=4)  # 4: JPEG at 95
        small = Size(upright.shape[0] // 4, upright.shape[1] // 4)
        expected = np.asarray(Image.fromarray(upright).resize(small[::-1], Image.BOX)).astype(int)
        np.testing.assert_allclose(read_image(path, 3, small), expected, atol=4)

        mask = save(tmp_path / "mask.png", np.ascontiguousarray(upright[..., 0]))
        assert read_pair(path, [mask], 3)[1].shape == upright.shape[:2]
        if orientation >= 5 and suffix != ".tif":
            save(mask, RAMP[..., 0])
            with refused("photo" + suffix, "is 320x480 pixels", "mask.png is 480x320", "EXIF orientation"):
                read_pair(path, [mask], 3)


def test_a_mask_as_large_as_another_image_is_refused(tmp_path):
    save(save_pairs(tmp_path, [BLOBS]) / "masks/0.png", BLOBS[:, :40])
    _, layout = layout_of("folder", tmp_path)
    for size in (None, Size(20, 24)):
        with refused("images/0.png is 48x40", "masks/0.png is 40x40"):
            layout.read(layout.items[0], 3, size)


def test_channels_are_those_of_the_images(tmp_path):
    image = np.asarray(Image.fromarray(GRAY)).copy()
    image[0, 0] += np.array([0, 1, 2], np.uint8)  # a rounding of JPEG
    save_pairs(tmp_path, [BLOBS] * 9, image)
    _, layout = layout_of("folder", tmp_path)
    assert find_channels(layout) == 1
    (tmp_path / "images/0.png").write_bytes(b"")  # reported when it is decoded
    assert find_channels(layout) == 1
    image[0, 0] = 100, 104, 100
    save(tmp_path / "images/8.png", image)
    assert find_channels(layout) == 3


# what the values mean


def meaning(*values, suffix=".png", last=None, last_suffix=None, **options):
    """`mask_meaning` of one mask for each of `values`, the values that it holds, or their counts, and of a `last` one."""
    suffixes = [suffix] * len(values)
    if last:
        values, suffixes = [*values, last], [*suffixes, last_suffix]
    items = [Item(f"images/{i}.png", Path(f"images/{i}.png"), Path(f"masks/{i}{end}")) for i, end in enumerate(suffixes)]
    counts = np.zeros((len(values), 256), int)
    for row, held in zip(counts, values):
        row[list(held)] = list(held.values()) if isinstance(held, dict) else 1
    config = Config.of(dataset="folder", data_dir=Path("."), **options)
    found = mask_meaning(counts, items, config, Layout(items, None))
    assert found.table.dtype == np.uint8 and found.table.shape == (256,)
    return found


FOUND = [  # masks, options, classes, void, {value: class index}, note
    ([[0], [0, 1]], {}, 1, None, {0: 0, 1: 1}, "0/1"),
    ([[0], [0, 255]], {}, 1, None, {0: 0, 255: 1}, "0/255 read as 0/1"),
    ([[0], [0, 255]], {"classes": 2}, 2, None, {0: 0, 255: 1}, "0/255 read as 0/1"),
    ([[0], [0]], {"classes": 1}, 1, None, {0: 0}, "0/1"),
    ([[0, 1, 2]], {}, 3, None, {0: 0, 1: 1, 2: 2}, "3 classes from mask values 0 to 2"),
    ([[0, 2], [1, 2], [0, 255]], {}, 3, 255, {0: 0, 1: 1, 2: 2, 255: VOID}, "255 is void"),
    ([range(7), range(8, 12)], {}, 12, None, {11: 11}, "12 classes from mask values 0 to 11 without 7"),
    ([[0, 3]], {"classes": 12}, 12, None, {0: 0, 3: 3, 11: 11}, "12 classes"),
    ([[0, 1, 255]], {"classes": 12}, 12, 255, {1: 1, 255: VOID}, "255 is void"),
    ([[0, 1], [0, 255]], {"void_label": 255}, 1, 255, {0: 0, 1: 1, 255: VOID}, "255 is void"),
    ([[0, 128, 255]], {"void_label": 128}, 1, 128, {0: 0, 128: VOID, 255: 1}, "128 is void"),
    ([[0, 1, 2, 9]], {"void_label": 9, "classes": 4}, 4, 9, {2: 2, 9: VOID}, "9 is void"),
    ([[0, 1, 2, 3], [0, 4]], {"void_label": 0}, 4, 0, {0: VOID, 1: 0, 2: 1, 4: 3}, "from mask values 1 to 4, 0 is void"),
    ([[0, 1, 2]], {"void_label": 0, "classes": 4}, 4, 0, {0: VOID, 1: 0, 4: 3}, "4 classes"),
    ([[0, 1, 2]], {"void_label": 0}, 1, 0, {0: VOID, 1: 0, 2: 1}, "2 classes from mask values 1 to 2"),
    ([[0, 1, 3], [4]], {"void_label": 2}, 4, 2, {1: 1, 2: VOID, 3: 2, 4: 3}, "4 classes from mask values 0 to 4, 2 is void"),
    ([[5, 7]], {"mask_values": Values([5, 6, 7])}, 3, None, {5: 0, 6: 1, 7: 2}, "3 classes from mask values 5 to 7"),
    ([[3, 9, 255]], {"mask_values": Values([9, 3])}, 1, 255, {9: 0, 3: 1, 255: VOID}, "2 classes from mask values 9, 3"),
    ([[0, 1]], {"void_label": 255}, 1, 255, {0: 0, 1: 1, 255: VOID}, "255 is void"),
]


@pytest.mark.parametrize("masks, options, classes, void, table, note", FOUND)
def test_what_mask_values_mean(masks, options, classes, void, table, note):
    found = meaning(*masks, **options)
    assert (found.classes, found.void_label) == (classes, void)
    assert {value: found.table[value] for value in table} == table
    assert note in found.note and "\n" not in found.note


def test_jpeg_masks_are_black_and_white():
    for options in ({}, {"classes": 1}, {"classes": 2}):
        found = meaning({0: 50, 1: 9, 3: 9, 127: 1, 128: 1, 250: 9, 255: 50}, [0, 2], suffix=".jpg", **options)
        np.testing.assert_array_equal(found.table, [0] * 128 + [1] * 128)
        assert found.classes == options.get("classes", 1) and found.void_label is None and "JPEG" in found.note


JPEG_LOSES, ODD = "JPEG does not keep", [[0, 255]] * 5  # five masks beside the odd one
MISFITS = [  # masks, options, words of the message
    ([[0], [0]], {}, ["all 2 masks", "only the value 0", "--classes"]),
    ([[9], [9]], {"void_label": 9}, ["no value of a class (and void)"]),
    ([[0], [0, 2]], {}, ["masks/1.png holds 2 values (0, 2)", "--classes 3"]),
    ([[0], [0, 2]], {"classes": 1}, ["1.png holds 2 values (0, 2)", "--classes 1 takes 0/1", "--classes 3"]),
    ([[0, 1], [0, 255]], {}, ["1.png", "(0, 255)", "the other 1 hold 0 and 1", "--void-label 255"]),
    ([[0, 1], [0, 255]], {"classes": 1}, ["1.png", "the other 1 hold 0 and 1", "--void-label 255"]),
    ([[0, 38], [0, 75]], {}, ["0.png holds 2 values (0, 38)", "--classes 76 if", "--mask-values 0,38,75 if", "--colors"]),
    ([[0, 5, 15, 255]], {}, ["--classes 16 if", "--mask-values 0,5,15 if"]),  # of VOC
    ([[0, 255], range(256)], {}, ["1.png holds 256 values", "smoothed edges"]),
    ([[0, 1], range(16)], {"classes": 12}, ["16 values (0, 1, 2, 3, 4, 5, ..., 15)", "12 takes 0 to 11", "--classes 16 if"]),
    ([[0, 255]], {"classes": 4}, ["0.png", "--classes 4 takes 0 to 3", "--void-label 255"]),
    ([[255]], {"classes": 4}, ["0.png", "--classes 4 takes 0 to 3"]),
    ([[0, 1, 2, 9, 255]], {"void_label": 9, "classes": 3}, ["0.png", "255", "--classes 3"]),
    ([*ODD, [0, 128, 255]], {}, ["1 of 6 masks: masks/5.png", "(0, 128, 255)", "0 and 255", "--void-label 128"]),
    ([[0, 1], [0, 128, 255], [0, 255], [0], *ODD], {"classes": 1}, ["2 of 9 masks: masks/0.png"]),
    ([[0, 7, 9]] + [[0, 1]] * 4, {}, ["1 of 5 masks: masks/0.png", "the other 4 hold 0 and 1", "mend"]),
    ([[0, 1, 2, 3]] * 5 + [[0, 1, 77]], {}, ["1 of 6 masks: masks/5.png", "0 to 3", "--void-label 77"]),
    ([*ODD, range(256)], {}, ["1 of 6 masks: masks/5.png", "256 values", "smoothed edges"]),
    (ODD, {"last": [0, 3, 255], "last_suffix": ".jpg", "classes": 3}, ["--classes 3"]),
    ([[0, 1, 2, 3, 4]], {"void_label": 0, "classes": 3}, ["takes 1 to 3", "--classes 4 if"]),
    ([[1, 2]], {"mask_values": Values([0, 1])}, ["0.png holds the value 2", "--mask-values has 0, 1"]),
    ([[0, 17, 30, 99, 203]], {}, ["--objects if each number is an object"]),
    ([[0, 1]] * 3, {"suffix": ".jpg"}, ["3 of 3 masks", JPEG_LOSES]),
    ([[0, 1]] * 3, {"last": [0, 1], "last_suffix": ".jpg"}, ["1 of 4 masks: masks/3.jpg", JPEG_LOSES]),
    ([[0, 1, 2]] * 2, {"suffix": ".jpg", "classes": 3}, ["2 of 2", JPEG_LOSES]),  # though they were named
    ([[0, 1, 2]] * 3, {"last": [0, 2], "last_suffix": ".jpeg"}, ["masks/3.jpeg", JPEG_LOSES]),
    ([[0, 5, 80]], {"suffix": ".jpg"}, ["0.jpg", JPEG_LOSES]),
    ([[0], range(14)], {"suffix": ".jpeg"}, [JPEG_LOSES]),
]


@pytest.mark.parametrize("masks, options, texts", MISFITS)
def test_mask_values_that_mean_nothing(masks, options, texts):
    """One line, and whatever it advises was not given already, and works."""
    with pytest.raises(UserError) as error:
        meaning(*masks, **options)
    with refused(*texts):
        raise error.value
    for option, value in re.findall(r"--(void-label|classes|mask-values) (\S+) if", str(error.value)):
        name = option.replace("-", "_")
        advised = Values.parse(value) if name == "mask_values" else int(value)
        assert options.get(name) != advised and (name != "void_label" or name not in options)
        assert meaning(*masks, **{**options, name: advised}).classes


@pytest.mark.parametrize("common", [[0, 1], [0, 255], [0, 1, 2], [*range(20)]])
@pytest.mark.parametrize("stray", [[128], [77], [254], [100, 101], [30, 60, 90]])
def test_the_odd_mask_is_blamed_and_the_advice_trains(common, stray):
    """Whatever the others hold, wherever it stands. What is advised must not make classes that occur nowhere."""
    for n, place in itertools.product((3, 10, 40), (0, -1)):
        masks = [common] * n
        masks[place] = [*common, *stray]
        with pytest.raises(UserError) as caught:
            meaning(*masks)
        message = str(caught.value)
        assert message.startswith(f"1 of {n} masks: masks/{place % n}.png holds {len(common) + len(stray)} values")
        assert f"the other {n - 1} hold" in message and "--classes" not in message
        if len(stray) == 1:
            assert f"--void-label {stray[0]}" in message
            found = meaning(*masks, void_label=stray[0])
            assert found.classes == max(len(common), 2) - (len(common) == 2) and found.table[stray[0]] == VOID


SMOOTH = {0: 5000, **{value: 5 for value in range(20, 240, 10)}, 255: 4000}  # edges of a few pixels


def test_smoothed_edges_are_read_as_those_of_jpeg():
    found = meaning(SMOOTH, {0: 9000, 255: 1000})
    np.testing.assert_array_equal(found.table, [0] * 128 + [1] * 128)
    assert found.note == "1 masks with smoothed edges read as 0 below 128 and 1 above"
    photo = dict.fromkeys(range(256), 40)  # a picture is none
    with refused("256 values", "smoothed edges"):
        meaning(photo, photo)
    with refused("(0, 128, 255)"):  # nor are three classes
        meaning({0: 900, 128: 90, 255: 900})


# bad input


def test_a_wrong_byte_in_a_mask_is_found(tmp_path):
    """PNG has checksums, and without them other masks than the stored one would come out."""
    disk = (np.hypot(*np.mgrid[-60:60, -60:60]) < 40).astype(np.uint8)
    path = save(tmp_path / "disk.png", disk)
    content = path.read_bytes()
    for position in range(60, len(content) - 16, 7):
        path.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
        with refused(f"cannot read {path}"):
            read_mask(path)


NO_IMAGES = {"a.png": (b"<html>404</html>", "no image of a known kind"), "b.png": (b"", "it is empty, 0 bytes")}
NO_IMAGES |= {
    "c.png": (b"%!PS-Adobe-3.0 EPSF-3.0\n", "no image"),
    "d.heic": (b"\0\0\0\x18ftypheic" + bytes(40), " and not HEIC"),
}


@pytest.mark.parametrize("name", NO_IMAGES)
def test_what_is_no_image(tmp_path, name):
    """What is damaged is in tests/fuzz/readers.py."""
    content, text = NO_IMAGES[name]
    write(tmp_path / name, content)
    with refused(f"cannot read {tmp_path / name}", text, "remove it"):
        read_image(tmp_path / name, 3)


def png(width, height, values=None, bits=8):
    """The bytes of a PNG of that size; without `values` [H, W] or [H, W, C] it is colour, and the pixels are missing."""
    kind = 2 if values is None else {1: 0, 2: 4, 3: 2, 4: 6}[values[0, 0].size]
    rows = b"" if values is None else b"".join(b"\0" + row.astype(f">u{bits // 8}").tobytes() for row in values)
    chunks = {b"IHDR": struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0), b"IDAT": zlib.compress(rows), b"IEND": b""}
    parts = [struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in chunks.items()]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize(
    "name, kind", [("deep.png", "I;16"), ("float.tif", "F"), ("a.webp", "RGB"), ("a.jpg", "RGB"), ("a.gif", "L")]
)
def test_what_is_too_large_is_known_before_it_is_decoded(tmp_path, monkeypatch, name, kind):
    """By width x height x bands in the header. A small limit stands for the large one."""
    path = save(tmp_path / name, Image.new(kind, (256, 256)))
    read_image(path, 3), read_image(path, 1), read_mask(path)
    monkeypatch.setattr(bands, "MAX_VALUES", 2**16 * (3 if kind == "RGB" else 1) - 1)
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("decoded"))
    for read in (lambda: read_image(path, 3), lambda: read_image(path, 1), lambda: read_mask(path)):
        with refused(path, "256x256", "tiles"):
            read()


def test_out_of_memory_names_the_file(tmp_path, monkeypatch):
    path = save(tmp_path / "a.png", NOISE)
    monkeypatch.setattr(Image.Image, "load", lambda *_: (_ for _ in ()).throw(MemoryError))
    for read in (lambda: read_image(path, 3), lambda: read_mask(path)):
        with refused("out of memory", path, "smaller"):
            read()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes with names")
def test_what_is_no_file_does_not_hang(tmp_path):
    """Nobody writes into the pipe: whoever opened it would wait without end."""
    save_pairs(tmp_path, [BLOBS] * 2)
    for name in ("images/pipe.png", "masks/pipe.png"):
        os.mkfifo(tmp_path / name)
    (tmp_path / "images/folder.png").mkdir()
    _, layout = layout_of("folder", tmp_path)
    assert len(layout.items) == 2 and layout.over[1].endswith(": images/pipe.png, masks/pipe.png")
    for read in (lambda p: read_image(p, 3), read_mask, files.count_pages):
        for name in ("pipe.png", "folder.png"):
            with refused(name, "no file"):
                read(tmp_path / "images" / name)


def test_several_pages_in_one_file_are_refused(tmp_path):
    for name in ("pages.tif", "pages.gif", "pages.png"):
        path = save(tmp_path / name, NOISE, save_all=True, append_images=[Image.fromarray(255 - NOISE)])
        for read in (lambda p: read_image(p, 3), read_mask):
            with refused(path, "holds 2 images"):
                read(path)
    # the second one of a phone is a preview
    phone = save(tmp_path / "phone.jpg", NOISE, format="MPO", save_all=True, append_images=[Image.fromarray(NOISE[::2, ::2])])
    assert read_image(phone, 3).shape == NOISE.shape


@pytest.mark.parametrize(
    "name, stored, read, text",
    [
        ("image.tif", np.full((4, 4), -3, np.int32), lambda p: read_image(p, 1), "outside of 0 to 65535"),
        ("mask.png", NOISE, read_mask, "is a colour image, a mask is gray"),
        ("mask.tif", BLOBS / np.float32(2), read_mask, "holds the value 0.5"),
        ("mask.png", NOISE[..., 0].astype(np.uint16) * 256, read_mask, "--objects, if its numbers"),
    ],
)
def test_values_outside_of_8_bits(tmp_path, name, stored, read, text):
    path = save(tmp_path / name, stored)
    with refused(path, text):
        read(path)


def test_a_mask_is_turned_as_its_orientation_says(tmp_path):
    path = tmp_path / "mask.tif"
    for dtype in (np.uint8, np.float64):  # by Pillow, and by tifffile
        tifffile.imwrite(path, BLOBS.astype(dtype), photometric="minisblack", extratags=[(274, 3, 1, 6, True)])
        np.testing.assert_array_equal(read_mask(path), np.rot90(BLOBS, -1))


def write(path, content=b""):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


FOLDERS = {
    "a file": (lambda d: None, lambda d: d / "images/0.png", ["--data-dir", "images/0.png is a file: name the folder"]),
    "no masks": (lambda d: shutil.rmtree(d / "masks"), lambda d: d, ["images/ with 2 .png: images/0.png, images/1.png"]),
    "empty": (lambda d: [p.unlink() for p in d.glob("*/*")], lambda d: d, ["lie no files"]),
    "unpaired": (
        lambda d: [*[write(d / f"images/a{i:02}.png") for i in range(11)], write(d / "masks/zebra.png")],
        lambda d: d,
        ["images/a00.png has no mask", "images/a09.png has no mask", ", and 2 more"],
    ),
    "masks of another kind": (
        lambda d: [p.rename(p.with_suffix(".npz")) for p in d.glob("masks/*")],
        lambda d: d,
        ["masks/ with 2 .npz: masks/0.npz, masks/1.npz", "--mask-files 'masks/{name}.*'"],
    ),
    "outlines": (
        lambda d: [write(p.with_suffix(".json"), b"{}") or p.unlink() for p in d.glob("masks/*")],
        lambda d: d,
        ["masks/0.json, masks/1.json may hold outlines: python -m data.polygons FILES"],
    ),
    "same stem": (lambda d: write(d / "images/0.jpg"), lambda d: d, ["0.jpg", "0.png", "have the same name"]),
    "one of two masks": (
        lambda d: write(d / "masks/0.gif"), lambda d: d, ["masks/0.gif and masks/0.png have the same name", "or say more"]
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", FOLDERS)
def test_folders_that_are_no_data_set(tmp_path, case):
    spoil, data_dir, texts = FOLDERS[case]
    spoil(save_pairs(tmp_path, [BLOBS] * 2))
    with refused(*texts):
        layout_of("folder", data_dir(tmp_path))


def test_what_must_not_be_read_is_named(tmp_path, monkeypatch):
    """As root everything can be read, so the operating system's answer is played."""
    save_pairs(tmp_path, [BLOBS])
    _, layout = layout_of("folder", tmp_path)

    def deny(path, *args, **kwargs):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", deny)
    with refused(tmp_path, "Permission denied"):
        layout_of("folder", tmp_path)
    monkeypatch.setattr("builtins.open", deny)
    with refused(tmp_path / "images/0.png", "Permission denied"):
        layout.read(layout.items[0], 3, None)
