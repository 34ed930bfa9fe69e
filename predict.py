"""Masks for images of any size, from the checkpoint of any of the three implementations, through any of them.

    python predict.py --checkpoint runs/lowlevel/best.safetensors photos/ --output masks
    python predict.py --checkpoint runs/lowlevel/best.safetensors a.png stack.tif --output masks --overlay --tta
    python predict.py --checkpoint runs/lowlevel/best.safetensors photos/ --output masks --evaluate truth/
    python predict.py --checkpoint runs/lowlevel/best.safetensors --export savedmodel --output exported

DIR/STEM.png is the mask of STEM.*: 0 and 255 with one class, else the class indices with a palette of colours. Both can be
read back as masks to train on. The pages of a TIFF or GIF that holds many become STEM_1.png, STEM_2.png and so on.

A run that resized its images to --image-size predicts at that size too, and the probabilities are brought back to the size of
the image. Images larger than --tile are predicted in overlapping tiles, with the same result as in one piece.

Exit code: 0 when every image was predicted, 1 when --skip-bad left some out, 2 for an error.
"""

import argparse
import contextlib
import csv
import os
import sys
import tempfile
import time
import unicodedata
from pathlib import Path
from typing import NamedTuple

import comparison
from common.checkpoint import load_checkpoint, load_metadata, replacing
from common.cli import run_script
from common.config import Config, Size, UserError
from common.device import tf
from common.losses import probabilities
from common.metrics import class_scores, confusion, mean_over_classes, predicted_classes
from common.pictures import CLASS_COLORS, class_names
from common.weights import assign_weights, fold_batch_norm
from data.files import count_pages, read_image, read_mask
from data.layouts import EXTENSIONS, Item, Layout, by_index, mask_meaning, read_colors, trimap_classes
from prediction.export import FILES, export
from prediction.tiles import predict_resized, predict_tiles, smallest_image, smallest_tile

import numpy as np
from PIL import Image
from tqdm import tqdm

COLORS = np.rint(255 * CLASS_COLORS).astype(np.uint8)  # [256, 3]
ROWS = 256  # of a large image that are worked on at once, where the whole would take many times the memory of the image


class Source(NamedTuple):
    """One image to predict."""

    path: Path
    page: int | None  # from 0, in a file that holds many
    stem: str  # of the files that are written

    def __str__(self):
        return self.path.name if self.page is None else f"{self.path.name}[{self.page + 1}]"


def read_command_line(argv):
    parser = argparse.ArgumentParser(
        prog="predict.py", description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )

    def error(message):
        raise UserError(f"{message} (see predict.py --help)")

    parser.error = error
    parser.add_argument("images", type=Path, nargs="*", metavar="IMAGE_OR_DIR", help="images, or folders of images")
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="FILE", help="best.safetensors of a run")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder of the masks, or of the export")
    parser.add_argument("--implementation", choices=comparison.IMPLEMENTATIONS, help="default: the one that trained")
    parser.add_argument("--evaluate", type=Path, metavar="MASKS", help="true masks, a folder or a file: prints metrics")
    parser.add_argument("--overlay", action="store_true", help="also DIR/overlays/STEM.png, the mask in colours on the image")
    parser.add_argument(
        "--probabilities", action="store_true", help="also DIR/probabilities/STEM.npy, float32 [height, width, classes]"
    )
    parser.add_argument("--tta", action="store_true", help="mean over the 8 symmetries of a square image, the 4 of another")
    parser.add_argument("--tile", type=int, default=1024, metavar="PIXELS", help="side of the tiles (default: %(default)s)")
    parser.add_argument("--skip-bad", action="store_true", help="go on without images that cannot be read, and list them")
    parser.add_argument("--export", choices=FILES, help="no masks: write the network into DIR, for use without this project")
    parser.add_argument("--image-size", type=Size.parse, metavar="SIZE", help="of --export stablehlo (default: the training's)")
    args = parser.parse_args(argv)
    if bool(args.images) == bool(args.export):
        raise UserError("name images to predict, or a kind of --export, and not both")
    if args.image_size and args.export != "stablehlo":
        raise UserError("--image-size goes with --export stablehlo; a prediction takes that of the training")
    return args


# --- the network ---


def read_checkpoint(path):
    """-> (config, weights by name, the implementation that trained).

    Raises: UserError for a file that is missing, damaged, or not of this version of the project.
    """
    metadata = load_metadata(path)
    if not {"config", "implementation"} <= metadata.keys():
        raise UserError(f"{path} was not written by a train script of this project: train, or take another file")
    try:
        config = Config.from_dict(metadata["config"])
    except UserError as error:
        raise UserError(f"{path} is of another version of the project ({error}): train again, or use that version") from None
    return config, load_checkpoint(path, config)[0], metadata["implementation"]


