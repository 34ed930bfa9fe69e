"""Scalars and pictures for TensorBoard. TensorFlow writes them without the package `tensorboard`, which only shows them."""

import io
import sys

from common.device import tf

import numpy as np
from PIL import Image


class EventWriter:
    """Writes an event file into `folder`: `tensorboard --logdir runs` shows every run below it."""

    def __init__(self, folder):
        self.folder, self.writer = folder, tf.summary.create_file_writer(str(folder))

    def scalars(self, values, step):
        """values: tag -> number, such as {"loss": 0.25}; step: of the training, counted from 1."""
        self._write([(tag, tf.constant(value, tf.float32)) for tag, value in values.items()], "scalars", step)

    def pictures(self, tag, pictures, step):
        """pictures: list of [H, W, 3], 0 to 1."""
        tagged = []
        for k, picture in enumerate(pictures):
            png = io.BytesIO()
            Image.fromarray(np.rint(255 * picture).astype(np.uint8)).save(png, "PNG")
            height, width = (str(n).encode() for n in picture.shape[:2])
            tagged.append((f"{tag}/{k}", tf.constant([width, height, png.getvalue()])))
        self._write(tagged, "images", step)

    def close(self):
        if self.writer:
            self.writer.close()

    def _write(self, tagged, plugin, step):
        """What `tf.summary.scalar` and `tf.summary.image` write; those two refuse to work without the package."""
        if not self.writer:
            return
        metadata = tf.compat.v1.SummaryMetadata()
        metadata.plugin_data.plugin_name = plugin
        try:
            with self.writer.as_default():
                for tag, tensor in tagged:
                    tf.summary.write(tag, tensor, step=step, metadata=metadata)
            self.writer.flush()
        except tf.errors.OpError as error:  # a full disk, mostly
            reason = error.message.splitlines()[0]
            print(f"warning: no more events for TensorBoard in {self.folder}: {reason}", file=sys.stderr)
            self.writer = None
