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

    TF_CPP_MIN_LOG_LEVEL does not reach the lines logged before absl is set up, so the standard error's file
    descriptor is read instead. Warnings and errors are passed on, but complaints about a missing GPU only where
    there is an NVIDIA driver to complain about.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
    expected = r"WARNING: All log messages before absl|I\d{4} "
    if not os.path.exists("/dev/nvidiactl"):
        expected += r"|[WE]\d{4} .*(cuda|CUDA|GPU)"
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as log:
        os.dup2(log.fileno(), 2)
        try:
            import tensorflow

            tensorflow.config.list_physical_devices()
        finally:
            sys.stderr.flush()
            os.dup2(stderr, 2)
            os.close(stderr)
            log.seek(0)
            for line in log.read().decode(errors="replace").splitlines():
                if not re.match(expected, line):
                    print(line, file=sys.stderr)


_start_tensorflow()
