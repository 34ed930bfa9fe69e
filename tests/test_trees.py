"""Data sets as they are published: trees of the same names with a few drawn images, from the overview to a prediction."""

import json
import re

import lowlevel.train
import predict
from common.cli import make_parser, parse, read_config
from data import overview, polygons
from data.loader import load_examples
from prediction.evaluation import find_masks, truth_reader
from prediction.images import find_images
from tests.drawn import RNG, save

import numpy as np
import pytest
import tifffile
from PIL import Image

SIZE, SMALL = 32, "--filters 2 --depth 1 --batch-size 2 --epochs 1 --learning-rate 0.01".split()
SQUARE = np.zeros((SIZE, SIZE), bool)
SQUARE[8:24, 8:24] = True
QUARTERS = np.repeat(np.repeat([[0, 1], [2, 3]], SIZE // 2, 0), SIZE // 2, 1).astype(np.uint8)  # four classes


def photo(mask, gray=False):
    """A noisy image that is brighter where the mask is larger."""
    image = RNG.integers(0, 60, mask.shape + (() if gray else (3,)), dtype=np.uint8)
    shade = (150 * (mask.astype(float) / max(mask.max(), 1))).astype(np.uint8)
    return image + (shade if gray else shade[..., None])


def write(folder, names, masks, mask=SQUARE, kind=lambda mask: np.uint8(255) * mask):
    """`names` and `masks` with {} for a number, how many: (pattern, n) pairs of both."""
    for i in range(4):
        save(folder / names.format(i), photo(mask))
        save(folder / masks.format(i), kind(mask))


def indexed(colors):
    """A palette image of class indices, as VOC has them."""

    def paint(mask):
        image = Image.fromarray(mask)
        image.putpalette([c for k in range(256) for c in colors.get(k, (k, k // 2, 255 - k))])
        return image

    return paint


def cityscapes(folder):
    ids = np.array([7, 11, 23, 0], np.uint8)  # road, building, sky, unlabeled
    for part, city in (("train", "aachen"), ("train", "bochum"), ("val", "munster")):
        for i in range(2):
            stem = f"{part}/{city}/{city}_00000{i}_000019"
            save(folder / f"leftImg8bit/{stem}_leftImg8bit.png", photo(QUARTERS))
            save(folder / f"gtFine/{stem}_gtFine_labelIds.png", ids[QUARTERS])
            save(folder / f"gtFine/{stem}_gtFine_color.png", photo(QUARTERS))
            (folder / f"gtFine/{stem}_gtFine_polygons.json").write_text("{}")


VOC_BORDER = QUARTERS.copy()
VOC_BORDER[:, 15:17] = 255


def voc(folder):
    root = folder / "VOCdevkit/VOC2012"
    for i in range(5):
        save(root / f"JPEGImages/2007_00{i}.jpg", photo(QUARTERS))
        if i < 4:
            save(root / f"SegmentationClass/2007_00{i}.png", indexed({})(VOC_BORDER))
            save(root / f"SegmentationObject/2007_00{i}.png", indexed({})(VOC_BORDER))
    lists = root / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    for name, numbers in {"train": "01", "val": "23", "trainval": "0123"}.items():
        (lists / f"{name}.txt").write_text("".join(f"2007_00{i}\n" for i in numbers))


CVAT_COLORS = np.array([[0, 0, 0], [250, 50, 83], [51, 221, 255], [9, 9, 200]], np.uint8)


def cvat(folder):
    write(folder, "JPEGImages/frame_{}.png", "SegmentationClass/frame_{}.png", QUARTERS, lambda mask: CVAT_COLORS[mask])
    (folder / "ImageSets/Segmentation").mkdir(parents=True)
    (folder / "ImageSets/Segmentation/default.txt").write_text("".join(f"frame_{i}\n" for i in range(4)))
    names = zip(("background", "car", "road sign", "tree"), CVAT_COLORS.tolist())
    lines = [f"{name}:{','.join(map(str, color))}::" for name, color in names]
    (folder / "labelmap.txt").write_text("\n".join(["# label:color_rgb:parts:actions", *lines]))


def roboflow(folder):
    for part in ("train", "valid", "test"):
        write(folder, f"{part}/f{{}}_jpg.rf.ab12.jpg", f"{part}/f{{}}_jpg.rf.ab12_mask.png", QUARTERS, lambda mask: mask)
        (folder / part / "_classes.csv").write_text("Pixel Value, Class\n0, background\n1, car\n2, bus\n3, tree\n")


def drive(folder):
    for part, numbers in (("training", range(21, 25)), ("test", range(1, 3))):
        for i in numbers:
            save(folder / f"{part}/images/{i:02}_{part}.tif", photo(SQUARE))
            save(folder / f"{part}/1st_manual/{i:02}_manual1.gif", np.uint8(255) * SQUARE)
            save(folder / f"{part}/mask/{i:02}_{part}_mask.gif", np.full((SIZE, SIZE), 255, np.uint8))


def busi(folder):
    for kind, n in (("benign", 3), ("malignant", 3), ("normal", 2)):
        for i in range(1, n + 1):
            mask = SQUARE & (kind != "normal")
            save(folder / f"Dataset_BUSI_with_GT/{kind}/{kind} ({i}).png", photo(mask))
            save(folder / f"Dataset_BUSI_with_GT/{kind}/{kind} ({i})_mask.png", mask)  # 1 bit
    second = np.zeros((SIZE, SIZE), np.uint8)
    second[26:30, 26:30] = 255
    save(folder / "Dataset_BUSI_with_GT/benign/benign (2)_mask_1.png", second)


def isic(folder):
    write(
        folder,
        "ISIC2018_Task1-2_Training_Input/ISIC_000000{}.jpg",
        "ISIC2018_Task1_Training_GroundTruth/ISIC_000000{}_segmentation.png",
    )
    (folder / "ISIC2018_Task1-2_Training_Input/ATTRIBUTION.txt").write_text("")


def tracking(folder):
    cells = np.zeros((SIZE, SIZE), np.uint16)
    cells[4:12, 4:12], cells[4:12, 12:20], cells[20:28, 20:28] = 3, 7, 300
    for sequence in ("01", "02"):
        for i in range(4):
            save(folder / f"{sequence}/t{i:03}.tif", photo(cells, gray=True))
            if i < 3:
                tifffile.imwrite(save(folder / f"{sequence}_GT/SEG/man_seg{i:03}.tif", SQUARE), cells)
            tifffile.imwrite(save(folder / f"{sequence}_GT/TRA/man_track{i:03}.tif", SQUARE), cells)
        (folder / f"{sequence}_GT/TRA/man_track.txt").write_text("1 0 3 0\n")


def clouds(folder):
    for i in range(4):
        end = f"patch_{i}_1_by_{i}_LC08_002053.TIF"
        for band in ("red", "green", "blue", "nir"):
            image = photo(SQUARE, gray=True).astype(np.uint16) * 50
            save(folder / f"38-Cloud_training/train_{band}/{band}_{end}", image)
            save(folder / f"38-Cloud_test/test_{band}/{band}_{end}", image)
        save(folder / f"38-Cloud_training/train_gt/gt_{end}", np.uint8(255) * SQUARE)


def ade20k(folder):
    for part, word in (("training", "train"), ("validation", "val")):
        write(
            folder,
            f"images/{part}/ADE_{word}_0000000{{}}.jpg",
            f"annotations/{part}/ADE_{word}_0000000{{}}.png",
            QUARTERS,
            lambda mask: mask,
        )
    (folder / "objectInfo150.txt").write_text("Idx Ratio Train Val Name\n")


def labelme(folder):
    for i in range(4):
        mask = np.where(SQUARE, 1, 0)
        mask[26:30, 2:6] = 2
        save(folder / f"2011_00000{i}.jpg", photo(mask))
        shapes = [
            {"label": "person", "points": [[8, 8], [24, 8], [24, 24], [8, 24]], "shape_type": "polygon"},
            {"label": "dog", "points": [[2, 26], [6, 30]], "shape_type": "rectangle"},
        ]
        text = {"imagePath": f"..\\images\\2011_00000{i}.jpg", "imageHeight": SIZE, "imageWidth": SIZE, "shapes": shapes}
        (folder / f"2011_00000{i}.json").write_text(json.dumps(text))
    polygons.main([*map(str, sorted(folder.glob("*.json"))), "--output", str(folder / "masks")])


def tgs(folder):
    for i in range(5):
        mask = SQUARE & (i % 5 != 4)
        save(folder / f"train/images/{i:010x}.png", photo(mask))
        save(folder / f"train/masks/{i:010x}.png", mask.astype(np.uint16) * np.uint16(65535))
    save(folder / "test/images/0fff.png", photo(SQUARE))
    for name in ("train.csv", "depths.csv"):
        (folder / name).write_text("id,z\n")


def kvasir(folder):
    for i in range(4):
        save(folder / f"Kvasir-SEG/images/cju{i}.jpg", photo(SQUARE))
        save(folder / f"Kvasir-SEG/masks/cju{i}.jpg", np.repeat(255 * SQUARE[..., None], 3, -1).astype(np.uint8), quality=90)
    (folder / "Kvasir-SEG/kavsir_bboxes.json").write_text("{}")


def camvid(folder):
    colors = np.array([[128, 128, 128], [128, 0, 0], [64, 128, 64], [0, 0, 0]], np.uint8)  # Sky, Building, Animal, Void
    write(folder, "701_StillsRaw_full/0001TP_00{}.png", "LabeledApproved_full/0001TP_00{}_L.png", QUARTERS, colors.__getitem__)


def segnet(folder):
    for part in ("train", "val", "test"):
        write(
            folder, f"CamVid/{part}/0001TP_00{{}}.png", f"CamVid/{part}annot/0001TP_00{{}}.png", QUARTERS, lambda mask: mask + 8
        )


def slices(folder):
    """Volumes of a few slices, each in a file."""
    for name in "abc":
        for kind, pages in (("imagesTr", [photo(SQUARE, gray=True)] * 3), ("labelsTr", [SQUARE.astype(np.uint8)] * 3)):
            tifffile.imwrite(save(folder / f"{kind}/case_{name}.tif", SQUARE), np.stack(pages), photometric="minisblack")


def lgg(folder):
    for patient in range(12):
        for i in range(2):
            stem = f"kaggle_3m/TCGA_CS_{patient:04}_1999/TCGA_CS_{patient:04}_1999_{i}"
            save(folder / f"{stem}.tif", photo(SQUARE))
            save(folder / f"{stem}_mask.tif", np.uint8(255) * SQUARE)


FOLDER = "--dataset folder"
TREES = {  # what builds it -> (the command, images to train on and to validate, classes, images to predict, true masks, a word)
    cityscapes: ("--dataset cityscapes", (4, 2), 19, "leftImg8bit/val/munster", "gtFine/val/munster", "labelIds"),
    voc: ("--dataset voc", (2, 2), 21, ".", ".", "4 of 5 images have a mask and are listed"),
    cvat: ("--dataset voc --colors DATA/labelmap.txt", (3, 1), 4, "JPEGImages", "SegmentationClass", "4 of 4 images"),
    roboflow: (FOLDER + " --class-names DATA/train/_classes.csv", (4, 4), 4, "test", "test", "4 of the test part"),
    drive: (
        FOLDER + " --image-files {part}/images/{name}_*.tif --mask-files {part}/1st_manual/{name}_manual1.gif",
        (3, 1), 1, "test/images", "test/1st_manual", "training/mask/",
    ),
    busi: (FOLDER, (6, 2), 1, "Dataset_BUSI_with_GT/benign", "Dataset_BUSI_with_GT/benign", "{name}_mask*.png"),
    isic: (
        FOLDER, (3, 1), 1, "ISIC2018_Task1-2_Training_Input", "ISIC2018_Task1_Training_GroundTruth", "{name}_segmentation.png"
    ),
    tracking: (
        FOLDER + " --objects --skip-bad --image-files {group}/t{name}.tif"
        " --mask-files {group}_GT/SEG/man_seg{name}.tif",
        (3, 3), 1, "01/t000.tif", "01_GT/SEG", "TRA/",
    ),
    clouds: (
        FOLDER + " --image-files 38-Cloud_training/train_red/red_{name}.TIF"
        " --mask-files 38-Cloud_training/train_gt/gt_{name}.TIF",
        (3, 1), 1, ".", ".", "38-Cloud_test/ (16 files)",
    ),
    ade20k: (FOLDER + " --void-label 0", (4, 4), 3, "images/validation", "annotations/validation", "annotations/{part}"),
    labelme: (FOLDER + " --class-names DATA/masks/classes.txt", (3, 1), 3, ".", "masks", "masks/{name}.png"),
    tgs: (FOLDER, (4, 1), 1, "train/images", "train/masks", "1 images of the test part have no masks"),
    kvasir: (FOLDER, (3, 1), 1, "Kvasir-SEG/images", "Kvasir-SEG/masks", "kavsir_bboxes.json"),
    camvid: ("--dataset camvid", (3, 1), 31, "701_StillsRaw_full", "LabeledApproved_full", "LabeledApproved_full"),
    segnet: ("--dataset camvid", (4, 4), 11, "CamVid/test", "CamVid/testannot", "{part}annot"),
    slices: (FOLDER, (6, 3), 1, "imagesTr/case_a.tif", "labelsTr", "3 groups"),
    lgg: (FOLDER, (20, 4), 1, ".", ".", "{group}/{name}_mask.tif"),
}  # fmt: skip


def prepared(tree, folder):
    """Builds the tree. Returns: (its folder, the options that name it)"""
    (folder / "data").mkdir()
    tree(folder / "data")
    return folder / "data", [*TREES[tree][0].replace("DATA", str(folder / "data")).split(), "--data-dir", str(folder / "data")]


@pytest.mark.parametrize("tree", TREES, ids=lambda tree: tree.__name__)
def test_published_trees(tree, tmp_path, capsys):
    """What a training reads, and which files `predict.py` takes for images and for true masks, with what the run has stored."""
    data, options = prepared(tree, tmp_path)
    _, sides, classes, images, masks, word = TREES[tree]
    parser = make_parser("train", "")
    config, *parts = load_examples(read_config(parse(parser, [*options, *SMALL])))
    assert tuple(len(part.names) for part in parts) == sides and config.network.classes == classes
    assert word in (told := capsys.readouterr().out), told
    sources = find_images([data / images], config)
    found = find_masks(data / masks, sources, config)
    assert found and not [source for source in sources if {"mask", "manual"} & {*re.split(r"[_.\d]", source.path.name)}]
    truth = truth_reader(found, config, False)
    for source in [source for source in sources if source.stem in found][:2]:
        held = np.unique(truth(source))
        assert len(held) > 1 and set(held) <= {*range(max(classes, 2)), 255}


@pytest.mark.parametrize("tree", [busi, *(pytest.param(tree, marks=pytest.mark.slow) for tree in TREES if tree is not busi)])
def test_from_the_overview_to_an_evaluation(tree, tmp_path, no_figures):
    """The same command for overview and training, and nothing but the checkpoint to predict and to evaluate."""
    data, options = prepared(tree, tmp_path)
    _, sides, classes, images, masks, _ = TREES[tree]
    run, options = tmp_path / "run", [*options, *SMALL]
    assert overview.main([*options, "--output", str(tmp_path / "o")]) == 0 or "--skip-bad" in options
    summary = json.loads((tmp_path / "o/overview.json").read_text())
    assert tuple(summary["split"].values()) == sides and summary["classes"] == classes
    assert lowlevel.train.main([*options, "--run-dir", str(run)]) in (None, 0)
    command = ["--checkpoint", str(run / "best.safetensors"), str(data / images), "--output", str(tmp_path / "p")]
    assert predict.main([*command, "--evaluate", str(data / masks)]) == 0
    rows = (tmp_path / "p/metrics.csv").read_text().splitlines()
    assert len(rows) > 3 and "dice" in rows[0] and "nan" not in rows[-1].split(",")[1]
