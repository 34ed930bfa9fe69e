"""The configuration in three groups, the command line made from it, and how TensorFlow is started."""

import dataclasses
import subprocess
import sys
from pathlib import Path

from common.cli import GROUPS, make_parser, parse, read_config
from common.config import FIELDS, IMPLEMENTATIONS, PRESETS, Config, Network, Size, UserError, flag, marked
from common.weights import weight_shapes
from comparison.proof.ways import ARCHITECTURES, cases

import pytest

ROOT = Path(__file__).parents[1]


def test_flat_names_make_the_groups():
    config = Config.of(filters=8, precision="float64", batch_norm="explicit", epochs=3, augment="none")
    assert (config.network.filters, config.training.epochs, config.data.augment) == (8, 3, "none")
    assert config.replace(filters=4).network == dataclasses.replace(config.network, filters=4)
    assert Config.from_dict(config.as_dict()) == config and Config.of(**config.flat) == config
    with pytest.raises(UserError, match="unknown in this version: colour"):
        Config.of(colour=1)


def test_names_are_in_one_group_only():
    assert len(FIELDS) == sum(len(dataclasses.fields(part)) for part in (Config().network, Config().training, Config().data))
    assert all(set(preset) <= FIELDS.keys() for preset in PRESETS.values())
    assert set(marked("found")) == {
        "channels",
        "classes",
        "void_label",
        "class_names",
        "class_weights",
        "white",
        "mask_suffix",
        "mask_values",
    }


def test_a_network_needs_no_data_set():
    assert weight_shapes(Network(channels=3, classes=2, filters=4))["head/kernel"] == (1, 1, 4, 2)


def test_help_stands_in_groups():
    text = make_parser("lowlevel.train", "").format_help()
    places = [text.index(f"\n{title}:") for title in GROUPS.values()]
    assert places == sorted(places)
    first = text[places[0] : places[1]]
    assert sum(line.startswith("  --") for line in first.splitlines()) == 10, "what a newcomer needs, and no more"
    assert text.startswith("usage: lowlevel.train [options]\n") and "--no-jit" not in text and "--no-weight-map" in text


def test_a_parser_knows_the_options_that_it_is_made_for():
    parser = make_parser("compare.py graph", "", ["depth", "preset"])
    options = {word for action in parser._actions for word in action.option_strings}
    assert options == {"-h", "--help", "--preset", "--depth"}
    config = read_config(parse(parser, ["--preset", "paper", "--depth", "2"]))
    assert (config.network.depth, config.network.filters, config.training.epochs) == (2, 64, 16)
    with pytest.raises(UserError, match="unrecognized arguments: --epochs 3"):
        parse(parser, ["--epochs", "3"])


def test_whole_numbers_end_somewhere():
    for name, (_, field) in FIELDS.items():
        if field.type in (int, int | None):
            with pytest.raises(UserError, match=flag(name)):
                Config.of(**{"dataset": "folder", "data_dir": Path("d"), "folds": 5, "workers": None, name: 10**20})


def test_crops_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match="--crop-size 100x80 does not halve 4 times: 112x80 does"):
        Config.of(crop_size=Size(80, 100))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(
    ("arguments", "code"), [("--help", 0), ("--depht 3", 2), ("--classes 4", 2), ("--resume --run-dir none", 2)]
)
def test_train_scripts_answer_without_tensorflow(implementation, arguments, code):
    arguments = [sys.executable, "-X", "importtime", "-m", f"{implementation}.train", *arguments.split()]
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == code
    assert "common.cli" in done.stderr and "tensorflow" not in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "command", ["compare.py", *(f"compare.py {name}" for name in ("parity", "graph", "relay", "bench", "runs")), "predict.py"]
)
def test_help_needs_no_tensorflow(command):
    name, *arguments = command.split()
    program = f"""
import runpy, sys
sys.argv = [{name!r}, *{arguments!r}, "--help"]
try:
    runpy.run_path({name!r}, run_name="__main__")
except SystemExit as end:
    assert not end.code, end
assert not {{"tensorflow", "keras"}} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    if arguments:
        assert f"compare.py {arguments[0]}" in done.stdout


def test_parity_varies_every_option_that_reaches_a_number():
    """In each tier; `schedule` and `warmup` through the rate that is halved, sizes and seeds through the architectures."""
    config = Config.of(filters=8, batch_size=4, image_size=Size(64, 64), images=40)
    every = [case for name in ARCHITECTURES for case in cases(name, config, steps=2)]
    numbers = "channels classes filters depth activation padding batch_norm bn_momentum bn_epsilon dropout precision seed loss "
    numbers += (
        "class_weights optimizer learning_rate beta_1 beta_2 epsilon momentum weight_map clip_norm batch_size jit image_size"
    )
    for exact in (False, True):
        tier = [case for case in every if case.exact == exact]
        assert any(case.halve_rate for case in tier)
        for name in numbers.split():
            values = {case.config.flat[name] for case in tier}
            assert len(values) > 1 or not exact and name in ("loss", "class_weights"), f"{name} is always {values}"
    rest = FIELDS.keys() - set(numbers.split())
    assert not {name for name in rest if FIELDS[name][0] == "network"}, "a new option of the network is varied, or said why not"


def test_an_abort_in_tensorflows_start_is_heard(tmp_path):
    """Without AVX TensorFlow aborts the process from C++: its words must reach the user, and the noise before them not."""
    (tmp_path / "tensorflow.py").write_text(
        "import os\n"
        "os.write(2, b'WARNING: All log messages before absl::InitializeLog() is called are written to STDERR\\n')\n"
        "os.write(2, b'F0000 00:00:1 cpu_feature_guard.cc:1] The TensorFlow library was compiled to use AVX instructions\\n')\n"
        "os.abort()\n"
    )
    program = f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(ROOT)!r}]; import common.device"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == -6 and "AVX instructions" in done.stderr and "All log messages" not in done.stderr
