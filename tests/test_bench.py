"""compare.py bench: the figures that people quote must come from what they name."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import compare
from common.config import Config, Size
from common.weights import fold_batch_norm, is_trainable, weight_shapes
from comparison import columns, machine
from comparison.benchmark import bench, cells, pipeline, roofline
from comparison.benchmark.roofline import MODES
from comparison.proof import graph
from tests.helpers import python, refused

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.eager import context

TINY = "--image-size 16 --depth 1 --filters 2 --batch-size 2 --images 6 --rounds 3".split()


def random_weights(network):
    """Weights of a network that has trained: no moving statistic at its first value."""
    rng = np.random.default_rng(1)
    return {
        name: rng.uniform(0.5, 2, shape) if name.endswith(("gamma", "variance")) else 0.3 * rng.standard_normal(shape)
        for name, shape in weight_shapes(network).items()
    }


@pytest.mark.parametrize("implementation", columns.IMPLEMENTATIONS)
def test_folded_network_is_the_same_network(implementation):
    """In float64, where only rounding is left: 1e-12 is some thousand roundings of numbers near 1."""
    built = columns.Built(implementation, Config.of(precision="float64", batch_norm="explicit", filters=4, depth=2))
    built.start(random_weights(built.config.network))
    images = tf.constant(np.random.default_rng(0).random((2, 20, 28, 1)))
    logits = [network.model(images, training=False).numpy() for network in (built, built.folded())]
    np.testing.assert_allclose(*logits, rtol=0, atol=1e-12 * np.abs(logits[0]).max())
    assert np.abs(logits[0]).max() > 0.1
    plain = built.folded().config.network
    assert fold_batch_norm(plain, {}) == (plain, {}), "nothing to fold"


def assert_folded_is_fused():
    """What the folding is for: TensorFlow fuses convolution, bias and activation, so no ELU is left on its own.

    And the same numbers as before in float32, with the kernels that the benchmark times; 1e-5 is some 100 roundings.
    """
    images, found = np.random.default_rng(0).random((2, 32, 32, 1), np.float32), []
    for implementation in columns.IMPLEMENTATIONS:
        built = columns.Built(implementation, Config.of(filters=4, depth=1))
        built.start({name: value.astype(np.float32) for name, value in random_weights(built.config.network).items()})
        found.append(built.forward(images).numpy())
        with context.collect_graphs(optimized=True) as graphs:
            found.append(built.folded().forward(images).numpy())
        kinds = graph.count(graphs)
        assert sum(n for kind, n in kinds.items() if "FusedConv2D" in kind) >= 6 and "Elu" not in kinds, kinds
    np.testing.assert_allclose(found, 6 * found[:1], rtol=0, atol=1e-5 * np.abs(found[0]).max())


def test_folded_convolutions_are_one_kernel():
    """In a process of its own: in this one other tests may have switched the graph optimizer off."""
    result = python("-c", "from tests import test_bench; test_bench.assert_folded_is_fused()")
    assert result.returncode == 0, result.stderr[-2000:]


def test_least_bytes_by_hand():
    """One level of one filter on 4x4 pixels, in float32."""
    config = Config.of(filters=1, depth=1)
    infer, train = roofline.least_bytes(config, "float32", 2, 4, 4)
    # numbers in and out of each convolution: down0 16+16 twice, down1 4+8 and 8+8, deconv 8+16, up0 32+16 and 16+16, head 16+16
    activations = 2 * (32 + 32 + 12 + 16 + 24 + 48 + 32 + 32)
    kernels = 9 + 9 + 18 + 36 + 8 + 18 + 9 + 1
    assert infer == 4 * (activations + kernels)
    parameters = kernels + 2 + 2 * (1 + 1 + 2 + 2 + 1 + 1)
    assert parameters == sum(np.prod(shape) for name, shape in weight_shapes(config.network).items() if is_trainable(name))
    first = 2 * (16 + 16) + 9  # the gradient of the images: nobody asks for it
    assert train == 4 * (3 * activations + 3 * kernels - first + 7 * parameters)
    assert roofline.least_bytes(config, "bfloat16", 2, 4, 4)[0] == infer // 2


def test_roofline_tells_who_is_how_far_from_which_roof(tmp_path, monkeypatch):
    """All that are equally fast still lie side by side; the words name the roof that is over them, in either precision."""
    figures = []
    monkeypatch.setattr(roofline, "save_figure", lambda figure, path: figures.append(figure))
    peaks = {"float32": {"convolution": 1e11, "copy": 1e10}, "bfloat16": {"convolution": 4e11, "copy": 1e10}}
    records = [
        dict(mode=mode, jit=jit, implementation=name, precision=precision, flops=20, least_bytes=1, flops_per_second=speed)
        for mode in ("train", "infer")
        for jit, precision, speed in ((False, "float32", 4e10), (True, "float32", 5e10), (False, "bfloat16", 1e11))
        for name in (*columns.IMPLEMENTATIONS, cells.STOCK, "my_column")
    ]
    for known in (peaks, {}):
        roofline.draw(records, known, "a device", tmp_path / "roofline.png")
    training, inference = figures[0].axes
    assert [axes.get_title(loc="left") for axes in (training, inference)] == ["training", "inference"]
    drawn = [line for line in training.lines if line.get_marker() != "None"]
    rings = {(*line.get_xydata()[0], line.get_color(), line.get_markersize()) for line in drawn}
    assert len(rings) == len(drawn) == 15 and len({line.get_marker() for line in drawn}) == 5, "each in the next"
    assert sum(line.get_markerfacecolor() != "none" for line in drawn) == 5, "with XLA"
    words = [[text.get_text() for text in figure.axes[0].texts] for figure in figures]
    assert words[0] == ["float32: 40 %, with XLA 50 % of 100 GFLOP/s", "bfloat16: 50 % of 10 GB/s"]
    assert words[1] == [f"{precision}: its limit was not measured" for precision in peaks]
    bottom, top = training.get_ylim()
    assert 20 < bottom < 40 and 400 < top < 800 and not training.get_legend(), "GFLOP/s that were measured, none hidden"


def settings(matrix, given=(), kind="CPU", precision="float32"):
    """[(variant, precision, XLA, batch or None, image size)] of the cells, in order; the limit is measured in each."""
    of_device = {"CPU": ["float32", "bfloat16"], "GPU": ["float32", "tf32", "bfloat16", "float16"]}[kind]
    found = cells.find_cells(Config.of(precision=precision), set(given), matrix, Size(128, 128), kind, of_device)
    known = [(c.variant, c.precision, c.config.training.jit, None if c.doubles else c.batch_size, c.image_size) for c in found]
    limits = [of for of, cell in zip(known, found) if cell.implementation == cells.LIMIT]
    assert limits == list(dict.fromkeys(known))
    return [(*of, str(size)) for *of, size in limits]


def test_the_cells_of_a_cpu(monkeypatch):
    size, both = "128x128", (False, True)
    assert settings("quick") == [("", p, False, 8, size) for p in ("float32", "bfloat16")]
    assert settings("default") == [("", p, jit, 8, size) for p in ("float32", "bfloat16") for jit in both]
    assert len(settings("full")) == 2 * 2 * 3 * 2
    given = settings("full", {"precision", "batch_size"})
    assert given == [("", "float32", jit, 8, side) for side in (size, "256x256") for jit in both]
    found = cells.find_cells(Config(), set(), "quick", Size(16, 16), precisions=["float32", "bfloat16"])
    stock = [c for c in found if c.implementation == cells.STOCK]
    assert len(stock) == 2 and all(c.config.network.batch_norm == "explicit" and c.column == "keras_impl" for c in stock)
    monkeypatch.setattr(tf.config.experimental, "tensor_float_32_execution_enabled", lambda: True)
    for there, precision in ((False, "float32"), (True, "tf32")):
        monkeypatch.setattr(machine, "has_tf32", lambda there=there: there)
        assert machine.precisions(gpu=True) == ["float32", *["tf32"] * there, "bfloat16", "float16"]
        assert [machine.arithmetic(Config.of(precision=p)) for p in ("float32", "bfloat16")] == [precision, "bfloat16"]
    assert machine.arithmetic(Config.of(deterministic=True)) == "float32"
    for flags, narrow in (("sse2 avx avx2", []), ("avx2 avx512f avx512_bf16", ["bfloat16"]), ("asimd bf16", ["bfloat16"])):
        monkeypatch.setattr(machine, "found_in", lambda path, pattern, flags=flags: re.search(pattern, flags))
        monkeypatch.setattr(machine, "has_tf32", lambda: False)
        assert machine.precisions(gpu=False) == ["float32", *narrow]


def test_the_cells_of_a_gpu():
    """In order of worth: what is first is there when the time on the machine is over."""
    every = ["float32", "tf32", "bfloat16", "float16"]
    plain = [("", p, False, None, "128x128") for p in every]
    assert settings("quick", (), "GPU") == plain + [("", p, True, None, "128x128") for p in every[2:]]
    default = settings("default", (), "GPU")
    assert default[:8] == plain + [("", p, True, None, "128x128") for p in every]
    assert default[8:10] == [("paper", "float16", True, batch, "388x388") for batch in (8, 16)], "NVIDIA's"
    assert {s[-1] for s in default if s[0] == ""} == {"128x128", "512x512"}
    assert {s[:3] for s in default if s[0] == "ReLU"} == {("ReLU", p, jit) for p in every[2:] for jit in (False, True)}
    given = settings("quick", {"precision", "batch_size"}, "GPU", "float16")
    assert given == [("", "float16", jit, 8, "128x128") for jit in (False, True)]
    paper = [c for c in cells.find_cells(Config(), set(), "default", Size(128, 128), "GPU") if c.variant == "paper"]
    assert [paper[0].published(mode) for mode in MODES] == [119, None, None]
    assert [c.published("infer") for c in paper if c.batch_size == 16][0] == 424
    assert paper[0]._replace(config=paper[0].config.replace(filters=32)).published("train") is None
    of_paper = paper[0].config
    assert (of_paper.network.filters, of_paper.network.padding, of_paper.training.batch_size) == (64, "valid", 8)


@pytest.mark.parametrize(
    "rate, last, batches",
    [
        (lambda n: 1000 * n / (n + 60), 8 * 2**8, [8 * 2**7]),
        (lambda n: 100.0, 16, [8]),
        (lambda n: n if n < 64 else None, 64, [8]),  # a quarter of the largest that fits
        (lambda n: None, 8, []),
    ],
)
def test_the_batch_doubles_until_that_gains_little(rate, last, batches):
    found = cells.doubled(rate)
    assert found == [(n, rate(n)) for n in (8 * 2**k for k in range(9)) if n <= last] and cells.chosen(found) == batches


TINIEST = Config.of(filters=2, depth=1, batch_size=2, images=6, image_size=Size(16, 16), channels=1, classes=1)


def test_a_process_that_dies_is_reported(monkeypatch):
    workers, cell = bench.Workers(2, ["train"], 0.01), cells.Cell("lowlevel", TINIEST, Size(16, 16))
    ask, asked = bench.Workers.ask, []

    def killed_in_the_second_round(self, of, *request):
        asked.append(request and request[0][0])
        if asked[-1] == "time" and asked.count("time") == 2:
            os.kill(self.up["lowlevel"].process.pid, signal.SIGKILL)
        return ask(self, of, *request)

    monkeypatch.setattr(bench.Workers, "ask", killed_in_the_second_round)
    measured = workers.measure([cell], 3)[cell]
    assert len(measured.times["train"]) == 1 and measured.times["train"][0] > 0, "what was measured before is not lost"
    assert "killed" in workers.failed[cell] and measured.peak is None and not workers.up
    larger = cell._replace(config=TINIEST.replace(batch_size=4))  # the next setting gets another process
    assert workers.measure([larger], 1)[larger].peak > 2**26 and larger not in workers.failed


def test_the_list_of_a_gpu_is_measured(tmp_path, monkeypatch, capsys):
    """On the CPU, one column: its process holds one cell after the other, and what is measured is on disk by then."""
    monkeypatch.setattr(columns, "IMPLEMENTATIONS", ("lowlevel",))
    monkeypatch.setattr(bench, "TURN_SECONDS", 0.05)
    monkeypatch.setattr(cells, "doubled", lambda rate: [(2, rate(2)), (4, rate(4))])
    settings = [("ReLU", Size(16, 16), None, "float32", False), ("paper", None, 8, "float32", False)]
    monkeypatch.setattr(cells, "settings_of_gpu", lambda *_: settings)
    written, write = [], bench.write_json
    monkeypatch.setattr(bench, "write_json", lambda path, value: written.append(len(value["records"])) or write(path, value))
    arguments = "bench --gpu --quick --image-size 16 --depth 1 --filters 2 --images 12 --rounds 1 --format svg".split()
    assert compare.main([*arguments, "--run-dir", str(tmp_path)]) == 0
    assert written == [2, 4], "training and inference"
    output = capsys.readouterr().out
    assert "images/s in training by batch size, lowlevel, ReLU, float32, 16x16 pixels: 8: " in output
    assert "training, paper, float32, batch 8, 16x16 pixels\n" in output, "smaller than NVIDIA's"
    assert "limit in float32" in output and (tmp_path / "roofline.svg").read_bytes().startswith(b"<?xml")
    record = json.loads((tmp_path / "bench.json").read_text())
    assert record["not_measured"] == {} and record["environment"]["packages"]["tensorflow"] == tf.__version__
    assert {r["variant"] for r in record["records"]} == {"paper", "ReLU"}
    assert len({r["import_seconds"] for r in record["records"]}) == 1, "one process"
    for row in record["records"]:
        low, high = row["images_per_second_quartiles"]
        assert 0 < low <= row["images_per_second"] <= high <= row["images_per_second_best"]
        assert row["flops_per_second"] == pytest.approx(row["flops"] * row["images_per_second"] / row["batch_size"])
        assert 0 < row["share_of_arithmetic_limit"] < 1 and len(row["step_seconds"]) == 1
        assert row["first_step_seconds"] > row["trace_seconds"] > 0 and row["peak_memory_bytes"] > 2**26


def test_several_devices_are_timed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("comparison.columns.IMPLEMENTATIONS", ("lowlevel",))
    compare.main(["bench", *TINY, "--devices", "1,2", "--rounds", "1", "--run-dir", str(tmp_path)])
    assert "the sum alone" in capsys.readouterr().out
    rows = json.loads((tmp_path / "scaling.json").read_text())
    assert [row["devices"] for row in rows] == [1, 2] and all(row["step"] > 0 and row["sum"] >= 0 for row in rows)


def test_what_is_wrong_in_another_process_is_one_line():
    with refused("no-such"):
        columns.call(compare.read_command_line, "a name", ["no-such"])


IMPORTS = """
import sys
from common.cli import run_script
print("ready", flush=True)
run_script(lambda: __import__("common.device"))
"""


@pytest.mark.parametrize(
    ("command", "line", "delay"),
    [
        (["-c", IMPORTS], "ready", 0.5),
        (["compare.py", "bench", *TINY, "--rounds", "10000"], "CPU (", 2),
    ],
)
def test_ctrl_c_is_one_line(command, line, delay, tmp_path):
    """Pressed while TensorFlow is imported, and while the first process starts; as a terminal sends it, to all."""
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    arguments = [*command, "--run-dir", str(tmp_path)]
    with subprocess.Popen([sys.executable, *arguments], cwd=columns.ROOT, start_new_session=True, **pipes) as process:
        try:
            while line not in process.stdout.readline():
                assert process.poll() is None
            time.sleep(delay)
            os.killpg(process.pid, signal.SIGINT)
            _, errors = process.communicate(timeout=60)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 130
    assert errors == "\nstopped; what was saved before stays\n"
    with pytest.raises(ProcessLookupError):  # its workers end too, within these seconds
        for _ in range(100):
            os.killpg(process.pid, 0)
            time.sleep(0.1)


def test_the_input_pipeline_is_measured(tmp_path, monkeypatch, capsys):
    """How often the input feeds the step, by the figures in the record."""
    monkeypatch.setattr(pipeline, "AUGMENTATIONS", ("none", "photo"))
    monkeypatch.setattr(columns, "IMPLEMENTATIONS", ("lowlevel",))
    pipeline.run(TINIEST, 1, tmp_path / "pipeline.json")
    record = json.loads((tmp_path / "pipeline.json").read_text())
    kinds = "later epochs, augment none", "later epochs, augment photo"
    assert set(record["images_per_second"]) == {"first epoch", *kinds} and record["images"] == 6
    assert record["training"].keys() == {f"lowlevel, {what}" for what in ("no input", "augment none", "augment photo")}
    lines = [line for line in capsys.readouterr().out.splitlines() if "times over" in line]
    step = record["training"]["lowlevel, no input"][0]["images_per_second"]
    for kind, line in zip(("none", "photo"), lines, strict=True):
        fed = record["images_per_second"][f"later epochs, augment {kind}"][0] / step
        assert line.startswith(f"augment {kind}: the input feeds the fastest step {fed:.1f} times over")
        assert line.endswith("so that the device waits") == (fed < 1)
