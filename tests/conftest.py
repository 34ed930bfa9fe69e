"""Settings for all tests: no noise, and equal graphs give equal bits."""

import ctypes
import gc
import signal
from pathlib import Path

import common  # noqa: F401  settles the environment before any TensorFlow is imported, and answers Ctrl-C
from common.checkpoint import save_checkpoint
from common.config import Config
from common.device import be_deterministic
from common.weights import initial_weights

import keras
import pytest
import tensorflow as tf

signal.signal(signal.SIGINT, signal.default_int_handler)  # pytest's own answer
be_deterministic()  # before the first operation of the session
tf.get_logger().setLevel("ERROR")

IMPLEMENTATIONS = ("lowlevel", "highlevel", "keras_impl")


def save_network(path, implementation="lowlevel", about=None, **options):
    """A checkpoint of a small network with random weights, trained by `implementation` by its metadata. Returns: `path`.

    about: more of the metadata.
    """
    config = Config.of(**{"filters": 2, "depth": 2, "channels": 1, "classes": 1, **options})
    weights = {name: tf.constant(value) for name, value in initial_weights(config.network).items()}
    save_checkpoint(path, weights, {}, config=config.as_dict(), implementation=implementation, **(about or {}))
    return path


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request):
    return request.param


@pytest.fixture
def no_figures(monkeypatch):
    """Where others look at the pictures: a figure takes a second."""
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda self, path, **_: Path(path).touch())


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
