"""Objects: how they are found in probabilities, counted, measured and compared with the true ones."""

import csv
import json
from pathlib import Path

import predict
from common.checkpoint import read_checkpoint
from common.config import VOID, Config, Names, Size, UserError
from data.borders import part_touching
from data.loader import Examples
from prediction.evaluation import Evaluation
from prediction.matching import IOUS, object_scores, segment_scores
from prediction.objects import (
    Settings,
    choose_settings,
    class_of_objects,
    find_objects,
    labelled_pairs,
    measure,
    save_labels,
    split_objects,
    true_objects,
)
from tests.conftest import save_network

import numpy as np
import pytest
import tifffile
from PIL import Image
from skimage.draw import disk

RNG = np.random.default_rng(0)


def discs(*centres, size=(48, 64), radius=8):
    """Probabilities 0.9 in discs and 0.1 beside them."""
    p = np.full(size, 0.1, np.float32)
    for centre in centres:
        p[disk(centre, radius, shape=size)] = 0.9
    return p


def some_labels(size=(40, 40), n=6):
    """Squares that cover each other in part, with a gap in their numbers."""
    labels = np.zeros(size, np.int32)
    for k in range(1, n + 1):
        y, x, side = *RNG.integers(0, 32, 2), RNG.integers(3, 12)
        labels[y : y + side, x : x + side] = k + (k > 3)
    return labels


def by_definition(truth, found):
    """`object_scores` by loops over all pairs."""
    truths, founds = ([labels == k for k in np.unique(labels) if k] for labels in (truth, found))
    iou = np.array([[(t & f).sum() / (t | f).sum() for f in founds] for t in truths]).reshape(len(truths), len(founds))
    ap = []
    for threshold in np.rint(100 * IOUS):
        tp = (100 * iou > threshold + 1e-6).sum()
        ap.append(tp / (len(truths) + len(founds) - tp))
    inside, around, used = 0, 0, set()
    for k, t in enumerate(truths):
        j = iou[k].argmax() if founds else 0
        if not founds or iou[k, j] == 0:
            around += t.sum()
            continue
        inside, around = inside + (t & founds[j]).sum(), around + (t | founds[j]).sum()
        used.add(j)
    around += sum(f.sum() for j, f in enumerate(founds) if j not in used)
    tp = (iou > 0.5).sum()
    tens = {f"ap{t}": ap[k] for k, t in enumerate(range(50, 100, 5)) if t % 10 == 0}
    return {"ap": np.mean(ap), **tens, "f1": 2 * tp / (len(truths) + len(founds)), "aji": inside / around}


def test_scores_are_those_of_the_definitions():
    """Among them no object found, and none there."""
    for k in range(40):
        truth = some_labels(n=k % 5)
        found = np.roll(np.where(RNG.random(truth.shape) < 0.1, 0, truth), k % 3, 0) if k % 2 else some_labels(n=k % 7)
        if k == 38:
            found = np.zeros_like(truth)
        scores = object_scores(truth, found)
        assert (scores["objects"], scores["found"]) == tuple(len(np.unique(labels[labels > 0])) for labels in (truth, found))
        if truth.any() or found.any():
            defined = by_definition(truth, found)
            assert {name: scores[name] for name in defined} == pytest.approx(defined)
            assert scores.keys() - defined == {"objects", "found"}


def test_scores_by_hand():
    """Of two true objects of 100 pixels one is found with 60 of them, and one is invented: 0.6 is above 0.5 and 0.55 alone."""
    truth, found = np.zeros((2, 30, 40), np.int32)
    truth[:10, :10], truth[:10, 20:30] = 1, 2
    found[:6, :10], found[20:30, 20:30] = 1, 2
    scores = object_scores(truth, found)
    known = {"objects": 2, "found": 2, "ap": 1 / 3 * 2 / 10, "ap50": 1 / 3, "f1": 0.5, "aji": 60 / 300}
    assert scores == pytest.approx({**dict.fromkeys(("ap60", "ap70", "ap80", "ap90"), 0), **known})
    found[6:10, :10], found[:10, 20:30] = 3, 4  # another shares the rest of the first, but is not its best: it is nobody's
    assert object_scores(truth, found)["aji"] == pytest.approx((60 + 100) / (100 + 100 + 100 + 40))
    nothing = np.zeros_like(truth)
    assert object_scores(nothing, nothing)["ap"] == 1 and object_scores(truth, nothing)["ap"] == 0


