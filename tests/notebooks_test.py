"""The notebooks run from beginning to end, and are stored as they ran."""

import base64
import json
import os
import re

import pytest

from configs.prolong import recipe
from longctx_jax.config import stages_from_recipe
from tests.architecture_test import PATH, ROOT

NOTEBOOKS = sorted((ROOT / 'notebooks').glob('*.ipynb'))
MAX_BYTES = 300_000

every_notebook = pytest.mark.parametrize(
  'path', NOTEBOOKS, ids=lambda path: path.stem
)


def test_there_are_notebooks():
  stems = {path.stem for path in NOTEBOOKS}
  assert stems >= {'plan_a_recipe', 'train_tiny_recipe'}


@pytest.mark.slow
@every_notebook
def test_it_runs(path, tmp_path, monkeypatch):
  nbclient = pytest.importorskip('nbclient')
  nbformat = pytest.importorskip('nbformat')
  if path.stem == 'plan_a_recipe':
    pytest.importorskip('libtpu', reason='planning compiles with libtpu')
  notebook = nbformat.read(path, as_version=4)
  cells = [cell for cell in notebook.cells if cell.cell_type == 'code']
  for cell in cells:
    cell.outputs = []
  # A hundredth of the steps, in a directory of its own; or one narrow layer.
  monkeypatch.setenv('SHARE', '0.01')
  monkeypatch.setenv('WORKDIR', str(tmp_path / 'run'))
  monkeypatch.setenv('PYTHONPATH', os.pathsep.join([str(ROOT), *_path()]))
  client = nbclient.NotebookClient(
    notebook,
    timeout=600,
    startup_timeout=300,  # on a machine with other work
    kernel_name='python3',
    resources={'metadata': {'path': str(path.parent)}},
  )
  client.execute()
  stored = nbformat.read(path, as_version=4)
  shown = [cell for cell in stored.cells if cell.cell_type == 'code']
  for cell, other in zip(cells, shown, strict=True):
    assert _kinds(cell) == _kinds(other)


@every_notebook
def test_it_is_stored_with_what_it_shows_and_is_small(path):
  assert path.stat().st_size < MAX_BYTES
  cells = json.loads(path.read_text())['cells']
  code = [cell for cell in cells if cell['cell_type'] == 'code']
  # Executed once, in order.
  counts = [cell['execution_count'] for cell in code]
  assert counts == list(range(1, len(code) + 1))
  # Within one run, cell after cell: the times are as they were recorded.
  times = [
    cell['metadata']['execution'][moment]
    for cell in code
    for moment in ('iopub.status.busy', 'iopub.status.idle')
  ]
  assert times == sorted(times)
  outputs = [output for cell in code for output in cell['outputs']]
  assert not [o for o in outputs if o['output_type'] == 'error']
  assert not [o for o in outputs if o.get('name') == 'stderr']
  pictures = [o['data']['image/png'] for o in outputs if 'image/png' in str(o)]
  assert pictures
  for picture in pictures:
    assert base64.b64decode(picture).startswith(b'\x89PNG')


def test_the_plans_that_are_stored_are_of_every_stage_at_full_size():
  cells = json.loads((ROOT / 'notebooks/plan_a_recipe.ipynb').read_text())
  text = ''.join(
    line
    for cell in cells['cells']
    for output in cell.get('outputs', ())
    for line in output.get('text', ())
  )
  config = stages_from_recipe(recipe.get_config('topology=v5p-16'))
  for stage in config:
    rows = f'{stage.data.batch_size} rows of {stage.data.seq_len:,} tokens'
    mesh = f'fsdp {stage.mesh.fsdp}, context {stage.mesh.context}'
    told = rf'ProLong {stage.name} +{rows} +{mesh} '
    assert re.search(told, text), told
  assert 'predicted' in text


@every_notebook
def test_it_names_only_files_that_exist(path):
  cells = json.loads(path.read_text())['cells']
  text = '\n'.join(''.join(cell['source']) for cell in cells)
  found = PATH.findall(text)
  assert found
  assert [name for name in found if not (ROOT / name).exists()] == []
  # Nor what is only on the machine that it ran on.
  assert str(ROOT) not in path.read_text()
  assert '/home/' not in path.read_text()


def _path():
  return [part for part in [os.environ.get('PYTHONPATH')] if part]


def _kinds(cell):
  """What a cell's outputs are, apart from what they say."""
  return {
    name
    for output in cell.outputs
    for name in output.get('data', {output.get('name', 'text'): 0})
  }
