"""The configuration in three groups, the command line made from it, and how TensorFlow is started."""

import dataclasses
import math
import platform
import re
from pathlib import Path

from common import recorded
from common.cli import GROUPS, make_parser, parse, read_config
from common.config import FIELDS, PRESETS, Config, UserError, flag, kind_of, marked, range_of
from common.values import Addresses, Bands, ColorTable, Names, Size, Values, Weights
from comparison.proof.ways import ARCHITECTURES, cases
from tests.helpers import python
from training.options import read_command_line

import pytest


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
    found = "channels classes void_label class_names class_weights white image_files mask_files mask_values"
    assert set(marked("found")) == set(found.split())


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


FOLDER = dict(dataset="folder", data_dir=Path("d"))
HOSTS = Addresses(["a:1", "b:1"])
WRONG = [  # options, and what the message says of them
    (dict(epochs=0), "--epochs must be at least 1, got 0"),
    (dict(depth=15), "--depth must be 1 to 14, got 15"),
    (dict(dropout=1.0), "--dropout must be at least 0 and below 1, got 1.0"),
    (dict(validation=0.0), "--validation must be above 0 and below 1, got 0.0"),
    (dict(learning_rate=math.nan), "--learning-rate must be above 0 and finite, got nan"),
    (dict(learning_rate=1e-50), "--learning-rate 1e-50 is a number that float32 does not hold"),
    (dict(momentum=1 - 1e-9), "--momentum 0.999999999 is a number that float32 does not hold"),
    (dict(clip_norm=1e39), "--clip-norm 1e+39 is a number that float32 does not hold"),
    (dict(clip_norm=math.inf), "--clip-norm must be above 0 and finite, got inf"),
    (dict(channels=513), "--channels must be 1 to 512, got 513"),
    (dict(optimizer="sgd", momentum=0.0), "--momentum must be above 0 and below 1"),
    (dict(bn_epsilon=1e-6), "no epsilon below 1.001e-5, got 1e-06: add --batch-norm explicit"),
    (dict(precision="float64"), "no float64 kernel: add --batch-norm explicit"),
    (dict(weight_map=True), "--weight-map needs --loss cross_entropy or dice_ce, or --no-weight-map"),
    (dict(jit=True, deterministic=True), "--jit and --deterministic exclude each other: leave one of them out"),
    (dict(jit=True, devices=2), "--jit is for one device"),
    (dict(dataset="folder"), "--dataset folder needs --data-dir"),
    (dict(data_dir=Path("d")), "--data-dir needs --dataset folder or voc"),
    (dict(white=9), "--white needs --dataset folder or voc"),
    (dict(colors=ColorTable("a 1 2 3")), "--colors needs --dataset folder"),
    (dict(**FOLDER, objects=True, colors=ColorTable("a 1 2 3")), "--colors and --objects exclude"),
    (dict(**FOLDER, objects=True, classes=3), "--classes 1 or 2, got 3"),
    (dict(**FOLDER, mask_files="{name}.png"), "--image-files and --mask-files go together"),
    (dict(mask_values=Values([1, 2])), "--mask-values needs --dataset folder"),
    (dict(**FOLDER, classes=3, mask_values=Values([1, 2])), "--mask-values needs one for each of 3 classes, got 2"),
    (dict(**FOLDER, mask_values=Values([1, 2, 7]), void_label=2), "--mask-values 1,2,7 has the --void-label 2"),
    (dict(fold=0), "--fold needs --folds"),
    (dict(folds=2, fold=2), "--fold counts from 0"),
    (dict(folds=2, split=Path("s")), "--folds and --split exclude"),
    (dict(workers=HOSTS), "--workers needs --worker"),
    (dict(workers=HOSTS, worker=2), "--worker counts from 0 to --workers - 1, got 2 of 2"),
    (dict(workers=HOSTS, worker=0, folds=2), "--folds runs on one host"),
    (dict(batch_size=8, devices=3), "--batch-size 8 cannot be shared evenly by 3 devices: 9 can"),
    (dict(class_names=Names("ab"), classes=3), "--class-names needs one for each of 3 classes, got 2"),
    (dict(show_bands=Bands([4]), channels=3), "--show-bands 4 needs more bands than the 3"),
    (dict(image_size=Size(8, 64)), "--image-size 64x8 is too small"),
    (dict(crop_size=Size(80, 100)), "--crop-size 100x80 does not halve 4 times: 112x80 does"),
]


