"""Masks out of outlines: draws those of COCO and LabelMe JSON as PNG, one for each image, and writes the list of classes.

    python -m data.polygons annotations.json --output my_data/masks
    python -m data.polygons my_data/*.json --output my_data/masks --objects

The background is 0, classes are 1, 2, 3 and so on, as classes.txt beside the masks says: --class-names DIR/classes.txt. With
--objects every outline has a number of its own. Where outlines overlap, the later one has the pixels. An outline within another
of the same COCO object is a hole in it. What is called __ignore__ or void becomes 255, void.
"""

import base64
import io
import json
import re
from pathlib import Path

from common.cli import Parser, run_script
from common.colors import CLASS_COLORS
from common.config import VOID, UserError
from common.output import prepare, replacing, write_text
from common.text import listed, say

import numpy as np
from PIL import Image
from skimage.draw import disk, polygon2mask

BACKGROUND, IGNORED = ("background", "_background_"), ("__ignore__", "void")  # names that are no classes


def read_outlines(path):
    """-> [(name of the image without folders, (height, width), [(class, bool [H, W])])], the classes that it lists, in order.

    Raises: UserError for a file that cannot be read, or is something else.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
        return (_coco if "annotations" in found and "images" in found else _labelme)(found, path)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError, OverflowError) as error:
        what = f"no COCO or LabelMe JSON ({type(error).__name__} {str(error)[:200]})"
        raise UserError(f"{path} is {what}: save its masks as PNG with the tool that drew them") from None


def _coco(found, path):
    """categories: a class each, in order of their ids; but one that is only the family of others, as Roboflow's first."""
    families = {c.get("supercategory") for c in found["categories"] if c.get("supercategory") != c["name"]}
    used = {a["category_id"] for a in found["annotations"]}
    categories = sorted(found["categories"], key=lambda c: c["id"])
    names = {c["id"]: str(c["name"]) for c in categories if c["id"] in used or c["name"] not in families}
    outlines = {image["id"]: [] for image in found["images"]}
    for annotation in found["annotations"]:
        outlines[annotation["image_id"]].append((names[annotation["category_id"]], annotation.get("segmentation")))
    if bare := sum(not outline for several in outlines.values() for _, outline in several):
        say(f"{path}: passed over {bare} annotations without an outline")
    images = []
    for image in found["images"]:
        shape = int(image["height"]), int(image["width"])
        regions = [(name, _segmentation(outline, shape)) for name, outline in outlines[image["id"]] if outline]
        images.append((str(image["file_name"]), shape, regions))
    return images, list(names.values())


def _segmentation(outline, shape):
    """Polygons, or run lengths as numbers or as COCO's text -> bool [H, W]"""
    if isinstance(outline, dict):
        if (size := outline.get("size", [*shape])) != [*shape]:
            raise ValueError(f"run lengths of {size} in an image of {[*shape]}")
        runs = outline["counts"] if isinstance(outline["counts"], list) else run_lengths(outline["counts"])
        return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(shape[::-1]).T  # column by column
    region = np.zeros(shape, bool)
    for points in filter(len, outline):
        ring = _ring(np.reshape(points, (-1, 2)), shape)
        region[ring] = not region[ring].all()
    return region


def run_lengths(text):
    """COCO's run lengths: 5 bits in a letter from "0" on, the lowest first, and a sixth where more follow.

    From the fourth number on they are differences from the one before the last.
    """
    runs, value, shift = [], 0, 0
    for letter in text.encode():
        bits = letter - 48
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            value -= (1 << shift) * bool(bits & 16)  # its highest bit is the sign
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    return runs


def _ring(points, shape):
    """x and y of the corners [n, 2], 0 being the border of the first pixel -> bool [H, W]: pixels whose centres lie within."""
    return polygon2mask(shape, np.asarray(points, float)[:, ::-1] - 0.5)


