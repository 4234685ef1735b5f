"""Blockwise attention on a CPU against JAX's own and against PyTorch's.

Forward and backward pass, causal, float32, of rows that hold one document or
several of equal length. The alternatives are `jax.nn.dot_product_attention`
and, if torch is installed, its CPU flash kernel behind
`scaled_dot_product_attention`; they take documents as a mask of all pairs. All
use all cores. Memory is what XLA plans for temporary arrays; the C++ kernel has
some tens of kilobytes a thread besides.

    pip install torch     # optional
    python -m benchmarks.blockwise_attention --out=blockwise_attention.json
"""

import argparse
import functools
import itertools
import os

os.environ['JAX_PLATFORMS'] = 'cpu'

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import cpu_kernel
from benchmarks.timing import measure_all, medians, report
from longctx_jax.ops.blockwise_attention import blockwise_attention

try:
  import torch
except ImportError:
  torch = None


def gradient(attend, args):
  """Compiles (q, k, v, d_out, documents) -> dq, dk, dv."""

  def run(q, k, v, d_out, documents):
    return jax.vjp(lambda q, k, v: attend(q, k, v, documents), q, k, v)[1](
      d_out
    )

  return jax.jit(run).lower(*args).compile()


def blockwise(kernel):
  """Ours, with segment ids that are known when it runs."""

  def attend(q, k, v, segment_ids):
    return blockwise_attention(q, k, v, segment_ids=segment_ids, kernel=kernel)

  return attend


def dense(q, k, v, mask):
  """JAX's own, with a mask of all pairs, or None for one document."""
  return jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=True)


def torch_gradient(arrays, mask):
  """A function without arguments that runs PyTorch's forward and backward."""
  # [B, N, T, H], contiguous, as PyTorch wants them.
  q, k, v, d_out = (
    torch.tensor(np.moveaxis(np.asarray(x), 1, 2).copy()) for x in arrays
  )
  for x in (q, k, v):
    x.requires_grad_(True)
  how = {'is_causal': True}
  if mask is not None:
    how = {'attn_mask': torch.tensor(mask)}

  def run():
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, **how)
    return [x.numpy() for x in torch.autograd.grad(out, (q, k, v), d_out)]

  return run


def measure(
  shape: tuple[int, int, int],
  T: int,
  documents: int,
  repeats: int,
  dense_up_to: int,
  kernel,
) -> dict[str, object]:
  """One line of the table; shape is (B, N, H)."""
  B, N, H = shape
  rng = np.random.default_rng(0)
  arrays = [
    jnp.asarray(rng.normal(size=(B, T, N, H)), jnp.float32) for _ in range(4)
  ]
  row = np.arange(T) * documents // T + 1
  segment_ids = jnp.asarray(np.stack([row] * B), jnp.int32)
  mask = None
  if documents > 1:
    mask = np.tril(row[:, None] == row[None, :])
  args = *arrays, segment_ids
  ours = gradient(blockwise(kernel), args)
  rivals = {'blockwise': functools.partial(ours, *args)}
  memory = {'blockwise MB': ours.memory_analysis().temp_size_in_bytes / 1e6}
  if dense_up_to >= T:
    dense_args = (
      *arrays,
      None if mask is None else jnp.asarray(mask)[None, None],
    )
    jax_nn = gradient(dense, dense_args)
    rivals['jax.nn'] = functools.partial(jax_nn, *dense_args)
    memory['jax.nn MB'] = jax_nn.memory_analysis().temp_size_in_bytes / 1e6
  if torch is not None and (mask is None or dense_up_to >= T):
    rivals['torch'] = torch_gradient(arrays, mask)
  seconds = medians(rivals, repeats)
  expected = ours(*args)
  for name, run in rivals.items():
    for got, want in zip(run(), expected, strict=True):
      got = np.moveaxis(got, 1, 2) if name == 'torch' else got
      np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-3)
  ratios = {
    f'{name} / blockwise': seconds[name] / seconds['blockwise']
    if name in seconds
    else '-'
    for name in ('jax.nn', 'torch')
  }
  return {
    'B x N x H': 'x'.join(map(str, shape)),
    'T': T,
    'documents': documents,
    'blockwise s': seconds['blockwise'],
    **ratios,
    'blockwise MB': memory['blockwise MB'],
    'jax.nn MB': memory.get('jax.nn MB', '-'),
  }


def main() -> None:
  """Prints the table."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--out', default='', help='JSON file to write')
  parser.add_argument('--repeats', type=int, default=5)
  parser.add_argument(
    '--shapes', nargs='+', default=['2x4x32', '1x8x64'], help='B x N x H'
  )
  parser.add_argument(
    '--lengths',
    type=int,
    nargs='+',
    default=[512, 1024, 2048, 4096, 8192, 16_384],
  )
  parser.add_argument('--documents', type=int, nargs='+', default=[1, 8])
  parser.add_argument(
    '--dense_up_to',
    type=int,
    default=8192,
    help='longest T for what makes all B * N * T * T scores or a mask of T * T',
  )
  cpu_kernel.add_flag(parser)
  args = parser.parse_args()
  kernel = cpu_kernel.chosen_kernel(args.kernel)
  shapes = [tuple(map(int, shape.split('x'))) for shape in args.shapes]
  cases = [
    (shape, T, documents, args.repeats, args.dense_up_to, kernel)
    for shape, documents, T in itertools.product(
      shapes, args.documents, args.lengths
    )
  ]
  report(measure_all(measure, cases), args.out)


if __name__ == '__main__':
  main()
