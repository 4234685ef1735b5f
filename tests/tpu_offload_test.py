"""Remat to the host's memory, compiled for TPUs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import tpu_offload

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_offloading_keeps_what_layers_start_from_on_the_host():
  pytest.importorskip('libtpu')
  done = subprocess.run(
    [sys.executable, '-m', 'tests.tpu_offload', 'v5p:2x2x1'],
    cwd=ROOT,
    capture_output=True,
    text=True,
    env={**os.environ, 'JAX_PLATFORMS': 'cpu'},
  )
  assert done.returncode == 0, done.stderr[-4000:]
  found = json.loads(done.stdout.splitlines()[-1])
  # A chip's share of the tokens, in bfloat16, for each layer.
  tokens = tpu_offload.T // 4
  kept = 2 * tpu_offload.LAYERS * tokens * tpu_offload.WIDTH
  assert found == {'full': 0, 'offload': kept}
