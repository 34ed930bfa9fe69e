"""Exports answer as the live network does, in a process that knows nothing of this project."""

import errno
import functools
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import prediction.export
from common.checkpoint import load_checkpoint, save_checkpoint
from common.config import Config, Size, UserError
from common.losses import probabilities
from common.output import PART
from common.padding import any_size
from common.shapes import margin, missing
from common.weights import initial_weights, weight_shapes
from data.loader import load_examples
from prediction import EXPORTS, FIXED
from prediction.export import dice_of, export, fixed_size, read_windows, window
from prediction.network import restore
from tests.conftest import IMPLEMENTATIONS

import keras
import numpy as np
import pytest
import tensorflow as tf

ROOT = Path(__file__).parents[1]
SIZES = ((2, 93, 110), (1, 97, 121))  # N, H, W: none halves evenly, with either padding
SIZE = Size(93, 110)

# depth 3, because it is the first where the sizes that fit differ between the two paddings by other than a multiple of 2**depth
OWN = Config.of(filters=2, depth=3, dropout=0.5, image_size=SIZE)
CONFIGS = {
    "own": OWN,
    "paper": OWN.replace(channels=3, classes=3, padding="valid", batch_norm="none", activation="relu"),
    "bfloat16": OWN.replace(precision="bfloat16", depth=1),
    "float16": OWN.replace(precision="float16", depth=1),
    "float64": OWN.replace(precision="float64", depth=1, batch_norm="explicit"),
}
CASES = [  # each kind through two implementations or three, and each configuration through some kinds
    *[("savedmodel", "lowlevel", "own"), ("savedmodel", "highlevel", "float64"), ("savedmodel", "keras_impl", "paper")],
    *[("stablehlo", "highlevel", "paper"), ("stablehlo", "keras_impl", "own")],
    *[("keras", "keras_impl", name) for name in CONFIGS],
    *[("onnx", "lowlevel", "own"), ("onnx", "keras_impl", "paper")],
    *[("litert", "highlevel", "own"), ("litert", "lowlevel", "paper")],
]
LIGHT = ("onnx", "litert")  # what needs no TensorFlow where it is used
MISSING = [name for name in ("tf2onnx", "onnxruntime") if not importlib.util.find_spec(name)]
HERE = [case for case in CASES if case[0] != "onnx" or not MISSING]
# Probabilities are below 1: a unit in the last place is at most 6e-8 in float32. Other kernels round in another way in every
# layer: deterministic ones here and not there, XLA's, Keras's own normalization. 1.3e-6 measured; in bfloat16, 8 bits, 0.01.
# float64 is narrowed to float32 at the end; in float16, 11 bits, 0.006 measured, through XLA
TOLERANCE = {"own": 4e-6, "paper": 4e-6, "float64": 1e-7, "bfloat16": 2**-5, "float16": 2**-6}

