"""The study page: rows, notes, measurements, and docs/study.html, which must not go stale."""

import ast
import base64
import collections
import html
import io
import json
import re
import subprocess
import sys
from pathlib import Path

from common.config import Config, Size, UserError
from comparison.columns import Built
from study import page, rows
from study.__main__ import MEASURED, read_command_line
from study.measure import operations
from tests.conftest import IMPLEMENTATIONS
from tests.test_columns import FORWARD, MIRRORED, functions, mirrored

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "study.html"
STEP = "train/make_train_step"
TEXT = PAGE.read_text(encoding="utf-8")
SMALL = dict(channels=1, classes=1, filters=2, depth=1, batch_size=2, image_size=Size(16, 16))


@pytest.fixture
def measured():
    return json.loads(MEASURED.read_text(encoding="utf-8"))


# --- rows ---


@pytest.mark.parametrize("module", rows.MODULES)
def test_every_line_is_in_exactly_one_row(module, implementation):
    table = rows.rows(module)
    lines = [n for row in table if (part := row.parts.get(implementation)) for n in range(part.first, part.last + 1)]
    assert sorted(lines) == list(range(1, len(rows.source(implementation, module).splitlines()) + 1))


def test_names_are_unique():
    names = [row.name for row in rows.all_rows()]
    assert len(names) == len(set(names)) > 100
    assert "model/double_conv/bn" in names, "the link in the README"


def row_of(table, implementation, module, line):
    parts = ((row.name, row.parts.get(implementation)) for row in table if row.name.startswith(module + "/"))
    return next(name for name, part in parts if part and part.first <= line <= part.last)


def test_what_the_mirror_pairs_stands_in_one_row():
    """tests/test_columns.py compares the columns statement by statement: the page must not tear its pairs apart."""
    for module in rows.MODULES:
        table, pairs = rows.rows(module), collections.defaultdict(list)
        for implementation in IMPLEMENTATIONS:
            for name, node in functions(implementation, module):
                name = "forward" if (module, name) == ("model", FORWARD[implementation]) else name
                if name in MIRRORED[module] and isinstance(node, ast.FunctionDef):
                    # what is returned may be the head itself, or the model that ends in it
                    lines = [s.lineno for s in mirrored(node) if not isinstance(s, ast.Return)]
                    pairs[name].append([row_of(table, implementation, module, line) for line in lines])
        for function, columns in pairs.items():
            assert all(column == columns[0] for column in columns), f"{module}.py, {function}"
        assert sum(len(columns[0]) for columns in pairs.values()) > 15, "something is compared"


def test_rows_follow_the_code():
    """Blank lines, functions in another order and lines written otherwise move nothing; a new statement is a row of its own."""
    sources = {name: rows.source(name, "model") for name in IMPLEMENTATIONS}
    before = [(row.name, list(row.parts)) for row in rows.rows("model", sources)]
    head, body = sources["keras_impl"].split("def double_conv(")
    block, end = body.split("def named_weights(")
    pool = 'tf.nn.max_pool2d(x, name="pool",\n  padding="VALID", ksize=2, strides=[2, 2])'
    changes = {
        "lowlevel": [("\nfrom ", "\n\n\nfrom "), ('tf.nn.max_pool2d(x, 2, strides=2, padding="VALID")', pool)],
        "highlevel": [("            skips.append(x)\n", "            skips.append(x)\n            extra = tf.identity(x)\n")],
        "keras_impl": [(sources["keras_impl"], f"{head}def named_weights({end}\n\ndef double_conv({block}")],
    }
    for name, of in changes.items():
        for old, new in of:
            assert old in sources[name]
            sources[name] = sources[name].replace(old, new, 1)
    after = [(row.name, list(row.parts)) for row in rows.rows("model", sources)]
    new = ("model/forward/down/extra", ["highlevel"])
    assert after.count(new) == 1 and sorted(row for row in after if row != new) == sorted(before)


# --- notes ---


def test_notes_belong_to_rows_that_exist(measured):
    found, glossary = page.notes(measured)
    assert not found.keys() - {row.name for row in rows.all_rows()}
    assert 25 <= len(found) and all(note["text"] for note in found.values()) and len(glossary) >= 8
    told = {trap for note in found.values() for trap in note["traps"]}
    assert page.traps().keys() == told, "every trap stands at some row"


def test_links_within_the_page_lead_somewhere():
    ids = re.findall(r'\bid="([^"]+)"', TEXT)
    targets = {html.unescape(target) for target in re.findall(r'href="#([^"]+)"', TEXT)}
    assert not targets - set(ids) and len(set(ids)) == len(ids)


# --- the page ---


def test_the_page_is_up_to_date(measured):
    """`python -m study` writes what is committed: rows, notes, traps, and the measurements as they lie there."""
    made = page.make_page(measured)
    assert made == TEXT, "run python -m study"
    assert len(made.encode()) < 1.5e6
    # a row that was renamed would lose its figures in silence
    assert not measured["rows"].keys() - {row.name for row in rows.all_rows()}, "run python -m study --measure"


