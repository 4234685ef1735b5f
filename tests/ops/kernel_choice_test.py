"""The choice of a kernel is a pure function of names and numbers."""

from types import SimpleNamespace
from typing import get_args, get_type_hints

import jax
import numpy as np
import pytest

from longctx_jax.config import ModelConfig
from longctx_jax.ops import blockwise_attention as blockwise
from longctx_jax.ops.context_parallel import ContextParallel
from longctx_jax.ops.kernels import cpp_library, cpu, cudnn, tpu
from longctx_jax.ops.kernels.choice import (
  Facts,
  KernelName,
  cache_kernel_of,
  choose_cache_kernel,
  choose_kernel,
  facts_of,
  kernel_of,
)
from tests.ops.cuda_lowering import pretend_cudnn

CPU = Facts('cpu', block_len=512, head_dim=128, dtype='bfloat16')
TPU = CPU._replace(platform='tpu')
A100 = CPU._replace(platform='gpu', compute_capability=(8, 0), has_cudnn=True)
H100 = A100._replace(compute_capability=(9, 0))
B200 = A100._replace(compute_capability=(10, 0))


@pytest.mark.parametrize(
  ('wanted', 'facts', 'name', 'reason'),
  [
    ('auto', CPU, 'cpp', "it is for 'cpu'"),
    ('auto', CPU._replace(platform='metal'), 'xla', 'no other kernel is for'),
    ('auto', TPU, 'pallas', "it is for 'tpu'"),
    ('auto', A100, 'cudnn', "it is for 'gpu'"),
    ('auto', A100._replace(block_len=100), 'cudnn', "it is for 'gpu'"),
    ('auto', A100._replace(dtype='float16'), 'cudnn', "it is for 'gpu'"),
    ('auto', H100._replace(head_dim=256), 'cudnn', "it is for 'gpu'"),
    ('xla', TPU, 'xla', 'config names it'),
    ('xla', A100, 'xla', 'config names it'),
    ('pallas', TPU._replace(block_len=128), 'pallas', 'config names it'),
    ('cudnn', B200._replace(head_dim=8), 'cudnn', 'config names it'),
  ],
)
def test_the_choice_and_its_reason(wanted, facts, name, reason):
  choice = choose_kernel(wanted, facts)
  assert choice.name == name
  assert reason in choice.reason


@pytest.mark.parametrize(
  ('kernel', 'facts', 'why'),
  [
    ('cpp', CPU._replace(cpp_problem='finds no compiler'), 'finds no compiler'),
    ('pallas', TPU._replace(block_len=100), 'multiple of 128, got 100'),
    (
      'cudnn',
      A100._replace(compute_capability=(7, 5)),
      'capability 8.0 or newer',
    ),
    # AMD's are GPUs too.
    ('cudnn', A100._replace(compute_capability=()), 'needs an NVIDIA GPU'),
    (
      'cudnn',
      A100._replace(has_cudnn=False),
      'needs cuDNN, and JAX finds none',
    ),
    ('cudnn', A100._replace(dtype='float32'), 'bfloat16, got float32'),
    ('cudnn', A100._replace(head_dim=100), 'multiple of 8 .* got 100'),
    ('cudnn', A100._replace(head_dim=136), 'at most 128 .* got 136'),
    ('cudnn', H100._replace(head_dim=264), 'at most 256 .* got 264'),
    ('cudnn', B200._replace(head_dim=256), 'at most 128 .* got 256'),
    ('cudnn', A100._replace(has_whole_rows=False), 'needs whole rows'),
  ],
)
def test_a_kernel_that_cannot_run_is_refused_and_not_chosen(kernel, facts, why):
  says = f"attention_kernel='{kernel}' .*{why}.*: use 'auto' or 'xla'"
  with pytest.raises(ValueError, match=says) as error:
    choose_kernel(kernel, facts)
  assert '\n' not in str(error.value)
  choice = choose_kernel('auto', facts)
  assert choice.name == 'xla'
  assert choice.reason in str(error.value)


@pytest.mark.parametrize(
  ('kernel', 'facts', 'why'),
  [
    ('cpp', TPU, "runs on CPUs, not on 'tpu'"),
    ('pallas', A100, "runs on TPUs, not on 'gpu'"),
    ('cudnn', TPU, "runs on GPUs, not on 'tpu'"),
    ('cudnn', CPU, "runs on GPUs, not on 'cpu'"),
  ],
)
def test_a_kernel_for_other_devices_is_refused(kernel, facts, why):
  with pytest.raises(ValueError, match=why):
    choose_kernel(kernel, facts)


def test_names_are_of_kernels_and_the_config_knows_them():
  assert kernel_of('xla') is blockwise.XLA
  assert kernel_of('cpp') is cpu.CPP
  assert kernel_of('pallas') is tpu.PALLAS
  assert kernel_of('cudnn') is cudnn.CUDNN
  hints = get_type_hints(ModelConfig)
  assert get_args(hints['attention_kernel']) == get_args(KernelName)


def test_prompts_are_read_by_the_kernel_for_cpus_where_it_fits():
  facts = CPU._replace(dtype='float32')
  for wanted, seen, name, reason in (
    ('auto', facts, 'cpp', "it is for 'cpu'"),
    ('xla', facts, 'xla', 'the config names it'),
    ('auto', facts._replace(cpp_problem='no'), 'xla', "'cpp' no"),
    ('auto', CPU, 'xla', 'float32, got bfloat16'),
    ('auto', facts._replace(head_dim=8), 'xla', 'multiple of 16, got 8'),
    ('auto', TPU, 'xla', "'pallas' reads no caches"),
  ):
    choice = choose_cache_kernel(wanted, seen)
    assert choice.name == name
    assert reason in choice.reason
  assert cache_kernel_of('cpp') is cpu.attend_cache
  assert cache_kernel_of('xla') is None


@pytest.mark.parametrize(
  ('kind', 'layout', 'num_shards', 'whole_rows'),
  [
    ('ring', 'zigzag', 1, True),
    ('ring', 'contiguous', 2, False),
    ('allgather', 'contiguous', 2, False),
    ('ulysses', 'contiguous', 2, True),
    ('ulysses', 'zigzag', 2, False),
  ],
)
def test_where_a_device_has_whole_rows(kind, layout, num_shards, whole_rows):
  devices = np.array(jax.devices()[:num_shards])
  mesh = jax.sharding.Mesh(devices, ('context',))
  parallel = ContextParallel(mesh, kind, layout)
  facts = facts_of(parallel, block_len=512, head_dim=128, dtype='bfloat16')
  assert facts == CPU._replace(
    has_whole_rows=whole_rows, cpp_problem=cpp_library.why_unavailable()
  )


@pytest.mark.parametrize(
  ('says', 'understood'), [('12.0', (12, 0)), ('gfx942', ())]
)
def test_gpus_are_asked_for_their_capability(monkeypatch, says, understood):
  pretend_cudnn(monkeypatch)
  device = SimpleNamespace(platform='gpu', compute_capability=says)
  mesh = SimpleNamespace(devices=np.array([device]), shape={})
  facts = facts_of(
    ContextParallel(mesh), block_len=512, head_dim=128, dtype='bfloat16'
  )
  assert facts == A100._replace(compute_capability=understood)