def test_segments_by_hand():
    """Two halves found as one: p(1, 1) = p(2, 1) = 1/2, so V-Rand = (1/4 + 1/4) / ((1/2 + 1) / 2) and V-Info = 0."""
    truth = np.repeat([[1] * 30 + [0] * 3 + [2] * 30], 40, 0)
    merged = np.ones_like(truth)
    assert segment_scores(truth, merged) == pytest.approx({"v_rand": 2 / 3, "v_info": 0})
    thinner = np.where(truth, truth, 0)
    thinner[:, 28:35] = 0  # a thicker membrane costs nothing
    assert segment_scores(truth, thinner) == pytest.approx({"v_rand": 1, "v_info": 1})
    quarters = truth + 2 * (np.arange(40) >= 20)[:, np.newaxis] * (truth > 0)  # (4/16) / ((1/2 + 1/4) / 2)
    assert segment_scores(truth, quarters) == pytest.approx({"v_rand": 2 / 3, "v_info": 2 * 1 / (1 + 2)})
    assert np.isnan(segment_scores(np.zeros_like(truth), merged)["v_rand"])
    assert segment_scores(truth, np.zeros_like(truth)) == segment_scores(truth, merged), "nothing found is one segment"
    four = np.array([[1, 2, 3, 3]])  # squares, not pairs of different pixels: (3 / 8) / ((3 / 8 + 1 / 2) / 2)
    assert segment_scores(four, np.array([[1, 2, 3, 4]]))["v_rand"] == pytest.approx((4 / 16) / ((6 / 16 + 4 / 16) / 2))
    assert segment_scores(np.ones((1, 1), int), np.ones((1, 1), int)) == {"v_rand": 1, "v_info": 1}
    corner, corners = np.zeros((40, 40), int), np.zeros((40, 40), int)
    corner[:3, :3] = 1  # grown it is everywhere, in the far corner too, and tells nothing
    corners[:6, :6], corners[33:, 33:] = 1, 2
    assert segment_scores(corners, corner)["v_info"] == pytest.approx(0, abs=1e-12)


def test_touching_objects_are_parted_at_their_neck():
    p = discs((16, 20), (16, 34), (38, 50))
    assert split_objects(p, Settings(0.5, 0.9, 20)).max() == 3 and split_objects(p, Settings(0.5, 0, 20)).max() == 2
    labels = split_objects(p, Settings(0.5, 0.9, 20))
    assert labels.dtype == np.int32 and labels[16, 20] != labels[16, 34] and (labels > 0).sum() == (p > 0.5).sum()
    assert split_objects(p.repeat(3, 0).repeat(3, 1), Settings(0.5, 0.9, 20)).max() == 3, "whatever their size"
    assert split_objects(p, Settings(0.95, 0.9, 0)).max() == 0
    p = discs((20, 20), (20, 30))  # of radius 8, 10 pixels apart: what joins them is 12.5 thick, 0.78 of 16
    assert [split_objects(p, Settings(0.5, neck, 20)).max() for neck in (0.6, 0.95)] == [1, 2]
    assert split_objects(np.ones((9, 9)), Settings(0.5, 0.9, 0)).max() == 1, "one that fills the image"


def test_a_line_of_doubt_parts():
    """A bar, everywhere above the threshold, with a line across it where the network is less sure."""
    p = np.full((20, 60), 0.05, np.float32)
    p[5:15, 5:55] = 0.95
    assert split_objects(p, Settings(0.5, 0.8, 20)).max() == 1
    p[5:15, 30:32] = 0.6
    labels = split_objects(p, Settings(0.5, 0.8, 20))
    assert labels.max() == 2 and (labels > 0).sum() == 500 and split_objects(p, Settings(0.5, 0, 20)).max() == 1


