"""How good predicted masks are: the true masks that belong to them, their scores, metrics.csv, and pictures of the worst."""

import contextlib
import re
import sys
import unicodedata

from common.config import VOID, Size, UserError
from common.metrics import class_scores, confusion, measures
from common.output import write_csv
from common.pictures import class_names, expendable
from common.text import cell, say
from data.files import image_files, read_mask, read_objects
from data.layouts import Item, Layout, bowl_of, find_suffix, passed_over
from data.meaning import OBJECTS, as_classes, by_index, mask_meaning, read_colors, trimap_classes
from prediction.images import Source, count_values, pages_of, strips

import numpy as np
from tqdm import tqdm

WORST = 8  # images in predictions.png
EVALUATED = ("metrics.csv", *(f"evaluation/{name}" for name in ("confusion.csv", "confusion.png", "predictions.png")))
SHOWN = 600  # rows and columns of them at most


def find_masks(path, sources, suffix=None):
    """The true masks for --evaluate `path`: {stem of a source: Source}.

    The mask of STEM is STEM{suffix}, STEM, STEM_mask as in Carvana, or STEM with what a training would find behind all masks;
    or the folder STEM/masks, as in the 2018 Data Science Bowl: its Source has the folder as its path. The pages of a file go to
    the images in the order of their names, numbers by their value: slice_2 before slice_10.

    suffix: `config.data.mask_suffix` of the training.

    Raises: UserError for an image without a mask, and for one with two.
    """
    if not path.exists():
        raise UserError(f"--evaluate {path} does not exist")
    pages = [page for file in (image_files(path) if path.is_dir() else [path]) for page in pages_of(file)]
    if not path.is_dir():
        if len(pages) != len(sources):
            raise UserError(f"--evaluate {path} holds {len(pages)} masks for {len(sources)} images: name a folder of masks")
        parts = {source.stem: re.split(r"(\d+)", source.stem) for source in sources}
        stems = sorted(parts, key=lambda stem: [int(part) if part.isdecimal() else part for part in parts[stem]])
        return dict(zip(stems, pages))
    masks, names = {}, {_stem(source): source for source in sources}
    for page in pages:
        if other := masks.get(_stem(page)):
            raise UserError(f"{other.path} and {page.path} have the same name but for the extension: keep one of them")
        masks[_stem(page)] = page
    endings, found = dict.fromkeys([suffix or "", "", "_mask", find_suffix(names, masks)]), {}
    for name, source in names.items():
        wanted, masks_of_one = [name + ending for ending in endings], bowl_of(path) / source.stem / "masks"
        if named := next(filter(masks.get, wanted), None):
            found[source.stem] = masks[named]
        elif masks_of_one.is_dir():
            found[source.stem] = Source(masks_of_one, None, source.stem)
            if over := passed_over(masks_of_one):
                say(f"{source}: {over}", sys.stderr)
        else:
            looked = " or ".join(wanted)
            raise UserError(f"--evaluate {path} holds no mask for {source.path}: it is looked for as {looked}, any extension")
    return found


def _stem(source):
    return unicodedata.normalize("NFC", source.stem)  # macOS may store é as e and an accent


def truth_reader(masks, config, skip_bad):
    """-> read_truth(source): the true mask of a `Source`, class indices uint8 [H, W], VOID where nobody labelled.

    What the values of the files stand for is decided for all masks together, as in training: so they are all read once here.

    masks: stem of the image -> `Source` of its mask, from `find_masks`.
    """
    with _in_words_of_predict():
        colors = read_colors(config) if config.data.colors is not None else None

    @_in_words_of_predict()
    def read(mask):
        if config.data.objects:
            return as_classes(read_objects(mask.path, page=mask.page))
        return read_mask(mask.path, page=mask.page, colors=colors)

    present = {}
    for mask in tqdm(masks.values(), desc="reading masks", delay=1, leave=False, disable=None):
        with contextlib.suppress(UserError) if skip_bad else contextlib.nullcontext():
            present[mask] = count_values(read(mask)) > 0
    items = [Item(str(mask), mask.path, mask.path) for mask in present]
    classes = by_index(max(config.network.classes, 2)) if colors else OBJECTS if config.data.objects else None
    if config.data.dataset == "oxford_pet" and not any(values[0] for values in present.values()):
        classes, _ = trimap_classes(config)  # with a 0 they are no trimaps, but masks of one's own
    with _in_words_of_predict():
        table = mask_meaning(np.reshape(list(present.values()), (-1, 256)), items, config, Layout(items, None, classes)).table
    return lambda source: table[read(masks[source.stem])]


@contextlib.contextmanager
def _in_words_of_predict():
    """What is wrong with a mask, without the advice to set options of the training: here they are those of the checkpoint."""
    try:
        yield
    except UserError as error:
        text = re.sub(r"--classes (\d+) takes", r"this network, with classes = \1, takes", str(error))
        what, *advice = re.split(r"[:;] (?!.*\()|; ", text)
        fits = [part for part in advice if not re.search(r"--[a-z]", part.replace("--evaluate", ""))]
        raise UserError("; ".join([what, *fits, "true masks hold what the masks of the training held"])) from None


