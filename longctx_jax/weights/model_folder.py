"""A model in a folder: config.json, safetensors, a tokenizer.

Hugging Face's layout is the only one there is for pretrained weights here:
`longctx convert` makes such folders, transformers opens them, and parameters
are read from one straight onto the mesh, each device its own part.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from longctx_jax.config import ModelConfig
from longctx_jax.data.tokenizer import Tokenizer
from longctx_jax.data.tokenizer_files import load_tokenizer
from longctx_jax.sharding import PARAM_SPECS
from longctx_jax.weights.hf_config import Architecture, read_architecture
from longctx_jax.weights.safetensors_files import SafetensorsFolder
from longctx_jax.weights.tensor_table import (
  Entry,
  WeightsError,
  axis_sizes,
  check_tensors,
  entries,
  slices_of_theirs,
  to_ours,
)
from longctx_jax.weights.typed_fields import Fields

_EMBEDDING, _HEAD = 'model.embed_tokens.weight', 'lm_head.weight'
_ROWS = 4096  # ours: so many are compared at a time


class TensorSource(Protocol):
  """Tensors under Hugging Face's names, read one at a time."""

  where: str  # for messages
  shapes: dict[str, tuple[int, ...]]
  dtypes: dict[str, np.dtype]

  def read(self, name: str, index: tuple[slice, ...] = ()) -> np.ndarray:
    """A tensor, or what `index` cuts out of it."""


class ModelFolder(NamedTuple):
  """A pretrained model, opened; its tensors are not read yet."""

  path: Path
  architecture: Architecture
  tensors: TensorSource

  def tokenizer(self) -> Tokenizer:
    """The tokenizer beside the weights.

    Raises:
      WeightsError: it has more tokens than the model.
      TokenizerError: there is none, or a damaged one.
    """
    tokenizer = load_tokenizer(self.path)
    check_vocabulary(tokenizer, self.architecture.model, str(self.path))
    return tokenizer


def open_model_folder(
  folder: Path, *, param_dtype: str = 'float32', compute_dtype: str = 'float32'
) -> ModelFolder:
  """Looks at all there is; reads no weights but those it compares.

  Raises:
    WeightsError: a file is missing, damaged, or does not suit the others.
  """
  config = read_json_object(folder / 'config.json')
  architecture = read_architecture(
    config,
    str(folder / 'config.json'),
    param_dtype=param_dtype,
    compute_dtype=compute_dtype,
  )
  generation = folder / 'generation_config.json'
  if generation.is_file():
    fields = Fields(read_json_object(generation), str(generation))
    ids = (*architecture.eos_ids, *fields.ids('eos_token_id'))
    architecture = architecture._replace(eos_ids=tuple(dict.fromkeys(ids)))
  vocab_size = architecture.model.vocab_size
  if absent := [i for i in architecture.eos_ids if i >= vocab_size]:
    raise WeightsError(
      f'{folder}: eos_token_id is {absent[0]} in config.json or'
      f' generation_config.json, and the model has the tokens 0 to'
      f' {vocab_size - 1}'
    )
  tensors = SafetensorsFolder(folder)
  check_tensors(tensors.shapes, architecture.model, str(folder))
  if architecture.model.tie_embeddings and _HEAD in tensors.shapes:
    _check_unembedding(tensors)
  return ModelFolder(folder, architecture, tensors)


def _check_unembedding(tensors):
  """A tied model may hold its embedding again, and nothing else as that.

  transformers leaves both as they are where they differ, whatever config.json
  says.
  """
  shape = tensors.shapes[_EMBEDDING]
  same = tensors.shapes[_HEAD] == shape
  for start in range(0, shape[0], _ROWS):
    rows = (slice(start, min(start + _ROWS, shape[0])),)
    same = same and np.array_equal(
      tensors.read(_HEAD, rows), tensors.read(_EMBEDDING, rows)
    )
  if not same:
    raise WeightsError(
      f'{tensors.where}: {_HEAD} is not {_EMBEDDING}, as tie_word_embeddings'
      ' of config.json says: set it to false there'
    )


