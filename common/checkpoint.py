"""Training on disk: one safetensors file for all three implementations, by canonical name. Nothing is pickled.

    down0/conv1/kernel       a weight or moving statistic, as `common.weights.weight_shapes` names them
    down0/conv1/kernel/m     the optimizer's moments of that weight: "m", and with Adam "v"
    iterations               the steps that the optimizer has made
    loss_scale, finite_steps    in float16: of its losses, and the steps since it last changed

The file's metadata holds the configuration and the progress, each as JSON. Any implementation goes on from any other's.
"""

import json
import os
import reprlib
from pathlib import Path

from common.config import IMPLEMENTATIONS, Config, UserError
from common.layers import table
from common.output import replacing
from common.text import printable
from common.weights import weight_shapes, with_dropout

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

OF_STEPS = ("iterations", "loss_scale", "finite_steps")  # the optimizer's state but for its moments
COLUMNS = (  # of history.csv, and of the rows in metadata
    *("epoch", "step", "loss", "val_loss", "val_dice", "val_iou", "val_mean_iou", "val_accuracy"),
    *("learning_rate", "images_per_second", "seconds"),
)


def _are_numbers(values):
    return all(type(value) in (int, float) for value in values)


METADATA = {  # key -> whether a value is of its kind
    "implementation": lambda value: isinstance(value, str),
    "config": lambda value: isinstance(value, dict),
    **dict.fromkeys(("step", "epoch"), lambda value: type(value) is int and 0 <= value < 2**63),
    "losses": lambda value: isinstance(value, list) and _are_numbers(value),
    "rows": lambda value: (
        isinstance(value, list)
        and all(isinstance(row, dict) and row.keys() == set(COLUMNS) and _are_numbers(row.values()) for row in value)
    ),
}


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


def _read(path, with_tensors):
    """-> (metadata, each value of the kind in `METADATA`; name -> array). Raises: UserError that names the file."""
    if os.path.exists(path) and not os.path.isfile(path):  # a pipe would be waited for without end
        raise UserError(f"{path} is no file: name best.safetensors of a run")
    try:
        with safe_open(os.fspath(path), framework="numpy") as file:
            metadata = {key: json.loads(value) for key, value in (file.metadata() or {}).items()}
            values = {name: file.get_tensor(name) for name in file.keys()} if with_tensors else {}
    except (OSError, SafetensorError, TypeError, ValueError, AttributeError, RecursionError) as error:
        reason = printable(error.strerror if isinstance(error, OSError) and error.strerror else error)
        raise UserError(f"{path} is no readable checkpoint ({reason}): train again, or take another file") from None
    for key, value in metadata.items():
        if key in METADATA and not METADATA[key](value):
            raise UserError(f"{path} holds {reprlib.repr(value)[:100]} for {key!r}: it is damaged, take another file")
    return metadata, values


def load_metadata(path):
    """key -> value of a checkpoint, without its tensors. Raises: UserError that names the file when it is damaged."""
    return _read(path, with_tensors=False)[0]


def load_checkpoint(path, network=None):
    """-> (weights, state, metadata): name -> array, name -> array, key -> value.

    Raises: UserError that names the file when it is missing, damaged, or not of the network that `network` describes.
    """
    metadata, values = _read(path, with_tensors=True)
    state = {name: values.pop(name) for name in list(values) if name in OF_STEPS or name.endswith(("/m", "/v"))}
    if network is not None:
        values = with_dropout(values, network)
        found = {(name, value.shape) for name, value in values.items()}
        expected = set(weight_shapes(network).items())
        if found != expected:
            name, shape = min(found ^ expected)
            where = "only in the file" if (name, shape) in found else "missing there"
            raise UserError(
                f"{path} holds another network: {printable(name)} {list(shape)} is {where}; use the options of its training"
            )
    for name, value in {**values, **state}.items():
        kinds = "i" if name in ("iterations", "finite_steps", "dropout/state") else "f"
        of = values.get(name.rpartition("/")[0]) if name in state else None  # what it is the moment of
        if value.dtype.kind not in kinds or name in OF_STEPS and value.shape or of is not None and of.shape != value.shape:
            raise UserError(
                f"{path} holds {value.dtype} {list(value.shape)} for {printable(name)}: it is damaged, take another"
            )
    return values, state, metadata


def read_checkpoint(path):
    """-> (config, weights by name, the implementation that trained).

    Raises: UserError for a file that is missing, damaged, or not of this version of the project, and for
    weights that are not finite, whose predictions would be nonsense.
    """
    metadata = load_metadata(path)
    if "config" not in metadata or metadata.get("implementation") not in IMPLEMENTATIONS:  # which will be imported
        raise UserError(f"{path} was not written by a train script of this project: train, or take another file")
    try:
        config = Config.from_dict(metadata["config"])
        table(config.network)  # while the channels are not known there is none
    except UserError as error:
        raise UserError(f"{path} is of another version of the project ({error}): train again, or use that version") from None
    weights = load_checkpoint(path, config.network)[0]
    for name, value in weights.items():
        if not np.isfinite(value).all() or name.endswith("/moving_variance") and (value < 0).any():
            raise UserError(f"{path} is of no use: {name} is not finite, or a negative variance; train again")
    return config, weights, metadata["implementation"]
