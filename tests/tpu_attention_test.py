"""Attention over the chips of a TPU, compiled without one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.tpu_attention import hidden_transfers

ROOT = Path(__file__).parent.parent
T = 131_072

LOOP = """
%hop (keys: f32[4]) -> f32[4] {{
  {}
}}
ENTRY %main (keys: f32[4]) -> f32[4] {{
  ROOT %loop = f32[4] while(%keys), condition=%more, body=%hop
}}
"""
START = '%go.1 = (f32[4], f32[4]) collective-permute-start(%keys)'
KERNEL = '%work = f32[4] custom-call(), custom_call_target="tpu_custom_call"'
DONE = '%came = f32[4] collective-permute-done(%go.1)'


@pytest.mark.parametrize(
  ('schedule', 'hidden'),
  [
    ((START, KERNEL, DONE), '1 of 1'),
    ((START, DONE, KERNEL), '0 of 1'),
    ((KERNEL, START, DONE), '0 of 1'),
    ((KERNEL,), '-'),
    ((START, DONE), '-'),  # keys on their way home: there is nothing to do
  ],
)
def test_a_transfer_is_hidden_if_a_kernel_runs_before_its_end(schedule, hidden):
  assert hidden_transfers(LOOP.format('\n  '.join(schedule))) == hidden


# The ring on every generation; the others differ from it by what XLA sends.
@pytest.mark.slow
@pytest.mark.parametrize(
  ('chips', 'kinds'),
  [
    ('v5e:2x2', ['ring']),
    ('v5p:2x2x1', ['ring', 'allgather', 'ulysses']),
    ('v6e:2x2', ['ring']),
  ],
)
def test_every_kind_compiles_for_tpus(chips, kinds, tmp_path):
  pytest.importorskip('libtpu')
  out = tmp_path / 'out.json'
  command = [sys.executable, '-m', 'benchmarks.tpu_attention']
  done = subprocess.run(
    [
      *(*command, f'--out={out}', f'--chips={chips}', f'--length={T}'),
      *('--kinds', *kinds),
    ],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr[-4000:]
  ring, *others = json.loads(out.read_text())
  # Keys and values, down and up, forward and backward; gradients with them.
  assert ring['hidden'] == '12 of 12'
  # Float32 copies of a chip's queries are this large; the scores of one head
  # would be 16 times that. libtpu 0.0.52 takes less than 9, 0.0.42 just above.
  copy = T // 4 * 32 * 128 * 4 / 2**20
  assert all(row['MiB'] < 10 * copy for row in (ring, *others))
