"""The U-Net in raw tf.nn operations, with explicit variables and the update written out."""

import common.device  # noqa: F401  starts TensorFlow, before any other import of it
