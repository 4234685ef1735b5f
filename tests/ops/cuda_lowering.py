"""Lowers functions for CUDA, where there is no GPU, and says what came out."""

import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import export

from tests.ops.attention_inputs import with_gradients

CUDNN_CALLS = ('__cudnn$fmhaSoftmax', '__cudnn$fmhaSoftmaxBackward')


class Lowered(NamedTuple):
  """What a module for CUDA is made of."""

  num_devices: int
  custom_calls: set[str]
  operations: set[str]
  shapes: set[tuple[int, ...]]


def pretend_cudnn(monkeypatch, version=lambda: 91_000):
  """Makes JAX take it that this cuDNN is there: enough to trace and lower."""
  monkeypatch.setattr(
    'jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version', version
  )


def lower_attention(attend, shape) -> Lowered:
  """Both passes of an attention in bfloat16; shape is (B, T, N, K, H)."""
  B, T, N, K, H = shape
  arrays = [
    jax.ShapeDtypeStruct((B, T, n, H), jnp.bfloat16) for n in (N, K, K, N)
  ]
  segment_ids = jax.ShapeDtypeStruct((B, T), jnp.int32)
  return lower_for_cuda(with_gradients(attend), *arrays, segment_ids)


def lower_for_cuda(run, *arrays) -> Lowered:
  """A jitted function of arrays, or of their shapes and dtypes."""
  exported = export.export(
    run,
    platforms=['cuda'],
    # Nothing is kept, so no promise is needed that it will load elsewhere.
    disabled_checks=[
      export.DisabledSafetyCheck.custom_call(name) for name in CUDNN_CALLS
    ],
  )(*arrays)
  assert exported.platforms == ('cuda',)
  module = exported.mlir_module()
  return Lowered(
    exported.nr_devices,
    set(re.findall(r'stablehlo\.custom_call @([\w$.]+)', module))
    # Shardings are marks on a value, of no platform.
    - {'Sharding', 'SPMDFullToShardShape', 'SPMDShardToFullShape'},
    set(re.findall(r'stablehlo\.(\w+)', module)),
    {
      tuple(int(size) for size in sizes[:-1].split('x'))
      for sizes in re.findall(r'tensor<((?:\d+x)+)', module)
    },
  )
