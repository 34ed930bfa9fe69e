"""What predict.py does with a trained network: tiles, images, evaluation, exports."""

import common  # noqa: F401  settles the environment before any TensorFlow is imported

EXPORTS = {  # kind: the files that it is made of
    "keras": {"export.json", "model.keras"},
    "savedmodel": {"export.json", "saved_model.pb", "fingerprint.pb", "variables", "assets"},
    "stablehlo": {"export.json", "model.mlir", "weights.safetensors"},
    "onnx": {"export.json", "model.onnx"},
    "litert": {"export.json", "model.tflite"},
}
FIXED = ("stablehlo", "litert")  # for one image of one size
