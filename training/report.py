"""What a run leaves for its reader: figures of every epoch, pictures of its predictions, a table of its classes."""

import csv
import itertools
import math
import shlex

from common.checkpoint import COLUMNS
from common.config import UserError
from common.device import tf
from common.losses import probabilities, segmentation_loss
from common.metrics import class_scores, confusion, mean_over_classes, measures, predicted_classes, scores
from common.output import replacing, write_csv
from common.padding import any_size
from common.pictures import (
    class_names,
    difference_colors,
    draw_confusion,
    draw_curves,
    draw_grid,
    expendable,
    image_colors,
    in_values,
    legend,
    mask_colors,
    names_of_values,
)
from common.text import cell, printable, say
from data.loader import validation_batches

import numpy as np
from PIL import Image

PICTURES = 4  # validation images in predictions.png


def make_eval_step(model, config):
    """step(images, masks) -> (scalar loss, probabilities [N, H, W, classes]), for any size and any of the three."""

    @tf.function(jit_compile=config.training.jit, reduce_retracing=True, autograph=False)
    def eval_step(images, masks):
        logits = any_size(model, images, config.network)
        return segmentation_loss(masks, logits, config), probabilities(logits)

    return eval_step


def evaluate(eval_step, batches, classes):
    """What the weights are worth on all images of `batches`: ({"loss": ..., "mean_iou": ...}, confusion matrix).

    loss: the mean over the images of their batches' losses. dice, iou, accuracy: the mean over the images, see
    `common.metrics.measures`. mean_iou: of all pixels of all images, the mean over the classes; one class: the foreground's.
    """
    found, matrix = [], 0
    for images, masks in batches:
        loss, p = eval_step(images, masks)
        matrices = [confusion(*pair, classes) for pair in zip(masks.numpy()[..., 0], predicted_classes(p.numpy()))]
        matrix += sum(matrices)
        found += [{"loss": float(loss), **measures(each, classes)} for each in matrices]
    # an image without a labelled pixel has none
    means = {name: float(np.nanmean([each[name] for each in found])) for name in found[0]}
    return {**means, "mean_iou": float(mean_over_classes(class_scores(matrix)[0], classes))}, matrix


def best_threshold(eval_step, batches):
    """From which probability on pixels are the foreground of one class, with the largest dice of all pixels of `batches`.

    Returns: (it, of 0.01 to 0.99; its dice; the dice from 0.5 on).
    """
    pixels = np.zeros((2, 101), np.int64)  # of background and foreground, by hundredths of probability
    for images, masks in batches:
        hundredths, truths = np.int64(100 * eval_step(images, masks)[1].numpy()[..., 0]), masks.numpy()[..., 0]
        pixels += [np.bincount(hundredths[truths == klass], minlength=101) for klass in (0, 1)]
    above = pixels[:, ::-1].cumsum(1)[:, ::-1]  # from each threshold on
    dice = (2 * above[1] / np.maximum(above.sum(0) + pixels[1].sum(), 1))[1:100]
    best = 49 if dice[49] == dice.max() else int(dice.argmax())
    return (best + 1) / 100, dice[best], dice[49]


def write_history(run_dir, rows):
    """Writes `rows`, dicts of numbers by the names in `COLUMNS`, to history.csv, whole or not at all."""
    lines = ([value if isinstance(value, int) else f"{value:.7g}" for value in map(row.get, COLUMNS)] for row in rows)
    write_csv(run_dir / "history.csv", [COLUMNS, *lines])


def read_history(run_dir):
    """The rows of a run's history.csv as dicts of numbers, at least one.

    Raises: UserError when there is none, or the file is damaged.
    """
    path = run_dir / "history.csv"
    try:
        with open(path, newline="", encoding="utf-8") as file:
            header, *lines = csv.reader(file)
        rows = [dict(zip(COLUMNS, map(float, line), strict=True)) for line in lines]
        if not rows or header != list(COLUMNS):
            raise ValueError("no epochs")
        return [{**row, "epoch": int(row["epoch"]), "step": int(row["step"])} for row in rows]
    except (OSError, ValueError, OverflowError, csv.Error) as error:
        command = f"python -m lowlevel.train --run-dir={shlex.quote(str(run_dir))}"
        reason = printable(getattr(error, "strerror", None) or error)
        raise UserError(f"{path} cannot be read ({reason}): train first, for instance with {command}") from None


def predict_some(config, validation, eval_step):
    """The first few of the validation images: [(name, image [H, W, C], truth [H', W'], prediction [H', W'], dice)]."""
    found = []
    for images, masks in validation_batches(config, validation):
        predictions = predicted_classes(eval_step(images, masks)[1].numpy())
        truths = masks.numpy()[..., 0].astype(int)
        dice = scores(truths, predictions, config.network.classes)["dice"]
        found += zip(validation.names[len(found) :], images.numpy(), truths, predictions, dice)
        if len(found) >= PICTURES:
            return found[:PICTURES]
    return found


def write_examples(run_dir, validation, classes):
    """Some of the drawn images that validate as images/*.png, their masks as masks/*.png: to predict, to open, to evaluate."""
    for name, image, mask in itertools.islice(zip(validation.names, validation.images, validation.masks), PICTURES):
        mask = mask * np.uint8(255) if classes <= 2 else mask
        for folder, values in (("images", image[..., 0] if image.shape[-1] == 1 else image), ("masks", mask)):
            with replacing(run_dir / folder / f"{name.replace(' ', '-')}.png") as part:
                Image.fromarray(values).save(part, "PNG")


