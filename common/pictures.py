"""The pictures that a run draws. Figures are made without pyplot, so no display is needed and no state is global."""

from pathlib import Path

from common.config import VOID

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from skimage.color import rgb2lab

GRAY = (0.5, 0.5, 0.5)  # of void
OKABE_ITO = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7")  # Wong 2011, Nature Methods 8, 441
# What is seen of linear RGB: by most, without green cones, without red cones. Machado, Oliveira and Fernandes 2009, severity 1.
SIGHTS = np.array(
    [
        [(1, 0, 0), (0, 1, 0), (0, 0, 1)],
        [(0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881)],
        [(0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)],
    ]
)


def seen(colors):
    """[N, 3] sRGB colours in 0..1 -> [3, N, 3] in CIELAB, where distance is difference to the eye, as `SIGHTS` see them."""
    linear = np.where(colors <= 0.04045, colors / 12.92, ((colors + 0.055) / 1.055) ** 2.4)
    linear = np.clip(np.einsum("sij,nj->sni", SIGHTS, linear), 0, 1)
    return rgb2lab(np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055))


def class_colors():
    """[256, 3] sRGB in 0..1: black for class 0, gray for VOID, the palette of Okabe and Ito, and what is unlike all before.

    Every further colour has the largest distance to the nearest of those before it, in the worst of the three `SIGHTS`.
    """
    steps = np.linspace(0, 1, 13)
    candidates = np.stack(np.meshgrid(steps, steps, steps), -1).reshape(-1, 3)
    colors, looks = [GRAY, (0, 0, 0), *map(to_rgb, OKABE_ITO)], seen(candidates)
    nearest = np.full(len(candidates), np.inf)
    for k in range(VOID + 1):
        if k == len(colors):
            colors.append(candidates[nearest.argmax()])
        distances = np.linalg.norm(looks - seen(np.array([colors[k]])), axis=-1).min(0)
        nearest = np.minimum(nearest, distances)
    return np.roll(colors, -1, axis=0)  # the gray goes to the end


CLASS_COLORS = class_colors()
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
        if title == "loss":  # the first epochs of batch normalization may be a thousand times the last
            axes.set_yscale("log")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    save_figure(figure, path)


def mask_colors(mask, classes):
    """[H, W] class indices -> [H, W, 3] in 0..1: black and white with one class, a colour each otherwise; VOID is gray."""
    colors = CLASS_COLORS.copy()
    if classes == 1:
        colors[1] = 1
    return colors[np.asarray(mask, int)]


def difference_colors(mask, prediction, classes):
    """[H, W, 3]: agreement darkened, missed foreground in orange, invented foreground and confused classes in violet.

    VOID, where nothing is right or wrong, is gray.
    """
    picture = 0.35 * mask_colors(mask, classes)
    picture[(mask != prediction) & (prediction == 0)] = MISSED
    picture[(mask != prediction) & (prediction != 0)] = INVENTED
    picture[mask == VOID] = GRAY
    return picture


def class_names(config):
    """A name for every class: `config.data.class_names`, or "class 0" and so on; with one class "background" and "foreground"."""
    if config.data.class_names or config.network.classes > 1:
        return config.data.class_names or tuple(f"class {k}" for k in range(config.network.classes))
    return "background", "foreground"


def legend(masks, config):
    """{name: colour} of the classes that occur in `masks`, arrays of class indices. Empty with one class."""
    if config.network.classes == 1:
        return {}
    names = {**dict(enumerate(class_names(config))), VOID: "void"}
    found = sorted(set().union(*map(np.unique, masks)))
    return {names[k]: CLASS_COLORS[k] for k in found}


def image_colors(image, mask):
    """[H, W, C] in 0..1 -> [H', W', 3], the part that `mask` [H', W'] covers: "valid" padding predicts no margin."""
    top, left = [(i - m) // 2 for i, m in zip(image.shape, mask.shape)]
    image = image[top : top + mask.shape[0], left : left + mask.shape[1]]
    return np.repeat(image, 3, -1) if image.shape[-1] == 1 else image


def draw_grid(path, rows, title, legend=None):
    """Pictures in rows, each under its label, over the legend.

    rows: list of {label: [H, W, 3] in 0..1}, as many in every row. legend: {name: colour}.
    """
    columns = len(rows[0])
    tallest = max(picture.shape[0] / picture.shape[1] for row in rows for picture in row.values())
    figure = Figure(figsize=(2.5 * columns, (2.4 * tallest + 0.3) * len(rows) + 0.5))
    for axes, row in zip(figure.subplots(len(rows), columns, squeeze=False), rows):
        for axis, (label, picture) in zip(axes, row.items()):
            axis.imshow(picture, vmin=0, vmax=1, interpolation="nearest")
            axis.set_title(label, fontsize=8)
            axis.set_axis_off()
    figure.suptitle(title, fontsize=10)
    figure.tight_layout()
    if legend:
        patches = [Patch(facecolor=color, edgecolor="0.5", label=name) for name, color in legend.items()]
        figure.legend(handles=patches, loc="upper center", bbox_to_anchor=(0.5, 0), ncols=min(len(patches), 6), fontsize=8)
    save_figure(figure, path)