@pytest.mark.parametrize("options, words", WRONG, ids=lambda value: str(value)[:40])
def test_ranges_and_company_of_options(options, words):
    with pytest.raises(UserError, match=re.escape(words)):
        Config.of(**options)


IDLE = """--momentum 0.5 | --optimizer sgd --momentum 0.5 | --momentum does nothing beside --optimizer adam
--batch-norm none --bn-momentum 0.5 | --bn-momentum 0.5 | --bn-momentum does nothing beside --batch-norm none
--dataset isbi --data-dir d --images 9 | --images 9 | --images does nothing beside --dataset isbi
--cache c | --dataset isbi --data-dir d --cache c | --cache does nothing beside --dataset synthetic
--skip-bad | --dataset isbi --data-dir d --skip-bad | --skip-bad does nothing beside --dataset synthetic
--split s --validation 0.5 | --split s | --validation does nothing beside --split s
--folds 2 --validation 0.5 | --folds 2 | --validation does nothing beside --folds 2"""


@pytest.mark.parametrize("row", IDLE.splitlines())
def test_options_that_do_nothing_beside_others_are_refused(row):
    """On a command line: a preset and compare.py's defaults may leave some standing."""
    idle, fits, words = (part.split() for part in row.split("|"))
    with pytest.raises(UserError, match=" ".join(words)):
        read_command_line("lowlevel", idle, "")
    read_command_line("lowlevel", fits, "")
    read_command_line("lowlevel", ["--preset", "paper", "--optimizer", "adam"], "")


def test_every_number_has_a_range_and_ends_somewhere():
    """Marks name fields that there are, of the same group, and a default fits its own."""
    for name, (group, field) in FIELDS.items():
        others = {other for other in (*field.metadata.get("needs", ())[:1], *field.metadata.get("excludes", ()))}
        assert all(FIELDS[other][0] == group for other in others)
        if kind_of(field) in (int, float):
            assert range_of(field), name
            for value in (-(10**20), 10**20, *[math.nan, math.inf] * (kind_of(field) is float)):
                with pytest.raises(UserError, match=f"{flag(name)} must be"):
                    Config.of(**{name: value})


@pytest.mark.parametrize(
    "kind, good, bad",
    [
        (Size, ["48x32", "48"], ["", "0", "48x", "x48", "48x0", "4.5"]),
        (Names, ["a,b", "cell"], ["", "a,", "a,a"]),
        (Values, ["1,2,40"], ["1", "1,1", "1,255", "a,b", "", "1,-2", "1,2000"]),
        (Bands, ["3,2,1", "4"], ["0", "1,2", "-1", "a", "100000", ""]),
        (Addresses, ["a:1,b:2222"], ["a", "a:", "a:1,", "a:1,a:1", "a:b", ":1", "", "a:0", "a:65536"]),
        (Weights, ["balanced", "1.0,0.5"], ["", "a", "-1,2", "0,0", "nan,1", "inf,1"]),
    ],
)
def test_values_of_the_command_line(kind, good, bad):
    assert [str(kind.parse(text)) for text in good] == [text if text != "48" else "48x48" for text in good]
    for text in bad:
        with pytest.raises(UserError, match=re.escape(repr(text))):
            kind.parse(text)


@pytest.mark.parametrize(
    "name, value",
    [("epochs", 2.0), ("epochs", True), ("epochs", "2"), ("jit", 1), ("loss", "no"), ("loss", [])]
    + [("dropout", "0.5"), ("dropout", 10**400), ("run_dir", 3), ("run_dir", "a\0b"), ("crop_size", "a"), ("colors", None)],
)
def test_what_json_has_is_checked(name, value):
    values = Config().as_dict() | {name: value}
    if value is None:
        assert Config.from_dict(values) == Config()
        return
    with pytest.raises(UserError, match=name):
        Config.from_dict(values)


@pytest.mark.parametrize(
    ("implementation", "arguments", "code"),
    [("lowlevel", "--help", 0), ("highlevel", "--depht 3", 2), ("keras_impl", "--resume --run-dir none", 2)],
)
def test_train_scripts_answer_without_tensorflow(implementation, arguments, code):
    done = python("-X", "importtime", "-m", f"{implementation}.train", *arguments.split())
    assert done.returncode == code
    assert "common.cli" in done.stderr and "tensorflow" not in done.stderr and "Traceback" not in done.stderr


