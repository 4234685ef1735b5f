"""A model to be asked: its tensors, tokenizer, chat template.

It comes from a model folder or from a stage of a run. Weights are read when
they are asked for, in the form that is asked for.
"""

import dataclasses
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from longctx_jax.config import (
  ConfigError,
  MeshConfig,
  ModelConfig,
  RopeConfig,
)
from longctx_jax.data.chat import Chat
from longctx_jax.data.chat_templates import TEMPLATES
from longctx_jax.data.jinja_chat import (
  JinjaChat,
  jinja_source,
  read_jinja_chat,
)
from longctx_jax.data.tokenizer import Tokenizer, TokenizerError
from longctx_jax.data.tokenizer_files import load_tokenizer
from longctx_jax.evals.predict import Predictor
from longctx_jax.generate import Generator
from longctx_jax.ops.rope import SCALINGS
from longctx_jax.weights.checkpoint_tensors import CheckpointTensors
from longctx_jax.weights.model_folder import (
  TensorSource,
  load_layers,
  load_params,
  open_model_folder,
  read_json_object,
)
from longctx_jax.weights.typed_fields import Fields
from longctx_jax.workdir import corpus_directory, read_stages

_logger = logging.getLogger(__name__)


class LoadedModel(NamedTuple):
  """A model, and all that it takes to talk to it."""

  name: str
  model: ModelConfig
  rope: RopeConfig
  tensors: TensorSource
  tokenizer: Tokenizer
  # None: a base model, which continues texts.
  chat: JinjaChat | None
  # What every text begins with: ids, often none.
  begin: np.ndarray
  # Tokens that end what it writes.
  eos_ids: tuple[int, ...]
  # The longest text it was made for, RoPE scaling counted.
  max_len: int
  # The run's stage that it comes from; '' of a model folder.
  stage: str = ''

  def prompt(
    self, messages: Sequence[tuple[str, str]], *, chat: bool = True
  ) -> np.ndarray:
    """Ids of (role, text) messages by the chat template.

    Without one, of the texts alone, after what every text begins with.
    """
    if chat and self.chat is not None:
      fields = ('role', 'content')
      return self.chat.prompt(
        [dict(zip(fields, message, strict=True)) for message in messages]
      )
    text = ''.join(text for _, text in messages)
    return np.concatenate([self.begin, self.tokenizer.encode(text)])

  def generator(self, mesh: Mesh, **how: Any) -> Generator:
    """What continues prompts on `mesh`; more arguments are Generator's."""
    return Generator(
      self.model,
      self.rope,
      load_layers(self.model, self.tensors, mesh),
      mesh,
      tokenizer=self.tokenizer,
      **how,
    )

  def predictor(
    self, mesh: Mesh, *, split: MeshConfig, batch_tokens: int
  ) -> Predictor:
    """What tells the losses of texts on `mesh`."""
    return Predictor(
      self.model,
      self.rope,
      load_params(self.model, self.tensors, mesh),
      mesh,
      split=split,
      batch_tokens=batch_tokens,
    )


def load_model(
  source: str,
  *,
  stage: str = '',
  compute_dtype: str = 'float32',
  rope: dict[str, Any] | None = None,
) -> LoadedModel:
  """Opens a model folder, or a stage of a workdir ('': the last finished).

  Args:
    source: the directory.
    stage: of a workdir.
    compute_dtype: of products; parameters are kept in it too.
    rope: fields of RopeConfig to set, without any training: see what a scaling
      alone does.

  Raises:
    WeightsError, CheckpointError, TokenizerError: what is there is damaged.
    ConfigError: fields of RoPE that do not go together, or no such stage.
  """
  path = Path(source)
  if not (path / 'config.json').is_file():
    raise ConfigError(
      f'{source} is neither a model folder nor a workdir: it has no config.json'
    )
  opened = _open_run if _is_run(path) else _open_folder
  model, old_rope, max_len, tensors, others = opened(path, stage)
  model = dataclasses.replace(
    model,
    param_dtype=compute_dtype,
    compute_dtype=compute_dtype,
    remat='none',
    attention='blockwise',
    attention_kernel='auto',
  )
  new_rope = scale_rope(old_rope, rope or {}, max_len)
  if new_rope != old_rope:
    max_len = round(max_len * new_rope.factor / old_rope.factor)
    _logger.info('RoPE, untrained: %s', new_rope)
  trained = '' if opened is _open_folder else tensors.stage.name
  return LoadedModel(
    str(path), model, new_rope, tensors, *others, max_len, trained
  )


