"""Which kernel attends: by name, or by what there is to run it on."""

from typing import Literal, NamedTuple

from longctx_jax.ops import blockwise_attention as blockwise
from longctx_jax.ops.cache_attention import CacheKernel
from longctx_jax.ops.context_parallel import ContextParallel, WholeRowKernel
from longctx_jax.ops.kernels import cpp_library, cpu, cudnn

KernelName = Literal['auto', 'xla', 'cpp', 'pallas', 'cudnn']


class Choice(NamedTuple):
  """A kernel's name, and why it was chosen, for the log."""

  name: str
  reason: str


class Facts(NamedTuple):
  """What the choice depends on, all known before a step is traced."""

  platform: str  # of the mesh's devices: 'cpu', 'gpu', 'tpu'
  block_len: int
  head_dim: int
  dtype: str  # of queries, keys and values
  compute_capability: tuple[int, ...] = ()  # of NVIDIA's GPUs
  has_cudnn: bool = False
  has_whole_rows: bool = True  # see ContextParallel
  cpp_problem: str = ''  # why there is no library of the C++ kernel


def facts_of(
  parallel: ContextParallel, *, block_len: int, head_dim: int, dtype: str
) -> Facts:
  """The facts of a mesh, and of what is attended to on it."""
  return Facts(
    parallel.platform,
    block_len,
    head_dim,
    dtype,
    parallel.compute_capability,
    parallel.platform == 'gpu' and cudnn.is_installed(),
    parallel.has_whole_rows,
    cpp_library.why_unavailable() if parallel.platform == 'cpu' else '',
  )


def choose_kernel(wanted: KernelName, facts: Facts) -> Choice:
  """What 'auto' stands for, given the facts; anything else is what it says.

  Raises:
    ValueError: the kernel that is named does not run there.
  """
  if wanted == 'xla':
    return Choice('xla', 'the config names it')
  if wanted != 'auto':
    if against := _AGAINST[wanted](facts):
      raise ValueError(
        f"attention_kernel='{wanted}' {against}: use 'auto' or 'xla'"
      )
    return Choice(wanted, 'the config names it')
  if facts.platform not in _FOR_PLATFORM:
    return Choice('xla', f'no other kernel is for {facts.platform!r}')
  name = _FOR_PLATFORM[facts.platform]
  if against := _AGAINST[name](facts):
    return Choice('xla', f'{name!r} {against}')
  return Choice(name, f'it is for {facts.platform!r}')


def kernel_of(name: str) -> blockwise.TileKernel | WholeRowKernel:
  """The kernel that `choose_kernel` named."""
  if name == 'pallas':
    # Imported where it is used: it takes a second, and needs no TPU to import.
    from longctx_jax.ops.kernels import tpu

    return tpu.PALLAS
  kernels = {'xla': blockwise.XLA, 'cpp': cpu.CPP, 'cudnn': cudnn.CUDNN}
  return kernels[name]


def choose_cache_kernel(wanted: KernelName, facts: Facts) -> Choice:
  """What reads prompts to a cache: the kernel for CPUs where it can, or XLA.

  A cache is not copied to be cast or filled up.
  """
  choice = choose_kernel(wanted, facts)
  if choice.name not in ('cpp', 'xla'):
    return Choice('xla', f'{choice.name!r} reads no caches')
  if choice.name == 'cpp' and facts.dtype != 'float32':
    return Choice('xla', f"'cpp' needs a cache of float32, got {facts.dtype}")
  if choice.name == 'cpp' and facts.head_dim % cpu.LANES:
    return Choice(
      'xla',
      f"'cpp' needs a head_dim that is a multiple of {cpu.LANES}, got"
      f' {facts.head_dim}',
    )
  return choice


def cache_kernel_of(name: str) -> CacheKernel | None:
  """The kernel that `choose_cache_kernel` named; None is XLA."""
  return cpu.attend_cache if name == 'cpp' else None


def _against_cpp(facts):
  """Why the kernel for CPUs can't run, or ''."""
  if facts.platform != 'cpu':
    return f'runs on CPUs, not on {facts.platform!r}'
  return facts.cpp_problem


def _against_pallas(facts):
  """Why the kernels for TPUs can't run, or ''."""
  if facts.platform != 'tpu':
    return f'runs on TPUs, not on {facts.platform!r}'
  # Registers of 128 lanes: smaller or odd blocks don't fill them.
  if facts.block_len % 128:
    return (
      'needs an attention_block_len that is a multiple of 128, got'
      f' {facts.block_len}'
    )
  return ''


def _against_cudnn(facts):
  """Why cuDNN can't attend, or ''.

  Numbers: the support matrix of cuDNN 9.18 and what JAX itself refuses
  (check_is_flash_attention in jax/_src/cudnn/fused_attention_stablehlo.py).
  """
  if facts.platform != 'gpu':
    return f'runs on GPUs, not on {facts.platform!r}'
  if facts.compute_capability < (8, 0):
    return 'needs an NVIDIA GPU of compute capability 8.0 or newer'
  if not facts.has_cudnn:
    return 'needs cuDNN, and JAX finds none that fits'
  if facts.dtype not in ('bfloat16', 'float16'):
    return f'needs compute_dtype=bfloat16, got {facts.dtype}'
  # ours: 256 on Hopper alone. Newer GPUs have gradients of more than 128 in
  # some versions of cuDNN only (TransformerEngine pull request 1504).
  widest = 256 if facts.compute_capability[0] == 9 else 128
  if facts.head_dim % 8 or facts.head_dim > widest:
    return (
      f'needs a head_dim that is a multiple of 8 and at most {widest} on this'
      f' GPU, got {facts.head_dim}'
    )
  if not facts.has_whole_rows:
    return (
      'needs whole rows on a device: one context shard, or'
      ' context_kind=ulysses with context_layout=contiguous'
    )
  return ''


_FOR_PLATFORM = {'cpu': 'cpp', 'tpu': 'pallas', 'gpu': 'cudnn'}
_AGAINST = {
  'cpp': _against_cpp,
  'pallas': _against_pallas,
  'cudnn': _against_cudnn,
}
