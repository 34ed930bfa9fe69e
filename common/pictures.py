"""The pictures that a run draws. Figures are made without pyplot, so no display is needed and no state is global."""

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

CLASS_COLORS = np.array([(0, 0, 0), *matplotlib.colormaps["tab20"].colors])  # index 0, the background, is black
MISSED, INVENTED = (0.85, 0.37, 0.01), (0.46, 0.44, 0.70)  # ColorBrewer's Dark2: told apart by colour-blind readers too


def save_figure(figure, path):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, bbox_inches="tight")


def draw_curves(path, histories):
    """Loss, dice and pixel accuracy over the epochs.

    histories: label -> list of the rows of a `history.csv`, as dicts of numbers.
    """
    figure = Figure(figsize=(13, 3.6))
    for axes, title, columns in zip(
        figure.subplots(1, 3),
        ("loss", "dice", "pixel accuracy"),
        ({"loss": "training", "val_loss": "validation"}, {"val_dice": "validation"}, {"val_accuracy": "validation"}),
    ):
        for k, (label, rows) in enumerate(histories.items()):
            for column, split in columns.items():
                dashes = ("-", (0, (6, 3)), (0, (2, 2)))[k % 3]  # so that curves that lie on each other all show
                axes.plot(
                    [row["epoch"] for row in rows],
                    [row[column] for row in rows],
                    linestyle=":" if split == "training" else dashes,
                    linewidth=3 - k % 3,
                    marker="o" if len(rows) == 1 else None,
                    color=f"C{k}" if len(histories) > 1 or split == "validation" else "0.5",
                    label=f"{label}, {split}" if len(histories) > 1 else split,
                )
        axes.set(title=title, xlabel="epoch")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    save_figure(figure, path)


def mask_colors(mask, classes):
    """[H, W] class indices -> [H, W, 3] colours in 0..1: black and white with one class, a colour for each otherwise."""
    if classes == 1:
        return np.repeat(np.asarray(mask, float)[..., None], 3, -1)
    return CLASS_COLORS[np.where(mask == 0, 0, (np.asarray(mask, int) - 1) % 20 + 1)]


def difference_colors(mask, prediction, classes):
    """[H, W, 3]: agreement darkened, missed foreground in orange, invented foreground and confused classes in violet."""
    picture = 0.35 * mask_colors(mask, classes)
    picture[(mask != prediction) & (prediction == 0)] = MISSED
    picture[(mask != prediction) & (prediction != 0)] = INVENTED
    return picture


def image_colors(image, mask):
    """[H, W, C] in 0..1 -> [H', W', 3], the part that `mask` [H', W'] covers: "valid" padding predicts no margin."""
    top, left = [(i - m) // 2 for i, m in zip(image.shape, mask.shape)]
    image = image[top : top + mask.shape[0], left : left + mask.shape[1]]
    return np.repeat(image, 3, -1) if image.shape[-1] == 1 else image


def draw_grid(path, rows, title):
    """Pictures in rows, each under its label. rows: list of {label: [H, W, 3] in 0..1}, as many in every row."""
    columns = len(rows[0])
    figure = Figure(figsize=(2.5 * columns, 2.6 * len(rows) + 0.6))
    for axes, row in zip(figure.subplots(len(rows), columns, squeeze=False), rows):
        for axis, (label, picture) in zip(axes, row.items()):
            axis.imshow(picture, vmin=0, vmax=1, interpolation="nearest")
            axis.set_title(label, fontsize=8)
            axis.set_axis_off()
    figure.suptitle(title, fontsize=10)
    figure.tight_layout()
    save_figure(figure, path)
