"""Which files a source's `path` means: a file, a directory or a pattern."""

import glob
import os
from collections.abc import Iterator
from pathlib import Path

from longctx_jax.config_from_dict import ConfigError
from longctx_jax.corpus_config import TextSource
from longctx_jax.data.parts import printable


def find_files(
  source: TextSource, suffixes: tuple[str, ...]
) -> list[tuple[str, Path]]:
  """(name below the root, path) of the files that `source.path` means.

      path                  root       files
      texts                 texts      those below it that end in `suffixes`
      texts/a.jsonl         texts      that one, whatever its suffix
      texts/*/a-??.jsonl    texts      those that match; `suffixes` for those
                                       below matching directories

  In the order of names. Hidden files and directories are left out, unless the
  path says them; a directory that links lead to twice is read once.

  Raises:
    ConfigError: there are none.
  """
  root, found = matches(source)
  files = {}
  for path in found:
    if path.is_dir():
      below = (f for f in walk_files(path) if f.name.lower().endswith(suffixes))
    else:
      below = [path]
    for file in below:
      files[printable(file.relative_to(root).as_posix())] = file
  if not files:
    raise ConfigError(
      f'path={source.path!r} has no {_listed(suffixes)} files in it'
    )
  return sorted(files.items())


def matches(source: TextSource) -> tuple[Path, list[Path]]:
  """(root, files and directories) that `source.path` means, sorted.

  Raises:
    ConfigError: there are none.
  """
  path = Path(source.path)
  if source.path and path.exists():
    return (path if path.is_dir() else path.parent), [path]
  if glob.has_magic(source.path):
    found = sorted(map(Path, glob.glob(source.path, recursive=True)))
    if found:
      plain = []
      for folder in path.parts:
        if glob.has_magic(folder):
          break
        plain.append(folder)
      return Path(*plain), found
    raise ConfigError(f'path={source.path!r}: nothing matches this pattern')
  raise ConfigError(
    f'path={source.path!r}: no such file or directory. A source of kind'
    f' {source.kind} reads a directory, a file or a pattern'
  )


def walk_files(root: Path) -> Iterator[Path]:
  """Regular files below `root`, not hidden ones, folder by folder in order.

  Links are followed: data sets are often folders of links to one store.
  """
  seen = {os.path.realpath(root)}
  for folder, folders, files in os.walk(root, followlinks=True):
    entered = []
    for name in sorted(folders):
      real = os.path.realpath(os.path.join(folder, name))
      # A link back to a folder that is above it would never end.
      if not name.startswith('.') and real not in seen:
        seen.add(real)
        entered.append(name)
    folders[:] = entered
    for name in sorted(files):
      path = Path(folder, name)
      if not name.startswith('.') and path.is_file():
        yield path


def _listed(suffixes):
  *others, last = [f'*{suffix}' for suffix in suffixes]
  return f'{", ".join(others)} or {last}' if others else last
