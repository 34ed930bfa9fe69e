"""What the device is best at: the steps whose speeds are the two roofs of `comparison.benchmark.roofline`."""

from common.device import tf
from comparison.benchmark.roofline import BYTES

import numpy as np


def peak_steps(precision):
    """Functions without arguments: {"convolution": step, "copy": step}.

    The convolution is 3x3 from 256 to 256 channels, which every library is made for; the copy changes the sign of 64 MiB.
    """
    dtype, side = "float32" if precision == "tf32" else precision, peak_side()
    rng = np.random.default_rng(0)
    images = tf.cast(tf.constant(rng.random((8, side, side, 256), np.float32)), dtype)
    kernel = tf.cast(tf.constant(rng.random((3, 3, 256, 256), np.float32)), dtype)
    numbers = tf.zeros([2**26 // BYTES[precision]], dtype)
    convolve = tf.function(lambda: tf.nn.conv2d(images, kernel, strides=1, padding="SAME"))
    return {"convolution": convolve, "copy": tf.function(lambda: -numbers)}


def peak_side():
    """Height and width of the images in `peak_steps`: a step takes some 10 ms."""
    return 128 if tf.config.list_physical_devices("GPU") else 32


def peak_work():
    """Operations and bytes of the steps in `peak_steps`."""
    return {"convolution": 2 * 8 * peak_side() ** 2 * 9 * 256**2, "copy": 2 * 2**26}
