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
import re
import shutil
import tempfile
import warnings
from pathlib import Path

from common import shapes
from common.config import Size, UserError
from common.device import filtered_stderr, tf
from common.losses import probabilities
from common.metrics import predicted_classes, scores
from common.output import prepare, refuse_existing, replacing
from common.padding import any_size
from common.weights import fold_batch_norm
from data.borders import part_touching
from data.files import STRETCHED
from data.loader import load_examples
from data.meaning import as_classes
from prediction import EXPORTS, FIXED
from prediction.network import restore

import keras
import numpy as np
from keras import layers
from safetensors.numpy import save

LITERT_NOISE = r"[IW]\d{4} |fully_quantize: |INFO: Created"  # of converter and interpreter
OPSET = 17  # of ONNX: what ONNX Runtime has read since 1.12, of 2022
TF2ONNX = "tf2onnx==1.17.0 onnx==1.23.2"  # what --export onnx needs beside requirements.txt
SEEN = 100  # training images to choose the ranges of int8 by, and validation images to tell what it costs, at most


@contextlib.contextmanager
def new_folder(path, overwrite=False):
    """Gives a folder for an export, whose files become those of `path` at the end, export.json last: it makes it whole.

    Raises: UserError when `path` cannot be written, and where something has come there meanwhile.
    """
    try:
        with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as files:
            yield Path(folder)
            names = [file.relative_to(folder) for file in Path(folder).rglob("*") if file.is_file()]
            prepare([path / name for name in names], overwrite)
            for name in sorted(names, key=lambda name: name.name != "export.json"):  # the first is the last to be moved
                shutil.copyfile(folder / name, files.enter_context(replacing(path / name)))
            (path / "export.json").unlink(missing_ok=True)
    except (OSError, tf.errors.OpError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise UserError(f"cannot write --output {path}: {reason}; what was there before stays") from None


def serving(model, network, size=(None, None), **options):
    """-> tf.function: images [N, H, W, channels] -> {"probabilities": float32 [N, H', W', classes]}.

    size: (height, width) for one image of one size; by default N, H and W are free.
    """
    images = tf.TensorSpec([1 if any(size) else None, *size, network.channels], tf.float32, name="images")

    @tf.function(input_signature=[images], **options)
    def serve(images):
        return {"probabilities": tf.cast(probabilities(any_size(model, images, network)), tf.float32)}

    return serve


def write_keras(folder, network, model):
    activation = "sigmoid" if network.classes == 1 else "softmax"
    p = layers.Activation(activation, dtype=network.variable_dtype, name="probabilities")(model.output)
    keras.Model(model.input, p, name="unet").save(folder / "model.keras")


def write_savedmodel(folder, network, model, variables):
    module = tf.Module()
    module.weights = variables  # a SavedModel holds what a module reaches, under the names of its attributes
    tf.saved_model.save(module, str(folder), serving(model, network))


def without_locations(text):
    """An MLIR text without its `loc(...)`, which name files of this machine."""
    text = re.sub(r"^#loc.*\n", "", text, flags=re.MULTILINE)
    return re.sub(r' loc\((?:"[^"]*"|[^()"])*\)', "", text)


def write_stablehlo(folder, network, model, variables, size):
    """Returns: {"arguments": names in the order of the function's, "logits_size": [height, width] of the probabilities}."""
    function = serving(model, network, size, jit_compile=True)
    with warnings.catch_warnings():
        # `device_name` is deprecated; without it TensorFlow draws a random number, only to see which device is in use
        warnings.simplefilter("ignore")
        compiler_ir = function.experimental_get_compiler_ir(*function.input_signature)
        text = compiler_ir(stage="stablehlo", device_name="/job:localhost/replica:0/task:0/device:CPU:0")
    (folder / "model.mlir").write_text(without_locations(text))
    names = {id(variable.handle): name for name, variable in variables.items()}
    captured = [names[id(handle)] for handle in function.get_concrete_function().captured_inputs]  # follow the images
    (folder / "weights.safetensors").write_bytes(save({name: variables[name].numpy() for name in captured}))
    margin = shapes.margin(network.depth, network.padding)
    return {"arguments": ["images", *captured], "logits_size": [side - margin for side in size]}


def write_onnx(folder, network, model, size):
    """size: (height, width) for one image of one size, as OpenCV's `dnn` needs it; None: any.

    Returns: what export.json says of it. Raises: UserError when tf2onnx is not installed."""
    try:
        import tf2onnx
    except ImportError as error:
        raise UserError(f"--export onnx needs a package more ({error}): pip install {TF2ONNX}") from None
    serve = serving(model, network, size or (None, None))
    onnx, _ = tf2onnx.convert.from_function(serve, serve.input_signature, opset=OPSET)
    margin = shapes.margin(network.depth, network.padding)
    for value, less in ((onnx.graph.input[0], ""), (onnx.graph.output[0], f" - {margin}" if margin else "")):
        for dim, name in () if size else zip(value.type.tensor_type.shape.dim, ("N", f"H{less}", f"W{less}")):
            dim.dim_param = name
    (folder / "model.onnx").write_bytes(onnx.SerializeToString())
    return {"precision": "float32", "opset": OPSET, "size": size and list(size)}


def write_litert(folder, network, model, variables, size, calibration):
    """Returns: what export.json says of it.

    calibration: float32 [1, *size, channels] in 0..1 of training, to choose the ranges of int8 by; None: float32.

    Raises: UserError when a float32 file does not answer as the network does.
    """
    serve = serving(model, network, size).get_concrete_function()
    module = tf.Module()
    module.weights = variables  # a weight that is not found through it has no value in the file
    converter = tf.lite.TFLiteConverter.from_concrete_functions([serve], module)
    if calibration is not None:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: ([image] for image in calibration)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]  # all of them, or an error
    with filtered_stderr(LITERT_NOISE):
        (folder / "model.tflite").write_bytes(converter.convert())
    noise = np.random.default_rng(0).random([1, *size, network.channels], np.float32)
    expected = serve(tf.constant(noise))["probabilities"].numpy()
    difference = float(np.abs(litert_predict(folder / "model.tflite")(noise) - expected).max())
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