def test_small_objects_go_and_small_holes_are_filled():
    p = discs((16, 20))
    p[15:17, 19:21], p[40:43, 40:43] = 0.2, 0.9  # a hole of 4 pixels, a speck of 9
    assert split_objects(p, Settings(0.5, 0.9, 10))[16, 20] == 1 == split_objects(p, Settings(0.5, 0.9, 10)).max()
    labels = split_objects(p, Settings(0.5, 0, 4))
    assert labels.max() == 2 and labels[16, 20] == 0


def test_where_objects_begin_and_end():
    """A pixel of exactly the threshold is in; what touches at a corner alone is two; AREA pixels are enough, for holes too."""
    p = np.zeros((20, 20), np.float32)
    p[2:5, 2:5] = p[5:8, 5:8] = 0.5
    for neck in (0, 0.5):
        labels = split_objects(p, Settings(0.5, neck, 9))
        assert labels.max() == 2 and np.bincount(labels.ravel())[1:].tolist() == [9, 9]
        assert not split_objects(p, Settings(0.5, neck, 10)).any() and not split_objects(p, Settings(0.51, neck, 9)).any()
    assert split_objects(np.eye(6), Settings(0.5, 0.5, 0)).max() == 6, "each a summit of its own"
    cut = discs((3, 20), (3, 32), size=(24, 64))  # by the border: there they end, and are as thin as they look
    assert [split_objects(cut, Settings(0.5, neck, 0)).max() for neck in (0.8, 0.9)] == [1, 2]
    p[:] = 0.9
    p[9, 9] = p[10, 10] = p[3, 3:5] = 0  # two holes of 1 pixel and one of 2
    assert np.argwhere(split_objects(p, Settings(0.5, 0, 2)) == 0).tolist() == [[3, 3], [3, 4]]


def test_areas_are_those_of_the_size_that_the_network_sees():
    p = discs((24, 32), radius=4)  # 49 pixels
    assert find_objects(p, Settings(0.5, 0.9, 30), Config.of(channels=1, classes=1)).max() == 1
    half = Config.of(channels=1, classes=1, depth=2, image_size=Size(24, 32))  # 30 pixels there are 120 here
    assert find_objects(p, Settings(0.5, 0.9, 30), half).max() == 0


def test_objects_that_were_parted_meet_again():
    """Stairs and straight lines; three that meet in a corner; what is apart by more stays apart."""
    truth = np.zeros((32, 40), np.int32)
    truth[2:12, 2:20] = np.where(np.arange(18) - np.arange(10)[:, np.newaxis] < 4, 1, 2)
    truth[12:22, 2:20] = 3
    truth[2:22, 23:38] = 4
    p = (part_touching(truth) > 0).astype(np.float32)
    assert [split_objects(p, Settings(0.5, 0, 10), parted).max() for parted in (0, 1)] == [4, 4]
    found = split_objects(p, Settings(0.5, 0, 10), parted=1)
    np.testing.assert_array_equal(np.argwhere((found > 0) != (truth > 0)), [[11, 13], [11, 14], [12, 13], [12, 14]], "a corner")
    assert object_scores(truth, found)["ap"] == 1
    assert (split_objects(p, Settings(0.5, 0, 10)) > 0).sum() == p.sum() < (truth > 0).sum()
    config = Config.of(dataset="folder", data_dir=Path("."), objects=True, channels=1, classes=1)
    np.testing.assert_array_equal(find_objects(p, Settings(0.5, 0, 10), config), found, "by how the network was trained")
    resized = config.replace(image_size=Size(*truth.shape))
    large, twice = (values.repeat(2, 0).repeat(2, 1) for values in (truth, p))  # the line is four pixels wide
    aps = []
    for found in (split_objects(twice, Settings(0.5, 0, 40), parted=1), find_objects(twice, Settings(0.5, 0, 10), resized)):
        assert not ((found > 0) & (large == 0)).any()
        aps.append(object_scores(large, found)["ap"])
    assert aps[0] < 0.9 < 0.95 < aps[1]
    assert split_objects(np.zeros((8, 8)), Settings(0.5, 0.8, 0), parted=1).max() == 0


