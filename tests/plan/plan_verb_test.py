"""`longctx plan`: its answers, its pages and its one-line errors."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from longctx_jax.model import REMAT_POLICIES
from longctx_jax.plan import search as searching
from longctx_jax.plan.as_text import as_text, search_text
from longctx_jax.plan.collectives import Collective
from longctx_jax.plan.compile_step import Memory
from longctx_jax.plan.page import write_plan_page
from longctx_jax.plan.plan_stage import Plan, as_json
from longctx_jax.plan.search import best_first, meshes, search
from longctx_jax.plan.step_flops import StepFlops
from longctx_jax.plan.step_time import StepTime
from longctx_jax.plan.topology import CHIPS
from tests import small

ROOT = Path(__file__).parent.parent.parent
GIB = 2**30
# A stage of LongSkywork's, of a size that compiles in seconds.
TINY = [
  '--config=configs/longskywork/cip.py',
  *(
    f'--config.model.{field}={value}'
    for field, value in {
      'vocab_size': 65_536,
      'embed_dim': 128,
      'num_layers': 2,
      'num_heads': 2,
      'num_kv_heads': 2,
      'hidden_dim': 256,
      'mlp_chunk_width': 64,
    }.items()
  ),
  '--config.mesh.context=2',
  '--config.data.batch_size=4',
]


def plan(total=10 * GIB, step_s=2.0):
  """A plan of 16 v5p chips."""
  chip = CHIPS['v5p']
  fits = total <= chip.hbm_bytes
  return Plan(
    config=small.stage_config(data={'seq_len': 4096, 'batch_size': 16}),
    topology='v5p:2x2x4',
    num_slices=1,
    chip=chip,
    axis_sizes={'data': 1, 'fsdp': 2, 'context': 8, 'tensor': 1},
    document_len=0,
    memory=Memory(
      6 * GIB, total - 6 * GIB, 6 * GIB, 6 * GIB, total, chip.hbm_bytes
    ),
    flops=StepFlops(model=459e12 * 8, model_causal=459e12 * 8, hardware=459e13),
    sent=(Collective('all-gather', 'fsdp', 2, 12, 3e9, False),) if fits else (),
    hbm_bytes=1e12,
    time=StepTime(1.0, 0.5, step_s, 0.0) if fits else None,
    problem='' if fits else 'nothing is predicted of what does not fit',
    seconds=60.0,
  )


def test_the_json_has_the_keys_that_are_promised():
  answer = as_json(plan())
  assert answer['fits'] is True
  memory = answer['hbm_bytes_per_chip']
  assert {'arguments', 'temporaries', 'outputs', 'total', 'capacity'} <= set(
    memory
  )
  assert memory['total'] == memory['arguments'] + memory['temporaries']
  assert {'model', 'hardware'} <= set(answer['flops_per_step'])
  assert answer['collectives'] == [
    {
      'kind': 'all-gather',
      'axis': 'fsdp',
      'count': 12,
      'bytes': 3e9,
      'network': 'ici',
    }
  ]
  predicted = answer['predicted']
  assert predicted['step_s'] == 2.0
  assert predicted['tokens_per_s'] == 16 * 4096 / 2
  assert predicted['bottleneck'] == 'ici'
  # Half of one chip's peak second, of 16 chips in 2 seconds.
  assert predicted['mfu'] == pytest.approx(8 / (2 * 16))
  assert predicted['chip_hours'] == pytest.approx(4 * 2 * 16 / 3600)
  json.dumps(answer)


def test_what_does_not_fit_is_an_answer_with_the_overshoot():
  large = plan(total=100 * GIB)
  answer = as_json(large)
  assert answer['fits'] is False
  assert answer['predicted'] is None
  over = answer['hbm_bytes_per_chip']['overshoot']
  assert over == 100 * GIB - CHIPS['v5p'].hbm_bytes
  text = as_text(large)
  assert f'does not fit: {over / 1e9:.2f} GB a chip too much' in text
  assert 'nothing is predicted' in text


def test_a_plan_is_one_screen_and_says_that_it_is_predicted():
  text = as_text(plan())
  assert len(text.splitlines()) <= 30
  assert 'predicted' in text
  assert 'cloud.google.com/tpu/docs/v5p' in text
  assert 'bottleneck   ICI' in text


def test_the_page_has_a_bar_for_each_stage(tmp_path):
  path = tmp_path / 'any_name.html'
  write_plan_page([plan(), plan(total=100 * GIB)], path)
  page = path.read_text()
  assert page.count('<svg class="bar"') == 2
  assert 'does not fit' in page
  # The widest is as wide as the bar, and the line is where memory ends.
  line = 100 * CHIPS['v5p'].hbm_bytes / (100 * GIB)
  assert page.count(f'x1="{line:.3f}"') == 2
  assert 'http://' not in page
  assert '<script' not in page


def test_a_search_lists_what_fits_first_and_of_that_the_fastest():
  fast, slow = plan(step_s=2.0), plan(step_s=3.0)
  large, larger = plan(total=100 * GIB), plan(total=110 * GIB)
  plans = best_first([larger, slow, large, fast])
  assert plans == [fast, slow, large, larger]
  assert 'too large by' in search_text(plans).splitlines()[-1]


@pytest.mark.parametrize('fits', [*searching.REMAT, None])
def test_on_each_mesh_the_first_policy_that_fits_is_taken(monkeypatch, fits):
  tried = []

  def plan_it(config, topology, *, document_len):
    del topology, document_len
    tried.append(config.model.remat)
    large = config.model.remat != fits
    return plan(total=100 * GIB if large else 10 * GIB)._replace(config=config)

  monkeypatch.setattr(searching, 'plan_stage', plan_it)
  mesh = {'data': 1, 'fsdp': 2, 'context': 2, 'tensor': 1}
  monkeypatch.setattr(searching, 'meshes', lambda *_: [mesh, mesh, mesh])
  found = list(search(small.stage_config(), 'v5e:2x2', num_meshes=2))
  order = searching.REMAT[: searching.REMAT.index(fits) + 1 if fits else None]
  assert tried == 2 * [*order]
  assert [one.config.model.remat for one in found] == 2 * [order[-1]]
  # All that there are, the one that waits for the host after all others.
  assert {*searching.REMAT} == {'none', *REMAT_POLICIES}
  assert searching.REMAT[-2:] == ('full', 'offload')


def test_meshes_are_those_over_which_the_sizes_divide():
  pytest.importorskip('libtpu')
  config = small.stage_config(data={'batch_size': 2, 'seq_len': 1024})
  found = meshes(config, 'v5e:2x2')
  assert {'data': 1, 'fsdp': 2, 'context': 2, 'tensor': 1} in found
  assert {'data': 1, 'fsdp': 1, 'context': 4, 'tensor': 1} in found
  # Two rows are not split over four.
  assert {'data': 1, 'fsdp': 4, 'context': 1, 'tensor': 1} not in found
  assert len({tuple(mesh.values()) for mesh in found}) == len(found)
  # Only rows of a batch may lie on different slices.
  two = dataclasses.replace(config.mesh, slices=2)
  config = dataclasses.replace(config, mesh=two)
  assert {mesh['data'] for mesh in meshes(config, 'v5e:1x1')} == {2}
  no_rows = dataclasses.replace(
    config, data=dataclasses.replace(config.data, batch_size=1)
  )
  assert meshes(no_rows, 'v5e:1x1') == []


def run(*argv):
  return subprocess.run(
    [sys.executable, '-m', 'longctx_jax', 'plan', *argv],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )


@pytest.mark.slow
@pytest.mark.parametrize(
  ('argv', 'says'),
  [
    (['--topology=v5p:9x9'], 'no such topology'),
    ([], '--topology=NAME is missing'),
    (['--topology=v5e:2x2', '--config.mesh.context=3'], 'has 4 chips'),
    (['--topology=v5e:2x2', '--config.data.seq_len=4099'], 'seq_len=4099'),
  ],
)
def test_bad_input_is_one_clear_line(argv, says):
  pytest.importorskip('libtpu')
  done = run(*TINY, *argv)
  assert done.returncode != 0
  assert done.stderr.count('\n') == 1, done.stderr
  assert done.stderr.startswith('longctx: ')
  assert says in done.stderr


@pytest.mark.slow
def test_a_step_is_compiled_for_a_tpu(tmp_path):
  pytest.importorskip('libtpu')
  out, page = tmp_path / 'plan.json', tmp_path / 'plan.html'
  done = run(
    *TINY,
    '--topology=v5e:2x2',
    '--config.data.seq_len=4096',
    f'--json={out}',
    f'--html={page}',
  )
  assert done.returncode == 0, done.stderr[-4000:]
  assert not done.stderr
  answer = json.loads(out.read_text())
  assert answer['fits']
  memory = answer['hbm_bytes_per_chip']
  # Parameters and two moments in float32, a quarter of each on a chip.
  V, D, L, N, H, F = 65_536, 128, 2, 2, 128, 256
  parameters = 2 * V * D + L * (4 * D * N * H + 3 * D * F)
  assert memory['arguments'] == pytest.approx(parameters * 12 / 4, rel=0.01)
  assert answer['predicted']['step_s'] > 0
  assert {one['axis'] for one in answer['collectives']} >= {'context'}
  assert page.read_text().count('<svg class="bar"') == 1


@pytest.mark.slow
@pytest.mark.parametrize('micro_batches', [1, 2])
def test_slices_tell_each_other_their_gradients_once(micro_batches, tmp_path):
  pytest.importorskip('libtpu')
  out = tmp_path / 'plan.json'
  done = run(
    *TINY,
    '--topology=v5e:2x2',
    '--slices=2',
    '--config.mesh.data=2',
    '--config.mesh.fsdp=2',
    '--config.model.attention=dense',  # compiles sooner
    '--config.data.seq_len=4096',
    '--config.data.batch_size=8',
    f'--config.train.micro_batches={micro_batches}',
    f'--json={out}',
  )
  assert done.returncode == 0, done.stderr[-4000:]
  answer = json.loads(out.read_text())
  if answer['problem']:
    pytest.skip(answer['problem'])
  crossing = [one for one in answer['collectives'] if one['network'] == 'dcn']
  assert {one['axis'] for one in crossing} == {'data'}
  # Every parameter's gradient, of which a chip has a quarter, in float32; and
  # some numbers for the metrics.
  V, D, L, N, H, F = 65_536, 128, 2, 2, 128, 256
  parameters = 2 * V * D + L * (4 * D * N * H + 3 * D * F)
  gradients = 4 * parameters / 4
  sent = sum(one['bytes'] for one in crossing)
  assert gradients <= sent < 1.1 * gradients
  assert answer['predicted']['terms_s']['dcn'] > 0
