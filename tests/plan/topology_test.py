"""Names of topologies, and what is known of their chips."""

import glob
import importlib.util
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

from longctx_jax.config import ConfigError
from longctx_jax.plan import topology
from longctx_jax.plan.compile_step import (
  Memory,
  memory_of_program,
  memory_of_refusal,
)


@pytest.mark.parametrize(
  'name', ['v5p', 'v9:2x2', 'v5p:3x3x3', 'v5e:2x2x4', 'v5p-24', '']
)
def test_a_topology_that_does_not_exist_names_those_that_do(name):
  with pytest.raises(ConfigError, match='no such topology') as error:
    topology.topology_devices(name)
  assert 'v5e: 1x1 2x2' in str(error.value)
  assert '2x2x4' in str(error.value)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize(
  ('name', 'shape'),
  [
    ('v5p-8', 'v5p:2x2x1'),
    ('v5p-64', 'v5p:2x4x4'),
    ('v5e-16', 'v5e:4x4'),
    ('v6e-32', 'v6e:4x8'),
    ('v5p-24', 'v5p-24'),  # not offered
    ('v9-8', 'v9-8'),
    ('v5p:2x2x2', 'v5p:2x2x2'),
  ],
)
def test_topologies_have_names_by_number_too(name, shape):
  assert topology.by_shape(name) == shape
  if ':' in shape:
    assert topology.chip_of(name) == topology.chip_of(shape)
    assert topology.num_chips(name) == topology.num_chips(shape)


def test_without_libtpu_it_is_said_how_to_install_it(monkeypatch):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(ConfigError, match=r"pip install 'longctx_jax\[plan\]'"):
    topology.topology_devices('v5p:2x2x1')


# One chip is less than the host that libtpu 0.0.42 takes for granted.
@pytest.mark.parametrize(
  'name', ['v5e:4x4', 'v5p-16', 'v6e:2x4', 'v5e:1x1', 'v6e:1x1']
)
def test_libtpu_knows_the_chips_as_they_are_listed(name):
  pytest.importorskip('libtpu')
  chip = topology.chip_of(name)
  devices = topology.topology_devices(name)
  assert {device.device_kind for device in devices} == {chip.kind}
  size = 1
  for side in topology.by_shape(name).partition(':')[2].split('x'):
    size *= int(side)
  assert len(devices) == size
  two = topology.topology_devices(name, num_slices=2)
  assert [device.slice_index for device in two] == [0] * size + [1] * size


# What libtpu 0.0.52, 0.0.42 and 0.0.30 say.
REFUSALS = [
  'RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the'
  ' total memory required for HLO temporaries (24.00G) exceeds available HBM'
  ' (15.75G). HLO module: jit_f.\nSee https://openxla.org/xla/errors',
  'RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for'
  ' HLO temporaries (24.00G) exceeds available HBM (15.75G).',
  'RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 24.00G of'
  ' 15.75G hbm. Exceeded hbm capacity by 8.25G.',
]


@pytest.mark.parametrize('message', REFUSALS)
def test_a_refusal_is_an_answer_with_the_overshoot(message):
  memory = memory_of_refusal(message, arguments=14 * 2**30)
  assert memory == Memory(
    arguments=14 * 2**30,
    temporaries=10 * 2**30,
    outputs=14 * 2**30,
    aliased=14 * 2**30,
    total=24 * 2**30,
    capacity=int(15.75 * 2**30),
  )
  assert not memory.fits
  assert memory_of_refusal('INTERNAL: something else', arguments=0) is None


@pytest.mark.parametrize(('peak', 'temporaries'), [(130, 29), (0, 50)])
def test_temporaries_are_what_the_peak_leaves(peak, temporaries):
  """libtpu may count more than it sets apart; an old one has no peak."""
  analysis = types.SimpleNamespace(
    argument_size_in_bytes=100,
    temp_size_in_bytes=50,
    output_size_in_bytes=90,
    alias_size_in_bytes=89,
    peak_memory_in_bytes=peak,
  )
  memory = memory_of_program(analysis, capacity=140)
  assert memory == Memory(100, temporaries, 90, 89, 101 + temporaries, 140)
  assert memory.fits == (peak > 0)


@pytest.mark.slow
@pytest.mark.skipif(
  any(glob.glob(files) for files in topology.TPU_FILES), reason='there is a TPU'
)
def test_training_beside_libtpu_says_nothing_of_it(tmp_path):
  pytest.importorskip('libtpu')
  done = subprocess.run(
    [
      *(sys.executable, '-m', 'longctx_jax', 'train'),
      '--config=configs/longskywork/pretrain.py:tiny',
      '--config.mesh.fsdp=3',
      f'--workdir={tmp_path / "run"}',
    ],
    cwd=Path(__file__).parents[2],
    env={k: v for k, v in os.environ.items() if k != 'JAX_PLATFORMS'},
    capture_output=True,
    text=True,
  )
  # The first that is said is of the devices that were found.
  assert done.stderr.startswith('longctx: mesh ')
