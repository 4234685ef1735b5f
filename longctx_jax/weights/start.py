"""A stage that starts from a pretrained model instead of a stage before it."""

import logging
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from longctx_jax.config import ConfigError, ModelConfig, StageConfig
from longctx_jax.data.tokenizer import Tokenizer
from longctx_jax.weights.model_folder import (
  ModelFolder,
  load_params,
  open_model_folder,
)

_logger = logging.getLogger(__name__)

# What the weights decide; how it is computed is the stage's choice.
_GIVEN = (
  *('vocab_size', 'embed_dim', 'num_layers', 'num_heads', 'num_kv_heads'),
  *('head_dim', 'hidden_dim', 'tie_embeddings', 'norm_eps', 'qkv_bias'),
)
# Letters, digits, spaces and other alphabets: where tokenizers differ.
_PROBE = (
  'The 27 quick-brown foxes\n\n\tjumped over 3,141.59 dogs; na\u00efve'
  ' caf\u00e9s. def f(x):\n    return x**2  # \u4f60\u597d'
)


def is_model_folder(path: str) -> bool:
  """Whether `train.init_from` names a model folder, not checkpoints."""
  return (Path(path) / 'config.json').is_file()


def open_for(stage: StageConfig) -> ModelFolder:
  """The model folder that the stage starts from.

  Raises:
    ConfigError: it is another model than the stage's; names the field.
    WeightsError: a file is missing or damaged.
  """
  path = stage.train.init_from
  if stage.train.carry_over != 'weights':
    raise ConfigError(
      f'{stage.name}: train.init_from={path} is a pretrained model, which has'
      ' weights alone: set train.carry_over=weights'
    )
  opened = open_model_folder(Path(path))
  _check_same_model(stage.model, opened.architecture.model, path)
  return opened


def start_params(
  stage: StageConfig, tokenizer: Tokenizer, mesh: Mesh
) -> dict[str, Any]:
  """The parameters of the folder `train.init_from`, on the mesh.

  Of a model with more layers than the stage's, the first ones.

  Raises:
    ConfigError: it is another model, or goes with another tokenizer.
  """
  opened = open_for(stage)
  expected = opened.tokenizer().encode(_PROBE).tolist()
  if tokenizer.encode(_PROBE).tolist() != expected:
    raise ConfigError(
      f'{stage.name}: the corpus was made with another tokenizer than that of'
      f' {stage.train.init_from}: set corpus.tokenizer_path to that folder'
    )
  there = opened.architecture.model.num_layers
  if stage.model.num_layers < there:
    _logger.warning(
      '%s: takes the first %d of the %d layers of %s',
      stage.name,
      stage.model.num_layers,
      there,
      stage.train.init_from,
    )
  return load_params(stage.model, opened.tensors, mesh)


def _check_same_model(ours: ModelConfig, theirs: ModelConfig, path: str):
  for name in _GIVEN:
    wanted, there = getattr(ours, name), getattr(theirs, name)
    if wanted != there and not (name == 'num_layers' and wanted < there):
      raise ConfigError(f'model.{name}={wanted}, but {path} has {there}')
