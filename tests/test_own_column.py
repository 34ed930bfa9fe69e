"""A column of the reader's own: the exercises, the three examples beside them, and what is said of one that is wrong."""

import dataclasses
import functools
import json
import shutil
import sys

import compare
from common.config import Config, Size
from common.weights import initial_weights
from comparison import columns, own
from comparison.proof import ladder, mutants, oracle, reducer
from comparison.proof.ways import EXACT_CONSTANTS, Case
from tests import exercises
from tests.helpers import ROOT, refused
from tests.test_network import random_batch

import numpy as np
import pytest
from safetensors.numpy import save_file

TINY = dict(filters=2, depth=1, batch_norm="explicit", channels=1, classes=1, **EXACT_CONSTANTS)
OPTIONS = "--filters 2 --depth 1 --image-size 16 --batch-size 2 --images 6 --steps 2 --precision float32".split()


@pytest.fixture
def copy(tmp_path):
    """function(column, file, old, new) -> the folder of a copy of a column with that change."""

    def make(column, file="model.py", old="", new="", name="my_copy"):
        folder = tmp_path / name
        shutil.copytree(ROOT / column, folder, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
        for path in folder.glob("*.py"):
            path.write_text(path.read_text().replace(f"from {column}.", f"from {name}."))
        source = (folder / file).read_text()
        assert old in source
        (folder / file).write_text(source.replace(old, new))
        for module in [module for module in sys.modules if module.split(".")[0] == name]:
            del sys.modules[module]
        return folder

    return make


@functools.cache
def beside(case):
    """(batches, what lowlevel makes of them, what rounding explains)"""
    batches = [[x.numpy() for x in random_batch(case.config, 16, 16, seed=k)] for k in range(2)]
    return batches, {"lowlevel": ladder.observe("lowlevel", case, batches)}, ladder.rounded(case, batches)


def climb(folder, exact=True, steps=2, **options):
    """-> (checks, what the finder says), beside lowlevel alone."""
    case = Case("t", Config.of(**{**TINY, **options}), steps, exact, own="my_column", beside=("lowlevel",))
    checks, _, first = ladder.climb(dataclasses.replace(case, own=str(folder)), *beside(case))
    return checks, first


# --- the exercises ---


SAID = [
    (1, {}, "behind the image comes nothing, where down0/conv1", "behind down0/conv1, as far as all is well, comes nothing"),
    (2, {}, "activation down0/bn1 in inference", "behind down0/act1, as far as all is well, comes nothing"),
    (3, {}, "model.py:", None),
    (4, dict(optimizer="sgd"), "train.py:", ""),
    (5, {}, "step 1, m, the mean of the gradients", None),
    (6, dict(dropout=0.5), "activation dropout in training", None),  # solved it goes through its command
]


@pytest.mark.parametrize(("k", "options", "before", "after"), SAID, ids=[f"exercise-{row[0]}" for row in SAID])
def test_exercise(k, options, before, after, tmp_path):
    """The stub as it stands gets the hint that the page promises, and the solution the next, or none."""
    for solved, words in ((False, before), (True, after))[: 1 + (after is not None)]:
        folder = tmp_path / f"exercise_{k}_{solved}"
        exercises.written(k, folder, solved)
        if words.endswith(".py:"):
            with refused(f"{folder}/{words}"):
                climb(folder, **options)
            continue
        checks, first = climb(folder, **options)
        assert (words in first if words else not first) and all(check.passed for check in checks) == (not words), first


@pytest.mark.slow
def test_the_last_exercise_through_its_command(tmp_path, capsys):
    """The verdict is first, in a sentence, no line is wider than 100 columns, and what is resumed goes on."""
    folder = tmp_path / "my_last"
    exercises.written(6, folder, True)
    words = [str(folder) if word == "my_column" else word for word in exercises.commands()[6]]
    assert compare.main([*words, *OPTIONS, "--run-dir", str(tmp_path / "run"), "--verbose"]) == 0
    lines = capsys.readouterr().out.replace(str(tmp_path), "").splitlines()
    assert lines[2].startswith("my_last and the three are the same network, in ") and "beside NumPy the largest" in lines[4]
    assert max(map(len, lines)) <= 100
    assert any(line.startswith("resumed, and straight") and line.endswith("ok") for line in lines)


# --- the three examples ---


def test_a_student_replaces_a_row(copy):
    folder = copy("lowlevel", old="x = tf.concat([skip, x], axis=-1)", new="x = tf.concat([x, skip], axis=-1)")
    assert "activation up0/concat in inference" in climb(folder)[1]


@pytest.mark.slow
def test_a_team_moves_to_keras(copy):
    """What it forgets is the momentum, for which Keras has another default; what it writes out passes."""
    folder = copy("keras_impl", old="bn(momentum=momentum, ", new="bn(")
    assert "a forward pass in training, down0/bn1/moving_mean" in climb(folder, exact=False)[1]
    checks, first = climb(copy("keras_impl"), exact=False)
    assert not first and all(check.passed for check in checks)


@pytest.mark.slow
def test_weights_of_another_library(tmp_path):
    """NumPy stands for PyTorch: a layout that has to be transposed is named, and logits of the same images agree."""
    config = Config.of(channels=1, classes=1, filters=2, depth=1, batch_norm="explicit")
    rng = np.random.default_rng(0)
    weights = {name: w + rng.normal(0, 0.01, w.shape).astype(np.float32) for name, w in initial_weights(config.network).items()}
    images = rng.random((2, 16, 16, 1), np.float32)
    logits, *_ = oracle.forward(config.network, {name: w.astype(np.float64) for name, w in weights.items()}, images)
    file, argv = tmp_path / "torch.safetensors", ["parity", *OPTIONS, "--run-dir", str(tmp_path / "run"), "--weights"]
    torch = np.ascontiguousarray(weights["down0/conv1/kernel"].transpose(3, 2, 0, 1))
    save_file({**weights, "down0/conv1/kernel": torch}, file)
    with refused("--weights", "down0/conv1/kernel of shape (2, 1, 3, 3), not (3, 3, 1, 2): transposed by (2, 3, 1, 0) it fits"):
        compare.main([*argv, str(file)])
    save_file({**weights, "images": images, "logits": logits.astype(np.float32)}, file)
    case = Case("t", config, 1, exact=False, weights=file)
    assert [check.passed for check in ladder.beside_file(case)] == 3 * [True]
    save_file({**weights, "images": images, "logits": (logits + 1e-3).astype(np.float32)}, file)
    assert [check.passed for check in ladder.beside_file(case)] == 3 * [False]


# --- what is wrong is said by name ---


@pytest.mark.parametrize(
    ("file", "old", "new", "words"),
    [
        ("model.py", "def named_weights", "def names", ["model.py lacks named_weights"]),
        ("train.py", "def make_train_step", "def make_step", ["train.py lacks make_train_step"]),
        ("model.py", "return model.weights", "return dict(list(model.weights.items())[:-1])", ["lacks head/bias"]),
        ("model.py", "return model.weights", "return model.weights | {'x': tf.zeros(1)}", ["has x, which"]),
        ("model.py", "x = tf.concat([skip", "x = tf.concat(['a', skip", ["x = tf.concat(['a', skip"]),
        ("model.py", "    def __call__", "    def def __call__", [", def def __call__", "SyntaxError: invalid syntax"]),
    ],
)
def test_what_a_column_lacks_is_named(file, old, new, words, copy):
    with refused(*words):
        climb(copy("lowlevel", file, old, new))


def test_folders_that_are_no_columns(tmp_path):
    for name in ("data", "no-name"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.py").write_text("")
        with refused(f"--column {tmp_path / name}", "rename the folder"):
            own.load(str(tmp_path / name))
    with refused("there is no", "model.py"):
        compare.main(["parity", "--column", str(tmp_path), "--run-dir", str(tmp_path / "run")])
    with refused("--reduce", "--column"):
        compare.main(["parity", "--reduce", "--run-dir", str(tmp_path / "run")])


def test_a_column_without_training_and_one_in_the_benchmark(copy):
    folder = copy("lowlevel", name="only_model")
    (folder / "train.py").unlink()
    checks, first = climb(folder)
    assert (
        not first
        and {check.rung for check in checks} >= {"gradients", "loss"}
        and not columns.Built(str(folder), Config.of(**TINY)).trains
    )
    from comparison.benchmark.cells import find_cells

    cells = find_cells(Config(), set(), "quick", Size(16, 16), precisions=["float32", "bfloat16"], own=str(folder))
    assert [cell.column for cell in cells].count(str(folder)) == 2, "float32 and bfloat16"


@pytest.mark.slow
def test_reduce_finds_the_smallest(copy, capsys):
    folder = copy("lowlevel", old="x = self.dropout(x, training)", new="pass")
    options = dict(filters=4, depth=2, dropout=0.5, image_size=Size(32, 32), images=8, batch_size=2, clip_norm=0.5)
    case = Case("t", Config.of(**{**TINY, **options}), 3, own=str(folder))
    reducer.run(case)
    said = capsys.readouterr().out.splitlines()[-1]
    for words in ("--filters 1", "--depth 1", "--batch-size 1", "--steps 1", "--dropout 0.5"):
        assert words in said, said
    assert "--clip-norm" not in said


# --- the mutants ---


def test_mutants_are_planted_by_the_hundred_and_one_is_caught(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("comparison.proof.finder.locate", lambda *_: "none")  # its words are not looked at
    every = mutants.every_mutant()
    assert len(every) > 500 and len({mutant.source for mutant in every}) > 500
    (chosen,) = [mutant for mutant in every if "tf.reduce_max(" in mutant.change]
    monkey = {"explicit, dropout, clipped": mutants.WAYS["explicit, dropout, clipped"]}
    found = mutants.judge(chosen, tmp_path / "mutant_0", {}, {}, monkey)
    assert found["ladder"] and found["numpy"], found
    file = tmp_path / "found.json"
    file.write_text(json.dumps([{**chosen._replace(source="")._asdict(), **found}]))
    mutants.main(["--report", str(file)])
    assert capsys.readouterr().out.splitlines()[-2].split() == ["all", *"11011"], "planted, caught, by an error, twice"
