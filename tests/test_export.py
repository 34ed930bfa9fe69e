"""Exports answer as the live network does, in a process that knows nothing of this project."""

import errno
import functools
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

from common.checkpoint import load_checkpoint, save_checkpoint
from common.config import Config, Size, UserError
from common.losses import probabilities
from common.padding import any_size
from common.shapes import missing
from common.weights import assign_weights, initial_weights, weight_shapes
from prediction.export import export, stablehlo_size
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
    "bfloat16": OWN.replace(precision="bfloat16"),
    "float64": OWN.replace(precision="float64", batch_norm="explicit"),
}
CASES = [
    *[(kind, implementation, "own") for kind in ("savedmodel", "stablehlo") for implementation in IMPLEMENTATIONS],
    *[("keras", "keras_impl", name) for name in CONFIGS],
    ("savedmodel", "lowlevel", "paper"),
    ("savedmodel", "highlevel", "float64"),
    ("stablehlo", "highlevel", "paper"),
]
# Probabilities are below 1: a unit in the last place is at most 6e-8 in float32. Other kernels round in another way in every
# layer: deterministic ones here and not there, XLA's, Keras's own normalization. 1.3e-6 measured; in bfloat16, 8 bits, 0.01.
TOLERANCE = {"own": 4e-6, "paper": 4e-6, "float64": 1e-7, "bfloat16": 2**-5}  # float64 is narrowed to float32 at the end

# What somebody would write who was given an export. `python -I` sees neither the current folder nor PYTHONPATH.
READER = """
import json, sys
import keras, numpy as np, tensorflow as tf
from safetensors.numpy import load_file
from tensorflow.compiler.tf2xla.python import xla

folder, cases = sys.argv[1], json.loads(sys.argv[2])
images, answers = np.load(f"{folder}/images.npz"), {}
for case in cases:
    kind = case.split("-")[0]
    path = f"{folder}/{case}"
    first, second = (tf.constant(images[f"{case}-{number}"]) for number in "01")
    if kind == "keras":
        network = keras.saving.load_model(f"{path}/model.keras")
    elif kind == "savedmodel":
        signature = tf.saved_model.load(path).signatures["serving_default"]
        network = lambda x: signature(images=x)["probabilities"]
    else:
        about = json.load(open(f"{path}/export.json"))
        weights = load_file(f"{path}/weights.safetensors")
        call = dict(
            module=open(f"{path}/model.mlir").read(),
            Tout=[tf.float32],
            Sout=[[1, *about["logits_size"], about["classes"]]],
            platforms=["CPU"],
        )
        network = lambda x: xla.call_module([x, *(weights[name] for name in about["arguments"][1:])], **call)[0]
    with tf.device("CPU"):
        answers[f"{case}-0"], answers[f"{case}-1"] = network(first).numpy(), network(second).numpy()
    if kind == "savedmodel":  # as TensorFlow Serving does it: a graph, a session, the signature's tensors by name
        with tf.Graph().as_default(), tf.compat.v1.Session() as session:
            signature = tf.compat.v1.saved_model.load(session, ["serve"], path).signature_def["serving_default"]
            p = signature.outputs["probabilities"].name
            answers[f"{case}-session"] = session.run(p, {signature.inputs["images"].name: second.numpy()})
    if kind == "keras":
        before = [w.numpy() for w in network.trainable_weights]
        network.compile("sgd", "mean_squared_error", run_eagerly=True)
        network.fit(second, tf.zeros_like(answers[f"{case}-1"]), verbose=0)
        moved = [w.path for w, value in zip(network.trainable_weights, before) if (w.numpy() != value).any()]
        answers[f"{case}-moved"] = np.array(moved)
np.savez(f"{folder}/answers.npz", **answers)
assert not {"common", "keras_impl"} & set(sys.modules)
"""