def test_the_sources_in_the_page_are_the_files(implementation):
    """By a way of its own: the lines of the page with their numbers, blank ones where a number is missing."""
    for module in rows.MODULES:
        section = re.search(rf'<section class="file" aria-label="{module}\.py">.*?</section>', TEXT, re.DOTALL)[0]
        shown = {}
        for cell in re.findall(rf'<div class="cell" data-of="{implementation}".*?</pre></div>', section, re.DOTALL):
            for n, line in re.findall(r'<span class="l" data-n="(\d+)" style="--i:\d+">(.*?)\n</span>', cell, re.DOTALL):
                shown[int(n)] = html.unescape(re.sub(r"<[^>]+>", "", line))
        lines = (ROOT / implementation / f"{module}.py").read_text(encoding="utf-8").splitlines()
        assert [shown.get(n, "") for n in range(1, len(lines) + 1)] == lines


# --- the measurements ---


def test_each_operation_is_counted_once(measured):
    """No row takes more than the whole step, and the rows that are no total of others add up to it."""
    figures = page.Figures(measured)
    for name in IMPLEMENTATIONS:
        assert max(sum(figures.shares(row, name)) for row in figures.table) < 100.1
        steps = [row for row in figures.table if not figures.total(row, name)] + [figures.at[f"{STEP}/gradients"]]
        counts = sum(figures.traced(row, name) for row in steps)
        rest = measured["totals"][name]["traced"] - counts
        assert 0 <= rest < 10 if name == "keras_impl" else rest == 0, "`fit` does a little that stands in no other row"
        assert 98 < sum(sum(figures.shares(row, name)) for row in figures.ranking()) < 100.1
    halves = [row.name for row in figures.table if len(row.parts) == 3]
    halves = [name for name in halves if 0 < len(measured["rows"].get(name, {}).get("traced", "abc")) < 3]
    assert not halves, "what has code in all three makes something in all three"
    exact = [pairs for row in figures.table for pairs in figures.proofs(row).get("to the last bit", {}).values()]
    assert exact and not any(d for pairs in exact for d, _, _ in pairs), "the page says so"


def test_figures_in_the_notes_are_those_measured(measured):
    results = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    assert re.search(r"\b53 and 122\b", results) and measured["totals"]["lowlevel"]["mathematics"] == 122
    assert "122\nin a training step" in page.notes(measured)[1]["StableHLO"]
    measured["config"] |= {"depth": 2}
    measured["totals"]["keras_impl"]["traced"] = 12345
    told, _ = page.notes(measured)
    assert "stands 5 times" in told["model/double_conv"]["text"] and "12,345 operations" in told[f"{STEP}/apply"]["text"]


def test_the_matrix_is_that_of_the_readme(measured):
    told, _ = page.notes(measured)
    cells = {what: [row for _, row in of] for what, of in page.matrix(told)}
    assert cells["batch statistics"] == ["model/batch_norm/moving_mean-3", "model/double_conv/bn", "model/double_conv/bn-2"]
    assert len(cells) == 11 and all(len(of) == 3 for of in cells.values())
    assert not [row for of in cells.values() for row in of if not told[row]["text"]], "each cell leads to a note"


def test_the_rows_that_make_the_operations_add_up(measured):
    makers = page.Figures(measured).summary()["makers"]
    for k, name in enumerate(IMPLEMENTATIONS):
        counts = [int(re.sub(r"\D", "", cells[k])) for _, cells in makers]
        assert sum(counts) == measured["totals"][name]["traced"]


def numbers(measured, key, k, image=0):
    """A map's numbers, read back from the colours of its sheet."""
    with Image.open(io.BytesIO(base64.b64decode(measured["sheets"][image]))) as sheet:
        of, (x, y) = measured["maps"][key], measured["maps"][key]["at"][k]
        root = (np.asarray(sheet, float)[y : y + of["size"][0], x : x + of["size"][1]] - 127) / 127
    return np.sign(root) * root**2 * of["scale"]


def test_a_map_follows_from_the_one_before_it(measured):
    """The page tells of each number what it came from: the sums are those that TensorFlow makes of the same numbers."""
    maps = measured["maps"]
    assert len(measured["sheets"]) == 2
    for image in range(2):
        before = numbers(measured, "image", 0, image)[None, ..., None]
        for k, kernel in enumerate(maps["down0/conv1"]["kernel"]):
            kernel = np.reshape(kernel, [3, 3, 1, 1])
            after = tf.nn.conv2d(before, kernel, strides=1, padding="SAME")[0, ..., 0]
            scale = maps["down0/conv1"]["scale"]
            np.testing.assert_allclose(numbers(measured, "down0/conv1", k, image), after, atol=0.04 * scale)  # of 127 colours
        activation = numbers(measured, "down2/act1", 0, image)
        np.testing.assert_allclose(activation, tf.nn.elu(numbers(measured, "down2/bn1", 0, image)), atol=0.1)
        p, mask = (numbers(measured, key, 0, image) for key in ("probability", "mask"))
        assert np.mean((p > 0.5) == (mask > 0.5)) > 0.9, "it has learnt"
    for key, of in maps.items():
        assert not of["from"] or of["from"] in maps, key


