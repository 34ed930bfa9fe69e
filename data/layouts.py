"""How data sets lie on disk, which file is whose mask, and what the numbers in a mask mean.

Files are decoded with Pillow: scikit-image's reader shows palette masks as colours, takes a TIFF of three pages for RGB and
cannot unpack LZW.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from common.config import Names, Size, UserError

import numpy as np
from PIL import Image

EXTENSIONS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".gif")


@dataclass(frozen=True)
class Item:
    """One image and its mask on disk; nothing of them is decoded yet."""

    name: str  # unique: the image's path below --data-dir with "/", for messages and split.json; "stack.tif[3]" for a page
    image: Path
    mask: Path
    page: int = 0  # in a file that holds many
    group: str = ""  # images of one group stay on one side of a split, where the layout knows groups
    part: str = ""  # "train", "val" or "test" where whoever published the data has split it


@dataclass(frozen=True)
class Layout:
    """What a data set holds and how to read it."""

    items: list[Item]  # sorted by name
    # (item, channels, size or None) -> image uint8 [H, W, channels], mask uint8 [H, W] with the values of the file;
    # both resized to `size` if it is given. Raises UserError. Called from several threads.
    read: Callable[[Item, int, Size | None], tuple[np.ndarray, np.ndarray]]
    classes: dict[int, int] | None = None  # mask value -> class index where the layout fixes it; None: by the values found
    class_names: Names | None = None


def find_folder(data_dir):
    """Pairs `data_dir/images/STEM.*` with `data_dir/masks/STEM.*`; what is no image file is passed over.

    The stems must be the same to the letter: cat.png belongs to cat.gif, and not to cat1.png or Cat.png.

    Returns: [(name, image_path, mask_path)], sorted by stem; the name is the image's file name.

    Raises: UserError for a missing folder, no images, an image or a mask without its counterpart, two files of one stem.
    """
    data_dir = Path(data_dir)
    if not data_dir.is_dir():
        raise UserError(f"--data-dir {data_dir} is not a folder")
    images, masks = _by_stem(data_dir / "images"), _by_stem(data_dir / "masks")
    if not images:
        raise UserError(f"{data_dir / 'images'} holds no images ({', '.join(EXTENSIONS)})")
    alone = [f"images/{images[stem].name} has no mask" for stem in sorted(images.keys() - masks.keys())]
    alone += [f"masks/{masks[stem].name} has no image" for stem in sorted(masks.keys() - images.keys())]
    if alone:
        more = f", and {len(alone) - 10} more" if len(alone) > 10 else ""
        raise UserError(
            f"images and masks must have the same names, up to the extension; in {data_dir} {', '.join(alone[:10])}{more}"
        )
    return [(images[stem].name, images[stem], masks[stem]) for stem in sorted(images)]


def _by_stem(folder):
    """{stem: path} of the image files in `folder`. Names with a leading dot are the file manager's, even ._cat.png."""
    if not folder.is_dir():
        raise UserError(f"{folder} is missing: --data-dir needs the folders images/ and masks/")
    found = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in EXTENSIONS and not path.name.startswith("."):
            if path.stem in found:
                raise UserError(f"{found[path.stem]} and {path} have the same name but for the extension: keep one of them")
            found[path.stem] = path
    return found


def _decode(path):
    """Opens an image file and decodes all of it.

    Raises: UserError for a file that is damaged, cut short or no image, and for several pages in one file.
    """
    try:
        with Image.open(path) as image:
            pages = getattr(image, "n_frames", 1)
            image.load()
    except Exception as error:  # a damaged file can raise nearly anything in a decoder
        raise UserError(f"cannot read {path} as an image: {error}") from error
    if pages > 1 and image.format in ("TIFF", "GIF"):  # a phone's JPEG may carry a preview as a second page
        raise UserError(f"{path} holds {pages} images: save each as a file of its own")
    return image


