"""Masks of a GeoTIFF lie where it lies, and objects are told in the units of its map."""

import csv

import predict
from prediction.georeference import KEYS, NO_DATA, SCALE, TIE_POINT, TRANSFORMATION, map_of_pixels, read_tags
from prediction.images import Source
from tests.conftest import save_network
from tests.drawn import save

import numpy as np
import pytest
import tifffile
from PIL import Image

AREA, POINT = ((1, 1, 0, 2, 1024, 0, 1, 1, 1025, 0, 1, kind) for kind in (1, 2))  # projected; what a pixel's coordinates mean
ORIENTATION = 274
PLACED = {SCALE: (0.5, 0.25, 0.0), TIE_POINT: (2.0, 1.0, 0.0, 500000.0, 5400000.0, 0.0)}
TURNED = {TRANSFORMATION: (0.0, 2.0, 0.0, 100.0, 3.0, 0.0, 0.0, 200.0, 0, 0, 0, 0, 0, 0, 0, 1.0)}
CASES = {  # tags -> the map's coordinates of the pixel in row 4 and column 10, and the map's area of a pixel
    "corners": (PLACED | {KEYS: AREA}, (500000 + 8.5 * 0.5, 5400000 - 3.5 * 0.25), 0.125),
    "centres": (PLACED | {KEYS: POINT, NO_DATA: "-9999"}, (500000 + 8 * 0.5, 5400000 - 3 * 0.25), 0.125),
    "turned": (TURNED | {KEYS: AREA, 34737: "WGS 84|"}, (100 + 2 * 4.5, 200 + 3 * 10.5), 6),
    "holes": (PLACED | {NO_DATA: "7"}, (500000 + 8.5 * 0.5, 5400000 - 3.5 * 0.25), 0.125),
    "warped": ({TIE_POINT: (*PLACED[TIE_POINT], 9.0, 9.0, 0.0, 500009.0, 5400009.0, 0.0), KEYS: AREA}, None, None),
}


def save_geotiff(path, image, tags, **options):
    kinds = {KEYS: "H", ORIENTATION: "H", NO_DATA: "s", 34737: "s"}
    extra = [
        (code, kinds.get(code, "d"), 0 if isinstance(value, str) else len(value), value, True) for code, value in tags.items()
    ]
    path.parent.mkdir(exist_ok=True)
    tifffile.imwrite(path, image, metadata=None, extratags=extra, **options)
    return path


def read(path):
    return {code: value for code, _, _, value, _ in read_tags(Source(path, None, path.stem))}


WAYS = [({"rowsperstrip": 7}, 1), ({"tile": (16, 16)}, 3), ({"bigtiff": True}, 3), ({"byteorder": ">"}, 1)]


@pytest.mark.parametrize("options, classes", WAYS, ids=str)
def test_masks_and_labels_keep_the_tags(options, classes, tmp_path):
    checkpoint = save_network(tmp_path / "c.safetensors", classes=classes)
    image = np.random.default_rng(0).integers(0, 256, (40, 56), np.uint8)
    for name, (tags, *_) in CASES.items():
        save_geotiff(tmp_path / f"in/{name}.tif", image, tags, **options)
    save(tmp_path / "in/plain.png", image), save(tmp_path / "in/plain too.tif", image)
    objects = ["--objects", "--object-class", "1", "--object-settings", "0.3", "0", "0"]
    command = [str(tmp_path / "in"), "--checkpoint", str(checkpoint), "--output"]
    assert predict.main([*command, str(tmp_path / "out"), *objects]) == 0
    for name in ("plain", "plain too"):
        assert (tmp_path / f"out/{name}.png").exists() and (tmp_path / f"out/objects/{name}.png").exists()
    for name, (tags, *_) in CASES.items():
        with Image.open(tmp_path / f"out/{name}.tif") as mask, Image.open(tmp_path / "out/plain.png") as plain:
            np.testing.assert_array_equal(mask, plain)
            assert (mask.mode, mask.getpalette()[: 3 * classes] if classes > 1 else None) == (
                plain.mode, plain.getpalette()[: 3 * classes] if classes > 1 else None
            )  # fmt: skip
        labels = tifffile.imread(tmp_path / f"out/objects/{name}.tif")
        np.testing.assert_array_equal(labels, Image.open(tmp_path / "out/objects/plain.png"))
        for path in (tmp_path / f"out/{name}.tif", tmp_path / f"out/objects/{name}.tif"):
            assert read(path) == {code: value for code, value in tags.items() if value != "7" or path.parent.name != "objects"}
    assert labels.max() >= 7, "an object that nobody would see if 7 were no data"
    with open(tmp_path / "out/objects.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {bool(row["map_x"]) for row in rows if row["image"] == "turned.tif"} == {True}
    assert {row["map_x"] for row in rows if row["image"] in ("plain.png", "warped.tif")} == {""}


@pytest.mark.parametrize("tags, place, area", CASES.values(), ids=CASES)
def test_a_pixel_on_the_map(tags, place, area, tmp_path):
    from prediction.objects import measure

    path = save_geotiff(tmp_path / "a.tif", np.zeros((20, 20), np.uint8), tags)
    matrix = map_of_pixels(read_tags(Source(path, None, "a")))
    labels = np.zeros((20, 20), np.int32)
    labels[3:6, 9:12] = 1  # its centroid is the pixel in row 4 and column 10
    (measured,) = measure(labels, labels[..., np.newaxis], matrix)
    if not place:
        assert matrix is None and "map_x" not in measured
        return
    assert (measured["map_x"], measured["map_y"], measured["map_area"]) == pytest.approx((*place, 9 * area))


def test_what_is_no_upright_geotiff_has_no_place(tmp_path):
    image = np.zeros((20, 20), np.uint8)
    (tmp_path / "damaged.tif").write_bytes(save_geotiff(tmp_path / "whole.tif", image, PLACED).read_bytes()[:100])
    save_geotiff(tmp_path / "scaled.tif", image, {SCALE: PLACED[SCALE], NO_DATA: "0"})
    save_geotiff(tmp_path / "lying.tif", image, PLACED | {ORIENTATION: (6,)})
    assert read(tmp_path / "whole.tif") == PLACED
    for name in ("damaged.tif", "scaled.tif", "lying.tif"):
        assert read(tmp_path / name) == {}