def test_settings_are_chosen_by_the_true_objects():
    p = discs((16, 20), (16, 34), (38, 50))
    p[5, 60] = 0.9  # a speck
    two, three = (split_objects(p, Settings(0.5, neck, 20)) for neck in (0, 0.9))
    for truth, parted in ((two, False), (three, True)):
        settings, scores, tried = choose_settings([(p, truth)])
        assert (settings.neck > 0) == parted and scores["ap"] == 1 and settings.area > 1 and tried == 22
    assert choose_settings([(p, np.zeros_like(two))])[0].area == 0, "no true object at all"


def test_images_of_which_nothing_is_labelled_choose_nothing(monkeypatch):
    config = Config.of(classes=1, channels=1, depth=1, filters=2)
    masks = [np.full((32, 32), value, np.uint8) for value in (VOID, 1)]
    sizes, images = [Size(32, 32)] * 2, [np.full((32, 32, 1), 200, np.uint8)] * 2
    sides = [Examples(["a", "b"], images, masks[::order], sizes) for order in (1, -1)]
    monkeypatch.setattr("data.loader.load_examples", lambda config: (config, *sides))
    for several in labelled_pairs(config, lambda images: images, 1, 64, None):
        ((p, truth),) = several
        assert p.min() > 0.5 and (truth == 1).all()
    void = Examples(["a"], images[:1], masks[:1], sizes[:1])
    monkeypatch.setattr("data.loader.load_examples", lambda config: (config, void, void))
    with pytest.raises(UserError, match="no mask of the training has a labelled pixel"):
        labelled_pairs(config, lambda images: images, 1, 64, None)


def test_areas_are_tried_in_shares_of_the_typical_object(monkeypatch):
    """First the middle one with all thresholds and necks, then all of them. Numbers that no object has are no areas of 0."""
    truth, tried = np.zeros((30, 30), np.int32), []
    truth[5:15, 5:15] = 5
    split = split_objects
    monkeypatch.setattr("prediction.objects.split_objects", lambda p, settings, _: tried.append(settings) or split(p, settings))
    choose_settings([(np.float32(truth > 0), truth)])
    areas = [settings.area for settings in tried]
    assert areas[:20] == [20] * 20 and sorted(areas[20:]) == [10, 30]


def test_a_few_large_objects_that_became_one_weigh_as_much_as_many_small_ones_that_became_two():
    p = discs((30, 30), (30, 50), size=(60, 120), radius=14)
    truth = split_objects(p, Settings(0.5, 0.9, 20))
    for k in range(2):
        small = discs((10 + 16 * k, 90), (10 + 16 * k, 98), size=p.shape, radius=5)
        p, truth = np.maximum(p, small), np.where(small > 0.5, 3 + k, truth)
    by_neck = {n: object_scores(truth, split_objects(p, Settings(0.5, n, 20))) for n in (0, 0.95)}
    assert by_neck[0]["ap"] > by_neck[0.95]["ap"] and by_neck[0]["aji"] < by_neck[0.95]["aji"]
    assert choose_settings([(p, truth)])[0].neck > 0


def test_connected_parts_are_objects_where_nothing_tells_them_apart():
    mask = np.array([[1, 1, 0, 2], [0, 0, 1, 2], [VOID, 1, 0, 0]], np.uint8)
    assert true_objects(mask, 1).tolist() == [[1, 1, 0, 0], [0, 0, 2, 0], [0, 3, 0, 0]]
    assert true_objects(mask, 2).max() == 1


def test_measures():
    labels, image = np.zeros((2, 8, 9), np.int32)
    labels[2:4, 3:6], image[2:4, 3:6], image[2, 3] = 1, 300, 600
    (row,) = measure(labels, image[..., np.newaxis].astype(np.uint16))
    assert row.pop("mean_intensity") == 350
    assert row == {"label": 1, "area": 6, "row": 2.5, "column": 4, "top": 2, "left": 3, "bottom": 4, "right": 6}
    assert measure(labels * 0, image[..., np.newaxis]) == []
    assert measure(labels, np.dstack([image, image * 2, image]))[0]["mean_intensity_green"] == 700


