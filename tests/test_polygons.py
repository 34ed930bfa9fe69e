"""Masks out of outlines: what is drawn where, in which order, and what is refused."""

import base64
import io
import json

from common.colors import names_in
from common.config import VOID, Config
from data.loader import load_examples
from data.polygons import main, run_lengths
from tests.drawn import NOISE, save
from tests.helpers import refused

import numpy as np
import pytest
from PIL import Image

SQUARE = [2, 2, 12, 2, 12, 12, 2, 12]  # x and y of the corners: pixels 2 to 11
HOLE, BESIDE = [4, 4, 8, 4, 8, 8, 4, 8], [14, 2, 18, 2, 18, 6, 14, 6]


def coco(folder, *outlines, size=20, **changed):
    """One image of 20x20 with an annotation for each (category, segmentation)."""
    found = {
        "images": [{"id": 7, "file_name": "val/a b.jpg", "height": size, "width": size}],
        "categories": [
            {"id": 0, "name": "things", "supercategory": "none"},
            {"id": 5, "name": "dog", "supercategory": "things"},
            {"id": 2, "name": "cat", "supercategory": "things"},
        ],
        "annotations": [{"image_id": 7, "category_id": kind, "segmentation": outline} for kind, outline in outlines],
    }
    (folder / "a.json").write_text(json.dumps(found | changed))
    return folder / "a.json"


def drawn(path, *options, name="a b"):
    main([str(path), "--output", str(path.parent / "m"), "--overwrite", *options])
    with Image.open(path.parent / f"m/{name}.png") as picture:
        return np.array(picture)


def boxes(*values):
    """[(value, top, bottom, left, right)], one over the other -> [20, 20]"""
    mask = np.zeros((20, 20), int)
    for value, top, bottom, left, right in values:
        mask[top:bottom, left:right] = value
    return mask


def compressed(runs):
    """`run_lengths` backwards, from COCO's description of it."""
    text = ""
    for k, n in enumerate(runs):
        n -= runs[k - 2] if k > 2 else 0
        while True:
            bits, n = n & 31, n >> 5
            more = n != (-1 if bits & 16 else 0)
            text += chr(48 + bits + 32 * more)
            if not more:
                break
    return text


def test_outlines_of_coco(tmp_path):
    """The family of all classes is none itself; classes count by their ids; holes, parts, and what comes later lies on top."""
    mask = drawn(coco(tmp_path, (5, [SQUARE, HOLE, BESIDE]), (2, [[10, 10, 16, 10, 16, 16, 10, 16]])))
    expected = boxes((2, 2, 12, 2, 12), (0, 4, 8, 4, 8), (2, 2, 6, 14, 18), (1, 10, 16, 10, 16))
    np.testing.assert_array_equal(mask, expected)
    assert (tmp_path / "m/classes.txt").read_text() == "background,0\ncat,1\ndog,2\n"
    numbers = drawn(coco(tmp_path, (5, [SQUARE]), (5, [BESIDE]), (2, [HOLE])), "--objects")
    np.testing.assert_array_equal(numbers, boxes((1, 2, 12, 2, 12), (2, 2, 6, 14, 18), (3, 4, 8, 4, 8)))


@pytest.mark.parametrize("seed", range(3))
def test_run_lengths_of_coco(tmp_path, seed):
    """They count down the columns, from a run of background on."""
    rng = np.random.default_rng(seed)
    region = np.kron(rng.random((4, 4)) < 0.5, np.ones((5, 5), bool)) ^ (rng.random((20, 20)) < 0.1)
    ends = np.flatnonzero(np.diff(np.r_[False, region.T.ravel(), not region[-1, -1]]))
    runs = np.diff(np.r_[0, ends]).tolist()
    assert run_lengths(compressed([*runs, 100000, 3, 7])) == [*runs, 100000, 3, 7]
    for counts in (runs, compressed(runs)):
        mask = drawn(coco(tmp_path, (2, {"counts": counts, "size": [20, 20]})))
        np.testing.assert_array_equal(mask, region)


def labelme(folder, *shapes, name="x.json"):
    shapes = [dict(label=label, points=points, **more) for label, points, more in shapes]
    found = {"imagePath": "..\\photos\\x.jpg", "imageHeight": 20, "imageWidth": 20, "shapes": shapes}
    (folder / name).write_text(json.dumps(found))
    return folder / name


