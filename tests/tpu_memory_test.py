"""What a train step holds on a TPU, by XLA's own figures: nothing twice.

What is guarded here took 0.8 GB and more of Llama-3-8B at 64K tokens on eight
chips. Compiled with libtpu for chips that are not there.
"""

import importlib.util

import pytest

from longctx_jax.plan.compile_step import compile_step
from longctx_jax.plan.plan_stage import plan_stage
from longctx_jax.plan.topology import chip_of, topology_devices
from longctx_jax.sharding import make_mesh
from tests import small

pytestmark = [
  pytest.mark.slow,
  pytest.mark.skipif(
    importlib.util.find_spec('libtpu') is None,
    reason="libtpu is not installed: pip install 'longctx_jax[plan]'",
  ),
]
D, F, L, T = 512, 4096, 32, 512
FEW, MANY = 1024, 64_128  # tokens known
TOPOLOGY, CHIPS = 'v5e:2x2', 4


def stage(vocab_size):
  """One row, split over four chips."""
  return small.stage_config(
    data={'seq_len': T, 'batch_size': 1},
    model={
      'vocab_size': vocab_size,
      'embed_dim': D,
      'hidden_dim': F,
      'num_layers': L,
      'num_heads': 4,
      'num_kv_heads': 4,
      'head_dim': 128,
      'compute_dtype': 'bfloat16',
      'remat': 'full',
      'attention': 'dense',  # compiles sooner
    },
    mesh={'fsdp': 1, 'context': CHIPS},
    train={'micro_batches': 1},
  )


def test_no_layer_is_cast_before_its_turn():
  config = stage(FEW)
  chip, devices = chip_of(TOPOLOGY), topology_devices(TOPOLOGY, 1)
  step = compile_step(config, make_mesh(config.mesh, devices), chip)
  if not step.text:
    pytest.skip(step.problem)
  assert f'f32[{L},{D // CHIPS},{F}]' in step.text  # gate and up
  assert f'bf16[{L},{D // CHIPS},{F}]' not in step.text


def test_parameters_and_moments_are_not_laid_out_as_gradients():
  """Or libtpu 0.0.52 copies the unembedding and both its moments."""
  plan = plan_stage(stage(MANY), TOPOLOGY)
  # In float32: kernels of the layers, embedding and unembedding.
  gradients = 4 * (L * (3 * D * F + 4 * D * D) + 2 * D * MANY) // CHIPS
  unembedding = 4 * D * MANY // CHIPS
  beside_them = plan.memory.temporaries - gradients
  assert beside_them < 0.5 * unembedding