def test_intensities_of_floats_are_those_of_the_file(bright, tmp_path):
    """And not those of the scale of whole numbers on which they are decoded."""
    checkpoint = bright(dataset="folder", data_dir=tmp_path, white=1.25)
    for path in (tmp_path / "images").iterdir():
        path.unlink()
    tifffile.imwrite(tmp_path / "images/a.tif", np.float32(1.25 * DISCS["a"]))
    run(checkpoint, tmp_path, *BY_HAND)
    found = [float(row["mean_intensity"]) for row in read(tmp_path / "out/objects.csv")]
    assert len(found) == 2 and all(0.7 < value <= 1.25 for value in found), found


def test_more_objects_than_16_bits_number(tmp_path, capsys):
    labels = np.arange(70_000, dtype=np.int32).reshape(250, 280)
    paths = tmp_path / "a.png", tmp_path / "a.tif"
    save_labels(*paths, labels[:10])
    assert np.asarray(Image.open(tmp_path / "a.png")).dtype == np.uint16
    save_labels(*paths, labels)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a.tif")), labels)
    assert "69999 objects are more than a PNG can number: a.tif" in capsys.readouterr().out
    assert not (tmp_path / "a.png").exists(), "the numbers of before are not beside it"


SIZE = (64, 64)
DISCS = {"a": discs((16, 20), (16, 34), size=SIZE), "b": discs((40, 40), size=SIZE)}
BY_HAND = ["--object-settings", 0.5, 0.9, 20]


def save(folder, images):
    """images: stem -> array, of 8 or 16 bits."""
    folder.mkdir(parents=True)
    for stem, values in images.items():
        Image.fromarray(values).save(folder / f"{stem}.png")


@pytest.fixture
def bright(tmp_path, monkeypatch):
    """make(**options) -> a checkpoint; its foreground is what is brighter than the middle. Cells are drawn to validate on."""
    monkeypatch.setattr(predict, "make_predict", lambda *_: lambda images: images)
    save(tmp_path / "images", {stem: np.rint(255 * p).astype(np.uint8) for stem, p in DISCS.items()})

    def make(**options):
        size = {"images": 8} if "dataset" not in options else {}
        return save_network(
            tmp_path / "run" / "best.safetensors", **{"batch_size": 2, "image_size": Size(*SIZE), **size, **options}
        )

    return make


def run(checkpoint, folder, *arguments):
    command = [f"--checkpoint={checkpoint}", folder / "images", f"--output={folder / 'out'}", "--objects", "--overwrite"]
    return predict.main([*map(str, [*command, *arguments])])


