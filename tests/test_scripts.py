"""The scripts as a user runs them: every train script end to end, compare.py, and what bad input gets."""

import contextlib
import dataclasses
import io
import json

import compare
from common.checkpoint import load_checkpoint
from common.cli import run_script
from common.config import Config, Size, UserError
from common.weights import is_trainable
from comparison import columns
from comparison.benchmark import bench
from comparison.proof import outside, parity, relay
from comparison.proof.ways import cases
from data.loader import load_examples, training_batches
from tests.drawn import BLOBS, save_pairs
from tests.helpers import python
from training.options import read_command_line
from training.report import read_history

import numpy as np
import pytest

TINY = "--images 10 --image-size 16 --depth 1 --filters 4 --batch-size 4 --epochs 2 --learning-rate 0.01".split()
TINIEST = "--image-size 16 --depth 1 --filters 2 --batch-size 2 --images 6".split()


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """implementation -> (folder, what was printed) of its train script."""
    found = {}
    for name in columns.IMPLEMENTATIONS:
        folder, output = tmp_path_factory.mktemp(name), io.StringIO()
        with contextlib.redirect_stdout(output), pytest.MonkeyPatch.context() as patch:
            patch.setattr("training.run.draw_augmentations", lambda *_: None)
            columns.load(name).main([*TINY, "--batch-norm", "explicit", "--run-dir", str(folder)])
        found[name] = folder, output.getvalue()
    return found


def test_train_script(implementation, runs):
    folder, output = runs[implementation]
    rows = read_history(folder)
    assert [(row["epoch"], row["step"]) for row in rows] == [(1, 2), (2, 4)] and rows[1]["loss"] < rows[0]["loss"]
    assert json.loads((folder / "config.json").read_text())["image_size"] == "16x16"
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


@pytest.mark.parametrize(
    "options", ["", "--precision float64 --batch-norm explicit --clip-norm 0.1 --dropout 0.5 --optimizer sgd --loss dice_ce"]
)
def test_fit_makes_the_same_steps_as_the_train_step(options, tmp_path, monkeypatch):
    """keras_impl trains by `fit`; parity and bench use `make_train_step`. They must end at the same weights, bit for bit."""
    monkeypatch.setattr("training.run.Run._report", lambda run: None)
    monkeypatch.setattr("training.run.draw_augmentations", lambda *_: None)
    code = columns.load("keras_impl")
    arguments = [*TINY, "--epochs", "1", "--run-dir", str(tmp_path), *options.split()]
    code.main(arguments)
    config, training, _ = load_examples(read_command_line("keras_impl", arguments, ""))
    model = code.UNet(config.network)
    step = code.make_train_step(model, config)
    for images, masks in training_batches(config, training):
        step(images, masks)
    weights, _, _ = load_checkpoint(tmp_path / "best.safetensors")
    for name, weight in code.named_weights(model).items():
        np.testing.assert_array_equal(weight.numpy(), weights[name], err_msg=name)


