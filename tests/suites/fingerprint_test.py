"""Results of one stage are not taken for another's."""

import dataclasses
import json
import os
import shutil

import jax
import pytest

from longctx_jax.checkpoint import Checkpoints
from longctx_jax.config import MeshConfig
from longctx_jax.data.pipeline import DataState
from longctx_jax.data.tokenizer_files import load_tokenizer
from longctx_jax.sharding import make_mesh
from longctx_jax.suites.evaluate import evaluation_directory
from longctx_jax.suites.fingerprint import fingerprint_weights
from longctx_jax.train_step import init_state
from longctx_jax.weights.loaded_model import load_model
from longctx_jax.workdir import stage_directory
from tests import small


@pytest.fixture
def run(tmp_path, corpus_directory):
  """A run of two stages that differ in their weights alone."""
  run = tmp_path / 'run'
  shutil.copytree(corpus_directory, run / 'corpus')
  stages = [small.stage_config(name=name) for name in ('long', 'same')]
  fields = {'stages': [dataclasses.asdict(stage) for stage in stages]}
  (run / 'config.json').write_text(json.dumps(fields))
  for i in range(2):
    save(run, i, 1)
  return run


def save(run, i, step):
  name = ('long', 'same')[i]
  directory = stage_directory(run, i, name)
  checkpoints = Checkpoints(directory / 'checkpoints', keep=2)
  stage = dataclasses.replace(small.stage_config(name=name), seed=i)
  checkpoints.save(
    init_state(stage, make_mesh(MeshConfig(), jax.devices()[:1])),
    DataState(step, seed=0, fingerprint=''),
    config_json='{}',
    tokenizer_fingerprint=load_tokenizer(run / 'corpus').fingerprint,
    clock={'step': 0.0},
  )
  checkpoints.close()
  (directory / 'results.json').write_text('{}')


def fingerprint(source, stage=''):
  return fingerprint_weights(load_model(str(source), stage=stage))


def test_stages_have_their_own_fingerprint_and_place(run):
  assert fingerprint(run, 'long').startswith('stage long, step 1, files ')
  assert fingerprint(run, 'same') != fingerprint(run, 'long')
  assert fingerprint(run) == fingerprint(run, 'same')
  for stage in ('long', 'same'):
    place = evaluation_directory(load_model(str(run), stage=stage))
    assert place == run / 'evaluation' / stage
  assert evaluation_directory(load_model(str(run))).name == 'same'


def test_further_training_changes_the_fingerprint(run):
  before = fingerprint(run, 'long')
  assert fingerprint(run, 'long') == before
  save(run, 0, 12)
  assert fingerprint(run, 'long').startswith('stage long, step 12, files ')
  shutil.rmtree(stage_directory(run, 0, 'long') / 'checkpoints')
  assert fingerprint(run, 'long') == 'stage long, no checkpoint'
  # Trained anew up to the same step.
  save(run, 0, 1)
  after = fingerprint(run, 'long')
  assert after.startswith('stage long, step 1, files ')
  assert after != before


@pytest.mark.parametrize('name', ['model.safetensors', 'tokenizer.json'])
def test_another_file_of_a_folder_changes_the_fingerprint(folder, name):
  before = fingerprint(folder)
  (folder / 'README.md').write_text('Read me.')
  (folder / 'evaluation').mkdir()
  assert fingerprint(folder) == before
  stat = (folder / name).stat()
  os.utime(folder / name, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
  assert fingerprint(folder) != before
  assert evaluation_directory(load_model(str(folder))) == folder / 'evaluation'
