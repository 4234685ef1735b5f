"""Finished runs that nobody trained, for what reads their weights."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from longctx_jax.checkpoint import Checkpoints
from longctx_jax.config import ModelConfig, StageConfig
from longctx_jax.data.pipeline import DataState
from longctx_jax.data.tokenizer_files import load_tokenizer
from longctx_jax.weights.tensor_table import axis_sizes, entries
from longctx_jax.workdir import stage_directory


class Weights(NamedTuple):
  """A state without moments."""

  params: Any


def random_weights(model: ModelConfig) -> Weights:
  """Drawn by numpy: nothing is compiled for them."""
  rng, sizes, params = np.random.default_rng(0), axis_sizes(model), {}
  for entry in entries(model):
    shape = tuple(sizes[a] for a in entry.ours)
    if entry.in_layers:
      shape = (model.num_layers, *shape)
    *above, name = entry.path.split('.')
    node = params
    for key in above:
      node = node.setdefault(key, {})
    node[name] = jnp.asarray(rng.standard_normal(shape, np.float32))
  return Weights(params)


def write_run(
  run: Path, corpus_directory: Path, stage: StageConfig, weights: Weights
) -> Path:
  """The workdir of a run of one stage; its checkpoint's directory."""
  shutil.copytree(corpus_directory, run / 'corpus')
  fields = {'stages': [dataclasses.asdict(stage)]}
  (run / 'config.json').write_text(json.dumps(fields))
  directory = stage_directory(run, 0, stage.name)
  checkpoints = Checkpoints(directory / 'checkpoints', keep=1)
  checkpoints.save(
    weights,
    DataState(1, seed=0, fingerprint=''),
    config_json='{}',
    tokenizer_fingerprint=load_tokenizer(run / 'corpus').fingerprint,
    clock={'step': 0.0},
  )
  checkpoints.close()
  (directory / 'results.json').write_text('{}')
  return directory / 'checkpoints/1'


def nbytes(weights: Weights) -> int:
  """Of all arrays."""
  return sum(x.nbytes for x in jax.tree.leaves(weights))