def test_train_script_as_a_file(tmp_path):
    """As a module it runs in tests/test_training.py, where it is sent a signal."""
    result = python("lowlevel/train.py", *TINIEST, "--epochs", "1", "--run-dir", tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stderr.strip() == "", "no start-up noise, no warnings"


def test_compare_without_arguments(tmp_path, monkeypatch):
    """The default network in both tiers, which `test_compare_parity_climbs` climbs, and what `bench --quick` measures."""
    called = []
    monkeypatch.setattr(parity, "climb_all", lambda todo, path: called.append(([case.title for case in todo], path)) or True)
    monkeypatch.setattr(bench, "run_matrix", lambda config, *of: called.append((config.network.precision, *of)))
    assert compare.main([*TINIEST, "--rounds", "1", "--run-dir", str(tmp_path)]) == 0
    (titles, path), measured = called
    assert {*titles} == {f"default: {way}" for way in compare.SHORT} and path == tmp_path / "parity.json"
    files = tmp_path / "bench.json", tmp_path / "roofline.png"
    assert measured == ("float32", {"precision", "jit"}, "quick", 1, *files)


def test_compare_parity_climbs(tmp_path, capsys, monkeypatch):
    """bfloat16 in this process, XLA in one of its own; tests/test_network.py climbs in the other ways."""
    monkeypatch.setattr(outside, "cases", lambda todo: [])  # tests/test_oracle.py
    config = Config.of(filters=2, depth=1, batch_size=2, images=6, image_size=Size(16, 16))
    every = list(cases("default", config, steps=2))
    assert len({case.title for case in every}) == len(every) == 31
    some = [c for c in every if (c.config.training.jit, c.config.network.precision) in ((False, "bfloat16"), (True, "float32"))]
    some = [c for c in some if c.exact == (c.config.network.precision == "bfloat16") and c.config.network.batch_norm == "fused"]
    some = [dataclasses.replace(c, beside=c.beside[::2]) if c.config.training.jit else c for c in some]  # XLA takes its time
    assert parity.climb_all(some, tmp_path / "parity.json")
    record = json.loads((tmp_path / "parity.json").read_text())
    assert [*record["losses"]] == [
        "default: float32, fused, XLA, as written",
        "default: bfloat16, fused, to the last bit",
    ]
    output = capsys.readouterr().out
    assert output.count("the same network three times") == 1
    lines = output.replace(str(tmp_path), "").splitlines()
    assert lines[2].startswith("The three are the same network three times, in ") and max(map(len, lines)) <= 100


def test_compare_graph(tmp_path):
    """In a process of its own: lowering to StableHLO names devices by a random operation, which determinism forbids."""
    result = python("compare.py", "graph", *TINIEST, "--run-dir", tmp_path, "--save", tmp_path / "texts")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("the same mathematics") == 4
    texts = sorted((tmp_path / "texts").glob("*.txt"))
    assert len(texts) == 6 and "stablehlo.convolution" in texts[0].read_text()


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
    result = python("-c", plant, "graph", *TINIEST, "--run-dir", tmp_path)
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


def test_compare_relay(tmp_path, monkeypatch):
    monkeypatch.setattr(relay, "PRECISIONS", ("float64",))  # float32: tests/test_checkpoint.py
    assert compare.main(["relay", *TINIEST, "--run-dir", str(tmp_path)]) == 0
    records = json.loads((tmp_path / "relay.json").read_text())
    assert [(record["precision"], record["alone"]) for record in records] == [
        ("float64", name) for name in columns.IMPLEMENTATIONS
    ]


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
    monkeypatch.setattr(parity, "cases", lambda *of: [case for case in cases(*of) if case.exact][:1])
    monkeypatch.setattr(outside, "cases", lambda todo: [])
    assert compare.main(["parity", *TINIEST, "--steps", "1", "--precision", "bfloat16", "--run-dir", str(tmp_path)]) == 1
    said = capsys.readouterr()
    assert "FAILED" in said.out and "first difference between lowlevel and keras_impl: the value of head/bias" in said.out
    assert "   1 of 1: default: bfloat16, fused, to the last bit" in said.err, "progress, where there is no terminal"


# --- bad input ---


def train(implementation):
    return columns.load(implementation).main


@pytest.mark.parametrize(
    ("main", "arguments", "words"),
    [
        (train("highlevel"), "--depht 3", ["--depht", "--help"]),
        (train("keras_impl"), "--dataset folder --data-dir nowhere", ["nowhere"]),
        (train("lowlevel"), "--dataset folder --data-dir d --colors nothing.txt", ["No such file"]),
        (train("lowlevel"), "--data-dir nowhere", ["--dataset folder"]),
        (compare.main, "parity --image-size 8", ["--image-size 8x8", "--depth"]),
        (compare.main, "prove --steps 1", ["compare.py prove: the commands are parity, graph, relay"]),
        (compare.main, "parity --steps 0", ["--steps"]),
        (compare.main, "relay --jit", ["--jit"]),
        (compare.main, "relay --epochs 5", ["--epochs"]),
        (compare.main, "graph --cache a", ["--cache does nothing beside --dataset synthetic"]),
        (compare.main, "bench --folds 2", ["--folds"]),
        (compare.main, "bench --deterministic", ["--deterministic goes with --loop or --profile"]),
        (compare.main, "bench --data --gpu", ["--gpu goes with --quick or --full"]),
        (compare.main, "bench --loop --format svg", ["--format goes with --quick or --full"]),
        (compare.main, "bench --quick --full", ["not allowed with"]),
        (compare.main, "bench --devices 1,2 --jit", ["leave --jit out"]),
        (compare.main, "bench --warmup 5", ["unrecognized arguments: --warmup"]),
        (compare.main, "bench --profile --jit", ["--jit"]),
        (compare.main, "bench --loop --rounds 0", ["--rounds"]),
        (compare.main, "bench --loop --depth 1 --filters 2 --images 6 --batch-size 99", ["--batch-size is 99"]),
        (compare.main, "bench --quick --depth 1 --filters 65536 --images 6 --batch-size 2", ["would not fit into memory"]),
        (compare.main, "seeds --schedule cosine", ["unrecognized arguments: --schedule cosine", "--help"]),
        (compare.main, "parity --save README.md", ["README.md", "is there already: move it away"]),
        (compare.main, "runs nowhere", ["nowhere"]),
    ],
)
def test_bad_input_gets_one_line_and_exit_code_2(main, arguments, words, tmp_path, capsys):
    run_dir = ["--run-dir", str(tmp_path)] if "--data-dir" not in arguments else []
    with pytest.raises(SystemExit) as ended:
        run_script(lambda: main([*arguments.split(), *run_dir]))
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert ended.value.code == 2 and line.startswith("error: ") and not [word for word in words if word not in line], line


def test_a_folder_and_not_a_number_that_names_step_and_files(tmp_path, monkeypatch):
    """tests/test_training.py has what is not finite in each implementation."""
    monkeypatch.setattr("training.run.draw_augmentations", lambda *_: None)
    save_pairs(tmp_path, [BLOBS] * 8)
    common = ["--dataset", "folder", "--data-dir", str(tmp_path), "--depth", "1", "--filters", "2", "--batch-size", "3"]
    common += ["--crop-size", "16", "--run-dir", str(tmp_path / "run"), "--batch-norm", "none"]
    train("lowlevel")([*common, "--epochs", "1"])
    assert (tmp_path / "run" / "predictions.png").exists()
    saved = (tmp_path / "run" / "best.safetensors").read_bytes()
    with pytest.raises(UserError, match=r"nan at step 2, on the images images/\d.png, (images/\d.png,? ?){2}; what was saved"):
        train("lowlevel")([*common, "--epochs", "2", "--learning-rate", "1e38"])
    assert (tmp_path / "run-1" / "best.safetensors").read_bytes() == saved
