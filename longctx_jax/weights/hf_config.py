"""A Hugging Face config.json to our model and RoPE, and back.

The file is read as JSON; code that lies beside it (Skywork's own classes) is
never run.
"""

import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

from longctx_jax.config import ConfigError, ModelConfig, RopeConfig
from longctx_jax.weights.tensor_table import WeightsError
from longctx_jax.weights.typed_fields import Fields

_logger = logging.getLogger(__name__)

# model_type -> whether queries, keys and values have a bias. Skywork-13B is
# Llama's model under its own name (ModelArch.llama in modelscope/ms-swift,
# LLaMAForCausalLM in NVIDIA/TensorRT-LLM).
FAMILIES = {'llama': False, 'mistral': False, 'qwen2': True, 'skywork': False}
DTYPES = ('float32', 'bfloat16', 'float16')

_SIZES = {
  'vocab_size': 'vocab_size',
  'embed_dim': 'hidden_size',
  'num_layers': 'num_hidden_layers',
  'num_heads': 'num_attention_heads',
  'hidden_dim': 'intermediate_size',
}
# Scaling -> between what it goes over from one kind of frequencies to another.
_RAMPS = {
  'yarn': ('beta_fast', 'beta_slow'),
  'llama3': ('low_freq_factor', 'high_freq_factor'),
}


class Architecture(NamedTuple):
  """What a config.json says of a model."""

  model: ModelConfig
  rope: RopeConfig
  # The longest text it was trained for, in tokens.
  max_len: int
  # Tokens that end what it writes.
  eos_ids: tuple[int, ...]


def read_architecture(
  fields: Mapping[str, Any],
  where: str,
  *,
  param_dtype: str = 'float32',
  compute_dtype: str = 'float32',
) -> Architecture:
  """What the fields of a config.json mean.

  Raises:
    WeightsError: a kind of model that is not ours; names the field.
  """
  there = Fields(fields, where)
  family = there.text('model_type')
  if family not in FAMILIES:
    raise WeightsError(
      f'{where}: model_type is {family!r}, and can be {", ".join(FAMILIES)}'
    )
  for name, value in (
    ('hidden_act', 'silu'),
    ('attention_bias', False),
    ('mlp_bias', False),
  ):
    if fields.get(name, value) != value:
      raise WeightsError(
        f'{where}: {name}={fields[name]!r} is not supported, only {value!r}'
      )
  sizes = {ours: there.whole(theirs) for ours, theirs in _SIZES.items()}
  num_heads = sizes['num_heads']
  try:
    model = ModelConfig(
      **sizes,
      num_kv_heads=there.whole('num_key_value_heads', num_heads),
      head_dim=there.whole('head_dim', sizes['embed_dim'] // num_heads),
      tie_embeddings=there.flag('tie_word_embeddings', False),
      norm_eps=there.number('rms_norm_eps', 1e-6),
      param_dtype=param_dtype,
      compute_dtype=compute_dtype,
      block_init_scale=1.0,
      remat='none',
      qkv_bias=FAMILIES[family],
    )
    rope = _read_rope(there)
  except ConfigError as error:
    raise WeightsError(f'{where}: {error}') from error
  return Architecture(
    model, rope, _max_len(there, family), there.ids('eos_token_id')
  )


def hf_config(
  model: ModelConfig,
  rope: RopeConfig,
  *,
  max_len: int,
  dtype: str,
  bos_id: int | None,
  eos_ids: tuple[int, ...],
) -> dict[str, Any]:
  """The config.json with which transformers opens our model.

  As a Llama; with biases, as a Qwen2. `ntk` is a change of base, and written
  as that.
  """
  qwen = model.qkv_bias
  fields = {
    'architectures': ['Qwen2ForCausalLM' if qwen else 'LlamaForCausalLM'],
    'model_type': 'qwen2' if qwen else 'llama',
    **{theirs: getattr(model, ours) for ours, theirs in _SIZES.items()},
    'num_key_value_heads': model.num_kv_heads,
    'head_dim': model.head_dim,
    'rms_norm_eps': model.norm_eps,
    'tie_word_embeddings': model.tie_embeddings,
    'hidden_act': 'silu',
    'max_position_embeddings': max_len,
    **_rope_fields(rope, model.head_dim),
    'bos_token_id': bos_id,
    'eos_token_id': list(eos_ids)
    if len(eos_ids) > 1
    else next(iter(eos_ids), None),
    'torch_dtype': dtype,
    'use_cache': True,
  }
  if not qwen:
    fields |= {'attention_bias': False, 'mlp_bias': False}
  return fields


def _read_rope(fields: Fields) -> RopeConfig:
  # transformers 5 keeps all of it in rope_parameters, those before it keep the
  # base in rope_theta and the rest in rope_scaling.
  name = 'rope_parameters'
  if not fields.values.get(name):
    name = 'rope_scaling'
  there = fields.section(name)
  base = fields.number('rope_theta', 10_000.0, least=1)
  base = there.number('rope_theta', base, least=1)
  kind = there.text('rope_type', there.text('type', 'default'))
  if kind == 'default':
    return RopeConfig(base)
  factor = there.number('factor', 1.0, least=1)
  if kind == 'linear':
    return RopeConfig(base, scaling='linear', factor=factor)
  if kind not in _RAMPS:
    raise WeightsError(
      f'{fields.where}: {name} of type {kind!r} is not supported; there are'
      ' default, linear, llama3 and yarn'
    )
  if kind == 'yarn':
    unknown = [
      name
      for name in ('attention_factor', 'mscale', 'mscale_all_dim')
      if there.values.get(name) is not None
    ]
    if unknown or not there.flag('truncate', True):
      raise WeightsError(
        f'{fields.where}: {(unknown or ["truncate"])[0]} of YaRN is not'
        ' supported'
      )
  ramp = {name: there.number(name, None) for name in _RAMPS[kind]}
  return RopeConfig(
    base,
    scaling=kind,
    factor=factor,
    original_len=there.whole(
      'original_max_position_embeddings',
      fields.whole('max_position_embeddings'),
    ),
    **{name: value for name, value in ramp.items() if value is not None},
  )


def _rope_fields(rope, head_dim) -> dict[str, Any]:
  base, scaling = rope.base, None
  if rope.scaling == 'ntk':
    base *= rope.factor ** (head_dim / (head_dim - 2))
  elif rope.scaling != 'none':
    scaling = {'rope_type': rope.scaling, 'factor': rope.factor}
  if rope.scaling in ('yarn', 'llama3'):
    scaling['original_max_position_embeddings'] = rope.original_len
    scaling |= {name: getattr(rope, name) for name in _RAMPS[rope.scaling]}
  return {'rope_theta': base, 'rope_scaling': scaling}


def _max_len(fields: Fields, family: str) -> int:
  length = fields.whole('max_position_embeddings')
  # Tokens further back than this are not seen there, and would be here.
  window = fields.whole('sliding_window', 0, least=0)
  if family == 'qwen2' and not fields.flag('use_sliding_window', False):
    window = 0
  if not window or window >= length:
    return length
  _logger.warning(
    '%s: taken as a model for %d tokens, its sliding_window, not %d as'
    ' max_position_embeddings says: no window hides the tokens before it here',
    fields.where,
    window,
    length,
  )
  return window
