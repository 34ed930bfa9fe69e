"""Starts TensorFlow, and knows what it computes on. Whoever imports tensorflow imports this before."""

import contextlib
import ctypes
import gc
import glob
import os
import re
import signal
import sys
import tempfile
import warnings

import common  # settles the environment


@contextlib.contextmanager
def filtered_stderr(noise):
    """Holds back what is written to the standard error meanwhile, in C++ too, and then passes on the lines but for `noise`.

    It does so too when TensorFlow aborts the process, as without AVX. A process that is killed meanwhile ends without a word.
    """
    sys.stderr.flush()
    stderr, libc = os.dup(2), ctypes.CDLL(None)
    libc.signal.restype = ctypes.c_void_p
    with tempfile.TemporaryFile() as held:

        def pass_on(*_):
            os.dup2(stderr, 2)
            held.seek(0)
            for line in held:
                if not re.match(noise, line.decode(errors="replace")):
                    os.write(stderr, line)

        handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(pass_on)  # of C: one of Python's would wait for a return from there
        before = libc.signal(signal.SIGABRT, handler)
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            libc.signal(signal.SIGABRT, ctypes.c_void_p(before))
            sys.stderr.flush()
            pass_on()
            os.close(stderr)


LIBRARIES = ("libcudart.so.12", "libcublas.so.12", "libcublasLt.so.12", "libcudnn.so.9", "libcufft.so.11", "libcusolver.so.11")
LIBRARIES += ("libcusparse.so.12", "libcupti.so.12", "libnccl.so.2")  # what TensorFlow 2.21 opens at its start


def beside(library):
    """The paths of a library of `tensorflow[and-cuda]` where pip puts it."""
    return [path for folder in sys.path for path in glob.glob(os.path.join(glob.escape(folder), "nvidia", "*", "lib", library))]


def is_there(library):
    """Whether a library of `tensorflow[and-cuda]` lies where pip puts it, or where the system looks for it."""
    with contextlib.suppress(OSError):
        return bool(beside(library) or ctypes.CDLL(library))
    return False


def has_code_for(capability, built_for):
    """Whether machine code for one of `built_for`, as ["sm_80", "compute_90"], runs on a GPU of the compute capability (8, 6).

    It does within a generation, from its own number upward.
    """
    codes = (divmod(int(re.search(r"\d+", word)[0]), 10) for word in built_for)
    return any(code[0] == capability[0] and code <= capability for code in codes)


def trouble(gpus, lacking, built_for, version):
    """Lines for users whose GPU will not compute. gpus: {name: compute capability}. lacking: libraries, if there is none."""
    install = f"pip install 'tensorflow[and-cuda]=={version}'"
    if not gpus and lacking:
        yield f"TensorFlow does not use this machine's NVIDIA GPU without {', '.join(lacking)}: {install}"
    elif not gpus:
        yield "TensorFlow does not use this machine's NVIDIA GPU, though its libraries are there: does nvidia-smi show one?"
    for name, capability in gpus.items():
        if not has_code_for(capability, built_for):
            what = f"{name}, of compute capability {'.'.join(map(str, capability))}"
            instead = "NVIDIA's container nvcr.io/nvidia/tensorflow, or the CPU, with CUDA_VISIBLE_DEVICES= in front"
            yield f"this TensorFlow has no code for {what}, and may crash: take {instead}"


def open_cusolver():
    """Opens the one library of `tensorflow[and-cuda]` that TensorFlow 2.21 does not find by itself.

    It looks for all of them beside itself, where pip puts them, but not for this one (its RUNPATH lacks the folder; seen on an
    H200), and without it uses no GPU at all. What is open already is found by its name.
    """
    with contextlib.suppress(OSError):  # TensorFlow says what is missing
        for path in beside("libcusolver.so.11"):
            ctypes.CDLL(path)


def keep_freed_memory():
    """Freed memory stays with the process, where the C library is glibc.

    It gives blocks of an image's size back to the system at once, and gets each page again zeroed. Without this, one core of an
    EPYC drew 820 images of 480x320 a second in batches of 8, and 1,993 with it (`compare.py bench --data`).
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):  # another C library
        for option, size in ((-3, 32 * 2**20), (-1, 2**30)):  # M_MMAP_THRESHOLD, the most that it takes; M_TRIM_THRESHOLD
            ctypes.CDLL(None).mallopt(option, size)


def start_tensorflow():
    """Imports TensorFlow and finds the devices, without the start-up noise of its C++ side.

    TF_CPP_MIN_LOG_LEVEL does not reach what is logged before absl is set up.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # from errors upward
    keep_freed_memory()
    has_driver = os.path.exists("/dev/nvidiactl")
    if has_driver:
        open_cusolver()
    noise = r"WARNING: All log messages before absl|[IW]\d{4} " + ("" if has_driver else r"|E\d{4} .*(cuda|CUDA)")
    gc.disable()  # modules do not become garbage: looking for it would take a fifth of the time
    with filtered_stderr(noise):
        import tensorflow as tf

        gpus = tf.config.list_physical_devices("GPU")
    gc.freeze()  # and it is not looked for among them again
    gc.enable()
    if common.asks_for_gpu():
        details = map(tf.config.experimental.get_device_details, gpus)  # without a first operation, which may crash
        found = {of.get("device_name", "a GPU"): of.get("compute_capability", (0, 0)) for of in details}
        lacking = [] if gpus else [library for library in LIBRARIES if not is_there(library)]
        for line in trouble(found, lacking, tf.sysconfig.get_build_info().get("cuda_compute_capabilities", ()), tf.__version__):
            print(f"warning: {line}", file=sys.stderr)
    for gpu in gpus:  # several processes share a GPU in compare.py; by default the first would take all its memory
        tf.config.experimental.set_memory_growth(gpu, True)
    return tf


tf = start_tensorflow()
# "is deprecated": as wanted, it is what highlevel/ shows
warnings.filterwarnings("ignore", r"`(tf\.layers|layer\.updates)")
tf.get_logger().addFilter(lambda record: "DynamicLossScale" not in record.getMessage())


def be_deterministic():
    """Makes equal graphs give equal bits, run after run, on one machine. Call it before the first operation.

    Op determinism alone does not do that. Where memory looks short, TensorFlow's graph optimizer breaks a sum of three
    gradients, as they meet in the explicit batch normalization, into additions that run in the order of arrival, and
    it does so in some of the three graphs and not in others: docs/differences.md shows it.
    """
    tf.config.experimental.enable_op_determinism()
    tf.config.experimental.enable_tensor_float_32_execution(False)  # on a GPU; 10 bits of mantissa prove nothing
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})  # the graphs as they are written


def on_gpu():
    return bool(tf.config.list_physical_devices("GPU"))


def device_name():
    """What TensorFlow computes on: the GPU's name, or the number of CPU cores."""
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        return f"GPU ({tf.config.experimental.get_device_details(gpus[0]).get('device_name', 'unnamed')})"
    return f"CPU ({common.CORES} core{'s' * (common.CORES > 1)})"
