"""Whose a directory is, and files that are whole or not there."""

import dataclasses
import json
from pathlib import Path

import pytest

from longctx_jax.config import ConfigError
from longctx_jax.workdir import claim_workdir, write_atomically
from tests import small


def run_config(**changes):
  """What run_recipe claims a directory with: the stages, as a list."""
  stages = [small.stage_config(name='one'), small.stage_config(**changes)]
  return {'stages': [dataclasses.asdict(stage) for stage in stages]}


def test_the_same_config_claims_its_directory_again(tmp_path):
  workdir = tmp_path / 'runs' / 'a'
  claim_workdir(workdir, run_config())
  before = (workdir / 'config.json').read_bytes()
  claim_workdir(workdir, run_config())
  assert (workdir / 'config.json').read_bytes() == before
  assert json.loads(before) == json.loads(json.dumps(run_config()))


@pytest.mark.parametrize(
  'changes', [{'num_workers': 3}, {'on_repeat': 'refuse'}], ids=str
)
def test_a_run_goes_on_though_its_rows_are_read_in_another_way(
  tmp_path, changes
):
  claim_workdir(tmp_path, run_config())
  before = (tmp_path / 'config.json').read_bytes()
  claim_workdir(tmp_path, run_config(data=changes))
  assert (tmp_path / 'config.json').read_bytes() == before
  with pytest.raises(ConfigError, match=r'stages\.1\.data\.seq_len is 128'):
    claim_workdir(tmp_path, run_config(data={**changes, 'seq_len': 256}))


@pytest.mark.parametrize(
  ('changes', 'says'),
  [
    (
      {'train': {'steps': 7}},
      'stages.1.train.steps is 4 there, 7 here',
    ),
    (
      {'evals': {'table_lengths': (96, 100)}},
      'stages.1.evals.table_lengths.1 is null there, 100 here',
    ),
    ({'rope': {'base': 5e5}}, 'stages.1.rope.base is 10000.0 there, 500000.0'),
    (
      {'optimizer': {'moment_dtype': 'bfloat16'}},
      'stages.1.optimizer.moment_dtype is "float32" there, "bfloat16" here',
    ),
  ],
)
def test_another_config_is_refused_by_the_first_field_that_differs(
  tmp_path, changes, says
):
  claim_workdir(tmp_path, run_config())
  before = (tmp_path / 'config.json').read_bytes()
  with pytest.raises(ConfigError) as error:
    claim_workdir(tmp_path, run_config(**changes))
  assert f'({says}' in str(error.value)
  assert 'give another --workdir' in str(error.value)
  assert len(str(error.value)) < 300
  assert (tmp_path / 'config.json').read_bytes() == before


def test_a_config_of_fewer_stages_is_refused_in_a_short_line(tmp_path):
  claim_workdir(tmp_path, run_config())
  fewer = {'stages': run_config()['stages'][:1]}
  with pytest.raises(ConfigError, match=r'stages\.1 is .* null here') as error:
    claim_workdir(tmp_path, fewer)
  assert len(str(error.value)) < 300


def test_a_write_replaces_the_whole_file(tmp_path):
  path = tmp_path / 'deep' / 'file.json'
  write_atomically(path, 'a long first text')
  write_atomically(path, 'short')
  assert path.read_text() == 'short'
  assert list(path.parent.iterdir()) == [path]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
  tmp_path, monkeypatch
):
  path = tmp_path / 'file.json'
  write_atomically(path, 'old')

  def full_disk(self, text, **kwargs):
    self.open('w').write(text[:2])
    raise OSError('No space left on device')

  monkeypatch.setattr(Path, 'write_text', full_disk)
  with pytest.raises(OSError, match='No space left'):
    write_atomically(path, 'new text')
  assert path.read_text() == 'old'
  assert list(tmp_path.iterdir()) == [path]


def test_a_run_that_is_older_than_a_field_goes_on_with_its_default(tmp_path):
  config = {'stages': [dataclasses.asdict(small.stage_config())]}
  claim_workdir(tmp_path, config)
  path = tmp_path / 'config.json'
  older = json.loads(path.read_text())
  del older['stages'][0]['model']['qkv_bias']
  path.write_text(json.dumps(older))
  claim_workdir(tmp_path, config)
  other = small.stage_config(model={'qkv_bias': True})
  with pytest.raises(ConfigError, match=r'qkv_bias is false there, true here'):
    claim_workdir(tmp_path, {'stages': [dataclasses.asdict(other)]})
