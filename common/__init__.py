"""What the three implementations share, and the environment that all of them need.

Every module of the project imports `common` before anything else, so what TensorFlow and Keras read of the environment is
settled here. TensorFlow itself is imported by `common.device`, and not before it is needed.
No module of this package chooses between TensorFlow's APIs.
"""

import contextlib
import os
import platform
import re
import signal
import sys

# What an environment can change, by what becomes of it. Keras 3 (keras/src/backend/config.py) and tf-keras read theirs when
# they are imported, TensorFlow and CUDA at the first operation. TF_CONFIG is read, or refused, by `training.hosts`.
PINNED = {
    "TF_USE_LEGACY_KERAS": "1",  # tf.layers lives in tf-keras
    "KERAS_BACKEND": "tensorflow",
    "KERAS_NNX_ENABLED": "0",
    # no folder, and none can be made there: no keras.json says another floatx, epsilon or image_data_format, or is written
    "KERAS_HOME": os.path.join(os.devnull, "keras"),
}
REFUSED = {  # unless it is empty or as pinned
    "KERAS_BACKEND": "all three implementations run on TensorFlow: unset it",
    "KERAS_MAX_EPOCHS": "that would end Keras's `fit` early: unset it, and use --epochs",
    "KERAS_MAX_STEPS_PER_EPOCH": "that would end Keras's `fit` early: unset it, and use fewer images",
}
# Recorded with each run and each measurement, by their beginnings: threads, kernels, and how they round. Not all that begins
# with TF_ or NVIDIA_: Terraform's variables, and keys, may be secrets.
RECORDED = ("XLA_", "OMP_", "ONEDNN_", "DNNL_", "CUDA_", "NVIDIA_VISIBLE_DEVICES", "NVIDIA_TF32_OVERRIDE") + tuple(
    f"TF_{name}"
    for name in ("CPP_", "CUDNN_", "DETERMINISTIC_", "DISABLE_", "ENABLE_", "FORCE_", "GPU_", "NUM_", "USE_", "XLA_")
)


CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()  # that this process may use


def asks_for_gpu():
    """Whether there is an NVIDIA driver, and nobody has hidden its GPUs. It takes no TensorFlow to know that."""
    return os.path.exists("/dev/nvidiactl") and os.environ.get("CUDA_VISIBLE_DEVICES") not in ("", "-1")


def found_in(path, pattern):
    """What the group of `pattern` matches in a file of Linux's /proc, proc(5); None where there is none."""
    with contextlib.suppress(OSError, TypeError), open(path) as file:
        return re.search(pattern, file.read())[1]


def recorded():
    """name -> value of what the environment holds of `RECORDED`."""
    return {name: os.environ[name] for name in sorted(os.environ) if name.startswith(RECORDED)}


for number, name in enumerate(("stdin", "stdout", "stderr")):
    if getattr(sys, name) is None:  # closed: else the next file would get its number, and what TensorFlow says
        os.dup2(os.open(os.devnull, os.O_RDWR), number)
        setattr(sys, name, open(number, "w" if number else "r"))

for name, why in REFUSED.items():
    if (value := os.environ.pop(name, "")) not in ("", PINNED.get(name)):  # said here: `import keras` comes before any main()
        print(f"error: {name} is {value!r}, but {why}", file=sys.stderr)
        raise SystemExit(2)
os.environ |= PINNED
# The convolutions of oneDNN: by itself TensorFlow 2.21 takes them only where there is AVX-512 or AMX for neural networks
# (tensorflow/core/util/util.cc), and with AVX2 alone a training step takes two thirds of the time with them (docs/results.md).
if platform.machine() in ("x86_64", "AMD64"):
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")


STDERR = os.dup(2)  # `device.filtered_stderr` holds back what is written to 2


def end_by_ctrl_c(*_):
    """Ends the process: where modules are imported nothing else answers Ctrl-C, for an import may make any error of it."""
    os.write(STDERR, b"\nstopped; what was saved before stays\n")
    os._exit(130)  # as in a shell


def unraisable(what, before=sys.unraisablehook):
    """In a destructor Python would print a Ctrl-C, and go on."""
    end_by_ctrl_c() if what.exc_type is KeyboardInterrupt else before(what)


sys.unraisablehook = unraisable
if signal.getsignal(signal.SIGINT) is signal.default_int_handler and not hasattr(sys, "ps1"):  # ps1: somebody types here
    signal.signal(signal.SIGINT, end_by_ctrl_c)  # until `cli.run_script` calls a main()


def see_one_gpu(number, environ=os.environ):
    """Of the GPUs that a process with `environ` may use, its TensorFlow will see that one alone, if it is not imported yet."""
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        environ["CUDA_VISIBLE_DEVICES"] = str(number)
    elif number < len(names := visible.split(",")):  # "" and "-1" hide all
        environ["CUDA_VISIBLE_DEVICES"] = names[number]
