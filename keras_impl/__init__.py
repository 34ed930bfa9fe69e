"""The U-Net as a functional model of Keras 3, trained by compile, fit and callbacks."""

import common  # noqa: F401  settles the environment before any TensorFlow is imported
