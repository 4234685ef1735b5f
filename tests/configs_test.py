"""Every file under configs/ trains with :tiny, from its own command line."""

import dataclasses
from pathlib import Path

import pytest
from absl import flags
from ml_collections import ConfigDict, config_flags

from longctx_jax.config import StageConfig, stages_from_recipe
from longctx_jax.config_from_dict import from_config_dict
from longctx_jax.corpus_config import DocumentFilters, TextSource
from longctx_jax.data_config import PositionJumps, WeightsAt, WindowAt
from longctx_jax.recipe import run_recipe

ROOT = Path(__file__).parents[1]
FILES = sorted(
  path.relative_to(ROOT)
  for path in (ROOT / 'configs').glob('*/*.py')
  if path.name != '__init__.py'
)


def load(path: Path, option: str, *argv: str) -> ConfigDict:
  """The config as the command line makes it."""
  argv = ['test', f'--config={ROOT / path}{option}', *argv]
  values = flags.FlagValues()
  config_flags.DEFINE_config_file(
    'config', lock_config=False, flag_values=values, sys_argv=argv
  )
  values(argv)
  return values.config


def stages_of(config: ConfigDict) -> tuple[StageConfig, ...]:
  if 'stages' in config:
    return stages_from_recipe(config)
  return (from_config_dict(StageConfig, config),)


def make_small(config: ConfigDict) -> None:
  """Keeps model, optimizer and rows as they are; shrinks what takes time."""
  del config.corpus.sources.books  # needs the network
  for source in config.corpus.sources.values():
    source.max_chars = 150_000
  config.corpus.conversations = ConfigDict(
    dict.fromkeys(config.corpus.conversations, 100)
  )
  config.corpus.vocab_size = config.model.vocab_size = 1024
  config.evals.update(
    {
      'needle': {
        'lengths': (128,),
        'num_depths': 2,
        'samples': 1,
        'num_needles': 2,
      },
      'table_lengths': (128,),
      'table_samples': 1,
      'validation_len': 128,
      'validation_rows': 2,
      'batch_tokens': 1024,
    }
  )
  stages = config.stages.values() if 'stages' in config else [config]
  for stage in stages:
    stage.train.steps = 2
    # Eight devices, however few rows a batch has.
    stage.mesh = ConfigDict({'data': 1, 'fsdp': 4, 'context': 2, 'tensor': 1})
    if 'stages' not in config:
      stage.train.carry_over = 'none'


@pytest.mark.parametrize('path', FILES, ids=str)
def test_the_full_config_is_valid(path):
  for stage in stages_of(load(path, '')):
    # The evaluation's own wording stays out of training at full size.
    assert not stage.corpus.conversations.get('needle')


# Those of pretrained models are trained in weights/smollm2_test.py.
@pytest.mark.slow
@pytest.mark.parametrize(
  'path', [p for p in FILES if p.parent.name == 'longskywork'], ids=str
)
def test_tiny_trains_two_steps(path, tmp_path):
  config = load(path, ':tiny')
  make_small(config)
  stages = stages_of(config)
  summary = run_recipe(stages, tmp_path)
  assert [stage['steps'] for stage in summary['stages']] == [2] * len(stages)
  assert (tmp_path / 'report.html').exists()


def test_the_recipe_is_made_of_the_stage_files():
  directory = Path('configs/longskywork')
  stages = stages_of(load(directory / 'recipe.py', ':tiny'))
  alone = [
    stages_of(load(directory / f'{stage.name}.py', ':tiny'))[0]
    for stage in stages
  ]
  assert list(stages) == alone


def test_text_of_your_own_takes_flags_alone():
  corpus = '--config.corpus'
  config = load(
    Path('configs/longskywork/recipe.py'),
    ':tiny',
    f'{corpus}.sources.books.kind=hf_dataset',
    f'{corpus}.sources.books.path=texts',
    f'{corpus}.sources.books.text_field=content',
    f'{corpus}.sources.books.name_field=id',
    f'{corpus}.sources.books.split=train',
    f'{corpus}.sources.books.errors=replace',
    f'{corpus}.sources.books.on_problem=stop',
    f'{corpus}.sources.books.max_document_chars=1000',
    f'{corpus}.filters.deduplicate=True',
    f'{corpus}.filters.max_tokens=500',
  )
  made = stages_of(config)[0].corpus
  assert made.sources['books'] == TextSource(
    'hf_dataset',
    1_500_000,
    'texts',
    text_field='content',
    name_field='id',
    split='train',
    errors='replace',
    on_problem='stop',
    max_document_chars=1000,
  )
  assert made.filters == DocumentFilters(deduplicate=True, max_tokens=500)


@pytest.mark.parametrize('path', FILES, ids=str)
@pytest.mark.parametrize('option', ['', ':tiny'])
def test_sources_to_replace_have_every_field_and_its_default(path, option):
  corpus = load(path, option).corpus
  (source,) = [s for s in corpus.sources.values() if 'path' in s]
  assert TextSource(**source.to_dict()) == TextSource(
    source.kind, source.max_chars
  )
  assert set(source) == {f.name for f in dataclasses.fields(TextSource)}
  assert DocumentFilters(**corpus.filters.to_dict()) == DocumentFilters()


def test_options_of_rows_are_flags():
  data = '--config.data'
  config = load(
    Path('configs/longskywork/pretrain.py'),
    ':tiny',
    f"{data}.window_schedule=({{'step': 0, 'window': 32}},"
    " {'step': 90, 'window': 128})",
    f'{data}.window_multiple=16',
    f"{data}.weight_schedule=({{'step': 9, 'weights': {{'text': 1.0}}}},)",
    f'{data}.position_jumps.kind=pose',
    f'{data}.position_jumps.target_len=4096',
    f'{data}.label_first_token=False',
    f'{data}.on_repeat=refuse',
  )
  made = stages_of(config)[0].data
  assert made.window_schedule == (WindowAt(0, 32), WindowAt(90, 128))
  assert made.window_multiple == 16
  assert made.weight_schedule == (WeightsAt(9, {'text': 1.0}),)
  assert made.position_jumps == PositionJumps('pose', 4096)
  assert (made.label_first_token, made.on_repeat) == (False, 'refuse')
  interleaved = '--config.data.mixture.interleaved'
  config = load(
    Path('configs/longskywork/cip.py'),
    ':tiny',
    f'{interleaved}.order=shuffle',
    f'{interleaved}.interleave_prob=0.3',
    f"{interleaved}.exempt=('code',)",
  )
  rows = stages_of(config)[0].data.mixture['interleaved']
  assert (rows.order, rows.interleave_prob) == ('shuffle', 0.3)
  assert rows.exempt == ('code',)