# What somebody would write who was given an export. `python -I` sees neither the current folder nor PYTHONPATH.
READER = """
import json, sys
import keras, numpy as np, tensorflow as tf
from safetensors.numpy import load_file
from tensorflow.compiler.tf2xla.python import xla

folder, cases = sys.argv[1], json.loads(sys.argv[2])
images, answers = np.load(f"{folder}/images.npz"), {}
for case in cases:
    kind, path = case.split("-")[0], f"{folder}/{case}"
    if kind == "keras":
        network = keras.saving.load_model(f"{path}/model.keras")
    elif kind == "savedmodel":
        signature = tf.saved_model.load(path).signatures["serving_default"]
        network = lambda x: signature(images=tf.constant(x))["probabilities"]
    elif kind == "stablehlo":
        about, weights = json.load(open(f"{path}/export.json")), load_file(f"{path}/weights.safetensors")
        arguments = [weights[name] for name in about["arguments"][1:]]
        call = dict(module=open(f"{path}/model.mlir").read(), Tout=[tf.float32], platforms=["CPU"])
        call["Sout"] = [[1, *about["logits_size"], about["classes"]]]
        network = lambda x: xla.call_module([x, *arguments], **call)[0]
    elif kind == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(f"{path}/model.onnx", providers=["CPUExecutionProvider"])
        network = lambda x: session.run(["probabilities"], {"images": x})[0]
    else:
        try:
            from ai_edge_litert.interpreter import Interpreter
        except ImportError:  # the same, as TensorFlow brings it along
            Interpreter = tf.lite.Interpreter
        runner = Interpreter(f"{path}/model.tflite").get_signature_runner()
        network = lambda x: runner(images=x)["probabilities"]
    with tf.device("CPU"):
        first, second = (np.asarray(network(images[f"{case}-{number}"])) for number in "01")
    answers |= {f"{case}-0": first, f"{case}-1": second}
    if kind == "savedmodel":  # as TensorFlow Serving does it: a graph, a session, the signature's tensors by name
        with tf.Graph().as_default(), tf.compat.v1.Session() as session:
            signature = tf.compat.v1.saved_model.load(session, ["serve"], path).signature_def["serving_default"]
            p = signature.outputs["probabilities"].name
            answers[f"{case}-session"] = session.run(p, {signature.inputs["images"].name: images[f"{case}-1"]})
    if kind == "keras":
        before = [w.numpy() for w in network.trainable_weights]
        network.compile("sgd", "mean_squared_error", run_eagerly=True)
        network.fit(images[f"{case}-1"], np.zeros(second.shape), verbose=0)
        moved = [w.path for w, value in zip(network.trainable_weights, before) if (w.numpy() != value).any()]
        answers[f"{case}-moved"] = np.array(moved)
np.savez(f"{folder}/answers.npz", **answers)
assert not {"common", "keras_impl"} & set(sys.modules)
"""

# What litert/c declares of LiteRT 2.3, whose headers its wheel leaves out: as much of it as docs/predict.md uses.
DECLARED = """
#include <cstdint>
#include <cstdio>
#include <cstdlib>

using LiteRtEnvironment = struct Environment*;
using LiteRtModel = struct Model*;
using LiteRtOptions = struct Options*;
using LiteRtCompiledModel = struct CompiledModel*;
using LiteRtTensorBuffer = struct TensorBuffer*;
enum { kLiteRtElementTypeFloat32 = 1, kLiteRtHwAcceleratorCpu = 1 };
struct LiteRtLayout { unsigned rank : 7; bool has_strides : 1; int32_t dimensions[8]; uint32_t strides[8]; };
struct LiteRtRankedTensorType { int element_type; LiteRtLayout layout; };

extern "C" {
int LiteRtCreateEnvironment(int, const void*, LiteRtEnvironment*);
int LiteRtCreateModelFromFile(LiteRtEnvironment, const char*, LiteRtModel*);
int LiteRtCreateOptions(LiteRtOptions*);
int LiteRtSetOptionsHardwareAccelerators(LiteRtOptions, int);
int LiteRtCreateCompiledModel(LiteRtEnvironment, LiteRtModel, LiteRtOptions, LiteRtCompiledModel*);
int LiteRtCreateTensorBufferFromHostMemory(const LiteRtRankedTensorType*, void*, size_t, void (*)(void*), LiteRtTensorBuffer*);
int LiteRtRunCompiledModel(LiteRtCompiledModel, size_t, size_t, LiteRtTensorBuffer*, size_t, LiteRtTensorBuffer*);
}

int main(int argc, char** argv) {
    const int height = atoi(argv[1]), width = atoi(argv[2]), classes = atoi(argv[3]);
    static char pixels alignas(64)[1 << 20], probabilities alignas(64)[1 << 20];
    fread(pixels, sizeof(float), height * width * 3, stdin);
    LINES
    fwrite(probabilities, sizeof(float), height * width * classes, stdout);
}
"""


def some_weights(config):
    """Canonical name -> array: no two alike, so that none can be mistaken for another."""
    rng, weights = np.random.default_rng(0), initial_weights(config.network)
    drawn = [name for name in weights if not name.endswith("/kernel") and name != "dropout/state"]
    return weights | {name: rng.uniform(0.5, 1.5, weights[name].shape).astype(weights[name].dtype) for name in drawn}


