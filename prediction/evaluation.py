"""How good predicted masks are: the true masks that belong to them, their scores, metrics.csv, and pictures of the worst."""

import contextlib
import re
from collections import Counter
from pathlib import Path

from common.config import VOID, Config, Size, UserError
from common.metrics import class_scores, confusion, measures
from common.output import write_csv
from common.pictures import class_names, expendable
from common.text import cell, say
from data.files import count_pages, numbered, read_masks, read_objects
from data.layouts import Item, Layout, masks_of, published
from data.meaning import as_classes, mask_meaning
from data.patterns import guess, is_image, pair, walk
from prediction.images import count_values, pages_of, strips

import numpy as np
from tqdm import tqdm

WORST = 8  # images in predictions.png
EVALUATED = ("metrics.csv", *(f"evaluation/{name}" for name in ("confusion.csv", "confusion.png", "predictions.png")))
SHOWN = 600  # rows and columns of them at most


def find_masks(path, sources, config=None, skip_bad=False):
    """The true masks for --evaluate `path`: {stem of a source: `Item` with its masks}.

    Whose they are say the patterns of the training, for a tree of its kind or for two folders; or else the mask of STEM is
    STEM, STEM_mask, or what a training would find. The pages of a file go to the images in the order of their names, numbers by
    their value: slice_2 before slice_10.

    Images without one are left out where `skip_bad`, or where the data set is published so.

    Raises: UserError for an image without a mask, and for one with two.
    """
    config = config or Config()
    if not path.exists():
        raise UserError(f"--evaluate {path} does not exist")
    if not path.is_dir():
        pages = pages_of(path)
        if len(pages) != len(sources):
            raise UserError(f"--evaluate {path} holds {len(pages)} masks for {len(sources)} images: name a folder of masks")
        parts = {source.stem: re.split(r"(\d+)", source.stem) for source in sources}
        stems = sorted(parts, key=lambda stem: [int(part) if part.isdecimal() else part for part in parts[stem]])
        return {stem: Item(str(page), page.path, page.path, page.page) for stem, page in zip(stems, pages)}
    tree = [file for file in walk(path) if is_image(path, file)]
    here = [file for file in tree if "/" not in file]
    images, masks, plain = config.data.image_files, config.data.mask_files, "{name}.*"
    by_stem = [f"{source.stem}.x" for source in sources]
    times = Counter(Path(file).name for file in {source.file for source in sources})
    by_name = [name if times[name := Path(source.file).name] == 1 else "" for source in sources]  # "": in several folders
    ways = [(plain, plain, by_stem, here), (plain, plain, by_name, here), (plain, "{name}_mask.*", by_stem, here)]
    if masks:
        names = [Path(pattern).name for pattern in (images, masks)]
        ways = [(*names, by_name, here)] * all("{name}" in name for name in names) + ways
        ways = [(images, masks, [source.file for source in sources], tree), (plain, masks, by_stem, tree), *ways]
    with contextlib.suppress(UserError):
        guessed, enough = guess([f"images/{name}" for name in by_stem] + [f"masks/{file}" for file in here])
        ways += [(plain, Path(guessed[1]).name, by_stem, here)] if enough else []
    chosen = {}
    for image, mask, called, files in ways:
        try:
            found = pair(image, mask, list(dict.fromkeys(called)), files).masks
        except UserError as error:
            if files is here:
                raise UserError(f"--evaluate {path}: {str(error).split(' by --')[0]}: keep one of them") from None
            continue  # another tree than that of the training
        for source, name in zip(sources, called):
            first, *further = [path / file for file in found.get(name, ())] or [None]
            page = source.page if called is not by_stem else None
            if first and (page is None or count_pages(first) > page):
                item = Item(str(source), first, first, page, further=tuple(further))
                chosen.setdefault(source.stem, item)  # by the first that has one
    if len(chosen) < len(sources) and not (chosen and (skip_bad or getattr(published(config), "lists", ""))):
        source = next(source for source in sources if source.stem not in chosen)
        looked = " or ".join(dict.fromkeys(mask for _, mask, *_ in ways))
        problem = f"holds no mask for {source.path}: looked for is {looked}, where {{name}} is {source.stem}"
        raise UserError(f"--evaluate {path} {problem}")
    return chosen


def truth_reader(masks, config, skip_bad):
    """-> read_truth(source): the true mask of a `Source`, class indices uint8 [H, W], VOID where nobody labelled.

    What the values of the files stand for is decided for all masks together, as in training: so they are all read once here.

    masks: stem of the image -> `Item`, from `find_masks`.
    """
    with _in_words_of_predict():
        colors, classes, _ = masks_of(config, published(config))

    @_in_words_of_predict()
    def read(item):
        if config.data.objects:
            return as_classes(read_objects(item.masks, item.page, config.data.void_label))
        return read_masks(item.masks, item.page, colors, config.data.void_label)

    counts = {}
    for stem, item in tqdm(masks.items(), desc="reading masks", delay=1, leave=False, disable=None):
        with contextlib.suppress(UserError) if skip_bad else contextlib.nullcontext():
            counts[stem] = count_values(read(item))
    if config.data.dataset == "oxford_pet" and any(values[0] for values in counts.values()):
        classes = None  # with a 0 they are no trimaps, but masks of one's own
    items, layout = [masks[stem] for stem in counts], Layout([], None, classes, objects=config.data.objects)
    with _in_words_of_predict():
        table = mask_meaning(np.reshape(list(counts.values()), (-1, 256)), items, config, layout).table
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
        if source.stem not in self.masks:
            return "  no true mask"
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
        found = np.where(truth == VOID, 0, found)
        if self.config.data.objects:
            true = np.maximum(numbered(read_objects(mask.masks, mask.page, self.config.data.void_label)), 0)
        else:
            true = true_objects(truth, klass)
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
