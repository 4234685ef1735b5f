"""Blockwise attention on a CPU against JAX's own and against PyTorch's.

Forward and backward pass, causal, float32. The alternatives are
`jax.nn.dot_product_attention` and, if torch is installed, its CPU flash kernel
behind `scaled_dot_product_attention`. All use all cores. Memory is what XLA
plans for temporary arrays.

    pip install torch     # optional
    python -m benchmarks.blockwise_attention --out=blockwise_attention.json
"""

import argparse
import functools

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.timing import medians, report
from longctx_jax.ops.blockwise_attention import blockwise_attention

try:
  import torch
except ImportError:
  torch = None

B, N, H = 1, 8, 64


def gradient(attend, shapes):
  """Compiles (q, k, v, d_out) -> dq, dk, dv."""

  def run(q, k, v, d_out):
    return jax.vjp(attend, q, k, v)[1](d_out)

  return jax.jit(run).lower(*shapes).compile()


def torch_gradient(arrays):
  """A function without arguments that runs PyTorch's forward and backward."""
  # [B, N, T, H], contiguous, as PyTorch wants them.
  q, k, v, d_out = (
    torch.tensor(np.moveaxis(np.asarray(x), 1, 2).copy()) for x in arrays
  )
  for x in (q, k, v):
    x.requires_grad_(True)

  def run():
    out = torch.nn.functional.scaled_dot_product_attention(
      q, k, v, is_causal=True
    )
    return [x.numpy() for x in torch.autograd.grad(out, (q, k, v), d_out)]

  return run


def measure(T: int, repeats: int, dense_up_to: int) -> dict[str, object]:
  """One line of the table."""
  rng = np.random.default_rng(0)
  arrays = [
    jnp.asarray(rng.normal(size=(B, T, N, H)), jnp.float32) for _ in range(4)
  ]
  ours = gradient(blockwise_attention, arrays)
  rivals = {'blockwise': functools.partial(ours, *arrays)}
  row: dict[str, object] = {'T': T}
  if dense_up_to >= T:
    attend = functools.partial(jax.nn.dot_product_attention, is_causal=True)
    jax_nn = gradient(attend, arrays)
    rivals['jax.nn'] = functools.partial(jax_nn, *arrays)
  if torch is not None:
    rivals['torch'] = torch_gradient(arrays)
  seconds = medians(rivals, repeats)
  expected = ours(*arrays)
  for name, run in rivals.items():
    for got, want in zip(run(), expected, strict=True):
      got = np.moveaxis(got, 1, 2) if name == 'torch' else got
      np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-3)
  for name in ('blockwise', 'jax.nn', 'torch'):
    row[f'{name} s'] = seconds.get(name, '-')
  for name in ('jax.nn', 'torch'):
    row[f'{name} / blockwise'] = (
      seconds[name] / seconds['blockwise'] if name in seconds else '-'
    )
  row['blockwise MB'] = ours.memory_analysis().temp_size_in_bytes / 1e6
  if 'jax.nn' in rivals:
    row['jax.nn MB'] = jax_nn.memory_analysis().temp_size_in_bytes / 1e6
  else:
    row['jax.nn MB'] = '-'
  return row


def main() -> None:
  """Prints the table."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--out', default='', help='JSON file to write')
  parser.add_argument('--repeats', type=int, default=5)
  parser.add_argument(
    '--lengths',
    type=int,
    nargs='+',
    default=[512, 1024, 2048, 4096, 8192, 16_384],
  )
  parser.add_argument(
    '--dense_up_to',
    type=int,
    default=8192,
    help='longest T for jax.nn, whose scores take 8 * T * T floats',
  )
  args = parser.parse_args()
  rows = [measure(T, args.repeats, args.dense_up_to) for T in args.lengths]
  report(rows, args.out)


if __name__ == '__main__':
  main()
