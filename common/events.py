"""Scalars and pictures for TensorBoard. TensorFlow writes them without the package `tensorboard`, which only shows them."""

import io

import numpy as np
import tensorflow as tf
from PIL import Image


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

    def pictures(self, tag, pictures, step):
        """pictures: list of [H, W, 3], 0 to 1."""
        with self.writer.as_default():
            for k, picture in enumerate(pictures):
                png = io.BytesIO()
                Image.fromarray(np.rint(255 * picture).astype(np.uint8)).save(png, "PNG")
                height, width = (str(n).encode() for n in picture.shape[:2])
                _write(f"{tag}/{k}", tf.constant([width, height, png.getvalue()]), "images", step)
        self.writer.flush()


def _write(tag, tensor, plugin, step):
    """What `tf.summary.scalar` and `tf.summary.image` write; those two refuse to work without the package."""
    metadata = tf.compat.v1.SummaryMetadata()
    metadata.plugin_data.plugin_name = plugin
    tf.summary.write(tag, tensor, step=step, metadata=metadata)
