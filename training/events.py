"""Scalars and pictures for TensorBoard, without the package `tensorboard`, which only shows them.

`tf.summary.scalar` and `tf.summary.image` call that package and raise where it is not installed; `tf.summary.write` does not.
"""

import contextlib
import os
import sys

from common.device import tf
from common.text import say

import numpy as np


def as_png(picture):
    """[H, W, 3] in 0..1 -> what TensorBoard takes for a picture: width, height and PNG as strings."""
    height, width, _ = map(str, picture.shape)
    return tf.stack([width, height, tf.io.encode_png(np.rint(255 * picture).astype(np.uint8))])


class EventWriter:
    """Writes an event file into `folder`: `tensorboard --logdir runs` shows every run below it."""

    def __init__(self, folder):
        self.folder, self.writer = folder, tf.summary.create_noop_writer()
        with self._going_on():
            self.writer = tf.summary.create_file_writer(os.fsencode(folder))  # names that are no UTF-8, too

    def write(self, step, scalars, pictures):
        """scalars: tag -> number, such as {"loss": 0.25}. pictures: tag -> [[H, W, 3] in 0..1]. step: counted from 1."""
        tagged = [("scalars", tag, np.float32(value)) for tag, value in scalars.items()]
        tagged += [("images", f"{tag}/{k}", as_png(one)) for tag, several in pictures.items() for k, one in enumerate(several)]
        with self._going_on(), self.writer.as_default(step):
            for plugin, tag, value in tagged:
                metadata = tf.compat.v1.SummaryMetadata(plugin_data={"plugin_name": plugin})
                tf.summary.write(tag, value, metadata=metadata)
            self.writer.flush()

    @contextlib.contextmanager
    def _going_on(self):
        """A full disk, or something else of that name, becomes a warning, and nothing more is written."""
        try:
            yield
        except tf.errors.OpError as error:
            say(f"warning: no more events for TensorBoard in {self.folder}: {error.message.strip()}", sys.stderr)
            self.writer = tf.summary.create_noop_writer()