def _labelme(found, path):
    shape, regions, over = (int(found["imageHeight"]), int(found["imageWidth"])), [], []
    for drawn in found["shapes"]:
        kind, points = drawn.get("shape_type") or "polygon", np.reshape(drawn["points"], (-1, 2)).astype(float)
        region = np.zeros(shape, bool)
        if kind == "rectangle":
            (left, top), (right, bottom) = points.min(axis=0), points.max(axis=0)
            points = np.array([(left, top), (right, top), (right, bottom), (left, bottom)])
        if kind in ("polygon", "rectangle"):
            region = _ring(points, shape)
        elif kind == "circle":
            region[disk(points[0, ::-1] - 0.5, np.hypot(*(points[1] - points[0])), shape=shape)] = True
        elif kind == "mask":  # a picture of the part within its corners
            part = np.asarray(Image.open(io.BytesIO(base64.b64decode(drawn["mask"])))) > 0
            left, top = points.min(axis=0).astype(int)
            places = np.argwhere(part) + (top, left)
            region[tuple(places[((places >= 0) & (places < shape)).all(axis=1)].T)] = True
        else:
            over.append(kind)
            continue
        regions.append((str(drawn["label"]), region))
    if over:
        say(f"{path}: passed over {len(over)} shapes that hold no area: {listed(sorted(set(over)))}")
    name = re.split(r"[/\\]", found["imagePath"])[-1]
    return [(name, shape, regions)], [label for label, _ in regions if label not in (*BACKGROUND, *IGNORED)]


def draw(regions, shape, classes, objects):
    """[(class, bool [H, W])] -> uint8 [H, W], class indices by {name: index}, or uint16 with `objects`, 1, 2, 3, ..."""
    mask = np.zeros(shape, np.uint16 if objects else np.uint8)
    for number, (name, region) in enumerate(regions, 1):
        mask[region] = classes[name] if not objects or name in (*BACKGROUND, *IGNORED) else number
    return mask


def _cell(name):
    """The name of a class as `common.colors.class_list` reads it: no number alone, and no separator in it."""
    return f"class {name}" if name.isdecimal() else re.sub(r"[,;:\t#]+", " ", name)


def main(argv=None):
    parser = Parser(prog="data.polygons", description=__doc__)
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="COCO JSON, or LabelMe's, one for each image")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="where the masks go")
    parser.add_argument("--objects", action="store_true", help="number the outlines: masks for --objects")
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there")
    args = parser.parse_args(argv)
    images, names = {}, []
    for path in args.files:
        found, listed_names = read_outlines(path)
        names = list(dict.fromkeys([*names, *(name for name in listed_names if name not in (*BACKGROUND, *IGNORED))]))
        for name, shape, regions in found:
            stem = Path(name).stem
            if stem in images:
                raise UserError(
                    f"{path}: a second image is called {stem}: rename one (files drawn apart number their own classes)"
                )
            images[stem] = shape, regions
    if not 0 < len(names) < VOID:
        raise UserError(f"{args.files[0]} has {len(names)} classes: masks hold 1 to {VOID - 1} and the background")
    classes = {**{name: k for k, name in enumerate(names, 1)}, **dict.fromkeys(BACKGROUND, 0), **dict.fromkeys(IGNORED, VOID)}
    prepare([args.output / f"{stem}.png" for stem in images] + [args.output / "classes.txt"], args.overwrite)
    for stem, (shape, regions) in images.items():
        picture = Image.fromarray(draw(regions, shape, classes, args.objects))
        if not args.objects:
            picture.putpalette(np.rint(255 * CLASS_COLORS).astype(np.uint8).tobytes())
        with replacing(args.output / f"{stem}.png") as part:
            picture.save(part, "PNG")
    write_text(args.output / "classes.txt", "".join(f"{_cell(name)},{k}\n" for k, name in enumerate(["background", *names])))
    outlines = sum(len(regions) for _, regions in images.values())
    say(f"{len(images)} masks of {outlines:,} outlines in {args.output}: background, {listed(names, 20)}")


if __name__ == "__main__":
    run_script(main)
