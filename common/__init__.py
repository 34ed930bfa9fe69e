"""What the three implementations share, and the environment that all of them need.

Every module of the project imports `common` before TensorFlow, so this is where the switches are set that TensorFlow
reads only once. No module of this package chooses between TensorFlow's APIs.
"""

import os
import re
import sys
import tempfile

# tf.layers lives in tf-keras; TensorFlow reads this switch when its Keras is first touched.
os.environ["TF_USE_LEGACY_KERAS"] = "1"

if os.environ.setdefault("KERAS_BACKEND", "tensorflow") != "tensorflow":
    # `import keras` would load the other backend, or fail, long before any main() could say why.
    backend = os.environ["KERAS_BACKEND"]
    print(f"error: KERAS_BACKEND is {backend!r}, but all three implementations run on TensorFlow: unset it", file=sys.stderr)
    raise SystemExit(2)


def _start_tensorflow():
    """Imports TensorFlow and finds the devices, without the start-up noise of its C++ side.

    TF_CPP_MIN_LOG_LEVEL does not reach what is logged before absl is set up, so the standard error's file descriptor
    is read instead, and everything but those lines is passed on.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # from errors upward
    has_driver = os.path.exists("/dev/nvidiactl")
    noise = r"WARNING: All log messages before absl|[IW]\d{4} " + ("" if has_driver else r"|E\d{4} .*(cuda|CUDA)")
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as log:
        os.dup2(log.fileno(), 2)
        try:
            import tensorflow as tf

            gpus = tf.config.list_physical_devices("GPU")
        finally:
            sys.stderr.flush()
            os.dup2(stderr, 2)
            os.close(stderr)
            log.seek(0)
            for line in log.read().decode(errors="replace").splitlines():
                if not re.match(noise, line):
                    print(line, file=sys.stderr)
    if has_driver and not gpus:  # the warning that matters most, in words that help
        install = f"pip install 'tensorflow[and-cuda]=={tf.__version__}'"
        print(f"warning: TensorFlow does not find the libraries for this machine's NVIDIA GPU: {install}", file=sys.stderr)
    for gpu in gpus:  # several processes share a GPU in compare.py; by default the first would take all its memory
        tf.config.experimental.set_memory_growth(gpu, True)


_start_tensorflow()
