"""The choice of a kernel is a pure function of names and numbers."""

import pytest

from longctx_jax.ops import blockwise_attention as blockwise
from longctx_jax.ops.kernels import tpu
from longctx_jax.ops.kernels.choice import choose_kernel, kernel_of


@pytest.mark.parametrize(
  ('wanted', 'platform', 'block_len', 'name', 'reason'),
  [
    ('auto', 'tpu', 512, 'pallas', 'devices are TPUs'),
    ('auto', 'tpu', 96, 'xla', 'blocks of 96'),
    ('auto', 'cpu', 512, 'xla', "not run on 'cpu'"),
    ('auto', 'gpu', 512, 'xla', "not run on 'gpu'"),
    ('xla', 'tpu', 512, 'xla', 'config names it'),
    ('pallas', 'tpu', 128, 'pallas', 'config names it'),
  ],
)
def test_the_choice_and_its_reason(wanted, platform, block_len, name, reason):
  choice = choose_kernel(wanted, platform, block_len)
  assert choice.name == name
  assert reason in choice.reason


def test_a_kernel_that_cannot_run_is_refused():
  with pytest.raises(ValueError, match="runs on TPUs, not on 'gpu'"):
    choose_kernel('pallas', 'gpu', 512)
  with pytest.raises(ValueError, match='multiple of 128, got 100'):
    choose_kernel('pallas', 'tpu', 100)


def test_names_are_of_kernels():
  assert kernel_of('xla') is blockwise.XLA
  assert kernel_of('pallas') is tpu.PALLAS
