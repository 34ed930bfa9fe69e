"""Training on disk: one safetensors file for all three implementations, by canonical name. Nothing is pickled.

    down0/conv1/kernel       a weight or moving statistic, as `common.weights.weight_shapes` names them
    down0/conv1/kernel/m     the optimizer's moments of that weight: "m", and with Adam "v"
    iterations               the steps that the optimizer has made

The file's metadata holds the configuration and the progress, each as JSON. Any implementation goes on from any other's.
"""

import json
import os
from pathlib import Path

from common.config import UserError
from common.output import replacing
from common.weights import weight_shapes

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save


def save_checkpoint(path, weights, state, **metadata):
    """Writes `weights`, the optimizer's `state` (both: name -> variable) and `metadata` (what JSON takes), atomically.

    Whoever reads `path` finds the old file or the new one, never half of one, whenever this process dies.
    """
    path = Path(path)
    tensors = {name: np.asarray(variable.numpy()) for name, variable in {**weights, **state}.items()}
    try:
        with replacing(path) as part, open(part, "wb") as file:
            file.write(save(tensors, {key: json.dumps(value) for key, value in metadata.items()}))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; the file that was there before stays") from None


def load_metadata(path):
    """key -> value of a checkpoint, without its tensors. Raises: UserError that names the file when it is damaged."""
    try:
        with safe_open(path, framework="numpy") as file:
            return {key: json.loads(value) for key, value in (file.metadata() or {}).items()}
    except (OSError, SafetensorError, json.JSONDecodeError) as error:
        raise UserError(f"{path} is no readable checkpoint ({error}): train again, or take another file") from None


def load_checkpoint(path, network=None):
    """-> (weights, state, metadata): name -> array, name -> array, key -> value.

    Raises: UserError that names the file when it is missing, damaged, or not of the network that `network` describes.
    """
    metadata = load_metadata(path)
    with safe_open(path, framework="numpy") as file:
        values = {name: file.get_tensor(name) for name in file.keys()}
    state = {name: values.pop(name) for name in list(values) if name == "iterations" or name.endswith(("/m", "/v"))}
    if network is not None:
        found = {(name, value.shape) for name, value in values.items()}
        expected = set(weight_shapes(network).items())
        if found != expected:
            name, shape = min(found ^ expected)
            where = "only in the file" if (name, shape) in found else "missing there"
            raise UserError(f"{path} holds another network: {name} {list(shape)} is {where}; use the options of its training")
    return values, state, metadata