@functools.cache
def live(implementation, name):
    """-> (function of images: probabilities, canonical name -> variable), of the configuration `name`."""
    network = CONFIGS[name].network
    model, variables = restore(implementation, network, some_weights(CONFIGS[name]))
    return tf.function(lambda images: probabilities(any_size(model, images, network)), reduce_retracing=True), variables


def some_images(kind, network):
    """Two batches of images as a kind of export takes them: one image of one size, or sizes that fit Keras, or any."""
    rng = np.random.default_rng(0)
    sizes = [[n, *(side + missing(side, network) * (kind == "keras") for side in size)] for n, *size in SIZES]
    first, second = (rng.random((*size, network.channels), dtype=np.float32) for size in sizes)
    return (first[:1], first[1:]) if kind in FIXED else (first, second)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """(folder, answers of the live networks, answers of the exports in a process of its own).

    Each of HERE is exported from the checkpoint of another implementation.
    """
    folder, images, answers = tmp_path_factory.mktemp("exports"), {}, {}
    for kind, implementation, name in HERE:
        trained = IMPLEMENTATIONS[IMPLEMENTATIONS.index(implementation) - 1]
        save_checkpoint(folder / "some.safetensors", live(trained, name)[1], {})
        weights, _, _ = load_checkpoint(folder / "some.safetensors", CONFIGS[name].network)
        case = f"{kind}-{implementation}-{name}"
        export(kind, implementation, CONFIGS[name], weights, folder / case)
        predict, _ = live(implementation, name)
        for number, batch in enumerate(some_images(kind, CONFIGS[name].network)):
            images[f"{case}-{number}"], answers[f"{case}-{number}"] = batch, predict(batch).numpy()
    np.savez(folder / "images.npz", **images)
    environment = {k: v for k, v in os.environ.items() if k not in ("TF_USE_LEGACY_KERAS", "KERAS_BACKEND")}
    command = [sys.executable, "-I", "-c", READER, str(folder), json.dumps(["-".join(case) for case in HERE])]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    if done.returncode:
        pytest.fail(done.stderr[-5000:], pytrace=False)
    return folder, answers, np.load(folder / "answers.npz")