def make_network(implementation, config, weights):
    """-> network: float32 [1, h, w, channels] in 0..1 -> probabilities [1, h - margin, w - margin, classes], numpy arrays."""
    code = comparison.load(implementation)
    config, weights = fold_batch_norm(config.network, weights)  # twice as fast in bfloat16
    model = code.UNet(config.network)
    assign_weights(code.named_weights(model), weights)

    @tf.function(reduce_retracing=True)  # the second size makes a graph that takes all sizes
    def predict(images):
        return probabilities(model(images, training=False))

    def network(images):
        try:
            return predict(tf.constant(images)).numpy()
        except tf.errors.ResourceExhaustedError:
            raise UserError(
                f"{images.shape[1]}x{images.shape[2]} pixels at once do not fit into memory: use a smaller --tile"
            ) from None

    return network


# --- files ---


def image_files(folder):
    """The image files in `folder`, sorted. Names with a leading dot are the file manager's."""
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in EXTENSIONS and not p.name.startswith("."))


def find_images(paths):
    """All images of the files and folders `paths`: [Source].

    Raises: UserError for what does not exist, a folder without images, and two images that would get the same name.
    """
    files = []
    for path in paths:
        if not path.exists():
            raise UserError(f"{path} does not exist")
        found = image_files(path) if path.is_dir() else [path]
        if not found:
            raise UserError(f"{path} holds no images ({', '.join(EXTENSIONS)})")
        files += found
    sources = {}
    for path in dict.fromkeys(files):
        for source in pages_of(path):
            if source.stem in sources:
                raise UserError(
                    f"{sources[source.stem].path} and {path} would both become {source.stem}.png: predict one of them in a run "
                    "of its own, into another --output"
                )
            sources[source.stem] = source
    return list(sources.values())


def pages_of(path):
    """[Source] of a file: several for a TIFF or GIF of many pages. A file that cannot be read is one, and fails later."""
    pages = 1
    if path.suffix.lower() in (".tif", ".tiff", ".gif"):  # a phone's JPEG carries a preview as a second image
        with contextlib.suppress(UserError):
            pages = count_pages(path)
    if pages == 1:
        return [Source(path, None, path.stem)]
    return [Source(path, page, f"{path.stem}_{page + 1:0{len(str(pages))}}") for page in range(pages)]


def find_masks(path, sources):
    """The true masks for --evaluate `path`: {stem of a source: Source}. STEM or, as in Carvana, STEM_mask belongs to STEM.

    Raises: UserError for an image without a mask, and for one with two.
    """
    if not path.exists():
        raise UserError(f"--evaluate {path} does not exist")
    masks = {}
    for mask in [page for file in (image_files(path) if path.is_dir() else [path]) for page in pages_of(file)]:
        stem = unicodedata.normalize("NFC", mask.stem)  # macOS may store é as e and an accent
        if stem in masks:
            raise UserError(f"{masks[stem].path} and {mask.path} have the same name but for the extension: keep one of them")
        masks[stem] = mask
    if not path.is_dir():
        if len(masks) != len(sources):
            raise UserError(f"--evaluate {path} holds {len(masks)} masks for {len(sources)} images: name a folder of masks")
        return {source.stem: mask for source, mask in zip(sources, masks.values())}
    found = {}
    for source in sources:
        stem = unicodedata.normalize("NFC", source.stem)
        found[source.stem] = masks.get(stem) or masks.get(f"{stem}_mask")
        if not found[source.stem]:
            raise UserError(
                f"--evaluate {path} holds no mask for {source.path}: it is looked for as {stem} or {stem}_mask, any extension"
            )
    return found


def outputs(source, args):
    """Where the results of an image go: {"mask": path, ...}."""
    paths = {"mask": args.output / f"{source.stem}.png"}
    if args.overlay:
        paths["overlay"] = args.output / "overlays" / f"{source.stem}.png"
    if args.probabilities:
        paths["probabilities"] = args.output / "probabilities" / f"{source.stem}.npy"
    return paths


def prepare_output(args, sources, masks):
    """Makes the folders of the results. Raises: UserError when they cannot be written, or an input would be overwritten."""
    inputs = {source.path.resolve() for source in [*sources, *masks.values()]}
    folders = {args.output}
    for source in sources:
        for path in outputs(source, args).values():
            if path.resolve() in inputs:
                raise UserError(f"{path} is an input and would be overwritten: choose another --output")
            folders.add(path.parent)
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            raise UserError(f"cannot write to --output {folder}: {error.strerror}") from None


