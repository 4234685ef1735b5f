"""The weights of a finished stage, under Hugging Face's names."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from longctx_jax.checkpoint import newest_meta
from longctx_jax.config import StageConfig
from longctx_jax.saved_arrays import SavedArray
from longctx_jax.weights.hf_config import read_architecture
from longctx_jax.weights.model_folder import read_json_object
from longctx_jax.weights.start import is_model_folder
from longctx_jax.weights.tensor_table import (
  Entry,
  WeightsError,
  axis_sizes,
  entries,
  tensor_names,
  tensor_shapes,
  to_theirs,
)
from longctx_jax.workdir import read_stages, stage_directory, stage_number


class CheckpointTensors:
  """Reads one layer of one of our arrays at a time, once it has seen them all.

  Where an array's layers were saved as one chunk it holds the array: ask for
  its layers one after the other.

  Attributes:
    stage: the config of the stage.
    max_len: the longest texts that its weights are made for: rows that they
      were trained on, or what the model was made for that they come from.

  Raises:
    ConfigError: no such stage.
  """

  def __init__(self, workdir: Path, name: str, tokenizer_fingerprint: str):
    stages = read_stages(workdir)
    number = stage_number(stages, name, workdir)
    self.stage = stages[number]
    trained = stages[: number + 1]
    self.max_len = max(_base_len(trained), *(s.data.seq_len for s in trained))
    self._directory = (
      stage_directory(workdir, number, self.stage.name) / 'checkpoints'
    )
    self.where = str(self._directory)
    self._fingerprint = tokenizer_fingerprint
    model = self.stage.model
    self.shapes = tensor_shapes(model)
    dtype = np.dtype(jax.numpy.dtype(model.param_dtype))
    self.dtypes = dict.fromkeys(self.shapes, dtype)
    self._places = {
      name: (entry, layer)
      for entry in entries(model)
      for layer, name in enumerate(tensor_names(entry, model))
    }
    self._arrays: dict[Entry, SavedArray] = {}
    self._last = None, None

  def read(self, name: str, index: Sequence[slice] = ()) -> np.ndarray:
    """A tensor, or what `index` cuts out of it."""
    entry, layer = self._places[name]
    if entry not in self._arrays:
      self._arrays[entry] = self._open(entry)
    array = self._arrays[entry]
    k = layer // array.block_len
    if self._last[0] != (entry, k):
      self._last = None, None  # makes room
      self._last = (entry, k), array.block(k)
    x = self._last[1]
    if entry.in_layers:
      x = x[layer % array.block_len]
    x = to_theirs(x, entry)[tuple(index)]
    return x.astype(self.dtypes[name], copy=False)

  def _open(self, entry) -> SavedArray:
    model = self.stage.model
    sizes = axis_sizes(model)
    shape = tuple(sizes[a] for a in entry.ours)
    return SavedArray(
      *self._newest,
      ('params', *entry.path.split('.')),
      (model.num_layers, *shape) if entry.in_layers else shape,
      in_layers=entry.in_layers,
    )

  @functools.cached_property
  def _newest(self):
    return newest_meta(self._directory, tokenizer_fingerprint=self._fingerprint)


def _base_len(stages: Sequence[StageConfig]) -> int:
  """The length of the pretrained model behind the last stage; 0: not known.

  Known only where RoPE still tells its positions apart: of its own scaling, on
  its own base or a larger one.
  """
  path, rope = stages[0].train.init_from, stages[-1].rope
  if not is_model_folder(path) or any(
    stage.train.carry_over == 'none' for stage in stages
  ):
    return 0
  config = Path(path) / 'config.json'
  try:
    base = read_architecture(read_json_object(config), str(config))
  except WeightsError:  # what a run says of itself does not depend on it
    return 0
  if rope.base < base.rope.base:
    return 0
  if rope.scaling == 'ntk':  # is a larger base
    rope = dataclasses.replace(rope, scaling='none', factor=1.0)
  on_its_base = dataclasses.replace(rope, base=base.rope.base)
  return base.max_len if on_its_base == base.rope else 0