def scale_rope(
  rope: RopeConfig, changes: dict[str, Any], max_len: int
) -> RopeConfig:
  """`rope` with some fields changed; `original_len` is the trained length.

  Raises:
    ConfigError: a scaling that does not go with its factor, or with what the
      model was trained with.
  """
  if not changes:
    return rope
  scaling = changes.get('scaling', rope.scaling)
  if scaling not in SCALINGS:
    raise ConfigError(f'--rope.scaling={scaling}: can be {", ".join(SCALINGS)}')
  if rope.scaling not in ('none', scaling):
    raise ConfigError(
      f'--rope.scaling={scaling}: the model was trained with a scaling of its'
      f' own, {rope.scaling} with factor {rope.factor}, which stays: change'
      f' --rope.factor or --rope.base, or give --rope.scaling={rope.scaling}'
    )
  if scaling == 'none' and changes.get('factor', 1.0) != 1.0:
    raise ConfigError(
      f'--rope.factor={changes["factor"]} needs --rope.scaling: linear, ntk,'
      ' yarn or llama3'
    )
  if scaling not in ('none', rope.scaling) and changes.get('factor', 1) == 1:
    raise ConfigError(
      f'--rope.scaling={scaling} needs --rope.factor, how many times longer'
      ' texts become'
    )
  if scaling in ('yarn', 'llama3') and not rope.original_len:
    changes = {'original_len': max_len, **changes}
  try:
    return dataclasses.replace(rope, **changes)
  except ConfigError as error:
    raise ConfigError(f'--rope.{error}') from None


def _is_run(path: Path) -> bool:
  return 'stages' in read_json_object(path / 'config.json')


def _open_folder(path, stage):
  if stage:
    raise ConfigError(f'--stage={stage}: {path} is a model, and has no stages')
  opened = open_model_folder(path)
  model, rope, max_len, eos_ids = opened.architecture
  tokenizer = opened.tokenizer()
  begin = [tokenizer.bos_id] if _begins(path, tokenizer) else []
  others = (
    tokenizer,
    _read_chat(path, tokenizer),
    np.array(begin, np.int32),
    eos_ids,
  )
  return model, rope, max_len, opened.tensors, others


def _begins(path, tokenizer) -> bool:
  """Whether transformers' tokenizer puts a begin before every text."""
  if tokenizer.bos_id is None:
    return False
  fields = _tokenizer_fields(path)
  if (asked := fields.flag('add_bos_token', None)) is not None:
    return asked
  # Llama's tokenizer does unless told otherwise; of the others, those whose
  # tokenizer.json has a template that begins with it.
  if fields.text('tokenizer_class', '').startswith('Llama'):
    return True
  model = path / 'tokenizer.json'
  if not model.is_file():
    return False
  processor = read_json_object(model).get('post_processor')
  begin = fields.values.get('bos_token')
  return begin is not None and json.dumps(
    begin if isinstance(begin, str) else begin['content']
  ) in json.dumps(processor)


def _tokenizer_fields(path) -> Fields:
  config = path / 'tokenizer_config.json'
  fields = read_json_object(config) if config.is_file() else {}
  return Fields(fields, str(config))


def _read_chat(path, tokenizer) -> JinjaChat | None:
  fields = _tokenizer_fields(path)
  if isinstance(fields.values.get('chat_template'), list):
    for entry in fields.list_of('chat_template', dict):
      named = Fields(entry, fields.where, 'chat_template.')
      named.text('name')
      named.text('template')
  else:
    fields.text('chat_template', '')
  try:
    return read_jinja_chat(path, tokenizer)
  except (TokenizerError, UnicodeDecodeError) as error:
    own = path / 'chat_template.jinja'
    where = own if own.is_file() else fields.where
    raise TokenizerError(f'{where}: {error}') from error


def _open_run(path, stage):
  config = read_stages(path)[0].corpus
  template = TEMPLATES[config.chat_template]
  corpus = corpus_directory(path, config)
  tokenizer = load_tokenizer(corpus, control=template.control)
  tensors = CheckpointTensors(path, stage, tokenizer.fingerprint)
  symbols = {tokenizer.control_id(n): n for n in tokenizer.control_symbols()}
  names = {
    f'{name}_token': symbols[i]
    for name in ('bos', 'eos')
    if (i := getattr(tokenizer, f'{name}_id')) is not None
  }
  chat = JinjaChat(jinja_source(template), tokenizer, names)
  begin = [tokenizer.bos_id] if config.bos == 'document' else []
  trained = tensors.stage
  others = (
    tokenizer,
    chat,
    np.array(begin, np.int32),
    Chat(tokenizer, template).ends,
  )
  return trained.model, trained.rope, tensors.max_len, tensors, others