def some_weights(config):
    """Canonical name -> array: no two alike, so that none can be mistaken for another."""
    rng = np.random.default_rng(0)

    def draw(name, value):
        if name.endswith("/kernel"):
            return value
        return value if name == "dropout/state" else rng.uniform(0.5, 1.5, value.shape).astype(value.dtype)

    return {name: draw(name, value) for name, value in initial_weights(config.network).items()}


@functools.cache
def live(implementation, name):
    """-> (function of images: probabilities, canonical name -> variable), of the configuration `name`."""
    code = importlib.import_module(f"{implementation}.model")
    network = CONFIGS[name].network
    model = code.UNet(network)
    variables = code.named_weights(model)
    assign_weights(variables, some_weights(CONFIGS[name]))
    return tf.function(lambda images: probabilities(any_size(model, images, network)), reduce_retracing=True), variables


def some_images(kind, network):
    """Two batches of images as a kind of export takes them: StableHLO one image of one size, Keras sizes that fit."""
    rng = np.random.default_rng(0)
    sizes = [[n, *(side + missing(side, network) * (kind == "keras") for side in size)] for n, *size in SIZES]
    first, second = (rng.random((*size, network.channels), dtype=np.float32) for size in sizes)
    return (first[:1], first[1:]) if kind == "stablehlo" else (first, second)


def write(folder):
    """Exports all of CASES into `folder`, each from the checkpoint of another implementation; and the live answers."""
    images, answers = {}, {}
    for kind, implementation, name in CASES:
        trained = IMPLEMENTATIONS[IMPLEMENTATIONS.index(implementation) - 1]
        save_checkpoint(folder / "some.safetensors", live(trained, name)[1], {})
        weights, _, _ = load_checkpoint(folder / "some.safetensors", CONFIGS[name].network)
        case = f"{kind}-{implementation}-{name}"
        export(kind, implementation, CONFIGS[name], weights, folder / case)
        predict, _ = live(implementation, name)
        for number, batch in enumerate(some_images(kind, CONFIGS[name].network)):
            images[f"{case}-{number}"], answers[f"{case}-{number}"] = batch, predict(batch).numpy()
    np.savez(folder / "images.npz", **images)
    np.savez(folder / "expected.npz", **answers)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """(folder, answers of the live networks, answers of the exports in a process of their own)."""
    folder = tmp_path_factory.mktemp("exports")
    write(folder)
    environment = {k: v for k, v in os.environ.items() if k not in ("TF_USE_LEGACY_KERAS", "KERAS_BACKEND")}
    command = [sys.executable, "-I", "-c", READER, str(folder), json.dumps(["-".join(case) for case in CASES])]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    if done.returncode:
        pytest.fail(done.stderr[-5000:], pytrace=False)
    return folder, np.load(folder / "expected.npz"), np.load(folder / "answers.npz")


@pytest.mark.parametrize("case", ["-".join(case) for case in CASES])
def test_export_answers_as_the_live_network(case, exported):
    _, expected, answers = exported
    kind, _, config = case.split("-")
    for number in "01":
        here, there = expected[f"{case}-{number}"], answers[f"{case}-{number}"]
        assert np.std(here) > 0.01, "an answer that is the same everywhere tells nothing"
        assert here.shape == there.shape
        np.testing.assert_allclose(there, here, rtol=0, atol=TOLERANCE[config])
        if kind != "keras":
            assert there.dtype == np.float32
    if kind == "savedmodel":
        np.testing.assert_allclose(answers[f"{case}-session"], here, rtol=0, atol=TOLERANCE[config])


@pytest.mark.parametrize("name, sides", [("own", "multiples of 8 pixels"), ("paper", "multiples of 8 pixels and 4 more")])
def test_keras_export_says_which_sizes_it_takes(name, sides, tmp_path, capsys):
    network = CONFIGS[name].network
    export("keras", "keras_impl", CONFIGS[name], some_weights(CONFIGS[name]), tmp_path / "net")
    assert capsys.readouterr().out.endswith(f" MB) for images whose sides are {sides}\n")
    about = json.loads((tmp_path / "net" / "export.json").read_text())
    multiple, rest = about["sides_multiple_of"], about["sides_and"]
    loaded = keras.saving.load_model(tmp_path / "net" / "model.keras")
    fits = 12 * multiple + rest
    assert missing(fits, network) == 0
    assert loaded(np.zeros([1, fits, fits + multiple, network.channels])).shape[-1] == network.classes
    with pytest.raises(tf.errors.InvalidArgumentError):
        loaded(np.zeros([1, fits, fits + 1, network.channels]))