def read_image(path, channels):
    """Reads gray or colour -> uint8 [H, W, channels], 0 to 255, converted to the other if need be; transparency is dropped.

    16 bits are scaled to 8. Below 4096 they are taken for the 12 bits of a camera, which would be all but black otherwise.

    Raises: UserError for what cannot be read, and for values outside of 16 bits, or of 0 to 1 if they are floats.
    """
    image = _decode(path)
    if image.mode == "F" or image.mode.startswith("I"):
        values = np.asarray(image)
        white = 1 if image.mode == "F" else 4095 if values.max() < 4096 else 65535
        if not (values.min() >= 0 and values.max() <= white):  # so NaN is caught too
            raise UserError(f"{path} holds values outside of 0 to {white}: save it with 8 or 16 bits")
        image = Image.fromarray(np.rint(values * (255 / white)).astype(np.uint8))
    pixels = np.asarray(image.convert("RGB" if channels == 3 else "L"))
    return pixels.reshape(*pixels.shape[:2], channels)


def read_mask(path):
    """Reads the numbers of a mask as they are stored -> uint8 [H, W]; `class_indices` knows what they mean.

    Raises: UserError for what cannot be read, for colours, and for numbers other than 0, 1, 2, ... 255.
    """
    image = _decode(path)
    if image.mode in ("1", "L", "F") or image.mode.startswith("I"):
        values = np.asarray(image)
    else:
        colours = np.asarray(image.convert("RGB"))
        values = colours[..., 0]
        gray = (colours == values[..., None]).all()
        if image.mode == "P" and not (gray and np.isin(values, (0, 255)).all()):
            values = np.asarray(image)  # a palette that paints the class indices, as in Pascal VOC
        elif not gray:
            raise UserError(f"{path} is a colour image: a mask is gray, its values are class indices or 0 and 255")
    if values.dtype.itemsize > 1:
        values = np.where(values == 65535, 255, values)  # white in 16 bits
        wrong = values[~np.isin(values, np.arange(256))]
        if wrong.size:
            raise UserError(f"{path} holds the value {wrong[0]}: a mask holds class indices, or 0 and 255")
    return values.astype(np.uint8)


def class_indices(masks, paths, classes):
    """Decides for the whole data set what the values of its masks mean: a mask of one image may well be 0 everywhere.

    Args:
        masks: uint8 [H, W] each, from `read_mask`.
        paths: their files.
        classes: as in `Config`; 1 and 2 both are foreground against background, 0/1 or 0/255 in the files.

    Returns: the masks as class indices, uint8 [H, W] each, and a few words on how they were read.

    Raises: UserError for values that are no classes, naming the first file that has them.
    """
    present = np.array([np.bincount(mask.ravel(), minlength=256) > 0 for mask in masks])  # [masks, values]
    values, limit = np.flatnonzero(present.any(axis=0)), max(classes, 2)
    if values[-1] < limit:
        return masks, f"mask values 0 to {values[-1]}"
    if limit == 2 and np.isin(values, (0, 255)).all():
        return [mask // 255 for mask in masks], "mask values 0/255 read as 0/1"
    jpeg = np.array([path.suffix.lower() in (".jpg", ".jpeg") for path in paths])
    if limit == 2 and values[-1] > 192 and jpeg[present[:, 1:255].any(axis=1)].all():
        # JPEG smears black and white into their neighbours. Class indices it would smear into each other.
        return [mask // 128 for mask in masks], "JPEG masks read as 0 below 128 and 1 above"

    first = int(present[:, limit:].any(axis=1).argmax())
    held = [str(value) for value in np.flatnonzero(present[first])]
    shown = ", ".join(held if len(held) <= 8 else [*held[:6], "...", held[-1]])
    allowed = "0/1 or 0/255, the same in all masks" if limit == 2 else f"0 to {classes - 1}"
    if jpeg[first]:
        advice = "JPEG does not keep a mask's values, save it as PNG"
    elif values[values < 255][-1:] >= limit:
        advice = f"if they are class indices, set --classes {values[values < 255][-1] + 1}, otherwise mend the mask"
    elif limit == 2:
        advice = "here 1 and 255 both occur"
    else:
        advice = "255 is foreground only with --classes 1 or 2; where it marks what nobody labelled, give it a class"
    raise UserError(f"{paths[first]} holds {len(held)} values ({shown}), but --classes {classes} takes {allowed}: {advice}")