def test_classes_of_coco_are_the_same_in_every_file(tmp_path, capsys):
    """One that no outline has keeps its number, also where it is called its own family; what has no outline is told."""
    own = [{"id": k, "name": name, "supercategory": name} for k, name in enumerate(("person", "7", "2,4-D", "void"))]
    mask = drawn(coco(tmp_path, (1, [SQUARE, []]), (2, [BESIDE]), (3, [HOLE]), (2, []), categories=own))
    assert "a.json: passed over 1 annotations without an outline" in capsys.readouterr().out
    np.testing.assert_array_equal(mask, boxes((2, 2, 12, 2, 12), (3, 2, 6, 14, 18), (VOID, 4, 8, 4, 8)))
    assert names_in(tmp_path / "m/classes.txt") == ("background", "person", "class 7", "2 4-D")
    with refused("a.json is no COCO or LabelMe JSON", "run lengths of [10, 40]"):
        drawn(coco(tmp_path, (1, {"size": [10, 40], "counts": [400]}), categories=own))


def test_shapes_of_labelme(tmp_path, capsys):
    png = io.BytesIO()
    Image.fromarray(np.ones((3, 4), bool)).save(png, "PNG")
    part = dict(shape_type="mask", mask=base64.b64encode(png.getvalue()).decode())
    path = labelme(
        tmp_path,
        ("cat", np.reshape(SQUARE, (-1, 2)).tolist(), {}),
        ("_background_", [[4, 4], [8, 8]], dict(shape_type="rectangle")),
        ("dog", [[16, 16], [16, 19]], dict(shape_type="circle")),
        ("__ignore__", [[18, 2], [14, 2], [14, 0], [18, 0]], dict(shape_type="rectangle")),
        ("dog", [[0, 14], [3, 16]], part),
        ("cat", [[-2, 18], [1, 20]], part),
        ("cat", [[0, 0], [9, 9]], dict(shape_type="line")),
    )
    mask = drawn(path, name="x")
    assert "passed over 1 shapes that hold no area: line" in capsys.readouterr().out
    assert mask[15:17, 15:17].tolist() == [[2, 2]] * 2 and abs((mask == 2).sum() - 12 - np.pi * 9) < 4
    mask[12:20, 12:20] = 0
    expected = boxes((1, 2, 12, 2, 12), (0, 4, 8, 4, 8), (VOID, 0, 2, 14, 18), (2, 14, 17, 0, 4), (1, 18, 20, 0, 2))
    np.testing.assert_array_equal(mask, expected)


def test_masks_of_outlines_are_trained_on(tmp_path):
    for k in range(3):
        save(tmp_path / f"{k}.jpg", NOISE[:20, :20])
        path = labelme(tmp_path, ("cat", [[2, 2], [9, 9]], dict(shape_type="rectangle")), name=f"{k}.json")
        path.write_text(path.read_text().replace("x.jpg", f"{k}.jpg"))
    main([*map(str, tmp_path.glob("*.json")), "--output", str(tmp_path / "masks")])
    config = Config.of(
        dataset="folder", data_dir=tmp_path, class_names=(str(tmp_path / "masks/classes.txt"),), depth=1, batch_size=1
    )
    config, training, _ = load_examples(config)
    assert config.data.class_names == ("background", "cat") and training.masks[0].sum() == 49


def test_what_makes_no_masks(tmp_path):
    for text in ("", "[]", "{}", '{"images": [], "annotations": []}', '{"imageHeight": 3}', "[" * 100_000):
        (tmp_path / "a.json").write_text(text)
        with refused("a.json is no COCO or LabelMe JSON"):
            main([str(tmp_path / "a.json"), "--output", str(tmp_path / "m")])
    with refused("a.json has 0 classes"):
        main([str(coco(tmp_path, categories=[])), "--output", str(tmp_path / "m")])
    with refused("cannot read ", "b.json"):
        main([str(tmp_path / "b.json"), "--output", str(tmp_path / "m")])
    path = str(coco(tmp_path, (2, [SQUARE])))
    with refused("a second image is called a b"):
        main([path, path, "--output", str(tmp_path / "m")])
    main([path, "--output", str(tmp_path / "m")])
    with refused("is there already"):
        main([path, "--output", str(tmp_path / "m")])