@pytest.mark.parametrize("case", ["-".join(case) for case in CASES])
def test_export_answers_as_the_live_network(case, exported):
    _, expected, answers = exported
    kind, _, config = case.split("-")
    if kind == "onnx" and MISSING:
        pytest.skip(f"needs {' and '.join(MISSING)}")
    tolerance = 1e-5 if kind in LIGHT else TOLERANCE[config]  # in float32 whatever the training; 3.9e-6 measured
    for number in "01":
        here, there = expected[f"{case}-{number}"], answers[f"{case}-{number}"]
        assert np.std(here) > 0.01, "an answer that is the same everywhere tells nothing"
        assert here.shape == there.shape
        print(f"{case}: largest difference {np.abs(there - here).max():.2g}")
        np.testing.assert_allclose(there, here, rtol=0, atol=tolerance)
        if kind != "keras":
            assert there.dtype == np.float32
    if kind == "savedmodel":
        np.testing.assert_allclose(answers[f"{case}-session"], here, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name, sides", [("own", "multiples of 8 pixels"), ("paper", "multiples of 8 pixels and 4 more")])
def test_keras_export_says_which_sizes_it_takes(name, sides, tmp_path, capsys):
    network = CONFIGS[name].network
    export("keras", "keras_impl", CONFIGS[name], some_weights(CONFIGS[name]), tmp_path)
    assert capsys.readouterr().out.endswith(f" kB; docs/predict.md loads it) for images whose sides are {sides}\n")
    about = json.loads((tmp_path / "export.json").read_text())
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    fits = 12 * about["sides_multiple_of"] + about["sides_and"]
    assert loaded(np.zeros([1, fits, fits + about["sides_multiple_of"], network.channels])).shape[-1] == network.classes
    with pytest.raises(tf.errors.InvalidArgumentError):
        loaded(np.zeros([1, fits, fits + 1, network.channels]))


def test_what_is_to_be_done_with_an_image_first_is_said(tmp_path, capsys):
    for stretch, about in ((False, None), (True, {"percentiles": [1, 99.8], "white": 4095})):
        config = OWN.replace(dataset="folder", data_dir=tmp_path, stretch=stretch, white=4095)
        export("keras", "keras_impl", config, some_weights(config), tmp_path / "net", overwrite=True)
        assert json.loads((tmp_path / "net/export.json").read_text())["stretch"] == about
        assert json.loads((tmp_path / "net/export.json").read_text())["white"] == 4095
        assert (
            "stretch yours before" in (out := capsys.readouterr().out)
        ) == stretch and "white is 4095: divide images by it" in out


@pytest.mark.parametrize("kind", EXPORTS)
def test_an_export_has_the_files_that_are_known_before_and_the_options_of_the_network(kind, exported):
    (folder, *_) = [exported[0] / "-".join(c) for c in HERE if c[0] == kind and c[2] == "own"] or [
        pytest.skip(f"no {kind} here")
    ]
    assert contents(folder).keys() == {"export.json", *EXPORTS[kind]}
    about = json.loads((folder / "export.json").read_text())
    assert vars(OWN.network).items() <= about.items() and about["image_size"] == "110x93"
    assert ("sides_multiple_of" in about) == (kind == "keras")


@pytest.mark.parametrize("name", CONFIGS)
def test_keras_file_can_be_trained_on(name, exported):
    """Every weight moves but the biases and kernels whose gradient is zero."""
    _, _, answers = exported
    moved = {path.replace("_", "/", 1) for path in answers[f"keras-keras_impl-{name}-moved"]}
    assert moved <= weight_shapes(CONFIGS[name].network).keys()
    assert {"down0/conv1/kernel", "up0/deconv/bias", "head/kernel", "head/bias"} <= moved


def test_nothing_exported_names_a_folder_of_this_machine(exported):
    folder, _, _ = exported
    files = [file for case in HERE for file in (folder / "-".join(case)).rglob("*") if file.is_file()]
    assert len(files) > 3 * len(HERE) - 10
    for file in files:
        content = file.read_bytes()
        assert not any(os.fsencode(folder) in content for folder in (ROOT, Path(tf.__file__).parent)), file


@pytest.fixture
def quick(monkeypatch):
    """An export that only writes its file of options, and a file `model.keras`."""
    content = {"text": "first", "error": None}

    def write_keras(folder, *_):
        (folder / "model.keras").write_text(content["text"])
        if content["error"]:
            raise content["error"]

    monkeypatch.setattr("prediction.export.restore", lambda *_: (None, None))
    monkeypatch.setattr("prediction.export.write_keras", write_keras)
    return content


def contents(folder):
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_an_export_is_replaced_if_told_to_and_nothing_else_is_touched(quick, tmp_path):
    net = tmp_path / "new" / "net"
    export("keras", "keras_impl", OWN, {}, net)
    (net / "notes.txt").write_text("mine")
    before, quick["text"] = contents(tmp_path), "second"
    with pytest.raises(UserError, match=r"export.json is there already \(--overwrite replaces files\)"):
        export("keras", "keras_impl", OWN, {}, net)
    assert contents(tmp_path) == before
    export("keras", "keras_impl", OWN, {}, net, overwrite=True)
    assert contents(tmp_path) == before | {"new/net/model.keras": b"second"}
    (net / "model.keras").unlink()
    (net / "model.keras").mkdir()
    with pytest.raises(UserError, match="model.keras is there already and is no file"):
        export("keras", "keras_impl", OWN, {}, net, overwrite=True)
    with pytest.raises(UserError, match="notes.txt is a file: name a folder"):
        export("keras", "keras_impl", OWN, {}, net / "notes.txt")


def test_what_has_come_while_an_export_was_made_stays(quick, tmp_path, monkeypatch):
    """All is looked at once more before the first file is moved, and the odd one is named."""
    net, come = tmp_path / "net", []

    def write_and_wait(folder, *_):
        for name in EXPORTS["savedmodel"]:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).touch()
        name, make = come
        (net / name).parent.mkdir(parents=True, exist_ok=True)
        make(net / name)

    monkeypatch.setattr("prediction.export.write_savedmodel", write_and_wait)
    for name, make, overwrite, words in (
        ("saved_model.pb", Path.touch, False, "saved_model.pb is there already"),
        ("variables", Path.touch, True, "net/variables is a file: name a folder, or move it away"),
        ("variables/variables.index", Path.mkdir, True, "variables.index is there already and is no file"),
    ):
        come[:] = name, make
        with pytest.raises(UserError, match=words):
            export("savedmodel", "lowlevel", OWN, {}, net, overwrite=overwrite)
        assert {path.relative_to(net).as_posix() for path in net.rglob("*")} <= {"variables", name}
        shutil.rmtree(net)