def test_the_weight_that_is_watched_moves_as_adam_says(measured):
    training = Config.of().training
    for name, of in measured["watched"].items():
        m = v = 0.0
        for t, g in enumerate(of["g"], 1):
            m, v = m + 0.1 * (g - m), v + 0.001 * (g * g - v)
            np.testing.assert_allclose([of["m"][t - 1], of["v"][t - 1]], [m, v], rtol=1e-3)
            step = -0.001 * (1 - 0.999**t) ** 0.5 / (1 - 0.9**t) * m / (v**0.5 + training.epsilon)
            np.testing.assert_allclose(of["w"][t] - of["w"][t - 1], step, atol=2e-6, err_msg=f"{name}, step {t}")


def traced(implementation, config, images, masks):
    """`collect_one` without XLA, which refuses to be deterministic as this process is."""
    graph = Built(implementation, config).train_step.get_concrete_function(images, masks).graph
    return graph, [], graph, ""


def test_every_operation_has_a_row(monkeypatch):
    monkeypatch.setattr("study.measure.collect_one", traced)
    tf.random.set_seed(0)  # tf.layers draw weights before they are replaced
    images = np.random.default_rng(0).random([2, 16, 16, 1], np.float32)
    config = Config.of(**SMALL)
    found = {}
    for name in IMPLEMENTATIONS:
        found[name], _, totals = operations(name, config, images, (images > 0.5).astype(np.float32))
        assert totals["traced, without a row"] == 0 and totals["traced"] > 100
        of = found[name]
        assert of["model/double_conv/conv"]["traced"]["Conv2D"] == 6  # two in each of three blocks
        assert of["model/double_conv/conv"]["gradient, traced"]["Conv2DBackpropFilter"] == 6
        assert of["model/double_conv/bn"]["traced"]["FusedBatchNormV3"] == 6
        assert of["model/forward/up/deconv"]["gradient, traced"]["Conv2D"] == 1
        assert of["model/forward/down/double_conv"]["traced"]["Elu"] == of["model/forward/double_conv"]["traced"]["Elu"] == 2
        # what every ELU leaves for its gradient: 2 images of 16x16 and of 8x8 pixels, float32; two blocks above and one below
        assert of["model/double_conv/activation"]["kept"]["bytes"] == 4 * 2 * (4 * 16 * 16 * 2 + 2 * 8 * 8 * 4)
        loops = "model/forward/down", "model/double_conv/for_k", "train/Adam/apply/for_name"
        assert not any(loop in of for loop in loops), "the head of a loop makes nothing"
        # in Keras `fit` does these
        assert of[f"{STEP}/logits"]["traced"]["Elu"] == of[f"{STEP}/gradients"]["traced"]["EluGrad"] == 6
        assert of[f"{STEP}/loss"]["traced"]["Sigmoid"] == 1
        assert sum(of["train/train/end_step"]["traced"].values()) == totals["traced"]
    kernel = "model/batch_norm/fused_batch_norm"
    assert found["lowlevel"][kernel] == found["keras_impl"][kernel]
    apply = f"{STEP}/apply"
    assert found["highlevel"][apply]["traced"]["ResourceApplyAdam"] == found["keras_impl"][apply]["traced"]["Square"] == 22
    assert found["lowlevel"][apply]["traced"]["Pow"] == 2 and found["keras_impl"][apply]["traced"]["Pow"] == 44
    assert found["keras_impl"]["model/forward/head"]["traced"]["AddV2"] == 1
    assert found["lowlevel"]["model/conv2d/bias_add"]["traced"]["BiasAdd"] == 1


@pytest.mark.slow
def test_measure_a_small_network(tmp_path):
    options = "--filters 2 --depth 1 --batch-size 2 --image-size 16 --images 12".split()
    out = ["--measured", tmp_path / "measured.json", "--output", tmp_path / "study.html"]
    subprocess.run([sys.executable, "-m", "study", "--measure", *options, *out], cwd=ROOT, check=True)
    measured = json.loads((tmp_path / "measured.json").read_text(encoding="utf-8"))
    for name in IMPLEMENTATIONS:
        assert measured["totals"][name]["ms, without a row"] < 0.1 * measured["totals"][name]["ms"]
    assert measured["config"]["filters"] == 2 and len(measured["sheets"]) == 2
    row = measured["rows"]["model/double_conv/bn"]
    assert {"traced", "optimized", "stablehlo", "gradient, traced", "ms", "kept", "parity"} <= row.keys()
    exact = [of["parity"]["to the last bit"] for of in measured["rows"].values() if "parity" in of]
    assert exact and all(d == 0 for whats in exact for found in whats.values() for d, _, _ in found)
    assert "Conv2D" in (tmp_path / "study.html").read_text(encoding="utf-8")


def test_command_line():
    args, config = read_command_line(["--measure", "--filters", "8", "--loss", "dice_ce"])
    with pytest.raises(UserError, match="goes with --measure"):
        read_command_line(["--checkpoint", "runs/lowlevel/best.safetensors"])
    assert args.measure and config.network.filters == 8 and config.training.loss == "dice_ce"
