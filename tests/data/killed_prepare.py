"""Prepares a corpus in a process of its own, which may die on the way.

    python -m tests.data.killed_prepare TEXTS CORPUS [REPLACES] [FILE_BYTES]

dies like after kill -9 in place of the rename number REPLACES, unless that is
0, and cannot write files of more than FILE_BYTES, as on a full disk.
"""

import os
import resource
import sys
from pathlib import Path

from longctx_jax.data.prepare_pipeline import prepare_at_scale
from tests.data.large_corpus import PREPARE, config_of


def main(texts: str, corpus: str, replaces: str = '0', file_bytes: str = ''):
  """See above; prints the error of a full disk."""
  calls, replace = 0, os.replace

  def replace_or_die(*paths):
    nonlocal calls
    calls += 1
    if calls == int(replaces):
      os._exit(9)
    replace(*paths)

  os.replace = replace_or_die
  if file_bytes:
    limits = (int(file_bytes), int(file_bytes))
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  try:
    prepare_at_scale(config_of(Path(texts)), Path(corpus), **PREPARE)
  except OSError as error:
    print(error)
    raise SystemExit(1) from None
  print(calls)


if __name__ == '__main__':
  main(*sys.argv[1:])
