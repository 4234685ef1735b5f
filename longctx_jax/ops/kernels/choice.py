"""Which kernel walks the tiles: by name, or by platform."""

from typing import Literal, NamedTuple

from longctx_jax.ops import blockwise_attention as blockwise

KernelName = Literal['auto', 'xla', 'pallas']


class Choice(NamedTuple):
  """A kernel's name, and why it was chosen, for the log."""

  name: str
  reason: str


def choose_kernel(wanted: KernelName, platform: str, block_len: int) -> Choice:
  """What 'auto' stands for on a platform; anything else is what it says.

  Args:
    wanted: as in the config.
    platform: of the mesh's devices: 'cpu', 'gpu', 'tpu'.
    block_len: of the tiles.

  Raises:
    ValueError: the kernel that is named does not run there.
  """
  # Registers of 128 lanes: smaller or odd blocks don't fill them.
  fits = block_len % 128 == 0
  if wanted == 'pallas':
    if platform != 'tpu':
      raise ValueError(
        f"attention_kernel='pallas' runs on TPUs, not on {platform!r}:"
        " use 'auto' or 'xla'"
      )
    if not fits:
      raise ValueError(
        f"attention_kernel='pallas' needs an attention_block_len that is a"
        f' multiple of 128, got {block_len}'
      )
    return Choice('pallas', 'the config names it')
  if wanted == 'xla':
    return Choice('xla', 'the config names it')
  if platform != 'tpu':
    return Choice('xla', f'the kernels for TPUs do not run on {platform!r}')
  if not fits:
    return Choice('xla', f'blocks of {block_len} are not multiples of 128')
  return Choice('pallas', 'the devices are TPUs')


def kernel_of(name: str) -> blockwise.TileKernel:
  """The kernel that `choose_kernel` named."""
  if name == 'pallas':
    # Imported where it is used: it takes a second, and needs no TPU to import.
    from longctx_jax.ops.kernels import tpu

    return tpu.PALLAS
  return blockwise.XLA