def read(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_objects_are_numbered_measured_and_outlined(bright, tmp_path, capsys):
    assert run(bright(), tmp_path, "--overlay", *BY_HAND) == 0
    assert [line.split("  ")[-1] for line in capsys.readouterr().out.splitlines()[:2]] == ["2 objects", "1 objects"]
    labels = np.asarray(Image.open(tmp_path / "out/objects/a.png"))
    assert labels.dtype == np.uint16 and np.unique(labels).tolist() == [0, 1, 2]
    rows = read(tmp_path / "out/objects.csv")
    assert [(row["image"], row["label"]) for row in rows] == [("a.png", "1"), ("a.png", "2"), ("b.png", "1")]
    assert float(rows[2]["row"]) == 40 and float(rows[2]["mean_intensity"]) == 230
    outlines = np.asarray(Image.open(tmp_path / "out/overlays/a.png")).astype(int)
    coloured = np.ptp(outlines, axis=-1) > 0
    assert coloured.any() and not coloured[16, 20] and (labels[coloured] > 0).all()
    assert len(np.unique(outlines[coloured], axis=0)) == 2, "a colour each"


def test_settings_are_found_once_and_kept_beside_the_checkpoint(bright, tmp_path, capsys, monkeypatch):
    checkpoint = bright()
    run(checkpoint, tmp_path)
    first = capsys.readouterr().out
    assert "the best of 22 tried on 2 validation and 6 training images: mean AP " in first
    kept = json.loads((tmp_path / "run/objects.json").read_text())["classes"]["1"]["settings"]
    with monkeypatch.context() as patch:
        patch.setattr("prediction.objects.choose_settings", lambda *_: pytest.fail("searched again"))
        run(checkpoint, tmp_path)
    used = "objects by --object-settings {:g} {:g} {}".format(*kept)
    assert used in first and used in capsys.readouterr().out
    run(checkpoint, tmp_path, "--tta")  # other probabilities
    assert "tried on" in capsys.readouterr().out
    assert json.loads((tmp_path / "run/objects.json").read_text())["classes"].keys() == {"1", "1, --tta"}
    bright(seed=1)  # other weights: what is kept is of others
    run(checkpoint, tmp_path)
    assert "tried on" in capsys.readouterr().out
    (tmp_path / "run/objects.json").write_text('{"annotations": []}')  # COCO has files of this name
    run(checkpoint, tmp_path)
    assert "not kept for the next time" in capsys.readouterr().err
    assert (tmp_path / "run/objects.json").read_text() == '{"annotations": []}'


def test_images_to_choose_on_are_enough_and_not_more(bright, monkeypatch):
    """The validation images first, then those to train on, until there are pixels enough."""
    config = read_checkpoint(bright())[0]
    for pixels, counts in ((1, (1, 0)), (2 * 64 * 64, (2, 0)), (2 * 64 * 64 + 1, (2, 1)), (10**9, (2, 6))):
        monkeypatch.setattr("prediction.objects.SEARCHED", pixels)
        assert tuple(map(len, labelled_pairs(config, lambda images: images, 1, 64, None))) == counts


def test_objects_of_one_of_many_classes(bright, tmp_path, monkeypatch):
    """The third class is bright, the others share the dark."""
    three = lambda images: np.concatenate([(1 - images) / 2, (1 - images) / 2, images], axis=-1)  # noqa: E731
    monkeypatch.setattr(predict, "make_predict", lambda *_: three)
    checkpoint = bright(classes=3)
    with pytest.raises(UserError, match="--object-class car: the classes are class 0, class 1, class 2"):
        run(checkpoint, tmp_path, "--object-class", "car")
    run(checkpoint, tmp_path, *BY_HAND, "--object-class", "class 2")
    assert np.asarray(Image.open(tmp_path / "out/objects/a.png")).max() == 2
    run(checkpoint, tmp_path, "--object-settings", 0.3, 0, 20, "--object-class", 1)
    assert np.asarray(Image.open(tmp_path / "out/objects/a.png"))[16, 20] == 0
    (p, truth), *_ = labelled_pairs(read_checkpoint(checkpoint)[0], three, 2, 64, None)[0]
    assert p[truth > 0].mean() > p[truth == 0].mean() + 0.1, "settings are chosen by the probabilities of the class"


@pytest.mark.parametrize("numbered", [True, False])
def test_objects_are_evaluated(numbered, bright, tmp_path, capsys, no_figures):
    """Against label images, and against connected parts, where the two that touch are one."""
    truth = tmp_path / "truth"
    labels = {stem: split_objects(p, Settings(0.5, 0.9, 20)).astype(np.uint16) * 300 for stem, p in DISCS.items()}
    save(truth, labels if numbered else {stem: np.uint8(255 * (p > 0.5)) for stem, p in DISCS.items()})
    data = {"dataset": "folder", "data_dir": tmp_path, "objects": True} if numbered else {}
    arguments = [*BY_HAND, "--evaluate", truth]
    assert run(bright(**data), tmp_path, *arguments) == 0
    rows = {row["image"]: row for row in read(tmp_path / "out/metrics.csv")}
    assert rows["a.png"]["objects"] == ("2" if numbered else "1") and rows["a.png"]["found"] == "2"
    assert float(rows["b.png"]["ap"]) == float(rows["b.png"]["aji"]) == 1 and float(rows["a.png"]["pixel_error"]) == 0
    assert (float(rows["mean of the images"]["ap"]) == 1) == numbered
    assert (float(rows["a.png"]["v_rand"]) == 1) == numbered
    assert "ap 1.0000 (1 true objects)" in capsys.readouterr().out


def test_the_pixel_error_is_what_the_accuracy_lacks(tmp_path):
    evaluation = Evaluation.__new__(Evaluation)
    evaluation.config, evaluation.scores = Config.of(), {"a": {"ap": 0.5}, "b": {"ap": 0.25}}
    evaluation.matrices = {"a": np.array([[5, 1], [2, 8]]), "b": np.array([[1, 1], [1, 1]])}
    evaluation._write_metrics(tmp_path / "metrics.csv")
    errors = [float(row["pixel_error"]) for row in read(tmp_path / "metrics.csv")]
    assert errors == pytest.approx([3 / 16, 1 / 2, (3 / 16 + 1 / 2) / 2, 5 / 20], rel=1e-6)  # 7 digits are written


def test_the_worst_images_come_first_and_the_classes_are_confused(bright, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("training.report.draw_predictions", lambda path, columns, *_: drawn.append(columns["prediction"]))
    beside = discs((40, 50), size=SIZE)
    save(tmp_path / "truth", {"a": np.uint8(255 * (DISCS["a"] > 0.5)), "b": np.uint8(255 * (beside > 0.5))})
    run(bright(), tmp_path, "--object-settings", 0.5, 0, 0, "--evaluate", tmp_path / "truth")
    assert [name for name, *_ in drawn[0]] == ["b.png", "a.png"]
    matrix = read(tmp_path / "out/evaluation/confusion.csv")
    both = int(((DISCS["b"] > 0.5) & (beside > 0.5)).sum())
    lost = int((beside > 0.5).sum()) - both  # as many as were invented: the discs are of one size
    assert matrix[1]["true class"] == "foreground" and int(matrix[1]["background"]) == lost == int(matrix[0]["foreground"])
    assert (tmp_path / "out/evaluation/confusion.png").stat().st_size > 1000


def test_what_nobody_labelled_counts_nowhere(bright, tmp_path, no_figures):
    """One of two objects lies in the void: it is neither to be found nor invented."""
    masks = {stem: np.zeros(SIZE, np.uint8) for stem in "ab"}
    for stem, mask in masks.items():
        mask[:, 28:] = 2  # void; the second disc of a, that of b
        mask[:, :28][discs((16, 20), size=SIZE)[:, :28] > 0.5] = stem == "a"
    save(tmp_path / "masks", masks)
    options = {"dataset": "folder", "data_dir": tmp_path, "void_label": 2, "batch_size": 1}
    checkpoint = bright(**options)
    run(checkpoint, tmp_path, *BY_HAND, "--evaluate", tmp_path / "masks")
    rows = {row["image"]: row for row in read(tmp_path / "out/metrics.csv")}
    assert [rows["a.png"][name] for name in ("objects", "found", "ap50")] == ["1", "1", "1"]
    assert [rows["b.png"][name] for name in ("objects", "found", "ap50")] == ["0", "0", "1"]
    (validation,), (training,) = labelled_pairs(read_checkpoint(checkpoint)[0], lambda images: images, 1, 64, None)
    assert sorted(p[16, 20] for p, _ in (validation, training)) == [np.float32(26 / 255), np.float32(230 / 255)]
    for p, truth in (validation, training):
        assert not p[:, 28:].any() and not truth[:, 28:].any()


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--object-settings", 0.5, 1, 3], "a neck from 0 to below 1"),
        (["--object-settings", 0, 0.5, 3], "a threshold above 0"),
        (["--object-settings", 0.5, 0.5, "nan"], "an area in pixels"),
        (["--object-class", "background"], "this network knows objects of foreground alone"),
        (["--object-class", "car"], "--object-class car: the classes are background, foreground"),
    ],
)
def test_bad_settings(arguments, words, bright, tmp_path):
    with pytest.raises(UserError, match=words):
        run(bright(), tmp_path, *arguments)


def test_where_the_data_of_the_training_is_not(bright, tmp_path):
    with pytest.raises(
        UserError, match="gone.*; --objects looks there for its settings: or name them, as in --object-settings"
    ):
        run(bright(dataset="folder", data_dir=tmp_path / "gone"), tmp_path)


def test_which_class_is_of_objects():
    three = Config.of(channels=1, classes=3, class_names=Names(("sky", "road", "car")))
    assert class_of_objects("car", three) == class_of_objects("2", three) == 2
    with pytest.raises(UserError, match="of which of the 3 classes.*sky, road, car"):
        class_of_objects(None, three)
    for classes in (1, 2):
        assert class_of_objects(None, Config.of(channels=1, classes=classes)) == 1