@pytest.mark.skipif(bool(MISSING), reason="needs tf2onnx")
@pytest.mark.parametrize("name", ["own", "paper"])
def test_onnx_of_one_size_is_read_by_opencv(name, tmp_path):
    """At a size that halves with neither padding."""
    import cv2

    config, (predict, _) = CONFIGS[name], live("lowlevel", name)
    export("onnx", "lowlevel", config, some_weights(config), tmp_path, SIZE)
    image = np.random.default_rng(0).random((1, *SIZE, config.network.channels), np.float32)
    network = cv2.dnn.readNetFromONNX(str(tmp_path / "model.onnx"))
    network.setInput(image)
    # OpenCV's convolutions are Winograd's, which lose a digit or two
    np.testing.assert_allclose(network.forward(), predict(image), rtol=0, atol=1e-4)
    assert json.loads((tmp_path / "export.json").read_text())["size"] == list(SIZE)


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), tf.errors.ResourceExhaustedError(None, None, "disk full")]
)
def test_failure_leaves_what_was_there(error, quick, tmp_path):
    export("keras", "keras_impl", OWN, {}, tmp_path / "net")
    before = contents(tmp_path)
    quick.update(text="half of it", error=error)
    with pytest.raises(UserError, match="cannot write --output .*net: .*(No space|disk full).*stays"):
        export("keras", "keras_impl", OWN, {}, tmp_path / "net", overwrite=True)
    assert contents(tmp_path) == before


def test_what_cannot_be_made_is_refused_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tf2onnx", None)
    package = r"^--export onnx needs a package more \(.*\): pip install tf2onnx==[\d.]+ onnx==[\d.]+$"
    for kind, words in (("keras", "--implementation keras_impl"), ("onnx", package)):
        with pytest.raises(UserError, match=words):
            export(kind, "lowlevel", OWN, some_weights(OWN), tmp_path / "net")
    # as TensorFlow's converter writes it if the weights are not found through the module that it is given: it answers NaN
    monkeypatch.setattr(prediction.export, "litert_predict", lambda path: lambda images: np.full([1, 93, 110, 1], np.nan))
    with pytest.raises(UserError, match="answers otherwise than the network, by nan: it was not written"):
        export("litert", "lowlevel", OWN, some_weights(OWN), tmp_path / "net")
    assert not contents(tmp_path)


def test_the_lines_of_cpp_in_the_docs(tmp_path):
    library, compiler = importlib.util.find_spec("ai_edge_litert"), shutil.which("g++")
    if not (library and compiler):
        pytest.skip("needs ai-edge-litert and g++")
    config = OWN.replace(channels=3, classes=3)
    export("litert", "lowlevel", config, some_weights(config), tmp_path / "net")  # which compares it with the network
    library = Path(library.origin).parent
    lines = re.search("```cpp\n(.*?)```", (ROOT / "docs/predict.md").read_text(), re.S)[1]
    (tmp_path / "predict.cpp").write_text(DECLARED.replace("LINES", lines))
    link = [f"-L{library}", "-lLiteRt", f"-Wl,-rpath,{library}"]
    subprocess.run([compiler, "-Wno-unused-result", "predict.cpp", "-o", "predict", *link], cwd=tmp_path, check=True)
    image = np.random.default_rng(0).random((1, SIZE.height, SIZE.width, 3), np.float32)
    command = [tmp_path / "predict", str(SIZE.height), str(SIZE.width), "3"]
    done = subprocess.run(command, cwd=tmp_path / "net", input=image.tobytes(), capture_output=True, check=True)
    p = prediction.export.litert_predict(tmp_path / "net" / "model.tflite")(image)
    np.testing.assert_allclose(np.frombuffer(done.stdout, np.float32), np.ravel(p), rtol=0, atol=1e-6)  # the same kernels


