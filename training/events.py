"""Scalars and pictures for TensorBoard, without the package `tensorboard`, which only shows them.

`tf.summary.scalar` and `tf.summary.image` call that package and raise where it is not installed; `tf.summary.write` does not.
"""

import os
import sys

from common.device import tf
from common.text import say

import numpy as np


class EventWriter:
    """Writes an event file into `folder`: `tensorboard --logdir runs` shows every run below it."""

    def __init__(self, folder):
        self.folder = folder
        try:
            self.writer = tf.summary.create_file_writer(os.fsencode(folder))  # names that are no UTF-8, too
        except tf.errors.OpError as error:  # something else has that name
            self._give_up(error)

    def scalars(self, values, step):
        """values: tag -> number, such as {"loss": 0.25}; step: of the training, counted from 1."""
        self._write("scalars", {tag: np.float32(value) for tag, value in values.items()}, step)

    def pictures(self, tag, pictures, step):
        """pictures: list of [H, W, 3], 0 to 1."""
        tagged = {}
        for k, picture in enumerate(pictures):
            height, width, _ = map(str, picture.shape)
            tagged[f"{tag}/{k}"] = tf.stack([width, height, tf.io.encode_png(np.rint(255 * picture).astype(np.uint8))])
        self._write("images", tagged, step)

    def close(self):
        self.writer.close()

    def _write(self, plugin, tagged, step):
        """tagged: tag -> what TensorBoard's `plugin` takes: a number, or width, height and PNG as strings."""
        metadata = tf.compat.v1.SummaryMetadata(plugin_data={"plugin_name": plugin})
        try:
            with self.writer.as_default(step):
                for tag, value in tagged.items():
                    tf.summary.write(tag, value, metadata=metadata)
            self.writer.flush()
        except tf.errors.OpError as error:  # a full disk, mostly
            self._give_up(error)

    def _give_up(self, error):
        say(f"warning: no more events for TensorBoard in {self.folder}: {error.message.strip()}", sys.stderr)
        self.writer = tf.summary.create_noop_writer()
