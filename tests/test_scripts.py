"""The scripts as a user runs them: every train script end to end, compare.py, and what bad input gets."""

import contextlib
import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import compare
import comparison
from common.checkpoint import load_checkpoint
from common.config import Config, Size, UserError
from common.weights import is_trainable
from comparison import columns
from comparison.proof import parity
from comparison.proof.ways import cases
from training.report import COLUMNS

import numpy as np
import pytest
from skimage.io import imsave

ROOT = Path(__file__).parents[1]
TINY = "--images 10 --image-size 32 --depth 2 --filters 4 --batch-size 4 --epochs 2 --learning-rate 0.01".split()


def read_history(run_dir):
    with open(run_dir / "history.csv", newline="") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def script(*arguments, **environment):
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, timeout=300
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """implementation -> (folder, what was printed) of its train script."""
    found = {}
    for name in comparison.IMPLEMENTATIONS:
        folder, output = tmp_path_factory.mktemp(name), io.StringIO()
        with contextlib.redirect_stdout(output):
            comparison.load(name).main([*TINY, "--batch-norm", "explicit", "--run-dir", str(folder)])
        found[name] = folder, output.getvalue()
    return found


def test_train_script(implementation, runs):
    folder, output = runs[implementation]
    rows = read_history(folder)
    assert tuple(rows[0]) == COLUMNS
    assert [row["epoch"] for row in rows] == [1, 2]
    assert rows[1]["step"] == 4
    assert rows[1]["loss"] < rows[0]["loss"]
    assert json.loads((folder / "config.json").read_text())["image_size"] == "32x32"
    for picture in ("curves.png", "predictions.png"):
        assert (folder / picture).read_bytes().startswith(b"\x89PNG")
    weights, _, metadata = load_checkpoint(folder / "best.safetensors")
    assert metadata["config"]["filters"] == 4
    assert any(not is_trainable(name) for name in weights), "without the moving statistics inference means nothing"
    assert "Otsu" in output and "best validation dice" in output


def test_the_three_scripts_train_the_same_network(runs):
    """The same batches, the same initial weights: after two epochs the histories agree to float32 rounding."""
    for row in zip(*(read_history(folder) for folder, _ in runs.values())):
        for column in ("loss", "val_loss"):
            values = [r[column] for r in row]
            # 1e-3: usual constants of Adam, where v1 computes 1 - beta_2 in float32 and is 1.3e-5 off
            assert max(values) - min(values) < 1e-3, column


def test_fit_makes_the_same_steps_as_the_train_step(tmp_path):
    """keras_impl trains by `fit`; parity and bench use `make_train_step`. They must end at the same weights, bit for bit."""
    from data.loader import load_examples, training_batches
    from training.options import read_command_line as start

    code = comparison.load("keras_impl")
    arguments = [*TINY, "--epochs", "1", "--run-dir", str(tmp_path)]
    code.main(arguments)
    config, training, _ = load_examples(start("keras_impl", arguments, ""))
    model = code.UNet(config.network)
    step = code.make_train_step(model, config)
    for images, masks in training_batches(config, training):
        step(images, masks)
    weights, _, _ = load_checkpoint(tmp_path / "best.safetensors")
    for name, weight in code.named_weights(model).items():
        np.testing.assert_array_equal(weight.numpy(), weights[name], err_msg=name)


def test_train_script_as_a_file_and_as_a_module(tmp_path):
    for how in (["lowlevel/train.py"], ["-m", "lowlevel.train"]):
        result = script(*how, *TINY, "--epochs", "1", "--run-dir", str(tmp_path))
        assert result.returncode == 0, result.stderr
        assert result.stderr.strip() == "", "no start-up noise, no warnings"


def test_compare_without_arguments(tmp_path, capsys):
    arguments = ["--image-size", "16", "--depth", "1", "--filters", "2", "--batch-size", "2", "--images", "6", "--rounds", "2"]
    assert compare.main([*arguments, "--run-dir", str(tmp_path)]) == 0
    output = capsys.readouterr().out
    assert "the same network three times" in output and "CPU" in output
    checks = json.loads((tmp_path / "parity.json").read_text())["checks"]
    assert all(check["passed"] and check["reason"] for check in checks)
    records = json.loads((tmp_path / "bench.json").read_text())["records"]
    assert {(r["implementation"], r["mode"]) for r in records} == {
        (name, mode) for name in comparison.IMPLEMENTATIONS for mode in ("train", "infer", "folded")
    }
    assert all(r["images_per_second"] > 0 and r["peak_memory_bytes"] > 2**26 for r in records)
    assert (tmp_path / "bench.png").exists()


