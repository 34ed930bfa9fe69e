"""What predict.py does with a trained network: tiles, images, evaluation, exports."""

import common  # noqa: F401  settles the environment before any TensorFlow is imported

EXPORTS = {  # kind: its files, beside export.json
    "keras": ["model.keras"],
    "savedmodel": ["saved_model.pb", "fingerprint.pb", "variables/variables.index", "variables/variables.data-00000-of-00001"],
    "stablehlo": ["model.mlir", "weights.safetensors"],
    "onnx": ["model.onnx"],
    "litert": ["model.tflite"],
}
FIXED = ("stablehlo", "litert")  # for one image of one size; so is onnx with --image-size
