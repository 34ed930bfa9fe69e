"""The pictures that a run draws. Figures are made without pyplot, so no display is needed and no state is global.

Matplotlib, 0.3 s, is imported by what draws: most who import this module need a name or a colour.
"""

import collections
import contextlib
import functools
import itertools
import sys
import warnings

from common.colors import CLASS_COLORS
from common.config import VOID
from common.output import replacing
from common.text import printable, say

import numpy as np

# One look for all figures. Okabe and Ito's colours; the first three are those of the columns, as on the study page.
STYLE = {
    "axes.prop_cycle": "cycler('color', ['0072b2', 'd55e00', '009e73', 'cc79a7', 'e69f00', '56b4e9', '000000'])",
    **dict.fromkeys(("axes.spines.top", "axes.spines.right", "legend.frameon"), False),
    **dict.fromkeys(("axes.labelsize", "xtick.labelsize", "ytick.labelsize", "legend.fontsize"), 8),
    **{"axes.titlesize": 10, "axes.titlelocation": "left", "figure.titlesize": 10, "grid.alpha": 0.3, "svg.fonttype": "none"},
}
MISSED, INVENTED = (0.85, 0.37, 0.01), (0.46, 0.44, 0.70)  # ColorBrewer's Dark2: told apart by colour-blind readers too


@contextlib.contextmanager
def expendable(what):
    """No picture may cost a result: whatever goes wrong in drawing `what` becomes a line on the standard error."""
    try:
        yield
    except Exception as error:  # of matplotlib, of a full disk
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        say(f"warning: {what} could not be drawn, all else is saved: {reason}", sys.stderr)


def styled(draw):
    """A function that draws, in the one look."""

    @functools.wraps(draw)
    def drawn(*args, **options):
        import matplotlib

        with matplotlib.rc_context(STYLE):
            return draw(*args, **options)

    return drawn


def save_figure(figure, path):
    """In the format that the name ends in: .png, .svg or .pdf."""
    with replacing(path) as part, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a name in another script: a box is drawn
        figure.savefig(part, dpi=110, bbox_inches="tight", format=path.suffix[1:])


def _write_legend(owner, handles, **options):
    """The legend of a figure or of axes. Names are text: neither a `$` nor a leading underscore means anything in them."""
    legend = owner.legend(handles, [printable(handle.get_label()) for handle in handles], **options)
    for text in legend.get_texts():
        text.set_parse_math(False)


