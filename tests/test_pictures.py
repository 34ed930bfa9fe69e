"""The pictures: colours that are told apart, names drawn as they are, and none that costs a result."""

from common.colors import CLASS_COLORS
from common.config import VOID, Config
from common.pictures import (
    INVENTED,
    class_names,
    difference_colors,
    draw_confusion,
    draw_curves,
    draw_grid,
    expendable,
    legend,
    mask_colors,
    told_apart,
)
from training.report import draw_predictions

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image
from skimage.color import rgb2lab

# What is seen of linear RGB: by most, without green cones, without red cones. Machado, Oliveira and Fernandes 2009, severity 1.
SIGHTS = np.array(
    [
        [(1, 0, 0), (0, 1, 0), (0, 0, 1)],
        [(0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881)],
        [(0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)],
    ]
)
GRAY, OKABE_ITO = (0.5, 0.5, 0.5), ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7")
PICTURE = np.random.default_rng(0).random((16, 24, 3))
ROW = {"loss": 0.5, "val_loss": 0.4, "val_dice": 0.7, "val_accuracy": 0.8}
NAMES = ["a$b$.png", "$", r"$\frac{$", "_first.png", "100%_^{}\\", "grün 草"]  # mathematics to matplotlib, but for the last


def seen(colors):
    """[N, 3] sRGB colours in 0..1 -> [3, N, 3] in CIELAB, where distance is difference to the eye, as `SIGHTS` see them."""
    linear = np.where(colors <= 0.04045, colors / 12.92, ((colors + 0.055) / 1.055) ** 2.4)
    linear = np.clip(np.einsum("sij,nj->sni", SIGHTS, linear), 0, 1)
    return rgb2lab(np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055))


def test_the_table_of_colors_is_what_it_says():
    steps = np.linspace(0, 1, 13)
    candidates = np.stack(np.meshgrid(steps, steps, steps), -1).reshape(-1, 3)
    colors, looks = [GRAY, (0, 0, 0), *map(to_rgb, OKABE_ITO)], seen(candidates)
    nearest = np.full(len(candidates), np.inf)
    for k in range(65):
        if k == len(colors):
            colors.append(candidates[nearest.argmax()])
        distances = np.linalg.norm(looks - seen(np.array([colors[k]])), axis=-1).min(0)
        nearest = np.minimum(nearest, distances)
    np.testing.assert_array_equal(np.rint(255 * CLASS_COLORS[[VOID, *range(64)]]), np.rint(255 * np.array(colors)))
    for values in (range(0, 255, 63), range(0, 255, 64), range(0, 255, 85), range(0, 255, 17)):  # of masks
        assert len(np.unique(CLASS_COLORS[values], axis=0)) == len(values)


def test_class_colors_are_told_apart():
    """Forty classes and void, by those with and without red and green cones; a distance of 2.3 in CIELAB is just seen."""
    looks = seen(CLASS_COLORS[[*range(40), VOID]])  # [3, 41, 3]
    distances = np.linalg.norm(looks[:, :, None] - looks[:, None], axis=-1)
    assert (distances + 100 * np.eye(41)).min() > 3 * 2.3


def test_void_is_gray_and_never_wrong():
    mask, prediction = np.array([[VOID, 1, 0]]), np.array([[1, 1, 1]])
    for classes in (1, 3):
        assert mask_colors(mask, classes)[0, 0].tolist() == [128 / 255] * 3
        picture = difference_colors(mask, prediction, classes)
        assert picture[0, 0].tolist() == [128 / 255] * 3 and picture[0, 2].tolist() == list(INVENTED)


def test_names_of_classes():
    assert class_names(None, 1) == class_names(None, 2) == ("background", "foreground")
    assert class_names(None, 3) == ("class 0", "class 1", "class 2")
    assert class_names(("sky", "sea"), 2) == ("sky", "sea")
    key = legend(("sky", "void", "sea"), [0, 1, VOID])
    assert [name for name, _ in key] == ["sky", "void", "void"] and key[2][1] is not key[1][1]
    assert legend(map(str, range(256)), [7, VOID])[1][0] == "255", "where the mask values stand for themselves"


