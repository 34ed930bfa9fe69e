"""The U-Net in tf.layers (tf.compat.v1.layers), trained by the tf.compat.v1.train optimizers."""

import common  # noqa: F401  settles the environment before any TensorFlow is imported
