"""Steps that a TPU's compiler has failed on, compiled for TPUs not there."""

import pytest

from longctx_jax.plan.plan_stage import plan_stage
from tests import small


@pytest.mark.slow
def test_rows_on_chips_of_their_own_compile_in_micro_batches():
  # libtpu 0.0.42 failed on the sum of the unembedding's gradient over fsdp,
  # which is made in a loop over micro-batches.
  pytest.importorskip('libtpu')
  stage = small.stage_config(
    data={'seq_len': 1024, 'batch_size': 8},
    model={
      'num_layers': 1,
      'attention': 'dense',  # compiles sooner
      'vocab_size': 1024,
      'compute_dtype': 'bfloat16',
    },
    mesh={'fsdp': 4},
    train={'micro_batches': 2},
  )
  plan = plan_stage(stage, 'v5e:2x2')
  assert plan.memory.fits
  # The batch is worked off in parts, each of them over fsdp.
  assert {one.axis for one in plan.sent} == {'fsdp'}