@pytest.mark.parametrize("kind", ["keras", "savedmodel", "stablehlo"])
def test_export_repeats_all_options_of_the_network(kind, exported):
    about = json.loads((exported[0] / f"{kind}-keras_impl-own" / "export.json").read_text())
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
    files = [file for case in CASES for file in (folder / "-".join(case)).rglob("*") if file.is_file()]
    assert len(files) > 3 * len(CASES) - 10
    for file in files:
        content = file.read_bytes()
        assert not any(os.fsencode(folder) in content for folder in (ROOT, Path(tf.__file__).parent)), file


# --- what cannot be written ---


@pytest.fixture
def quick(monkeypatch):
    """An export that only writes its file of options, and a file `model.keras`."""
    content = {"text": "first"}

    def write_keras(folder, *_):
        (folder / "model.keras").write_text(content["text"])
        if "error" in content:
            raise content["error"]

    monkeypatch.setattr("prediction.export.write_keras", write_keras)
    return content


def files_in(folder):
    return sorted(name for file in folder.rglob("*") if ".unet" not in (name := str(file.relative_to(folder))))


def test_an_export_is_replaced_and_nothing_stays_beside_it(quick, tmp_path):
    for text in ("first", "second"):
        quick["text"] = text
        export("keras", "keras_impl", OWN, {}, tmp_path / "new" / "net")
        assert (tmp_path / "new" / "net" / "model.keras").read_text() == text
    assert files_in(tmp_path) == ["new", "new/net", "new/net/export.json", "new/net/model.keras"]


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), tf.errors.ResourceExhaustedError(None, None, "disk full")]
)
def test_failure_leaves_what_was_there(error, quick, tmp_path):
    export("keras", "keras_impl", OWN, {}, tmp_path / "net")
    before = files_in(tmp_path)
    quick.update(text="half of it", error=error)
    with pytest.raises(UserError, match="cannot write --output .*net: .*(No space|disk full).*stays"):
        export("keras", "keras_impl", OWN, {}, tmp_path / "net")
    assert files_in(tmp_path) == before
    assert (tmp_path / "net" / "model.keras").read_text() == "first"


def test_folder_of_something_else_is_refused(quick, tmp_path):
    export("keras", "keras_impl", OWN, {}, tmp_path / "net")
    with pytest.raises(UserError, match="net holds something else"):
        export("savedmodel", "lowlevel", OWN, {}, tmp_path / "net")
    (tmp_path / "net" / "notes.txt").touch()
    with pytest.raises(UserError, match="net holds something else"):
        export("keras", "keras_impl", OWN, {}, tmp_path / "net")
    assert "net/notes.txt" in files_in(tmp_path)
    with pytest.raises(UserError, match="--output .*notes.txt is no folder"):
        export("keras", "keras_impl", OWN, {}, tmp_path / "net" / "notes.txt")


def test_keras_file_from_another_implementation_is_refused(tmp_path):
    with pytest.raises(UserError, match="--implementation keras_impl"):
        export("keras", "lowlevel", OWN, {}, tmp_path / "net")


def test_size_of_the_stablehlo_program():
    assert stablehlo_size(OWN) == SIZE
    assert stablehlo_size(OWN, (32, 48)) == (32, 48)
    assert stablehlo_size(Config()) == (128, 128)
    with pytest.raises(UserError, match="at least 16"):
        stablehlo_size(Config(), (15, 32))
    with pytest.raises(UserError, match="add --image-size"):
        stablehlo_size(Config.of(dataset="folder", data_dir=Path("photos")))
