"""How much memory a model takes while it is loaded or converted."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import small
from tests.architecture_test import ROOT
from tests.weights.runs import random_weights, write_run

RESET = Path('/proc/self/clear_refs')
# In a process of its own, whose highest mark is that of nothing else.
LOAD = """
import gc, re, sys
from pathlib import Path
import jax
from longctx_jax.config import MeshConfig
from longctx_jax.sharding import make_mesh
from longctx_jax.weights import model_folder
load = getattr(model_folder, sys.argv[1])
mesh = make_mesh(MeshConfig(), jax.devices()[:1])
def status(name):
  text = Path('/proc/self/status').read_text()
  return 1024 * int(re.search(rf'{name}:\\s+(\\d+)', text)[1])
def loaded(folder):
  opened = model_folder.open_model_folder(Path(folder))
  return load(opened.architecture.model, opened.tensors, mesh)
loaded(sys.argv[2])  # what JAX sets apart once
gc.collect()
before = status('VmRSS')
Path('/proc/self/clear_refs').write_text('5')
params = loaded(sys.argv[3])
peak = status('VmHWM') - before
print(peak / sum(x.nbytes for x in jax.tree.leaves(params)))
"""


@pytest.mark.slow
@pytest.mark.skipif(not RESET.exists(), reason='needs Linux')
@pytest.mark.parametrize('load', ['load_params', 'load_layers'])
def test_loading_takes_little_more_than_the_parameters(load, make_folder):
  tiny = make_folder('llama')
  # 400 MB, of which the largest array has a sixth, as in SmolLM2-135M.
  large = make_folder(
    'llama_grouped_tied',
    vocab_size=49_152,
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=20,
  )
  found = subprocess.run(
    [sys.executable, '-c', LOAD, load, tiny, large],
    check=True,
    cwd=ROOT,
    stdout=subprocess.PIPE,
    text=True,
  ).stdout
  print(found)
  assert 0.95 < float(found) < 1.3


CONVERT = """
import gc, re, sys
from pathlib import Path
from longctx_jax.weights.convert import convert
def status(name):
  text = Path('/proc/self/status').read_text()
  return 1024 * int(re.search(rf'{name}:\\s+(\\d+)', text)[1])
tiny, large, out = map(Path, sys.argv[1:])
convert(str(tiny), out / 'tiny')  # what JAX and Orbax set apart once
gc.collect()
before = status('VmRSS')
Path('/proc/self/clear_refs').write_text('5')
convert(str(large), out / 'large')
print(status('VmHWM') - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not RESET.exists(), reason='needs Linux')
def test_a_run_is_converted_a_layer_at_a_time(tmp_path, corpus_directory):
  sizes = {'num_layers': 16, 'embed_dim': 1024, 'hidden_dim': 8704}
  layer_bytes = 4 * 1024 * 8704  # 36 MB; all of them 570 MB, three times
  stages = [small.stage_config(), small.stage_config(model=sizes)]
  runs = [tmp_path / 'tiny', tmp_path / 'large']
  for run, stage in zip(runs, stages, strict=True):
    write_run(run, corpus_directory, stage, random_weights(stage.model))
  found = subprocess.run(
    [sys.executable, '-c', CONVERT, *runs, tmp_path / 'out'],
    check=True,
    cwd=ROOT,
    # Else malloc keeps a few buffers of up to 32 MB, however many layers.
    env=os.environ | {'MALLOC_MMAP_THRESHOLD_': '1000000'},
    stdout=subprocess.PIPE,
    text=True,
  ).stdout
  peak = int(found) / layer_bytes
  print(peak)
  # Unpacked and being copied, or as it was saved and turned.
  assert 1 < peak < 3
