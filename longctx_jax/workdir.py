"""A run's directory: whose it is, and files that are whole or not there.

lock                      while a run is in it; see directory_lock.py
config.json               the resolved config of all stages
corpus/                   see data/prepare.py
stages/1_pretrain/        checkpoints/, metrics.jsonl, tensorboard/ (profiles
                          too), started.json: when; results.json once trained
                          and evaluated
summary.json report.html  after every stage
evaluation/pretrain/      what `longctx evaluate` found of that stage
"""

import copy
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from longctx_jax.config import ConfigError, StageConfig, from_config_dict
from longctx_jax.corpus_config import CorpusConfig
from longctx_jax.data_config import READING


def stage_directory(workdir: Path, i: int, name: str) -> Path:
  """Where stage number i (from 0) of a recipe lives."""
  return workdir / 'stages' / f'{i + 1}_{name}'


def corpus_directory(workdir: Path, config: CorpusConfig) -> Path:
  """Where the corpus of a run is: in its directory, or prepared elsewhere."""
  return Path(config.prepared) if config.prepared else workdir / 'corpus'


def read_stages(workdir: Path) -> tuple[StageConfig, ...]:
  """The stages of a run, by its config.json."""
  path = workdir / 'config.json'
  return tuple(
    from_config_dict(StageConfig, stage, f'{path}: stages')
    for stage in json.loads(path.read_text())['stages']
  )


def stage_number(
  stages: Sequence[StageConfig], name: str, workdir: Path
) -> int:
  """Number of the stage called `name`; '' is the last that has results.

  Raises:
    ConfigError: there is none.
  """
  names = [stage.name for stage in stages]
  if name and name not in names:
    raise ConfigError(
      f'--stage={name}: {workdir} has the stages {", ".join(names)}'
    )
  if name:
    return names.index(name)
  done = [
    i
    for i, stage in enumerate(names)
    if (stage_directory(workdir, i, stage) / 'results.json').exists()
  ]
  if not done:
    raise ConfigError(f'{workdir} holds no finished stage')
  return done[-1]


def write_atomically(path: Path, text: str) -> None:
  """Writes a whole file or none of it."""
  path.parent.mkdir(parents=True, exist_ok=True)
  partial = path.with_name(path.name + '.partial')
  try:
    partial.write_text(text, encoding='utf-8')
    partial.replace(path)
  finally:
    partial.unlink(missing_ok=True)


def claim_workdir(workdir: Path, config: dict[str, Any]) -> None:
  """Writes config.json, or checks that the one there is the same.

  Fields that say how rows are read may differ: a run whose reading processes
  took too much memory goes on with fewer.

  Raises:
    ConfigError: the directory belongs to a run of another config; names the
      first field that differs.
  """
  path = workdir / 'config.json'
  config = json.loads(json.dumps(config))
  if path.exists():
    there = _without_reading(_config_there(workdir))
    config = _without_reading(config)
    if there != config:
      raise ConfigError(
        f'{workdir} holds a run of another config'
        f' ({first_difference(there, config)}): give another --workdir'
      )
    return
  write_atomically(path, json.dumps(config, indent=2))


def _config_there(workdir):
  """The config of a run, with the defaults of fields that are newer than it."""
  try:
    stages = [dataclasses.asdict(stage) for stage in read_stages(workdir)]
  except ConfigError:
    return json.loads((workdir / 'config.json').read_text())
  return json.loads(json.dumps({'stages': stages}))


def _without_reading(config):
  """The config of a run without what changes no row of it."""
  config = copy.deepcopy(config)
  for stage in config['stages']:
    for field in READING:
      stage.setdefault('data', {}).pop(field, None)
  return config


def first_difference(old: Any, new: Any, path: str = '') -> str:
  """'train.steps is 4 there, 7 here', of JSON-like values that differ."""
  if isinstance(old, list) and isinstance(new, list):
    # Stages are a list; they are told apart by number.
    old, new = dict(enumerate(old)), dict(enumerate(new))
  if isinstance(old, dict) and isinstance(new, dict):
    for key in dict.fromkeys([*old, *new]):
      if old.get(key) != new.get(key):
        return first_difference(
          old.get(key), new.get(key), f'{path}.{key}' if path else str(key)
        )
  return f'{path} is {_shown(old)} there, {_shown(new)} here'


def _shown(value: Any) -> str:
  text = json.dumps(value)
  return text if len(text) <= 60 else f'{text[:60]}...'
