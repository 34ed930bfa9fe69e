"""Settings for all tests: no noise, and equal graphs give equal bits."""

import ctypes
import gc

import common  # noqa: F401  settles the environment before any TensorFlow is imported
from common.device import be_deterministic

import keras
import pytest
import tensorflow as tf

be_deterministic()  # before the first operation of the session
tf.get_logger().setLevel("ERROR")

IMPLEMENTATIONS = ("lowlevel", "highlevel", "keras_impl")


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request):
    return request.param


@pytest.fixture(autouse=True)
def float32_policy():
    """Keras's policy is global, and every UNet sets it to its own precision."""
    keras.config.set_dtype_policy("float32")


@pytest.fixture(autouse=True, scope="module")
def give_memory_back():
    """Hundreds of traced graphs leave the C heap in pieces, through which malloc has to search."""
    yield
    gc.collect()
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):  # glibc
        libc.malloc_trim(0)
