"""Settings for all tests: no noise, and equal graphs give equal bits."""

import common  # noqa: F401  settles the environment before any TensorFlow is imported
from common.loop import be_deterministic

import pytest
import tensorflow as tf

be_deterministic()  # before the first operation of the session
tf.get_logger().setLevel("ERROR")

IMPLEMENTATIONS = ("lowlevel", "highlevel", "keras_impl")


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request):
    return request.param