def test_the_legend_of_predictions_names_what_occurs(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("training.report.draw_grid", lambda *args: drawn.append(args))
    truth, prediction = np.array([[VOID, 1, 0]]), np.array([[1, 1, 1]])
    for classes, names, columns in ((3, ["class 0", "class 1", "void"], 2), (1, [], 1)):
        examples = [("a.png", np.zeros((1, 3, 1)), truth, prediction, 0.5)]
        draw_predictions(tmp_path, dict.fromkeys("ab"[:columns], examples), "title", Config.of(channels=1, classes=classes))
        _, ((*_, last),), _, key = drawn.pop()
        assert [name for name, _ in key] == names
        assert last[0] == ("where they differ: 0 pixels" if columns == 2 else "missed orange, wrong violet")


def texts(figure):
    """What stands in a figure, but for numbers at the axes."""
    shown = [axis.get_title() for axis in figure.axes] + [figure.get_suptitle()]
    for owner in (*figure.axes, figure):
        for found in owner.legends if owner is figure else filter(None, [owner.get_legend()]):
            shown += [text.get_text() for text in found.get_texts()]
    return shown


@pytest.mark.filterwarnings("ignore:Glyph")
def test_names_are_drawn_as_they_are(tmp_path, monkeypatch):
    figures, save = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **options: figures.append(self) or save(self, *args, **options))
    rows = [[(name, PICTURE), (f"{name}\n24x16", PICTURE)] for name in NAMES]
    draw_grid(tmp_path / "grid.png", rows, NAMES[2], [(name, (1, 0, 0)) for name in NAMES])
    assert texts(figures[0]) == [*(title for row in rows for title, _ in row), NAMES[2], *NAMES]
    draw_curves(tmp_path / "curves.png", {name: [{"epoch": 1, **ROW}, {"epoch": 2, **ROW}] for name in NAMES})
    assert {f"{name}, {part}" for name in NAMES for part in ("training", "validation")} < set(texts(figures[1]))
    for path in tmp_path.glob("*.png"):
        Image.open(path).load()


def test_a_grid_takes_rows_of_any_length_and_pictures_of_any_shape(tmp_path):
    long = "folder/" * 30 + "end.png"
    draw_grid(tmp_path / "grid.png", [[(long, PICTURE)] * 3, [("a", PICTURE[:1]), ("b", PICTURE[:, :1])]], "title")
    with Image.open(tmp_path / "grid.png") as grid:
        assert 500 < grid.width < 900 and 300 < grid.height < 800


def test_fine_lines_become_gray_and_no_other_lines(tmp_path):
    """Of a picture with more rows than the dots that it gets, each dot is the mean of its rows."""
    lines = np.zeros((1201, 1201, 3))
    lines[::2] = 1
    draw_grid(tmp_path / "grid.png", [[("lines", lines)]], "title")
    with Image.open(tmp_path / "grid.png") as grid:
        middle = np.asarray(grid.convert("L"), float)[
            grid.height // 3 : grid.height * 2 // 3, grid.width // 3 : grid.width * 2 // 3
        ]
    assert middle.std() < 10 and 100 < middle.mean() < 155


@pytest.mark.parametrize("epochs", [1, 2, 3, 16])
def test_epochs_are_whole_numbers(epochs, tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr("common.pictures.save_figure", lambda figure, path: figures.append(figure))
    draw_curves(tmp_path, {"run": [{"epoch": k + 1, **ROW} for k in range(epochs)]})
    ticks = figures[0].axes[1].get_xticks()
    assert (ticks == np.rint(ticks)).all() and len(ticks)


def test_a_confusion_matrix_is_shares_of_the_true_classes(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr("common.pictures.save_figure", lambda figure, path: figures.append(figure))
    draw_confusion(tmp_path, np.array([[3, 1, 0], [0, 0, 0], [1, 0, 999]]), ["a$b$", "_never", "c"])
    draw_confusion(tmp_path, np.eye(41, dtype=int), [str(k) for k in range(41)])
    (first,), (second,) = (figure.axes for figure in figures)
    assert [label.get_text() for label in first.get_yticklabels()] == ["a$b$", "_never", "c"]
    shown = {text.get_position(): text.get_text() for text in first.texts}
    assert shown == {(0, 0): "75 %", (1, 0): "25 %", (2, 2): "100 %"}, (
        "x is the prediction; what is less than half a percent is not"
    )
    assert not second.texts and np.isnan(np.asarray(first.images[0].get_array().filled(np.nan))[1]).all()


def test_objects_that_touch_have_other_colours():
    rng = np.random.default_rng(0)
    labels = 1000 + rng.permutation(144).reshape(12, 12).repeat(7, 0).repeat(5, 1)
    labels[::7], labels[:, ::5] = 0, 0  # a line between them, as the watershed leaves it
    shown = told_apart(labels)
    assert (shown > 0).tolist() == (labels > 0).tolist() and shown.max() <= 6
    for dy, dx in ((0, 2), (2, 0), (2, 2), (2, -2)):
        there, here = (np.roll(of, (dy, dx), (0, 1))[2:, 2:-2] for of in (labels, shown))
        other = (there > 0) & (labels[2:, 2:-2] > 0) & (there != labels[2:, 2:-2])
        assert other.any() and (here != shown[2:, 2:-2])[other].all()


def test_pictures_have_the_format_of_their_name(tmp_path):
    for suffix, begin in {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}.items():
        draw_curves(tmp_path / f"curves.{suffix}", {"run": [{"epoch": 1, **ROW}, {"epoch": 2, **ROW}]})
        assert (tmp_path / f"curves.{suffix}").read_bytes().startswith(begin)


def test_no_picture_costs_a_result(tmp_path, capsys):
    with expendable(tmp_path / "grid.png"):
        draw_grid(tmp_path / "grid.png", [[("label", np.zeros((2, 2, 7)))]], "title")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: {tmp_path / 'grid.png'} could not be drawn, all else is saved: TypeError: Invalid shape")
    with pytest.raises(KeyboardInterrupt), expendable("a picture"):
        raise KeyboardInterrupt