@styled
def draw_curves(path, histories):
    """Loss, dice and pixel accuracy over the epochs.

    histories: label -> list of the rows of a `history.csv`, as dicts of numbers.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    figure, several = Figure(figsize=(13, 4), layout="constrained"), len(histories) > 1
    panels = {"loss": ("loss", "val_loss"), "dice": ("val_dice",), "pixel accuracy": ("val_accuracy",)}
    for axes, (title, columns) in zip(figure.subplots(1, 3), panels.items()):
        for k, (label, rows) in enumerate(histories.items()):
            for column in columns:
                split = "validation" if column.startswith("val_") else "training"
                dashes = ("-", (0, (6, 3)), (0, (2, 2)))[k % 3]  # so that curves that lie on each other all show
                axes.plot(
                    *zip(*((row["epoch"], row[column]) for row in rows)),
                    linestyle=":" if split == "training" else dashes,
                    linewidth=3 - k % 3,
                    marker="o" if len(rows) == 1 else None,
                    color=f"C{k}" if several or split == "validation" else "0.5",
                    label=f"{label}, {split}" if several else split,
                )
        axes.set(title=title, xlabel="epoch")
        axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        if title == "loss":  # the first epochs of batch normalization may be a thousand times the last
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter("")
            _write_legend(figure, axes.lines, loc="outside lower center", ncols=6)
        axes.grid()
    save_figure(figure, path)


def mask_colors(mask, classes):
    """[H, W] class indices -> [H, W, 3] in 0..1: black and white with one class, a colour each otherwise; VOID is gray."""
    colors = CLASS_COLORS.copy()
    if classes == 1:
        colors[1] = 1
    return colors[np.asarray(mask, int)]


def in_values(mask, config):
    """[H, W] class indices, and VOID -> `config.shown_values`, and VOID: by these pictures have their colours."""
    values = config.shown_values
    table = np.arange(256, dtype=np.uint8)
    table[: len(values)] = values
    return table[np.asarray(mask, int)]


def names_of_values(config):
    """{value: name} of the classes, by `config.shown_values`."""
    return dict(zip(config.shown_values, class_names(config.data.class_names, config.network.classes)))


def difference_colors(mask, prediction, classes):
    """[H, W, 3]: agreement darkened, missed foreground in orange, invented foreground and confused classes in violet.

    VOID, where nothing is right or wrong, is gray.
    """
    picture = 0.35 * mask_colors(mask, classes)
    picture[(mask != prediction) & (prediction == 0)] = MISSED
    picture[(mask != prediction) & (prediction != 0)] = INVENTED
    picture[mask == VOID] = CLASS_COLORS[VOID]
    return picture


def class_names(names, classes):
    """`names`, or what to call the classes where nothing names them: "background" and "foreground", or "class 0" and so on."""
    return names or (("background", "foreground") if classes <= 2 else tuple(f"class {k}" for k in range(classes)))


def legend(names, indices):
    """[(name, colour)] of class `indices`, VOID among them or not. names: of the classes, in order, or {index: name}."""
    names = {VOID: "void", **(names if isinstance(names, dict) else dict(enumerate(names)))}
    return [(names[k], CLASS_COLORS[k]) for k in indices]


def told_apart(labels, reach=2):
    """[H, W] numbers of objects, 0 none -> the same with a few numbers from 1 on, unlike for objects within `reach` pixels."""
    near = collections.defaultdict(set)
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(labels, reach), labels.shape)
    for dy, dx in np.ndindex(*windows.shape[:2]):
        both = (labels > 0) & (windows[dy, dx] > 0) & (labels != windows[dy, dx])
        for a, b in {*zip(labels[both].tolist(), windows[dy, dx][both].tolist())}:
            near[a].add(b)
    numbers = {0: 0}
    for value in dict.fromkeys(labels[labels > 0].tolist()):  # row by row: few of the neighbours have their number before
        taken = {numbers.get(other) for other in near[value]}
        numbers[value] = next(k for k in itertools.count(1) if k not in taken)
    values, places = np.unique(labels, return_inverse=True)
    return np.array([numbers[value] for value in values.tolist()])[places].reshape(labels.shape)


def shown_bands(image, bands=None):
    """[H, W, C] -> [H, W, 3]: the `bands` of --show-bands, one or three of them, counted from 1, or the first three.

    Gray is gray; of two bands the first is red and the second green.
    """
    channels = image.shape[-1]
    if not bands and channels == 3:
        return image
    if not bands and channels == 2:
        return np.concatenate([image, np.zeros_like(image[..., :1])], axis=-1)
    bands = bands or (1, 2, 3)[: min(channels, 3)]
    return image[..., [band - 1 for band in bands] * (3 // len(bands))]


def image_colors(image, mask, bands=None):
    """[H, W, C] in 0..1 -> [H', W', 3], the part that `mask` [H', W'] covers: "valid" padding predicts no margin.

    bands: see `shown_bands`.
    """
    top, left = [(i - m) // 2 for i, m in zip(image.shape, mask.shape)]
    image = image[top : top + mask.shape[0], left : left + mask.shape[1]]
    return shown_bands(image, bands)


@styled
def draw_grid(path, rows, title, legend=()):
    """Pictures in rows, each under its label, over the legend.

    rows: lists of (label, [H, W, 3] in 0..1), none longer than the first. legend: [(name, colour)], "none" for no colour.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    columns = len(rows[0])
    shape = np.clip(np.median([picture.shape[0] / picture.shape[1] for row in rows for _, picture in row]), 0.3, 1.5)
    figure = Figure(figsize=(2.4 * columns, (2.4 * shape + 0.3) * len(rows) + 0.8), layout="constrained")
    for axes, row in zip(figure.subplots(len(rows), columns, squeeze=False), rows):
        for axis in axes:
            axis.set_axis_off()
        for axis, (label, picture) in zip(axes, row):
            lines = [line if len(line) <= 36 else "…" + line[-35:] for line in map(printable, label.split("\n"))]
            axis.imshow(picture, interpolation="antialiased")  # nearest where a pixel is larger than a dot
            axis.set_title("\n".join(lines), fontsize=7, parse_math=False, loc="center")
    figure.suptitle(printable(title), parse_math=False)
    if legend:
        patches = [Patch(facecolor=color, edgecolor="0.6", label=printable(name)) for name, color in legend]
        _write_legend(figure, patches, loc="outside lower center", ncols=min(len(patches), 2 * columns))
    save_figure(figure, path)


@styled
def draw_confusion(path, matrix, names):
    """What became of the pixels of each class: rows are true classes, columns predicted ones, cells percent of their row.

    matrix: as `common.metrics.confusion` gives it. A class without a pixel has an empty row. Below half a percent, and with
    more than 40 classes, there is colour alone.
    """
    from matplotlib.figure import Figure

    n, pixels = len(names), matrix.sum(1, keepdims=True)
    percent = 100 * matrix / np.where(pixels, pixels, np.nan)
    cell = max(0.3, min(0.9, 3 / n)) if n <= 40 else 12 / n  # inches
    figure = Figure(figsize=(n * cell + 2, n * cell + 2), layout="constrained")
    axes = figure.subplots()
    axes.imshow(percent, cmap="Blues", vmin=0, vmax=100)
    labels = [name if len(name) <= 30 else name[:29] + "…" for name in map(printable, names)]
    text = {"fontsize": min(8 if cell < 0.6 else 10, 50 * cell), "parse_math": False}
    axes.spines[:].set_visible(False)
    axes.set_xticks(range(n), labels, rotation=0 if cell > 0.8 else 90, **text)
    axes.set_yticks(range(n), labels, **text)
    axes.xaxis.tick_top()
    axes.set(xlabel="predicted", ylabel="true")
    figure.suptitle("What the pixels of each true class became:\na row is 100 %, and what is right lies on the diagonal")
    for row, column in np.argwhere(percent >= 0.5) if n <= 40 else ():
        shade = "white" if percent[row, column] > 60 else "black"
        words = f"{percent[row, column]:.0f}{' %' * (cell > 0.5)}"
        axes.text(column, row, words, ha="center", va="center", fontsize=min(12, 22 * cell), color=shade)
    save_figure(figure, path)