def test_compare_parity_climbs(tmp_path, capsys):
    """bfloat16 in this process, XLA in one of its own; tests/test_network.py climbs in the other ways."""
    config = Config.of(filters=2, depth=1, batch_size=2, images=6, image_size=Size(16, 16))
    every = list(cases("default", config, steps=2))
    assert len({case.title for case in every}) == len(every) == 25
    some = [c for c in every if (c.config.training.jit, c.config.network.precision) in ((False, "bfloat16"), (True, "float32"))]
    some = [c for c in some if c.exact == (c.config.network.precision == "bfloat16")]
    assert parity.climb_all(some, tmp_path / "parity.json")
    record = json.loads((tmp_path / "parity.json").read_text())
    assert [*record["losses"]] == [
        "default: float32, fused, XLA, as written",
        "default: bfloat16, fused, to the last bit",
    ]
    output = capsys.readouterr().out
    assert (tmp_path / "parity.png").exists() and output.count("the same network three times") == 2
    assert "as written, within rounding: " in output and "to the last bit: " in output


@pytest.fixture(scope="module")
def lowered(tmp_path_factory):
    """(folder of the saved programs, what `compare.py graph` printed).

    In a process of its own: lowering to StableHLO names devices by a random operation, which determinism forbids.
    """
    folder = tmp_path_factory.mktemp("graph")
    arguments = "graph --image-size 16 --depth 1 --filters 2 --batch-size 2 --images 6".split()
    result = script("compare.py", *arguments, "--run-dir", str(folder), "--save", str(folder / "texts"))
    assert result.returncode == 0, result.stderr
    return folder / "texts", result.stdout


def test_compare_graph(lowered):
    folder, output = lowered
    assert output.count("the same mathematics") == 4
    texts = sorted(path.name for path in folder.glob("*.txt"))
    assert len(texts) == 6 and "stablehlo.convolution" in (folder / texts[0]).read_text()


@pytest.mark.slow
def test_graph_sees_another_activation(tmp_path):
    """A planted fault: ReLU in one of them. In a process of its own, as above."""
    plant = """
import sys, types
import compare, lowlevel.model, tensorflow as tf
class Patched:
    nn = types.SimpleNamespace(**{name: getattr(tf.nn, name) for name in dir(tf.nn) if name[0] != "_"})
    def __getattr__(self, name):
        return getattr(tf, name)
Patched.nn.elu = tf.nn.relu
lowlevel.model.tf = Patched()
sys.exit(compare.main(sys.argv[1:]))
"""
    arguments = "graph --image-size 16 --depth 1 --filters 2 --batch-size 2 --images 6".split()
    result = script("-c", plant, *arguments, "--run-dir", str(tmp_path))
    assert result.returncode == 1, result.stderr
    assert "DIFFERENT: number" in result.stdout and "maximum" in result.stdout, result.stdout


def test_graph_sees_another_padding_and_another_order():
    from comparison.proof.graph import compare_sequences, operations

    text = """
    %0 = stablehlo.convolution(%arg0, %arg1) window = {pad = [[1, 1]]} : (tensor<2xf32>, tensor<3xf32>) -> tensor<2xf32>
    %1 = stablehlo.reduce(%0 init: %cst) applies stablehlo.add across dimensions = [0] : (tensor<2xf32>) -> tensor<f32>
    """
    renamed = text.replace("%0", "%7").replace("%arg1", "%arg9")
    assert compare_sequences(operations(text), operations(renamed)) == ""
    for other in (operations(text)[::-1], operations(text.replace("[1, 1]", "[0, 0]"))):
        assert compare_sequences(operations(text), other).startswith("number 1 is convolution 2xf32, 3xf32 -> 2xf32 here")
    assert compare_sequences(operations(text), operations(text)[:1]) == "2 operations here and 1 there"


def test_convolution_flops_by_hand():
    """The default: 12.05 GFLOP forward for a batch of 8 images of 128x128; in training thrice that, less the first layer's."""
    from comparison.benchmark.roofline import convolution_flops

    forward, training = convolution_flops(Config.of(filters=1, depth=1).network, 4, 4)
    down = 16 * (9 + 9) + 4 * (9 * 2 + 9 * 4)
    up = 16 * 2 + 16 * (9 * 2 + 9) + 16  # each pixel of the up-convolution sees one pixel of two channels
    assert forward == 2 * (down + up)
    assert training == 3 * forward - 2 * 16 * 9
    assert round(8 * convolution_flops(Config().network, 128, 128)[0] / 1e9, 2) == 12.05


