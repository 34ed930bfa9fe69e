"""The U-Net in tf.layers (tf.compat.v1.layers), trained by the tf.compat.v1.train optimizers."""

import common.device  # noqa: F401  starts TensorFlow, before any other import of it
