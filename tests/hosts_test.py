"""Several JAX processes: the parts that each reads make one global batch."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from longctx_jax.data.prepare import prepare_corpus
from tests import small


@pytest.mark.slow
def test_two_hosts_put_their_rows_together_to_the_batch_of_one(tmp_path):
  prepare_corpus(small.corpus_config(), tmp_path / 'corpus', seed=0)
  with socket.socket() as free:
    free.bind(('localhost', 0))
    port = free.getsockname()[1]
  hosts = [
    subprocess.Popen(
      [
        *(sys.executable, '-m', 'tests.hosts_batches'),
        *(str(index), '2', str(port), tmp_path / 'corpus'),
      ],
      cwd=Path(__file__).parents[1],
      env={**os.environ, 'JAX_PLATFORMS': 'cpu'},
      stderr=subprocess.PIPE,
      text=True,
    )
    for index in range(2)
  ]
  try:
    errors = [host.communicate(timeout=120)[1] for host in hosts]
  finally:
    for host in hosts:
      host.kill()
  assert [host.returncode for host in hosts] == [0, 0], '\n'.join(errors)