def test_what_counts_and_helps_needs_no_tensorflow():
    program = """
import runpy, sys
import common.pictures
assert not {"tensorflow", "matplotlib", "skimage", "scipy"} & set(sys.modules), "colours and names"
import common.layers, common.weights, study.page
import comparison.benchmark.bench, comparison.benchmark.roofline, comparison.proof.graph
for command in ["predict.py", "compare.py", *(f"compare.py {name}" for name in ("parity", "graph", "relay", "bench", "runs"))]:
    sys.argv = [*command.split(), "--help"]
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        assert not end.code, end
    assert not {"tensorflow", "keras"} & set(sys.modules), command
"""
    done = python("-c", program)
    assert done.returncode == 0, done.stderr
    assert "usage: predict.py" in done.stdout and "usage: compare.py bench" in done.stdout


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


@pytest.mark.parametrize("end, code", [("os.abort()", -6), ("raise ImportError('no AVX')", 1)])
def test_words_before_the_end_of_tensorflows_start_are_heard(tmp_path, end, code):
    """Without AVX TensorFlow aborts the process from C++: its words must reach the user, and the noise before them not."""
    (tmp_path / "tensorflow.py").write_text(
        "import os\n"
        "os.write(2, b'WARNING: All log messages before absl::InitializeLog() is called are written to STDERR\\n')\n"
        "os.write(2, b'F0000 00:00:1 cpu_feature_guard.cc:1] The TensorFlow library was compiled to use AVX instructions\\n')\n"
        f"{end}\n"
    )
    done = python("-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import common.device")
    assert done.returncode == code and "AVX instructions" in done.stderr and "All log messages" not in done.stderr


@pytest.mark.parametrize(
    "variables, code, words",
    [
        ({"KERAS_HOME": "{tmp_path}", "KERAS_BACKEND": "", "KERAS_NNX_ENABLED": "1"}, 0, "float32 channels_last 1e-07 " * 2),
        ({"KERAS_BACKEND": "jax"}, 2, "error: KERAS_BACKEND is 'jax', but all three"),
        ({"KERAS_MAX_EPOCHS": "1"}, 2, "error: KERAS_MAX_EPOCHS is '1', but .* use --epochs"),
        ({"KERAS_MAX_STEPS_PER_EPOCH": "1"}, 2, "error: KERAS_MAX_STEPS_PER_EPOCH is '1', but .* use fewer images"),
    ],
)
def test_the_environment_changes_no_number(variables, code, words, tmp_path):
    (tmp_path / "keras.json").write_text('{"floatx": "float16", "epsilon": 1e-3, "image_data_format": "channels_first"}')
    program = "import common, keras, tf_keras; "
    program += "[print(c.floatx(), c.image_data_format(), c.epsilon(), end=' ') for c in (keras.config, tf_keras.backend)]"
    variables = {name: value.format(tmp_path=tmp_path) for name, value in variables.items()}
    done = python("-c", program, TF_CPP_MIN_LOG_LEVEL="3", **variables)
    assert done.returncode == code and re.match(words, done.stdout if code == 0 else done.stderr), done


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="oneDNN of TensorFlow's wheels is for x86")
@pytest.mark.parametrize("said", [None, "0"])
def test_onednn_computes_unless_the_environment_says_no(said, monkeypatch):
    monkeypatch.delenv("TF_ENABLE_ONEDNN_OPTS", raising=False)  # this process has set it by importing common
    program = "import common.device; from tensorflow.python.util import _pywrap_util_port as port; print(port.IsMklEnabled())"
    done = python("-c", program, **{"TF_ENABLE_ONEDNN_OPTS": said} if said else {})
    assert done.stdout.split() == [str(said is None)], done


def test_what_changes_speed_and_last_places_is_recorded(monkeypatch):
    names = ("TF_DETERMINISTIC_OPS", "TF_ENABLE_ONEDNN_OPTS", "NVIDIA_TF32_OVERRIDE", "TF_XLA_FLAGS", "OMP_NUM_THREADS")
    for name in (*names, "TF_TOKEN_example_com", "NVIDIA_API_KEY"):
        monkeypatch.setenv(name, "1")
    assert set(names) <= recorded().keys() and not {"TF_TOKEN_example_com", "NVIDIA_API_KEY"} & recorded().keys()
