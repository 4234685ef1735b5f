"""GGUF files, llama.cpp's format, read as if they were Hugging Face's.

The `gguf` package reads the file and undoes its quantisation. What differs is
undone here: names, and the order of rows. llama.cpp rotates even against odd
dimensions of a head, not one half against the other, and its files have the
rows of queries and keys of the architecture `llama` interleaved to suit:

    ours      0 1 2 3 | 4 5 6 7
    theirs    0 4 1 5 2 6 3 7
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from longctx_jax.config import RopeConfig
from longctx_jax.ops.rope import rope_frequencies
from longctx_jax.weights.tensor_table import WeightsError
from longctx_jax.weights.typed_fields import Fields

_ARCHITECTURES = {'llama': 'llama', 'qwen2': 'qwen2'}  # GGUF's -> model_type
_NAMES = {
  'token_embd.weight': 'model.embed_tokens.weight',
  'output_norm.weight': 'model.norm.weight',
  'output.weight': 'lm_head.weight',
}
_LAYER_NAMES = {
  'attn_norm.weight': 'input_layernorm.weight',
  'ffn_norm.weight': 'post_attention_layernorm.weight',
  'attn_output.weight': 'self_attn.o_proj.weight',
  'ffn_gate.weight': 'mlp.gate_proj.weight',
  'ffn_up.weight': 'mlp.up_proj.weight',
  'ffn_down.weight': 'mlp.down_proj.weight',
  **{
    f'attn_{letter}.{kind}': f'self_attn.{letter}_proj.{kind}'
    for letter in 'qkv'
    for kind in ('weight', 'bias')
  },
}
# What Llama 3.1 (8) and 3.2 (32) divide frequencies by: transformers'
# rope_scaling of both; a GGUF holds the quotients alone.
_LLAMA3_FACTORS, _LLAMA3_LEN = (8.0, 32.0), 8192
_ROPE_FACTORS = 'rope_freqs.weight'


class GgufFile:
  """The tensors of a GGUF file under Hugging Face's names, in float32.

  Attributes:
    metadata: key -> value, of what the file says beside its tensors.
    config: the fields of a config.json that says the same.

  Raises:
    WeightsError: not a whole GGUF file, or a model that is not ours.
  """

  def __init__(self, path: Path):
    self.where = str(path)
    try:
      reader = _BoundedReader(path)
      self.metadata: dict[str, Any] = {
        name: field.contents() for name, field in reader.fields.items()
      }
      self._tensors = {t.name: t for t in reader.tensors}
    except OSError as error:
      raise WeightsError(f'cannot read {path}: {error.strerror}') from error
    except Exception as error:  # whatever damage makes of the file's numbers
      raise WeightsError(
        f'{path}: not a whole GGUF file: {" ".join(str(error).split())}'
      ) from error
    self._names = {
      theirs: name
      for name in self._tensors
      if name != _ROPE_FACTORS
      for theirs in [_hf_name(name, path)]
    }
    self.shapes = {
      theirs: tuple(reversed(self._tensors[name].shape.tolist()))
      for theirs, name in self._names.items()
    }
    self.dtypes = dict.fromkeys(self.shapes, np.dtype(np.float32))
    self.config = self._config()

  def read(self, name: str, index: Sequence[slice] = ()) -> np.ndarray:
    """A tensor, its quantisation undone, or what `index` cuts out of it."""
    tensor = self._tensors[self._names[name]]
    try:
      x = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    except NotImplementedError as error:
      raise WeightsError(
        f'{self.where}: {tensor.name} is quantised as'
        f' {tensor.tensor_type.name}, which cannot be undone here'
      ) from error
    x = x.reshape(self.shapes[name])
    if self.metadata['general.architecture'] == 'llama':
      for letter, field in (
        ('q', 'num_attention_heads'),
        ('k', 'num_key_value_heads'),
      ):
        if name.endswith(f'{letter}_proj.weight'):
          x = _halves(x, self.config[field])
    return x[tuple(index)]

  def _config(self) -> dict[str, Any]:
    architecture = self.metadata.get('general.architecture')
    if architecture not in _ARCHITECTURES:
      raise WeightsError(
        f'{self.where}: general.architecture is {architecture!r}, and can be'
        f' {", ".join(_ARCHITECTURES)}'
      )

    embedding = self.shapes.get('model.embed_tokens.weight')
    if not embedding:
      raise WeightsError(f'{self.where} lacks the tensor token_embd.weight')
    there = Fields(self.metadata, self.where)
    key = f'{architecture}.'
    num_heads = there.whole(f'{key}attention.head_count')
    width = there.whole(f'{key}embedding_length')
    epsilon = there.number(f'{key}attention.layer_norm_rms_epsilon')
    base = there.number(f'{key}rope.freq_base', 10_000.0, least=1)
    fields = {
      'model_type': _ARCHITECTURES[architecture],
      'vocab_size': embedding[0],
      'hidden_size': width,
      'num_hidden_layers': there.whole(f'{key}block_count'),
      'num_attention_heads': num_heads,
      'num_key_value_heads': there.whole(
        f'{key}attention.head_count_kv', num_heads
      ),
      'head_dim': there.whole(f'{key}attention.key_length', width // num_heads),
      'intermediate_size': there.whole(f'{key}feed_forward_length'),
      'rms_norm_eps': _shortest(epsilon),
      'tie_word_embeddings': 'lm_head.weight' not in self.shapes,
      'max_position_embeddings': there.whole(f'{key}context_length'),
      'rope_theta': _shortest(base),
    }
    for name in ('bos_token_id', 'eos_token_id'):
      i = there.whole(f'tokenizer.ggml.{name}', None, least=0)
      if i is not None and i >= embedding[0]:
        raise WeightsError(
          f'{self.where}: tokenizer.ggml.{name} is {i}, and token_embd.weight'
          f' has the tokens 0 to {embedding[0] - 1}'
        )
      fields[name] = i
    return {**fields, 'rope_scaling': self._rope_scaling(there, key, fields)}

  def _rope_scaling(self, there: Fields, key, fields) -> dict[str, Any] | None:
    kind = there.text(f'{key}rope.scaling.type', 'none')
    if kind in ('linear', 'yarn'):
      return {
        'rope_type': kind,
        'factor': _shortest(there.number(f'{key}rope.scaling.factor', least=1)),
        'original_max_position_embeddings': there.whole(
          f'{key}rope.scaling.original_context_length',
          fields['max_position_embeddings'],
        ),
      }
    if kind != 'none':
      raise WeightsError(
        f'{self.where}: RoPE scaling {kind!r} is not supported'
      )
    if _ROPE_FACTORS not in self._tensors:
      return None
    return self._llama3_scaling(fields['head_dim'], fields['rope_theta'])

  def _llama3_scaling(self, head_dim, base) -> dict[str, Any]:
    found = self._tensors[_ROPE_FACTORS].data
    if found.shape == (head_dim // 2,):
      plain, _ = rope_frequencies(head_dim, base)
      for factor in _LLAMA3_FACTORS:
        rope = RopeConfig(
          base, scaling='llama3', factor=factor, original_len=_LLAMA3_LEN
        )
        scaled, _ = rope_frequencies(head_dim, **vars(rope))
        if np.allclose(plain / scaled, found, rtol=1e-4):
          return {
            'rope_type': 'llama3',
            'factor': factor,
            'low_freq_factor': 1.0,
            'high_freq_factor': 4.0,
            'original_max_position_embeddings': _LLAMA3_LEN,
          }
    raise WeightsError(
      f'{self.where}: {_ROPE_FACTORS} is not that of Llama 3.1 or 3.2'
    )


def _shortest(value: float) -> float:
  """The shortest number that rounds to this float32: 1e-05, for one."""
  return float(str(np.float32(value)))


class _BoundedReader(gguf.GGUFReader):
  """Stops at the end of the file.

  The library reads beyond it as nothing at all, and so counts an array of
  2**60 numbers one by one.
  """

  def _get(self, offset, dtype, count=1, *args, **kwargs):
    end = int(offset) + np.dtype(dtype).itemsize * int(count)
    if end > len(self.data):
      raise ValueError(
        f'a length in its header leads to byte {end:,} of {len(self.data):,}'
      )
    return super()._get(offset, dtype, count, *args, **kwargs)


def _hf_name(name: str, path: Path) -> str:
  layer = re.fullmatch(r'blk\.(\d+)\.(.+)', name)
  if name in _NAMES:
    return _NAMES[name]
  if layer and layer[2] in _LAYER_NAMES:
    return f'model.layers.{layer[1]}.{_LAYER_NAMES[layer[2]]}'
  raise WeightsError(
    f'{path} holds the tensor {name}, for which a Llama-type model has no place'
  )


def _halves(x: np.ndarray, num_heads: int) -> np.ndarray:
  """Rows of each head, from pairs back to halves."""
  rows, columns = x.shape
  pairs = x.reshape(num_heads, rows // num_heads // 2, 2, columns)
  return pairs.swapaxes(1, 2).reshape(x.shape)
