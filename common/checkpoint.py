"""Weights on disk: one safetensors file for all three implementations, by canonical name. Nothing is pickled."""

import json
import os
from pathlib import Path

from common.config import UserError

from safetensors import SafetensorError, safe_open
from safetensors.numpy import save


def save_weights(path, variables, **metadata):
    """Writes `variables` (canonical name -> variable) and `metadata` (anything JSON takes) to `path`, atomically.

    Whoever reads `path` finds the old file or the new one, never half of one, whenever this process dies.
    """
    path = Path(path)
    tensors = {name: variable.numpy() for name, variable in variables.items()}
    temporary = path.with_name(path.name + f".{os.getpid()}.part")
    with open(temporary, "wb") as file:
        file.write(save(tensors, {key: json.dumps(value) for key, value in metadata.items()}))
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def load_weights(path):
    """-> (canonical name -> array, metadata).

    Raises: UserError that names the file when it is missing or damaged.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = {key: json.loads(value) for key, value in (file.metadata() or {}).items()}
            return {name: file.get_tensor(name) for name in file.keys()}, metadata
    except (OSError, SafetensorError, json.JSONDecodeError) as error:
        raise UserError(f"{path} is no readable checkpoint ({error}): train again, or take another file") from None