def read_json_object(path: Path) -> dict[str, Any]:
  """A JSON file that holds an object; WeightsError if it doesn't."""
  try:
    fields = json.loads(path.read_text('utf-8'))
  except (OSError, ValueError, RecursionError) as error:
    raise WeightsError(f'cannot read {path}: {error}') from error
  if not isinstance(fields, dict):
    raise WeightsError(f'{path} is no JSON object')
  return fields


def check_vocabulary(
  tokenizer: Tokenizer, model: ModelConfig, where: str
) -> None:
  """Raises WeightsError if a token has no row in the embedding."""
  if tokenizer.vocab_size > model.vocab_size:
    raise WeightsError(
      f'{where}: the tokenizer has {tokenizer.vocab_size:,} tokens, the model'
      f' {model.vocab_size:,}: they do not belong together'
    )


def load_params(
  model: ModelConfig, tensors: TensorSource, mesh: Mesh
) -> dict[str, Any]:
  """The parameters on the mesh, in `model.param_dtype`.

  One of our arrays is read at a time, by each device the part it keeps, so that
  no more than one array beside the parameters is ever in memory.
  """
  return _tree(
    (entry.path, _load_one(entry, model, tensors, mesh, None))
    for entry in entries(model)
  )


def load_layers(
  model: ModelConfig, tensors: TensorSource, mesh: Mesh
) -> dict[str, Any]:
  """The same, layer by layer under `layers`, as `cached_model` takes them.

  Without the copy that taking stacked parameters apart would be.
  """
  found = entries(model)
  whole = [entry for entry in found if not entry.in_layers]
  params = _tree(
    (e.path, _load_one(e, model, tensors, mesh, None)) for e in whole
  )
  params['layers'] = tuple(
    _tree(
      (
        entry.path.removeprefix('blocks.'),
        _load_one(entry, model, tensors, mesh, layer),
      )
      for entry in found
      if entry.in_layers
    )
    for layer in range(model.num_layers)
  )
  return params


def _tree(leaves: Iterable[tuple[str, jax.Array]]) -> dict[str, Any]:
  """{'a.b': x} as {'a': {'b': x}}."""
  tree: dict[str, Any] = {}
  for path, leaf in leaves:
    *above, name = path.split('.')
    node = tree
    for key in above:
      node = node.setdefault(key, {})
    node[name] = leaf
  return tree


def _load_one(entry: Entry, model, tensors, mesh, layer) -> jax.Array:
  """One parameter: of one layer, or with the layers' axis if it has one."""
  sizes, dtype = axis_sizes(model), jnp.dtype(model.param_dtype)
  spec = PARAM_SPECS.get(entry.path.split('.')[-1], jax.P())
  shape = tuple(sizes[a] for a in entry.ours)

  def read(layer, index) -> np.ndarray:
    theirs, part_sizes = slices_of_theirs(index, entry, sizes)
    x = tensors.read(entry.name.format(layer=layer), theirs)
    return to_ours(x, entry, part_sizes).astype(dtype, copy=False)

  if entry.in_layers and layer is None:
    shape = (model.num_layers, *shape)
    x = _load_stacked(shape, dtype, NamedSharding(mesh, spec), read)
  else:
    if entry.in_layers:
      spec = jax.P(*spec[1:])
    x = jax.make_array_from_callback(
      shape,
      NamedSharding(mesh, spec),
      lambda index: np.ascontiguousarray(read(layer, index)),
    )
  return x.block_until_ready()  # else the next is read while this is copied


def _load_stacked(shape, dtype, sharding, read) -> jax.Array:
  """An array of all layers, of each the parts of all devices together.

  A source may have to read the whole layer for a part of it, and holds only
  the last one.
  """

  def key(index):
    return tuple(
      cut.indices(size) for cut, size in zip(index, shape, strict=True)
    )

  indices = {
    key(index): index
    for index in sharding.addressable_devices_indices_map(shape).values()
  }
  part_shape = sharding.shard_shape(shape)
  parts = {k: np.empty(part_shape, dtype) for k in indices}
  for layer in range(shape[0]):
    for k, index in indices.items():
      parts[k][layer] = read(layer, index[1:])
  return jax.make_array_from_callback(
    shape, sharding, lambda index: parts[key(index)]
  )
