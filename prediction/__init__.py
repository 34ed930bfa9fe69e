"""What predict.py does with a trained network: tiles, images, evaluation, exports."""

import common  # noqa: F401  settles the environment before any TensorFlow is imported
