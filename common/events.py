"""Scalars and pictures for TensorBoard. TensorFlow writes them without the package `tensorboard`, which only shows them."""

import tensorflow as tf


class EventWriter:
    """Writes an event file into `folder`: `tensorboard --logdir runs` shows every run below it."""

    def __init__(self, folder):
        self.writer = tf.summary.create_file_writer(str(folder))

    def scalars(self, values, step):
        """values: tag -> number, such as {"loss": 0.25}; step: of the training, counted from 1."""
        with self.writer.as_default():
            for tag, value in values.items():
                _write(tag, tf.constant(value, tf.float32), "scalars", step)
        self.writer.flush()

    def picture(self, tag, path, step):
        """path: of a PNG file."""
        data = path.read_bytes()
        width, height = (str(int.from_bytes(data[k : k + 4], "big")) for k in (16, 20))  # of the header
        with self.writer.as_default():
            _write(tag, tf.constant([width.encode(), height.encode(), data]), "images", step)
        self.writer.flush()


def _write(tag, tensor, plugin, step):
    """What `tf.summary.scalar` and `tf.summary.image` write; those two refuse to work without the package."""
    metadata = tf.compat.v1.SummaryMetadata()
    metadata.plugin_data.plugin_name = plugin
    tf.summary.write(tag, tensor, step=step, metadata=metadata)
