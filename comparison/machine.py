"""What figures depend on besides the code: the machine, its libraries, and the arithmetic that it takes."""

import json
import os
import platform
import time
from importlib.metadata import version

from common import found_in, recorded
from common.device import device_name, tf


def has_tf32():
    """Whether there is a GPU with TensorFloat-32: Ampere or newer."""
    gpus = tf.config.list_physical_devices("GPU")
    return any(tf.config.experimental.get_device_details(gpu).get("compute_capability", (0, 0)) >= (8, 0) for gpu in gpus)


def precisions(gpu):
    """In what to measure, on a GPU or on this processor: bfloat16 if oneDNN has kernels of it there.

    With AVX2 alone it has none, and a training step takes ten times as long as in float32.
    """
    narrow = gpu or found_in("/proc/cpuinfo", r"\b(avx512f|avx_ne_convert|bf16)\b")
    return ["float32", *["tf32"] * has_tf32(), *["bfloat16"] * bool(narrow), *["float16"] * gpu]


def described(config):
    """What measures and what is measured, in words."""
    network = config.network
    return f"{device_name()}, TensorFlow {tf.__version__}, filters {network.filters}, depth {network.depth}"


def arithmetic(config):
    """The precision of the kernels: TensorFlow takes TF32 for float32 where there is some, unless it is to be deterministic."""
    precision, training = config.network.precision, config.training
    switched_on = not training.deterministic and tf.config.experimental.tensor_float_32_execution_enabled()
    return "tf32" if precision == "float32" and switched_on and has_tf32() else precision


def processor():
    return found_in("/proc/cpuinfo", r"model name\s*: (.*)") or platform.processor() or platform.machine()


def environment():
    """What the figures depend on besides the code."""
    gpus = tf.config.list_physical_devices("GPU")
    build = tf.sysconfig.get_build_info()
    return {
        "device": device_name(),
        "gpu": [tf.config.experimental.get_device_details(gpu) for gpu in gpus],
        "driver": found_in("/proc/driver/nvidia/version", r"Kernel Module\D*([\d.]+)"),
        **dict(cuda=build.get("cuda_version"), cudnn=build.get("cudnn_version")),
        **dict(cpu=processor(), system=platform.platform(), python=platform.python_version()),
        "packages": {name: version(name) for name in ("tensorflow", "keras", "tf-keras", "numpy")},
        "threads": {
            "inter_op": tf.config.threading.get_inter_op_parallelism_threads(),
            "intra_op": tf.config.threading.get_intra_op_parallelism_threads(),
        },
        "variables": recorded(),
        "date": time.strftime("%Y-%m-%d"),
        "load_before": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }


def print_environment(old, new):
    """What differs between two `environment`s."""
    for name, value in new.items():
        before = old.get(name)
        if before != value and name not in ("load_before", "date"):
            print(f"{name} was {json.dumps(before)}, is {json.dumps(value)}")
