"""The U-Net in raw tf.nn operations, with explicit variables, GradientTape and the optimizer's update written out."""

import common  # noqa: F401  settles the environment before any TensorFlow is imported
