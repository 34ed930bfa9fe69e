"""Trained networks for use without this project: a Keras file, a SavedModel, StableHLO text, an ONNX or a LiteRT file.

Each answers float32 images [N, H, W, channels] in 0..1 with probabilities [N, H - margin, W - margin, classes]; the margin is
0 but for padding "valid" (`common.shapes`). Each is a folder, with the network's options in export.json; docs/predict.md has a
table of the kinds and shows how each is used.

Keras, SavedModel and StableHLO compute in the precision of the training: bfloat16 is not widened, and in float64 only the
probabilities are narrowed to float32 (not in the Keras file). ONNX and LiteRT compute in float32, with the batch normalizations
folded; with `calibration` images LiteRT's weights and activations are int8. The layers of the Keras file have the canonical
names, "_" for "/", and its logits are `model.get_layer("probabilities").input`; `weights` of a SavedModel holds the variables
by canonical name. Weights are shared, so a checkpoint of any implementation is exported through any.
"""

import contextlib
import dataclasses
import json
import os
import re
import tempfile
import warnings
from pathlib import Path

from common import shapes
from common.config import Size, UserError
from common.device import filtered_stderr, tf
from common.losses import probabilities
from common.output import PART, refuse_existing
from common.padding import any_size
from common.weights import assign_weights, fold_batch_norm
from data.files import STRETCHED
from keras_impl.model import UNet, named_weights
from prediction import EXPORTS, FIXED
from prediction.network import restore
from prediction.quantization import dice_of, read_windows

import keras
import numpy as np
from keras import layers
from safetensors.numpy import save

LITERT_NOISE = r"[IW]\d{4} |fully_quantize: |INFO: Created"  # of converter and interpreter
OPSET = 17  # of ONNX: what ONNX Runtime has read since 1.12, of 2022
TF2ONNX = "tf2onnx==1.17.0 onnx==1.23.2"  # what --export onnx needs beside requirements.txt


