"""The notebooks run from beginning to end, and are stored as they ran."""

import base64
import json
import os

import pytest

from tests.architecture_test import PATH, ROOT

NOTEBOOKS = sorted((ROOT / 'notebooks').glob('*.ipynb'))
MAX_BYTES = 300_000

every_notebook = pytest.mark.parametrize(
  'path', NOTEBOOKS, ids=lambda path: path.stem
)


def test_there_are_notebooks():
  assert {path.stem for path in NOTEBOOKS} >= {'train_tiny_recipe'}


@pytest.mark.slow
@every_notebook
def test_it_runs(path, tmp_path, monkeypatch):
  nbclient = pytest.importorskip('nbclient')
  nbformat = pytest.importorskip('nbformat')
  notebook = nbformat.read(path, as_version=4)
  cells = [cell for cell in notebook.cells if cell.cell_type == 'code']
  for cell in cells:
    cell.outputs = []
  # A hundredth of the steps, in a directory of its own.
  monkeypatch.setenv('SHARE', '0.01')
  monkeypatch.setenv('WORKDIR', str(tmp_path / 'run'))
  monkeypatch.setenv('PYTHONPATH', os.pathsep.join([str(ROOT), *_path()]))
  client = nbclient.NotebookClient(
    notebook,
    timeout=600,
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
