"""Folders of safetensors, read and written one tensor at a time.

model.safetensors                   all of a small model; or
model-00001-of-00004.safetensors    parts, and which tensor is in which:
model.safetensors.index.json        {"weight_map": {name: file}}
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from longctx_jax.weights.tensor_table import WeightsError

_INDEX = 'model.safetensors.index.json'
_SINGLE = 'model.safetensors'
_DTYPES = {
  'F32': np.dtype(np.float32),
  'F16': np.dtype(np.float16),
  'BF16': np.dtype(ml_dtypes.bfloat16),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
# ours: Hugging Face's own limit, so that a part fits into any upload.
MAX_PART_BYTES = 5_000_000_000


class SafetensorsFolder:
  """The tensors of a folder; `shapes` and `dtypes` are by name.

  Raises:
    WeightsError: no such files, a damaged one, or an index that is wrong.
  """

  def __init__(self, folder: Path):
    self.where = str(folder)
    self._files = {}
    self.shapes: dict[str, tuple[int, ...]] = {}
    self.dtypes: dict[str, np.dtype] = {}
    parts, index = _parts(folder)
    for path in parts:
      self._open(path)
    for name, file in index.items():
      if name not in self._files or self._files[name][0] != folder / file:
        raise WeightsError(
          f'{folder / _INDEX}: the tensor {name} is not in {file}, where it'
          ' should be'
        )

  def _open(self, path):
    try:
      # Read, not mapped: mapped pages count as memory that the process uses.
      file = safe_open(path, framework='np', backend='pread')
      names = file.keys()
      slices = {name: file.get_slice(name) for name in names}
    except (SafetensorError, OSError, ValueError) as error:
      raise WeightsError(
        f'{path}: not a whole safetensors file: {error}'
      ) from (error)
    for name, tensor in slices.items():
      if name in self._files:
        raise WeightsError(
          f'{path}: the tensor {name} is in {self._files[name][0].name} too'
        )
      if tensor.get_dtype() not in _DTYPES:
        raise WeightsError(
          f'{path}: {name} is of type {tensor.get_dtype()}, and can be'
          f' {", ".join(_DTYPES)}'
        )
      self._files[name] = path, tensor
      self.shapes[name] = tuple(tensor.get_shape())
      self.dtypes[name] = _DTYPES[tensor.get_dtype()]

  def read(self, name: str, index: Sequence[slice] = ()) -> np.ndarray:
    """A tensor, or what `index` cuts out of it."""
    path, tensor = self._files[name]
    try:
      return tensor[tuple(index) or (slice(None),)]
    except (SafetensorError, OSError) as error:
      raise WeightsError(f'{path}: cannot read {name}: {error}') from error


def _parts(folder: Path) -> tuple[list[Path], dict[str, str]]:
  """The files of a folder, and the index if it has one."""
  if (folder / _INDEX).is_file():
    index = _read_index(folder / _INDEX)
    files = sorted(set(index.values()))
    for file in files:
      # An index may name any path; what lies outside is not this model's.
      if Path(file).name != file:
        raise WeightsError(
          f'{folder / _INDEX} names {_shortened(file)}, outside its folder'
        )
      if not _is_file(folder / file):
        raise WeightsError(
          f'{folder / _INDEX} names {_shortened(file)}, which is missing'
        )
    return [folder / file for file in files], index
  if (folder / _SINGLE).is_file():
    return [folder / _SINGLE], {}
  pickled = sorted(folder.glob('*.bin'))
  advice = (
    f': {pickled[0].name} would have to be unpickled, which can run any code;'
    ' have safetensors made of it where it comes from'
    if pickled
    else ''
  )
  raise WeightsError(f'{folder} holds no {_SINGLE} and no {_INDEX}{advice}')


def _is_file(path) -> bool:
  try:
    return path.is_file()
  except (OSError, ValueError):  # no file can have such a name
    return False


def _shortened(name) -> str:
  return name if len(name) <= 60 else f'{name[:57]}...'


def _read_index(path) -> dict[str, str]:
  try:
    index = json.loads(path.read_text('utf-8'))['weight_map']
    if not index or not all(isinstance(f, str) for f in index.values()):
      raise ValueError('weight_map names no files')
  except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
    raise WeightsError(f'{path}: not an index of safetensors: {error!r}') from (
      error
    )
  return index


def is_weights_file(name: str) -> bool:
  """Whether it is one of the files that hold the weights of a folder."""
  part = re.fullmatch(r'model-\d{5,}-of-\d{5,}\.safetensors', name)
  return name in (_INDEX, _SINGLE) or part is not None


class TensorSpec(NamedTuple):
  """A tensor that is to be written."""

  name: str
  shape: tuple[int, ...]
  dtype: np.dtype

  @property
  def nbytes(self) -> int:
    """Its size."""
    return int(np.prod(self.shape)) * self.dtype.itemsize


def write_safetensors(
  folder: Path,
  tensors: Iterable[TensorSpec],
  read: Callable[[str], np.ndarray],
  *,
  max_part_bytes: int = MAX_PART_BYTES,
) -> None:
  """Writes tensors in their order, each read when its turn comes.

  The library's own writer wants all tensors of a file in memory at once.
  """
  parts = _divide(list(tensors), max_part_bytes)
  if len(parts) == 1:
    _write_part(folder / _SINGLE, parts[0], read)
    return
  weight_map = {}
  for i, part in enumerate(parts):
    file = f'model-{i + 1:05}-of-{len(parts):05}.safetensors'
    _write_part(folder / file, part, read)
    weight_map |= {spec.name: file for spec in part}
  total = sum(spec.nbytes for part in parts for spec in part)
  index = {'metadata': {'total_size': total}, 'weight_map': weight_map}
  (folder / _INDEX).write_text(json.dumps(index, indent=2))


def _divide(specs, max_bytes) -> list[list[TensorSpec]]:
  parts, size = [[]], 0
  for spec in specs:
    if parts[-1] and size + spec.nbytes > max_bytes:
      parts.append([])
      size = 0
    parts[-1].append(spec)
    size += spec.nbytes
  return parts


def _write_part(path, specs, read):
  """The length of the header, the header, the tensors end to end."""
  header: Mapping[str, Any] = {'__metadata__': {'format': 'pt'}}
  start = 0
  for spec in specs:
    header[spec.name] = {
      'dtype': _NAMES[spec.dtype],
      'shape': spec.shape,
      'data_offsets': [start, start + spec.nbytes],
    }
    start += spec.nbytes
  encoded = json.dumps(header, separators=(',', ':')).encode()
  encoded += b' ' * (-len(encoded) % 8)  # tensors begin at multiples of 8
  with path.open('wb') as file:
    file.write(len(encoded).to_bytes(8, 'little') + encoded)
    for spec in specs:
      _write_tensor(file, spec, read(spec.name))


def _write_tensor(file, spec, x):
  # A function of its own, so that a tensor is gone when the next is read.
  if x.shape != spec.shape:
    raise ValueError(f'{spec.name}: {x.shape} instead of {spec.shape}')
  x = np.ascontiguousarray(x.astype(spec.dtype, copy=False))
  file.write(x.view(np.uint8).data)
