"""Floating-point operations of a step: what the model needs, what is computed.

Hardware FLOPs are read from the traced step: each product as often as it is
written there, once more where remat makes it again. Loops have their length in
the trace, which XLA's own analysis of the compiled program leaves out. Kernels
for attention are opaque, so theirs are counted from what they compute: whole
tiles, of which the last has masked pairs in it.
"""

import math
from typing import Any, NamedTuple

from longctx_jax.config import StageConfig
from longctx_jax.flops import training_flops
from longctx_jax.ops.blockwise_attention import KEPT


class StepFlops(NamedTuple):
  """Of one step, on all chips together."""

  model: float  # with the documents that are assumed
  model_causal: float  # as if each row were one document
  hardware: float


def step_flops(
  config: StageConfig, jaxpr: Any, *, document_len: int, platform: str = 'tpu'
) -> StepFlops:
  """FLOPs of a step.

  Args:
    config: the stage.
    jaxpr: its traced step.
    document_len: tokens of a document; 0: each row is one.
    platform: whose kernels attend: TPUs' make scores three times, XLA's twice.
  """
  rows, T = config.data.batch_size, config.data.seq_len
  pairs = rows * document_pairs(T, document_len)
  causal = rows * document_pairs(T, 0)
  tokens = rows * T
  products = count_products(jaxpr)
  attention = 0.0
  if config.model.attention != 'dense':
    tiles = rows * tile_pairs(T, document_len, config.model.attention_block_len)
    # Forward: scores and values. Backward: scores again, and the gradients of
    # values, weights, keys and queries; TPUs make scores and the gradient of
    # weights a second time, for keys and values (`ops.kernels.tpu`).
    per_pair = 2 * config.model.num_heads * config.model.head_dim
    forward = forward_runs(jaxpr) / config.train.micro_batches * 2
    backward = config.model.num_layers * (7 if platform == 'tpu' else 5)
    attention = per_pair * tiles * (forward + backward)
  return StepFlops(
    model=training_flops(config.model, tokens, pairs),
    model_causal=training_flops(config.model, tokens, causal),
    hardware=products + attention,
  )


def document_pairs(T: int, document_len: int) -> int:
  """(query, key) pairs that attend in a row of T tokens."""
  return sum(n * (n + 1) // 2 for n in _lengths(T, document_len))


def tile_pairs(T: int, document_len: int, block_len: int) -> int:
  """Pairs in the tiles that are computed: all with a pair that attends."""
  C = min(block_len, T)
  total, start = 0, 0
  for n in _lengths(T, document_len):
    # Query blocks of this document against the key blocks of it before them;
    # a block that two documents share is counted for each.
    first, last = start // C, (start + n - 1) // C
    blocks = last - first + 1
    total += blocks * (blocks + 1) // 2 * C * C
    start += n
  return total


def _lengths(T, document_len):
  if not document_len or document_len >= T:
    return [T]
  whole, rest = divmod(T, document_len)
  return [document_len] * whole + ([rest] if rest else [])


def count_products(jaxpr: Any) -> float:
  """FLOPs of the matrix products of a traced function, on all devices.

  Products inside of while loops and kernels, which are attention's, are not.
  """
  total = 0.0
  for eqn in _jaxpr(jaxpr).eqns:
    name, params = eqn.primitive.name, eqn.params
    if name == 'dot_general':
      total += _product(eqn)
    elif name in ('while', 'pallas_call'):
      continue
    elif name == 'cond':
      total += max(map(count_products, params['branches']))
    else:
      total += _times(eqn) * sum(map(count_products, _inner(eqn)))
  return total


def forward_runs(jaxpr: Any) -> float:
  """How often a micro-batch goes forward through the attention of a layer.

  Its output and log-sum-exp are named there, for the policies of remat.
  """
  total = 0.0
  for eqn in _jaxpr(jaxpr).eqns:
    if eqn.primitive.name == 'name' and eqn.params['name'] == KEPT:
      total += eqn.outvars[0].aval.ndim == 4  # the output, not the log-sum-exp
    # On a shard of the mesh as on all of them.
    times = eqn.params['length'] if eqn.primitive.name == 'scan' else 1
    total += times * sum(map(forward_runs, _inner(eqn)))
  return total


def _jaxpr(jaxpr):
  """Without the constants that some come with."""
  return getattr(jaxpr, 'jaxpr', jaxpr)


def _inner(eqn):
  """The jaxprs in an equation's parameters."""
  return [
    value
    for value in eqn.params.values()
    if hasattr(value, 'eqns') or hasattr(value, 'jaxpr')
  ]


def _times(eqn):
  if eqn.primitive.name == 'scan':
    return eqn.params['length']
  if eqn.primitive.name == 'shard_map':
    # Inside are the shapes of one device, along these axes alone.
    sizes = eqn.params['mesh'].shape
    return math.prod(sizes[axis] for axis in eqn.params['newly_manual_axes'])
  return 1


def _product(eqn):
  """2 * (outputs) * (numbers summed in each)."""
  (contracted, _), _ = eqn.params['dimension_numbers']
  shape = eqn.invars[0].aval.shape
  summed = math.prod(shape[axis] for axis in contracted)
  return 2.0 * math.prod(eqn.outvars[0].aval.shape) * summed
