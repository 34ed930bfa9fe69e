"""The one data loader: arrays and files in, `tf.data` batches out, the same for all three implementations."""

import common  # noqa: F401  settles the environment before any TensorFlow is imported
