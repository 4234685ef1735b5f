"""How much memory a model takes while it is loaded."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.architecture_test import ROOT

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