class Evaluation:
    """What the predicted masks of a command are worth, image by image; then metrics.csv, and what shows it."""

    def __init__(self, masks, config, skip_bad):
        """masks: from `find_masks`."""
        self.masks, self.config = masks, config
        self.read_truth = truth_reader(masks, config, skip_bad)
        self.matrices, self.scores = {}, {}  # name of the image -> confusion matrix; -> scores of its objects
        self.worst = []  # (dice, name, image, true mask, mask) of the worst images so far, the worst first

    def add(self, source, image, mask, objects=None, klass=1):
        """Compares a predicted mask, and the `objects` of class `klass` in it. Returns: the words for its line.

        image: [H, W, channels] on the scale of the training; mask: class indices [H, W]; objects: labels [H, W].

        Raises: UserError when the true mask has another size.
        """
        name, truth, classes = str(source), self.read_truth(source), self.config.network.classes
        if truth.shape != mask.shape:
            raise UserError(f"{source.path} is {Size(*mask.shape)} pixels, its true mask {Size(*truth.shape)}: mend the mask")
        matrix = sum(confusion(*pair, classes) for pair in strips(truth, mask))
        measured = measures(matrix, classes)
        words = "".join(f"  {name} {value:.4f}" for name, value in measured.items())
        if objects is not None:
            scores = self._compare_objects(source, truth, objects, klass)
            if not matrix.any():  # nothing is labelled
                scores = dict.fromkeys(scores, np.nan)
            words += "  ap {ap:.4f} ({objects} true objects)".format(**scores)
            self.scores[name] = scores
        self.matrices[name] = matrix
        if matrix.any():
            n = -(-max(mask.shape) // SHOWN)  # every nth row and column of a large image
            shown = [array[::n, ::n].copy() for array in (image, truth, mask)]
            self.worst = sorted([*self.worst, (measured["dice"], name, *shown)], key=lambda row: row[0])[:WORST]
        return words

    def _compare_objects(self, source, truth, found, klass):
        from prediction.matching import object_scores, segment_scores
        from prediction.objects import true_objects

        mask = self.masks[source.stem]
        if self.config.data.objects:
            true = read_objects(mask.path, page=mask.page)
        else:
            true, found = true_objects(truth, klass), np.where(truth == VOID, 0, found)
        return object_scores(true, found) | segment_scores(true, found)

    def write(self, folder):
        """metrics.csv, which is printed too, and in evaluation/ the confusion matrix and predictions.png, the worst first."""
        from training.report import draw_predictions, write_confusion  # and TensorFlow with it

        self._write_metrics(folder / "metrics.csv")
        folder = folder / "evaluation"  # beside the masks a picture would be taken for one
        write_confusion(folder, sum(self.matrices.values()), self.config)
        with expendable(folder / "predictions.png"):
            scale = self.config.data.scale
            examples = [(name, image / scale, truth.astype(int), mask, dice) for dice, name, image, truth, mask in self.worst]
            title, columns = f"the worst of {len(self.matrices)} images first", {"prediction": examples}
            draw_predictions(folder / "predictions.png", columns, title, self.config)

    def _write_metrics(self, path):
        """The metrics of every image, their mean, and those of all pixels together; the last two are printed."""
        classes = self.config.network.classes
        columns = ["dice", "iou", "accuracy", *(f"iou_{name}" for name in class_names(self.config.data.class_names, classes))]
        rows = {name: figures(matrix, classes) for name, matrix in self.matrices.items()}
        every = figures(sum(self.matrices.values()), classes)
        if self.scores:
            columns += ["pixel_error", *next(iter(self.scores.values()))]
            rows = {name: [*row, 1 - row[2], *self.scores[name].values()] for name, row in rows.items()}
            every = [*every, 1 - every[2], *[np.nan] * (len(columns) - len(every) - 1)]  # objects are of an image
        mean = np.ma.masked_invalid(list(rows.values())).mean(axis=0).filled(np.nan)
        totals = {"mean of the images": mean, "all pixels": every}
        values = ([cell(name), *(f"{value:.7g}" for value in row)] for name, row in (rows | totals).items())
        write_csv(path, [["image", *map(cell, columns)], *values])
        width = max(map(len, columns))
        print("\n" + " " * width + "".join(f"{name:>20}" for name in totals))
        for column, *values in zip(columns, *totals.values()):
            say(f"{column:<{width}}" + "".join(f"{'-' if np.isnan(value) else f'{value:.4f}':>20}" for value in values))


def figures(matrix, classes):
    """Confusion matrix -> [dice, IoU, accuracy, IoU of each class]."""
    return [*measures(matrix, classes).values(), *class_scores(matrix)[0]]