def test_int8_is_smaller_and_says_what_it_costs(tmp_path, capsys):
    """Cells drawn for the purpose: they need no file."""
    options = {"images": 8, "batch_size": 2, "image_size": Size(40, 56)}
    config = Config.of(filters=8, depth=2, channels=1, classes=1, **options)
    weights = initial_weights(config.network)
    for name, quantize in (("wide", False), ("narrow", True)):
        export("litert", "lowlevel", config, weights, tmp_path / name, quantize=quantize)
    wide, narrow = ((tmp_path / name / "model.tflite").stat().st_size for name in ("wide", "narrow"))
    assert narrow < wide / 2
    costs = re.search(r"dice on (\d+) validation images of 56x40: float32 (0\.\d+), int8 (0\.\d+)\n$", capsys.readouterr().out)
    assert int(costs[1]) >= 1 and abs(float(costs[2]) - float(costs[3])) < 0.05
    assert json.loads((tmp_path / "narrow" / "export.json").read_text())["quantized"] == "int8"


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_int8_is_chosen_by_training_images_and_judged_on_validation_images(padding):
    """In the middle of each, on the scale of the network; the masks without the margin that "valid" padding loses."""
    config = Config.of(images=8, depth=1, padding=padding, batch_size=2, image_size=Size(48, 64))
    _, training, validation = load_examples(config)
    calibration, pairs = read_windows(config, (32, 40))
    assert (len(calibration), len(pairs)) == (len(training.names), len(validation.names)) == (6, 2)
    for images, examples in (calibration, training), ([image for image, _ in pairs], validation):
        for image, whole in zip(images, examples.images):
            np.testing.assert_allclose(image[0], whole[8:40, 12:52] / 255, atol=1e-6)
    cut = margin(1, padding) // 2
    for (_, mask), whole in zip(pairs, validation.masks):
        np.testing.assert_array_equal(mask[0], whole[8 + cut : 40 - cut, 12 + cut : 52 - cut])
    half = np.float32([[[0.2], [0.7]]])  # of two images one is found to two thirds, the other not
    masks = [np.uint8([[[1, 1]]]), np.uint8([[[1, 0]]])]
    assert dice_of(lambda image: image, [(half[None], mask) for mask in masks], 1) == pytest.approx((2 / 3 + 0) / 2)


def test_sizes_of_what_is_for_one_size():
    values = np.arange(5 * 4).reshape(5, 4, 1)
    assert window(values, (3, 6))[..., 0].tolist() == [[v + 4 * k for v in (1, 0, 1, 2, 3, 2)] for k in (1, 2, 3)]
    assert fixed_size("stablehlo", OWN) == SIZE
    assert fixed_size("stablehlo", OWN, (32, 48)) == (32, 48)
    assert fixed_size("litert", Config()) == (128, 128)
    with pytest.raises(UserError, match="at least 16"):
        fixed_size("litert", Config(), (15, 32))
    with pytest.raises(UserError, match="--export litert is for one image size, .*add --image-size"):
        fixed_size("litert", Config.of(dataset="folder", data_dir=Path("photos")))


def test_an_export_that_is_killed_leaves_plain_files_alone(quick, tmp_path, monkeypatch):
    """While its files become those of the folder: what lies there then is what any unfinished file is called."""
    before = {}

    def killed(part, target):
        before.update(contents(tmp_path))
        raise KeyboardInterrupt

    monkeypatch.setattr("common.output.os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        export("keras", "keras_impl", OWN, {}, tmp_path)
    assert len(before) == 2 and all(PART.fullmatch(name) for name in before), before