def draw_predictions(path, columns, title, config):
    """Draws validation images in rows: image, truth, and the predictions of `columns`, {label: what `predict_some` returns}.

    If there is but one column, another shows where it is wrong; with several, in which pixels they differ, in all how many.

    Returns: the title, with that number.
    """
    classes, rows, masks, apart = config.network.classes, [], [], []
    for examples in zip(*columns.values()):
        name, image, truth, _, _ = examples[0]
        truth = in_values(truth, config)
        row = [(name, image_colors(image, truth, config.data.show_bands)), ("truth", mask_colors(truth, classes))]
        for label, (_, _, _, prediction, dice) in zip(columns, examples):
            prediction = in_values(prediction, config)
            row.append((f"{label}, dice {dice:.3f}", mask_colors(prediction, classes)))
            masks += [truth, prediction]
        if len(columns) == 1:
            row.append(("missed orange, wrong violet", difference_colors(truth, prediction, classes)))
        else:
            first, *others = (prediction for _, _, _, prediction, _ in examples)
            apart.append(np.any([first != other for other in others], axis=0))
            row.append((f"where they differ: {apart[-1].sum():,} pixels", mask_colors(apart[-1], 1)))
        rows.append(row)
    if apart:
        title += f"; {sum(map(np.sum, apart)):,} of {sum(map(np.size, apart)):,} pixels differ"
    found = sorted(set().union(*map(np.unique, masks))) if classes > 1 else []
    draw_grid(path, rows, title, legend(names_of_values(config), found))
    return title


def draw_results(config, rows, best, validation, eval_step):
    """Draws curves.png, and predictions.png with the weights that `eval_step` has, into `config.training.run_dir`."""
    run_dir = config.training.run_dir
    draw_curves(run_dir / "curves.png", {run_dir.name: rows})
    columns = {"prediction": predict_some(config, validation, eval_step)}
    draw_predictions(run_dir / "predictions.png", columns, f"validation images, epoch {best['epoch']}", config)


def list_classes(config, means, matrix):
    """Prints IoU and dice of every class over all validation images, as `evaluate` gives them; writes them to classes.csv."""
    names = class_names(config.data.class_names, config.network.classes)
    rows = list(zip(names, *class_scores(matrix), matrix.sum(1)))  # (name, IoU, dice, pixels in the truth)
    values = ([cell(name), f"{iou:.7g}", f"{dice:.7g}", pixels] for name, iou, dice, pixels in rows)
    write_csv(config.training.run_dir / "classes.csv", [["name", "iou", "dice", "pixels"], *values])
    width = max(map(len, [*names, "mean IoU"]))
    print(f"{'class':<{width}}     IoU    dice  pixels in the truth")
    for name, *values, pixels in rows:
        shown = "".join(f"{'-' if math.isnan(value) else f'{value:.4f}':>8}" for value in values)
        say(f"{name:<{width}}{shown}  {pixels:>19,}")
    if config.network.classes > 1:
        print(f"{'mean IoU':<{width}}  {means['mean_iou']:.4f}          {matrix.sum():>19,}", flush=True)


def write_confusion(folder, matrix, config):
    """The confusion matrix, pixels of true classes in rows and of predicted ones in columns: confusion.csv, confusion.png."""
    names = class_names(config.data.class_names, config.network.classes)
    rows = ([cell(name), *row] for name, row in zip(names, matrix.tolist()))
    write_csv(folder / "confusion.csv", [["true class", *map(cell, names)], *rows])
    with expendable(folder / "confusion.png"):
        draw_confusion(folder / "confusion.png", matrix, names)


def list_folds(config):
    """Prints what each fold's best epoch is worth, mean and standard deviation, the same of the classes; writes folds.csv."""
    names = ("val_accuracy", "val_dice", "val_iou", "val_mean_iou")
    labels, table = [], []
    for k in range(config.data.folds):
        run_dir = config.training.run_dir / f"fold{k}"
        best = max(read_history(run_dir), key=lambda row: row["val_dice"])
        with open(run_dir / "classes.csv", newline="", encoding="utf-8") as file:
            classes = {row["name"]: [float(row["iou"]), float(row["dice"])] for row in csv.DictReader(file)}
        labels.append(f"fold{k}, epoch {best['epoch']}")
        table.append([*map(best.get, names), *itertools.chain(*classes.values())])  # the same classes in every fold
    known = np.ma.masked_invalid(table)  # a class may be in no image of a fold, or of all
    means, deviations = (values.filled(np.nan) for values in (known.mean(0), known.std(0, ddof=1)))
    rows = [*zip(labels, table), ("mean", means), ("standard deviation", deviations)]
    print(f"\nbest epoch of each fold{'':<4}{'accuracy':>10}{'dice':>10}{'IoU':>10}{'mean IoU':>10}")
    for label, values in rows:
        print(f"{label:<26}{''.join(f'{value:>10.4f}' for value in values[: len(names)])}")
    width = max(map(len, [*classes, "class, mean of the folds"]))
    print(f"\n{'class, mean of the folds':<{width}}{'IoU':>10}{'deviation':>11}{'dice':>10}{'deviation':>11}")
    of_classes = np.transpose([means, deviations])[len(names) :].reshape(-1, 4)
    for name, (iou, iou_deviation, dice, dice_deviation) in zip(classes, of_classes):
        print(f"{name:<{width}}{iou:>10.4f}{iou_deviation:>11.4f}{dice:>10.4f}{dice_deviation:>11.4f}")
    header = ["fold", *names, *(f"{measure} of {name}" for name in classes for measure in ("iou", "dice"))]
    path = config.training.run_dir / "folds.csv"
    write_csv(path, [header, *([label, *map(float, values)] for label, values in rows)])
    print(f"written to {path}", flush=True)
