"""SUITE.jsonl: settings on the first line, then what was found, line by line.

    {"settings": {"model": "models/smollm2", "seed": 0, ...}}
    {"name": "1024-0.5-0", "prediction": " 71432", "score": 1.0, ...}

Lines are only ever added, so that a run that is killed loses what it was asking
and no more. Lines of other settings do not go into the same file.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from longctx_jax.config_from_dict import ConfigError
from longctx_jax.suites.settings import check_settings
from longctx_jax.workdir import write_atomically


def open_records(path: Path, settings: dict[str, Any]) -> list[dict[str, Any]]:
  """The records of a file; none where there is no file.

  A line that a kill cut short is taken out, and asked again.

  Raises:
    ConfigError: it begins with other settings, or is not ours.
  """
  if not path.exists() or not path.read_bytes().strip():
    return []
  whole = path.read_bytes()
  kept = whole[: whole.rfind(b'\n') + 1]
  if kept and kept != whole:
    write_atomically(path, kept.decode('utf-8'))
  first, *records = _lines(path)
  there = first.get('settings') if isinstance(first, dict) else None
  if records or there is None:
    check_settings(there, json.loads(json.dumps(settings)), path)
  return records


def add_records(
  path: Path,
  records: Sequence[dict[str, Any]],
  settings: dict[str, Any] | None,
) -> None:
  """Appends records; the first of a file replace it, under their settings."""
  text = ''.join(json.dumps(record) + '\n' for record in records)
  if settings is not None:
    # Not before there is a record: a run that fails leaves nothing.
    write_atomically(path, json.dumps({'settings': settings}) + '\n' + text)
    return
  with path.open('a', encoding='utf-8') as file:
    file.write(text)


def read_records(path: Path) -> list[dict[str, Any]]:
  """The records of a file, in the order they came."""
  return _lines(path)[1:]


def _lines(path):
  try:
    lines = path.read_text('utf-8').splitlines()
    return [json.loads(line) for line in lines]
  except ValueError as error:
    raise ConfigError(
      f'{path}: a line is no JSON ({error}): remove it, or give another --out'
    ) from error