def test_compare_relay(tmp_path, capsys):
    arguments = "relay --image-size 16 --depth 1 --filters 2 --batch-size 2 --images 6".split()
    assert compare.main([*arguments, "--run-dir", str(tmp_path)]) == 0
    records = json.loads((tmp_path / "relay.json").read_text())
    assert {(r["precision"], r["alone"]) for r in records} == {
        (precision, name) for precision in ("float32", "float64") for name in comparison.IMPLEMENTATIONS
    }


def test_compare_parity_fails_for_a_perturbed_weight(tmp_path, monkeypatch, capsys):
    """The negative control through the command itself: one weight of one implementation off by 1e-4, exit code 1."""
    load = columns.load

    def load_perturbed(implementation):
        code = load(implementation)
        if implementation == "keras_impl":
            named_weights = code.named_weights

            def perturbed_weights(model):
                weights = named_weights(model)
                assign = weights["head/bias"].assign
                weights["head/bias"].assign = lambda value: assign(value + np.float32(1e-4))
                return weights

            code.named_weights = perturbed_weights
        return code

    monkeypatch.setattr(columns, "load", load_perturbed)
    arguments = "parity --image-size 16 --depth 1 --filters 2 --batch-size 2 --images 6 --steps 1 --precision bfloat16".split()
    assert compare.main([*arguments, "--run-dir", str(tmp_path)]) == 1
    output = capsys.readouterr().out
    assert "FAILED" in output and "first difference between lowlevel and keras_impl: the value of head/bias" in output


# --- bad input ---


@pytest.fixture
def folder(tmp_path):
    """Eight images of 32x32 with masks."""
    rng = np.random.default_rng(0)
    for i in range(8):
        for kind in ("images", "masks"):
            (tmp_path / kind).mkdir(exist_ok=True)
            values = rng.integers(0, 256, (32, 32)) if kind == "images" else 255 * rng.integers(0, 2, (32, 32))
            imsave(tmp_path / kind / f"{i}.png", values.astype(np.uint8), check_contrast=False)
    return tmp_path


def test_folder_end_to_end(implementation, folder, tmp_path):
    arguments = ["--dataset", "folder", "--data-dir", str(folder), "--depth", "1", "--filters", "2", "--batch-size", "2"]
    comparison.load(implementation).main([*arguments, "--crop-size", "16", "--epochs", "1", "--run-dir", str(tmp_path / "run")])
    assert (tmp_path / "run" / "predictions.png").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-m", "highlevel.train", "--depht", "3"], ["--depht", "--help"]),
        (["-m", "keras_impl.train", "--dataset", "folder", "--data-dir", "nowhere"], ["nowhere"]),
        (["compare.py", "parity", "--image-size", "8"], ["--image-size 8x8", "--depth"]),
        (["compare.py", "prove"], ["prove"]),
        (["compare.py", "parity", "--steps", "0"], ["--steps"]),
        (["compare.py", "relay", "--jit"], ["--jit"]),
        (["compare.py", "relay", "--epochs", "5"], ["--epochs"]),
        (["compare.py", "seeds", "--schedule", "cosine"], ["--schedule", "train script"]),
        (["compare.py", "parity", "--save", "README.md"], ["README.md", "is there already: move it away"]),
        (["-m", "lowlevel.train", "--dataset", "folder", "--data-dir", "d", "--colors", "nothing.txt"], ["No such file"]),
        (["compare.py", "runs", "nowhere"], ["nowhere"]),
        (["-m", "lowlevel.train", "--data-dir", "nowhere"], ["--dataset folder"]),
    ],
)
def test_bad_input_gets_one_line_and_exit_code_2(arguments, words):
    result = script(*arguments)
    assert result.returncode == 2
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), result.stderr
    for word in words:
        assert word in lines[0]


def test_not_a_number_names_step_and_files(implementation, folder, tmp_path):
    run_dir = tmp_path / "run"
    code = comparison.load(implementation)
    common = ["--dataset", "folder", "--data-dir", str(folder), "--depth", "1", "--filters", "2", "--batch-size", "3"]
    common += ["--run-dir", str(run_dir), "--batch-norm", "none"]
    code.main([*common, "--epochs", "1"])
    saved = (run_dir / "best.safetensors").read_bytes()
    with pytest.raises(UserError, match=r"nan at step 2, on the images images/\d.png, (images/\d.png,? ?){2}; what was saved"):
        code.main([*common, "--epochs", "2", "--learning-rate", "1e38"])
    assert (tmp_path / "run-1" / "best.safetensors").read_bytes() == saved


def test_unwritable_run_dir(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--run-dir"):
        comparison.load("lowlevel").main([*TINY, "--run-dir", str(tmp_path / "file" / "run")])