@contextlib.contextmanager
def new_folder(path):
    """Gives a folder for an export, whose files are moved into `path` at the end. If anything fails, what was there stays.

    Raises: UserError when `path` cannot be written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=PART, dir=path) as folder:
            yield Path(folder)
            (path / "export.json").unlink(missing_ok=True)  # comes last: with it the export is whole
            for file in sorted(Path(folder).rglob("*"), key=lambda file: (file.name == "export.json", file)):
                target = path / file.relative_to(folder)
                target.mkdir(exist_ok=True) if file.is_dir() else os.replace(file, target)
    except (OSError, tf.errors.OpError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise UserError(f"cannot write --output {path}: {reason}; what was there before stays") from None


def serving_function(model, network):
    """images [N, H, W, channels] of any size -> {"probabilities": float32 [N, H', W', classes]}, not traced yet."""

    def serve(images):
        return {"probabilities": tf.cast(probabilities(any_size(model, images, network)), tf.float32)}

    return serve


# --- Keras ---


def write_keras(folder, network, weights):
    if network.batch_norm == "fused":  # in inference Keras's own layer computes the same, but for rounding
        network = dataclasses.replace(network, batch_norm="explicit")
    model = UNet(network)
    assign_weights(named_weights(model), weights)
    activation = "sigmoid" if network.classes == 1 else "softmax"
    p = layers.Activation(activation, dtype=network.variable_dtype, name="probabilities")(model.output)
    keras.Model(model.input, p, name="unet").save(folder / "model.keras")


# --- SavedModel ---


def write_savedmodel(folder, implementation, network, weights):
    model, variables = restore(implementation, network, weights)
    images = tf.TensorSpec([None, None, None, network.channels], tf.float32, name="images")
    module = tf.Module()
    module.weights = variables  # a SavedModel holds what a module reaches, under the names of its attributes
    tf.saved_model.save(module, str(folder), tf.function(serving_function(model, network), input_signature=[images]))


# --- StableHLO ---


def without_locations(text):
    """An MLIR text without its `loc(...)`, which name files of this machine."""
    text = re.sub(r"^#loc.*\n", "", text, flags=re.MULTILINE)
    return re.sub(r' loc\((?:"[^"]*"|[^()"])*\)', "", text)


def write_stablehlo(folder, implementation, network, weights, size):
    """Returns: {"arguments": names in the order of the function's, "logits_size": [height, width] of the probabilities}."""
    model, variables = restore(implementation, network, weights)
    images = tf.TensorSpec([1, *size, network.channels], tf.float32, name="images")
    function = tf.function(serving_function(model, network), jit_compile=True)
    with warnings.catch_warnings():
        # `device_name` is deprecated; without it TensorFlow draws a random number, only to see which device is in use
        warnings.simplefilter("ignore")
        text = function.experimental_get_compiler_ir(images)(
            stage="stablehlo", device_name="/job:localhost/replica:0/task:0/device:CPU:0"
        )
    (folder / "model.mlir").write_text(without_locations(text))
    names = {id(variable.handle): name for name, variable in variables.items()}
    captured = [names[id(handle)] for handle in function.get_concrete_function(images).captured_inputs]  # follow the images
    (folder / "weights.safetensors").write_bytes(save({name: variables[name].numpy() for name in captured}))
    margin = shapes.margin(network.depth, network.padding)
    return {"arguments": ["images", *captured], "logits_size": [side - margin for side in size]}


# --- ONNX and LiteRT ---


def restore_folded(implementation, network, weights):
    """-> (model, canonical name -> variable, network) in float32, the batch normalizations folded into the convolutions."""
    network, weights = fold_batch_norm(network, weights)
    network = dataclasses.replace(network, precision="float32")
    weights = {name: value if value.dtype.kind == "i" else value.astype(np.float32) for name, value in weights.items()}
    return *restore(implementation, network, weights), network


def write_onnx(folder, implementation, network, weights):
    """Returns: what export.json says of it. Raises: UserError when tf2onnx is not installed."""
    try:
        import tf2onnx
    except ImportError as error:
        raise UserError(f"--export onnx needs a package more ({error}): pip install {TF2ONNX}") from None
    model, _, network = restore_folded(implementation, network, weights)
    images = tf.TensorSpec([None, None, None, network.channels], tf.float32, name="images")
    serve = tf.function(serving_function(model, network), input_signature=[images])
    onnx, _ = tf2onnx.convert.from_function(serve, [images], opset=OPSET)
    margin = shapes.margin(network.depth, network.padding)
    for value, less in ((onnx.graph.input[0], ""), (onnx.graph.output[0], f" - {margin}" if margin else "")):
        for dim, name in zip(value.type.tensor_type.shape.dim, ("N", f"H{less}", f"W{less}")):
            dim.dim_param = name
    (folder / "model.onnx").write_bytes(onnx.SerializeToString())
    return {"precision": "float32", "opset": OPSET}


def write_litert(folder, implementation, network, weights, size, calibration=None):
    """Returns: what export.json says of it.

    calibration: float32 [1, *size, channels] in 0..1 of training, to choose the ranges of int8 by; None: float32.

    Raises: UserError when a float32 file does not answer as the network does.
    """
    model, variables, network = restore_folded(implementation, network, weights)
    images = tf.TensorSpec([1, *size, network.channels], tf.float32, name="images")
    serve = tf.function(serving_function(model, network), input_signature=[images]).get_concrete_function()
    module = tf.Module()
    module.weights = variables  # a weight that is not found through it has no value in the file
    converter = tf.lite.TFLiteConverter.from_concrete_functions([serve], module)
    if calibration is not None:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: ([image] for image in calibration)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]  # all of them, or an error
    with filtered_stderr(LITERT_NOISE):
        (folder / "model.tflite").write_bytes(converter.convert())
    noise = np.random.default_rng(0).random(serve.inputs[0].shape, np.float32)
    answer, expected = litert_predict(folder / "model.tflite")(noise), serve(tf.constant(noise))["probabilities"].numpy()
    difference = float(np.abs(answer - expected).max())
    if calibration is None and not difference < 1e-3:
        raise UserError(
            f"--export litert: the file answers otherwise than the network, by {difference:.2g}: it was not written"
        )
    about = {"size": list(size), "quantized": calibration and "int8", "largest_difference_on_noise": difference}
    return {"precision": "float32", **about}


