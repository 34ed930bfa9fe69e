"""The U-Net as a functional model of Keras 3, trained by compile, fit and callbacks."""

import common.device  # noqa: F401  starts TensorFlow, before any other import of it