def window(values, size):
    """The middle of [H, W, ...] that is `size` large; mirrored where it is smaller."""
    lack = [max(side - n, 0) for side, n in zip(size, values.shape)]
    padding = [(k // 2, k - k // 2) for k in lack] + [(0, 0)] * (values.ndim - 2)
    values = np.pad(values, padding, mode="reflect")
    return values[tuple(slice((n - side) // 2, (n + side) // 2) for side, n in zip(size, values.shape))]


def read_windows(config, size):
    """-> ([images to calibrate by], [(image, mask) to compare on]): float32 [1, *size, channels] in 0..1, uint8 [1, H', W'].

    Raises: UserError when the data set of the training cannot be read.
    """
    config, training, validation = load_examples(config)
    cut, white = shapes.margin(config.network.depth, config.network.padding) // 2, config.data.scale

    def image(examples, i):
        return window(examples.images[i], size)[np.newaxis].astype(np.float32) / white

    def mask(examples, i):
        height, width = size
        values = as_classes(part_touching(examples.objects[i])) if examples.objects else examples.masks[i]
        return window(values, size)[np.newaxis, cut : height - cut, cut : width - cut]

    calibration = [image(training, i) for i in range(min(len(training.names), SEEN))]
    pairs = [(image(validation, i), mask(validation, i)) for i in range(min(len(validation.names), SEEN))]
    return calibration, pairs


def dice_of(predict, pairs, classes):
    """The mean dice of predict: images -> probabilities, on what `read_windows` returns."""
    return np.nanmean([scores(mask, predicted_classes(predict(image)), classes)["dice"] for image, mask in pairs])


def fixed_size(kind, config, size=None):
    """`size`, or else the one that the network was trained for. Raises: UserError when there is none, or it is too small."""
    drawn = Size(128, 128) if config.data.dataset == "synthetic" else None  # as `data.synthetic` draws them
    size = size or config.data.image_size or config.data.crop_size or drawn
    if not size:
        raise UserError(f"--export {kind} is for one image size, and the training had none: add --image-size WIDTHxHEIGHT")
    smallest = shapes.min_size(config.network)
    if min(size) < smallest:
        raise UserError(f"--image-size {Size(*size)} is too small: this network needs at least {smallest} pixels")
    return size


def export(kind, implementation, config, weights, path, size=None, quantize=False, overwrite=False):
    """Writes the network into the folder `path`; export.json comes last, and tells that all is there.

    kind, implementation: of `EXPORTS`, through which one; the Keras file is made by keras_impl, whichever trained.
    weights: canonical name -> array, as `load_checkpoint` returns them. config: of the training.
    size: (height, width) of the image for StableHLO and LiteRT, by default the --image-size or --crop-size of the training; and
    for ONNX, by default any.
    quantize: whether LiteRT computes in int8, in ranges found on training images; what that costs in dice is printed.

    Raises: UserError for an implementation that cannot make this kind, a package or data that it needs and that are not there,
    and a `path` that cannot be written, or holds such files without `overwrite`.
    """
    if kind == "keras" and implementation != "keras_impl":
        raise UserError("--export keras needs --implementation keras_impl, which takes the checkpoints of all three")
    network, values = config.network, config.as_dict()
    about = {"kind": kind, "implementation": implementation, "tensorflow": tf.__version__, **dataclasses.asdict(network)}
    about |= {name: values[name] for name in ("class_names", "mask_values", "image_size")}
    white = about["white"] = config.data.white or 255  # what 1 is
    about["stretch"] = {"percentiles": STRETCHED, "white": config.data.scale} if config.data.stretch else None
    words, calibration = "images of any size", None
    if kind == "keras":
        multiple, more = 2**network.depth, shapes.missing(0, network)
        about |= {"sides_multiple_of": multiple, "sides_and": more}
        words = f"images whose sides are multiples of {multiple} pixels" + (f" and {more} more" if more else "")
    elif kind in FIXED or size:
        size = fixed_size(kind, config, size)
        words = f"one image of {Size(*size)}"
    refuse_existing([path / name for name in ["export.json", *EXPORTS[kind]]], overwrite)
    if quantize:
        calibration, pairs = read_windows(config, size)
    if kind == "keras" and network.batch_norm == "fused":  # in inference Keras's own layer computes the same, but for rounding
        network = dataclasses.replace(network, batch_norm="explicit")
    elif kind in ("onnx", "litert"):
        network, weights = fold_batch_norm(dataclasses.replace(network, precision="float32"), weights)
    model, variables = restore(implementation, network, weights)
    with new_folder(path, overwrite) as folder:
        if kind == "keras":
            write_keras(folder, network, model)
        elif kind == "savedmodel":
            write_savedmodel(folder, network, model, variables)
        elif kind == "stablehlo":
            about |= write_stablehlo(folder, network, model, variables, size)
        elif kind == "onnx":
            about |= write_onnx(folder, network, model, size)
        else:
            about |= write_litert(folder, network, model, variables, size, calibration)
        (folder / "export.json").write_text(json.dumps(about, indent=2) + "\n")
        total = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    print(f"{implementation} exported to {path} ({kind}, {total / 1e3:,.0f} kB; docs/predict.md loads it) for {words}")
    if white != 255:
        print(f"white is {white:g}: divide images by it")
    if config.data.stretch:
        print("it was trained on images of --stretch: stretch yours before, as data/files.py, `stretched`, does")
    if quantize:
        live = serving(model, network, size)
        before = dice_of(lambda images: live(images)["probabilities"].numpy(), pairs, network.classes)
        after = dice_of(litert_predict(path / "model.tflite"), pairs, network.classes)
        words = f"int8 by {len(calibration)} training images; dice on {len(pairs)} validation images of {Size(*size)}"
        print(f"{words}: float32 {before:.4f}, int8 {after:.4f}")