def litert_predict(path):
    """-> predict: float32 images -> probabilities, of a LiteRT file, by the interpreter that TensorFlow brings along."""
    with filtered_stderr(LITERT_NOISE), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated for that of ai-edge-litert, which would be a package more
        interpreter = tf.lite.Interpreter(str(path))
        interpreter.allocate_tensors()
    runner = interpreter.get_signature_runner()
    return lambda images: runner(images=images)["probabilities"]


# --- all ---


def fixed_size(kind, config, size=None):
    """`size`, or else the one that the network was trained for. Raises: UserError when there is none, or it is too small."""
    size = size or config.data.image_size or config.data.crop_size
    if not size and config.data.dataset == "synthetic":
        size = Size(128, 128)  # as `data.synthetic` draws them
    if not size:
        raise UserError(f"--export {kind} is for one image size, and the training had none: add --image-size WIDTHxHEIGHT")
    smallest = shapes.min_size(config.network)
    if min(size) < smallest:
        raise UserError(f"--image-size {Size(*size)} is too small: this network needs at least {smallest} pixels")
    return size


def export(kind, implementation, config, weights, path, size=None, quantize=False, overwrite=False):
    """Writes the network into the folder `path`; export.json comes last, and tells that all is there.

    kind: a key of `EXPORTS`.
    implementation: through which one. The Keras file is made by keras_impl, whichever trained the weights.
    config, weights: of the training; canonical name -> array, as `load_checkpoint` returns them.
    size: (height, width) of the image for StableHLO and LiteRT; by default the --image-size or --crop-size of the training.
    quantize: whether LiteRT computes in int8, in ranges found on training images, and what it costs in dice is printed.

    Raises: UserError for an implementation that cannot make this kind, a package or data that it needs and that are not there,
    and a `path` that cannot be written, or holds such files without `overwrite`.
    """
    if kind == "keras" and implementation != "keras_impl":
        raise UserError("--export keras needs --implementation keras_impl, which takes the checkpoints of all three")
    network, values = config.network, config.as_dict()
    about = {"kind": kind, "implementation": implementation, "tensorflow": tf.__version__, **dataclasses.asdict(network)}
    about |= {name: values[name] for name in ("class_names", "mask_values", "image_size")}
    about["stretch"] = {"percentiles": STRETCHED, "white": config.data.scale} if config.data.stretch else None
    words, calibration = "images of any size", None
    if kind == "keras":
        about |= {"sides_multiple_of": 2**network.depth, "sides_and": shapes.missing(0, network)}
        words = "images whose sides are multiples of {sides_multiple_of} pixels".format(**about)
        words += " and {sides_and} more".format(**about) if about["sides_and"] else ""
    elif kind in FIXED:
        size = fixed_size(kind, config, size)
        words = f"one image of {Size(*size)}"
    if quantize:
        calibration, pairs = read_windows(config, size)
    refuse_existing([path / name for name in ["export.json", *EXPORTS[kind]]], overwrite)
    with new_folder(path) as folder:
        if kind == "keras":
            write_keras(folder, network, weights)
        elif kind == "savedmodel":
            write_savedmodel(folder, implementation, network, weights)
        elif kind == "stablehlo":
            about |= write_stablehlo(folder, implementation, network, weights, size)
        elif kind == "onnx":
            about |= write_onnx(folder, implementation, network, weights)
        else:
            about |= write_litert(folder, implementation, network, weights, size, calibration)
        (folder / "export.json").write_text(json.dumps(about, indent=2) + "\n")
        total = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    print(f"{implementation} exported to {path} ({kind}, {total / 1e6:.1f} MB) for {words}")
    if config.data.stretch:
        print("it was trained on images of --stretch: stretch yours before, as data/files.py, `stretched`, does")
    if quantize:
        model, _, folded = restore_folded(implementation, network, weights)
        live = serving_function(model, folded)
        before = dice_of(lambda images: live(tf.constant(images))["probabilities"].numpy(), pairs, network.classes)
        after = dice_of(litert_predict(path / "model.tflite"), pairs, network.classes)
        print(
            f"int8 by {len(calibration)} training images; dice on {len(pairs)} validation images of {Size(*size)}: "
            f"float32 {before:.4f}, int8 {after:.4f}"
        )
