"""Which weights gave an answer, by what changes whenever they do.

Names, sizes and modification times of files: the weights themselves would take
minutes to read. Tokenizer and chat template of a folder count too, as they make
the prompts.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from longctx_jax.weights.loaded_model import LoadedModel

_SUFFIXES = ('.safetensors', '.json', '.model', '.jinja')


def fingerprint_weights(loaded: LoadedModel) -> str:
  """'files 4f1c...'; of a run, 'stage cip, step 300, files 4f1c...'."""
  where = Path(loaded.tensors.where)
  if not loaded.stage:
    files = (path for path in where.iterdir() if path.suffix in _SUFFIXES)
    return _hash_files(where, files)
  steps = [int(p.name) for p in where.glob('*') if p.name.isdigit()]
  if not steps:
    return f'stage {loaded.stage}, no checkpoint'
  # The newest is the one that is read; steps alone would not tell a stage that
  # was trained anew from what it was.
  step = where / str(max(steps))
  hashed = _hash_files(step, step.rglob('*'))
  return f'stage {loaded.stage}, step {step.name}, {hashed}'


def _hash_files(directory: Path, files: Iterable[Path]) -> str:
  digest = hashlib.sha256()
  for path in sorted(path for path in files if path.is_file()):
    stat = path.stat()
    name = path.relative_to(directory).as_posix()
    digest.update(f'{name}\0{stat.st_size}\0{stat.st_mtime_ns}\n'.encode())
  return f'files {digest.hexdigest()[:12]}'
