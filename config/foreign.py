"""Files that may be anybody's: read as data, in memory that they cannot choose."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from config.schema import GPTConfig

JSON_BYTES = 1 << 24  # a run's record with hundreds of resumes stays far below
_EXCESS = 8  # times the weights that are there: a slip of a layer is named tensor by tensor, a bomb is not built


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file that may be anybody's. Raises ValueError that names the file."""
    try:
        if path.stat().st_size > JSON_BYTES:
            raise ValueError(f"{path} is {path.stat().st_size:,} bytes, above {JSON_BYTES:,}; no file of ours is")
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist; give the folder of a run or of a checkpoint") from None
    except (OSError, RecursionError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds no object")
    return values


def read_tensors(path: Path, config: GPTConfig) -> dict[str, Tensor]:
    """The tensors of a safetensors file, for a model of this config; one that would be far larger is refused unbuilt.

    Raises ValueError. Whether each tensor fits is the model's to say, when it loads them.
    """
    state = load_safetensors(path)
    check_size(state.values(), config, path)
    return state


def load_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises ValueError."""
    try:
        state: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError, MemoryError) as error:
        raise ValueError(f"{path} is not whole ({error}); use another one") from None
    return state


def check_size(tensors: Iterable[Tensor], config: GPTConfig, path: Path) -> None:
    """Raises ValueError where a model of this config is far larger than the numbers stored in `path`."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() // tensor.itemsize for tensor in tensors}
    held, asked = sum(storages.values()), config.matrix_parameters  # storages: an expanded view holds one number
    if asked > _EXCESS * held:
        raise ValueError(f"{path} holds {held:,} numbers, its config.json asks for {asked:,}; use another one")