# --- one image ---


def predict_mask(network, source, config, args, save_to=None):
    """-> image uint8 [H, W, channels], class indices uint8 [H, W]. The probabilities go into the file `save_to`, if any.

    Raises: UserError for an image that cannot be read or is too small.
    """
    image = read_image(source.path, config.network.channels, page=source.page)
    height, width, _ = image.shape
    if config.data.image_size in (None, (height, width)):
        smallest = smallest_image(config.network)
        if min(height, width) < smallest:
            raise UserError(
                f"{source.path} is {Size(height, width)} pixels, too small for this network, which needs {smallest}"
            )
        parts = predict_tiles(network, image, config, args.tile, args.tta, str(source))
    else:
        resized = read_image(source.path, config.network.channels, config.data.image_size, source.page)  # as the training did
        parts = predict_resized(network, resized, (height, width), config, args.tile, args.tta, str(source))
    if save_to:
        np.lib.format.open_memmap(save_to, "w+", np.float32, (height, width, config.network.classes))
        with open(save_to, "r+b") as file:  # a disk that is full says so now; where pages are mapped it would kill the process
            os.posix_fallocate(file.fileno(), 0, os.path.getsize(save_to))
    mask = np.empty((height, width), np.uint8)
    for rows, columns, p in parts:
        mask[rows, columns] = predicted_classes(p[np.newaxis])[0]
        if save_to:  # opened anew every time: the pages of a mapped file count as memory until it is closed
            np.lib.format.open_memmap(save_to, "r+")[rows, columns] = p
    return image, mask


def bands(*arrays):
    """A few rows at a time of arrays of one height."""
    for top in range(0, len(arrays[0]), ROWS):
        yield tuple(array[top : top + ROWS] for array in arrays)


def count_values(mask):
    """uint8 [H, W] -> int [256], how often each value occurs."""
    return sum(np.bincount(band.ravel(), minlength=256) for (band,) in bands(mask))


def save_mask(path, mask, config):
    """0 and 255 with one class; else class indices, with a palette for the eye."""
    picture = Image.fromarray(mask * np.uint8(255) if config.network.classes == 1 else mask)
    if config.network.classes > 1:
        picture.putpalette(COLORS[: config.network.classes].tobytes())
    with replacing(path) as part:
        picture.save(part, "PNG")


def save_overlay(path, image, mask, config):
    """The image, with a half-transparent colour on all that is not background (class 0)."""
    picture = Image.new("RGB", mask.shape[::-1])
    for top, (pixels, classes) in zip(range(0, len(mask), ROWS), bands(image, mask)):
        pixels = np.repeat(pixels, 3, -1) if config.network.channels == 1 else pixels
        mixed = pixels // 2 + COLORS[classes] // 2
        picture.paste(Image.fromarray(np.where(classes[..., np.newaxis] > 0, mixed, pixels)), (0, top))
    with replacing(path) as part:
        picture.save(part, "PNG")


# --- evaluation ---


def truth_reader(masks, config, skip_bad):
    """-> read_truth(source): the true mask of a `Source`, class indices uint8 [H, W], VOID where nobody labelled.

    What the values of the files stand for is decided for all masks together, as in training: so they are all read once here.

    masks: stem of the image -> `Source` of its mask, from `find_masks`.
    """
    colors = read_colors(config) if config.data.colors else None

    def read(mask):
        return read_mask(mask.path, page=mask.page, colors=colors)

    present = {}
    for mask in tqdm(masks.values(), desc="reading masks", delay=1, leave=False, disable=None):
        with contextlib.suppress(UserError) if skip_bad else contextlib.nullcontext():
            present[mask] = count_values(read(mask)) > 0
    items = [Item(str(mask), mask.path, mask.path) for mask in present]
    classes = by_index(max(config.network.classes, 2)) if colors else None
    if config.data.dataset == "oxford_pet" and not any(values[0] for values in present.values()):
        classes, _ = trimap_classes(config)  # with a 0 they are no trimaps, but masks of one's own
    layout = Layout(items, None, classes)
    table = mask_meaning(np.reshape(list(present.values()), (-1, 256)), items, config, layout).table
    return lambda source: table[read(masks[source.stem])]


def compare(source, mask, read_truth, classes):
    """The confusion matrix of a predicted mask. Raises: UserError when the true mask has another size."""
    truth = read_truth(source)
    if truth.shape != mask.shape:
        raise UserError(f"{source.path} is {Size(*mask.shape)} pixels, its true mask {Size(*truth.shape)}: mend the mask")
    return sum(confusion(*pair, classes) for pair in bands(truth, mask))


