"""Where each tensor of a Llama-type checkpoint goes, and how it is turned.

Theirs is a matrix a layer, [outputs, inputs], heads and head dim as one axis;
ours is one array over all layers, heads apart, inputs first:

    model.layers.7.self_attn.q_proj.weight   [NH, D]
    blocks.attention.query[7]                [D, N, H]

Names are those of Hugging Face's Llama; Mistral, Qwen2 and Skywork share them.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from longctx_jax.config import ModelConfig


class WeightsError(ValueError):
  """Weights that cannot be read or written; names the file or tensor."""


class Entry(NamedTuple):
  """One of our parameters, and the tensor or tensors that hold it."""

  path: str  # dots for the levels of the tree of parameters
  name: str  # with {layer} where there is one for each
  ours: str  # axes, a letter each; L leads where there is one a layer
  theirs: tuple[str, ...]  # axes, those that are one axis there together

  @property
  def in_layers(self) -> bool:
    """Whether each layer has one."""
    return '{layer}' in self.name


_LAYER = 'model.layers.{layer}.'
_ENTRIES = (
  Entry('embedding', 'model.embed_tokens.weight', 'VD', ('V', 'D')),
  *(
    Entry(f'blocks.{path}', _LAYER + name, ours, theirs)
    for path, name, ours, theirs in (
      ('attention_norm.scale', 'input_layernorm.weight', 'D', ('D',)),
      ('attention.query', 'self_attn.q_proj.weight', 'DNH', ('NH', 'D')),
      ('attention.key', 'self_attn.k_proj.weight', 'DKH', ('KH', 'D')),
      ('attention.value', 'self_attn.v_proj.weight', 'DKH', ('KH', 'D')),
      ('attention.query_bias', 'self_attn.q_proj.bias', 'NH', ('NH',)),
      ('attention.key_bias', 'self_attn.k_proj.bias', 'KH', ('KH',)),
      ('attention.value_bias', 'self_attn.v_proj.bias', 'KH', ('KH',)),
      ('attention.out', 'self_attn.o_proj.weight', 'NHD', ('D', 'NH')),
      ('mlp_norm.scale', 'post_attention_layernorm.weight', 'D', ('D',)),
      ('mlp.gate', 'mlp.gate_proj.weight', 'DF', ('F', 'D')),
      ('mlp.up', 'mlp.up_proj.weight', 'DF', ('F', 'D')),
      ('mlp.down', 'mlp.down_proj.weight', 'FD', ('D', 'F')),
    )
  ),
  Entry('final_norm.scale', 'model.norm.weight', 'D', ('D',)),
  Entry('unembedding', 'lm_head.weight', 'DV', ('V', 'D')),
)


def entries(model: ModelConfig) -> tuple[Entry, ...]:
  """The parameters that a model has."""
  return tuple(
    entry
    for entry in _ENTRIES
    if (model.qkv_bias or not entry.path.endswith('_bias'))
    and (not model.tie_embeddings or entry.path != 'unembedding')
  )


def axis_sizes(model: ModelConfig) -> dict[str, int]:
  """The legend's letters (see array_types) for one model."""
  return {
    'V': model.vocab_size,
    'D': model.embed_dim,
    'N': model.num_heads,
    'K': model.num_kv_heads,
    'H': model.head_dim,
    'F': model.hidden_dim,
  }


def tensor_shapes(model: ModelConfig) -> dict[str, tuple[int, ...]]:
  """Name -> shape of every tensor that a checkpoint of the model holds."""
  sizes = axis_sizes(model)
  return {
    name: tuple(int(np.prod([sizes[a] for a in axes])) for axes in entry.theirs)
    for entry in entries(model)
    for name in tensor_names(entry, model)
  }


def tensor_names(entry: Entry, model: ModelConfig) -> list[str]:
  """The tensors of one parameter, by layer."""
  if not entry.in_layers:
    return [entry.name]
  return [entry.name.format(layer=i) for i in range(model.num_layers)]


def check_tensors(
  found: Mapping[str, Sequence[int]], model: ModelConfig, where: str
) -> None:
  """Raises WeightsError unless `found` (name -> shape) is what the model needs.

  Frequencies of RoPE, which old checkpoints hold, and the unembedding of a
  model that ties it to the embedding are passed over, as transformers does;
  who has the tensors sees that it is the embedding.
  """
  # Each layer has several: what is made of a wrong number could fill memory.
  if model.num_layers > len(found):
    raise WeightsError(
      f'{where} holds {len(found)} tensors, too few for the'
      f' {model.num_layers} layers of its config.json'
    )
  wanted = tensor_shapes(model)
  missing = sorted(wanted.keys() - found.keys())
  extra = sorted(
    name
    for name in found.keys() - wanted.keys()
    if not name.endswith('rotary_emb.inv_freq')
    and not (model.tie_embeddings and name == 'lm_head.weight')
  )
  if missing:
    raise WeightsError(
      f'{where} lacks the tensor {missing[0]}{_and_more(missing)}'
    )
  if extra:
    raise WeightsError(
      f'{where} holds the tensor {extra[0]}{_and_more(extra)}, for which the'
      ' model of its config.json has no place'
    )
  for name, shape in wanted.items():
    if tuple(found[name]) != shape:
      raise WeightsError(
        f'{where}: {name} has the shape {tuple(found[name])}, by config.json it'
        f' should be {shape}'
      )


def _and_more(names):
  return f' and {len(names) - 1} more' if len(names) > 1 else ''


def to_ours(
  x: np.ndarray, entry: Entry, sizes: Mapping[str, int]
) -> np.ndarray:
  """One layer of our parameter from their tensor; a view where one will do.

  `sizes` are those of `x`, which may be a part of a tensor.
  """
  apart = ''.join(entry.theirs)
  x = x.reshape([sizes[a] for a in apart])
  return x.transpose([apart.index(a) for a in entry.ours])


def to_theirs(x: np.ndarray, entry: Entry) -> np.ndarray:
  """The inverse of `to_ours`."""
  sizes = dict(zip(entry.ours, x.shape, strict=True))
  x = x.transpose([entry.ours.index(a) for a in ''.join(entry.theirs)])
  return x.reshape(
    [int(np.prod([sizes[a] for a in axes])) for axes in entry.theirs]
  )


def slices_of_theirs(
  index: Sequence[slice], entry: Entry, sizes: Mapping[str, int]
) -> tuple[tuple[slice, ...], dict[str, int]]:
  """What of their tensor holds `index` of one layer of ours, and its sizes.

      ours[D: 0..8, N: 2..4, H: all]   theirs[NH: 2 H .. 4 H, D: 0..8]

  Only the first of axes that are one there may be cut.
  """
  cuts = {
    a: cut.indices(sizes[a])[:2]
    for a, cut in zip(entry.ours, index, strict=True)
  }
  part = {a: stop - start for a, (start, stop) in cuts.items()}
  found = []
  for axes in entry.theirs:
    inner = int(np.prod([sizes[a] for a in axes[1:]]))
    if any(part[a] != sizes[a] for a in axes[1:]):
      raise ValueError(f'{entry.path}: {axes[1:]} cannot be cut')
    found.append(slice(*(inner * end for end in cuts[axes[0]])))
  return tuple(found), part