def measures(matrix, classes):
    """Confusion matrix -> [dice, IoU, accuracy, IoU of each class]; with more than one class dice and IoU are means."""
    iou, dice = class_scores(matrix)
    accuracy = np.trace(matrix) / matrix.sum() if matrix.any() else np.nan
    return [mean_over_classes(dice, classes), mean_over_classes(iou, classes), accuracy, *iou]


def write_metrics(path, matrices, config):
    """Writes the metrics of every image, their mean, and those of all pixels together; prints the last two.

    matrices: name of the image -> confusion matrix.
    """
    rows = {name: measures(matrix, config.network.classes) for name, matrix in matrices.items()}
    totals = {
        "mean of the images": np.ma.masked_invalid(list(rows.values())).mean(axis=0).filled(np.nan),
        "all pixels": measures(sum(matrices.values()), config.network.classes),
    }
    names = class_names(config.data.class_names, config.network.classes)
    columns = ["dice", "iou", "accuracy", *(f"iou_{name}" for name in names)]
    with replacing(path) as part, open(part, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image", *columns])
        writer.writerows([name, *(f"{value:.7g}" for value in row)] for name, row in (rows | totals).items())
    width = max(map(len, columns))
    print("\n" + " " * width + "".join(f"{name:>20}" for name in totals))
    for column, *values in zip(columns, *totals.values()):
        print(f"{column:<{width}}" + "".join(f"{value:>20.4f}" for value in values))


# --- the command ---


def describe(source, mask, config):
    """One line on a mask: its size and the share of every class in it. Warns of a mask that is the same all over."""
    names = class_names(config.data.class_names, config.network.classes)
    counts = count_values(mask)[: len(names)]
    if (counts > 0).sum() == 1:
        print(f"warning: {source}: every pixel of the mask is {names[counts.argmax()]}", file=sys.stderr)
    shown = [1] if config.network.classes == 1 else np.flatnonzero(counts)
    shares = ", ".join(f"{names[i]} {counts[i] / mask.size:.1%}" for i in shown)
    return f"{source}  {Size(*mask.shape)}  {shares}"


def process(source, network, config, args, read_truth=None):
    """Predicts an image, writes its files and prints its line. read_truth: from `truth_reader`, with --evaluate.

    Returns: its confusion matrix, or None.

    Raises: UserError for an image or a mask that cannot be read or does not fit.
    """
    paths, matrix = outputs(source, args), None
    with replacing(paths["probabilities"]) if args.probabilities else contextlib.nullcontext() as part:
        image, mask = predict_mask(network, source, config, args, part)
    line = describe(source, mask, config)
    if read_truth:
        matrix = compare(source, mask, read_truth, config.network.classes)
        line += "  dice {:.4f}  iou {:.4f}  accuracy {:.4f}".format(*measures(matrix, config.network.classes))
    save_mask(paths["mask"], mask, config)
    if args.overlay:
        save_overlay(paths["overlay"], image, mask, config)
    print(line, flush=True)
    return matrix


def main(argv=None):
    """Returns the exit code."""
    args = read_command_line(argv)
    config, weights, trained_by = read_checkpoint(args.checkpoint)
    if args.export:
        implementation = args.implementation or ("keras_impl" if args.export == "keras" else trained_by)
        export(args.export, implementation, config, weights, args.output, args.image_size)
        return 0
    if args.tile < smallest_tile(config.network):
        raise UserError(
            f"--tile must be at least {smallest_tile(config.network)} for {config.network.depth} poolings, got {args.tile}"
        )
    sources = find_images(args.images)
    truths = find_masks(args.evaluate, sources) if args.evaluate else {}
    prepare_output(args, sources, truths)
    read_truth = truth_reader(truths, config, args.skip_bad) if truths else None
    network = make_network(args.implementation or trained_by, config, weights)
    matrices, errors, started = {}, [], time.perf_counter()
    for source in sources:
        try:
            matrices[str(source)] = process(source, network, config, args, read_truth)
        except UserError as error:
            if not args.skip_bad:
                raise
            errors.append(error)
    seconds = time.perf_counter() - started
    if truths and matrices:
        write_metrics(args.output / "metrics.csv", matrices, config)
    print(f"{len(matrices)} of {len(sources)} images predicted in {seconds:.1f} s; the masks are in {args.output}/")
    for error in errors:
        print(f"left out: {error}", file=sys.stderr)
    return 1 if errors else 0


if __name__ == "__main__":
    run_script(main)
