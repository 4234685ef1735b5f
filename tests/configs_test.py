"""Every file under configs/ trains with :tiny, from its own command line."""

import dataclasses
import importlib
import re
from pathlib import Path

import numpy as np
import pytest
from absl import flags
from ml_collections import ConfigDict, config_flags

from configs import common
from longctx_jax import sharding
from longctx_jax.config import (
  StageConfig,
  add_defaults,
  stages_from_recipe,
)
from longctx_jax.config_from_dict import from_config_dict
from longctx_jax.corpus_config import DocumentFilters, TextSource
from longctx_jax.data.pipeline import BatchSource
from longctx_jax.data.prepare import prepare_corpus
from longctx_jax.data_config import PositionJumps, WeightsAt, WindowAt
from longctx_jax.model import attention_kernel
from longctx_jax.recipe import run_recipe
from tests.device_order_test import tpus

ROOT = Path(__file__).parents[1]
FILES = sorted(
  path.relative_to(ROOT)
  for path in (ROOT / 'configs').glob('*/*.py')
  if path.name != '__init__.py'
)
PAPERS = ('longskywork', 'prolong')
OF_PAPERS = [path for path in FILES if path.parent.name in PAPERS]


def load(path: Path | str, option: str, *argv: str) -> ConfigDict:
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
  # Books need the network.
  config.corpus.sources.books = ConfigDict({'kind': 'docs', 'max_chars': 0})
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
  for stage in config.stages.values():
    stage.train.steps = 2
    # Eight devices, however few rows a batch has.
    stage.mesh = ConfigDict({'data': 1, 'fsdp': 4, 'context': 2, 'tensor': 1})


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
  """A small corpus, the same for both papers."""
  config = load('configs/prolong/recipe.py', ':tiny')
  make_small(config)
  directory = tmp_path_factory.mktemp('prepared') / 'corpus'
  prepare_corpus(stages_of(config)[0].corpus, directory, seed=0)
  return str(directory)


def small_recipe(paper, prepared):
  """Stages of the paper's tiny recipe, to be trained in seconds."""
  config = load(f'configs/{paper}/recipe.py', ':tiny')
  make_small(config)
  config.corpus.prepared = prepared
  return stages_of(config)


@pytest.mark.parametrize('path', FILES, ids=str)
def test_the_full_config_is_valid(path):
  for stage in stages_of(load(path, '')):
    # The evaluation's own wording stays out of training at full size.
    assert not stage.corpus.conversations.get('needle')


# With the test below, so does each file. That of a pretrained model is trained
# in weights/smollm2_test.py.
@pytest.mark.slow
@pytest.mark.parametrize('paper', PAPERS)
def test_tiny_trains_two_steps(paper, prepared, tmp_path):
  stages = small_recipe(paper, prepared)
  summary = run_recipe(stages, tmp_path)
  assert [stage['steps'] for stage in summary['stages']] == [2] * len(stages)
  assert (tmp_path / 'report.html').exists()


@pytest.mark.parametrize('paper', PAPERS)
@pytest.mark.parametrize('option', ['', ':tiny', ':topology=v5p-64'])
def test_the_recipe_is_made_of_the_stage_files(paper, option):
  stages = stages_of(load(f'configs/{paper}/recipe.py', option))
  files = {path.stem for path in OF_PAPERS if path.parent.name == paper}
  # There is no Llama-3 of laptop size: ProLong's recipe begins with a stage
  # more, that has no file.
  start = {'start'} if (paper, option) == ('prolong', ':tiny') else set()
  assert {stage.name for stage in stages} == files - {'recipe'} | start
  for stage in stages:
    if stage.name not in start:
      file = f'configs/{paper}/{stage.name}.py'
      assert stages_of(load(file, option)) == (stage,)


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
  replaceable = [s for s in corpus.sources.values() if 'path' in s]
  assert replaceable
  for source in replaceable:
    assert TextSource(**source.to_dict()) == TextSource(
      source.kind, source.max_chars
    )
    assert set(source) == {f.name for f in dataclasses.fields(TextSource)}
  assert DocumentFilters(**corpus.filters.to_dict()) == DocumentFilters()


@pytest.mark.parametrize('path', FILES, ids=str)
@pytest.mark.parametrize('option', ['', ':tiny'])
def test_defaults_that_are_filled_in_change_nothing(path, option):
  config = load(path, option)
  expected = stages_of(config)
  add_defaults(config)
  assert stages_of(config) == expected


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


# Google's names -> chips along x, y and z.
SHAPES = {
  'v5p-8': (2, 2, 1),
  'v5p-16': (2, 2, 2),
  'v5p-64': (2, 4, 4),
  'v6e-8': (2, 4, 1),
  'v6e-16': (4, 4, 1),
  'v6e-32': (4, 8, 1),
}


def topologies():
  for path in OF_PAPERS:
    module = '.'.join(path.with_suffix('').parts)
    table = getattr(importlib.import_module(module), 'TOPOLOGIES', {})
    yield from (pytest.param(path, t, id=f'{path}-{t}') for t in table)


@pytest.mark.parametrize(('path', 'topology'), list(topologies()))
def test_a_topology_takes_all_its_chips_and_the_fast_kernel(path, topology):
  (stage,) = stages_of(load(path, f':topology={topology}'))
  generation, number = re.fullmatch(r'(v\w+)-(\d+)', topology).groups()
  # Of v4 and v5p Google counts cores, two a chip.
  num_chips = int(number) // (2 if generation in ('v4', 'v5p') else 1)
  chips = tpus(1, *SHAPES[topology])
  assert len(chips) == num_chips
  mesh = sharding.make_mesh(stage.mesh, chips)
  sharding.check_divisible(stage, mesh)
  parallel = sharding.context_parallel(stage.mesh, mesh)
  T = stage.data.seq_len
  choice, block_len = attention_kernel(stage.model, parallel, T)
  assert choice.name == 'pallas', choice.reason
  # No block holds parts of two chunks of the layout.
  chunks = 2 * parallel.num_shards if parallel.num_shards > 1 else 1
  assert T // chunks % block_len == 0


@pytest.mark.parametrize('paper', PAPERS)
def test_each_topology_changes_where_a_stage_lies_and_nothing_else(paper):
  """Nor what is trained: rows, steps and rates are those of the paper."""
  plain = stages_of(load(f'configs/{paper}/recipe.py', ''))
  table = importlib.import_module(f'configs.{paper}.sft').TOPOLOGIES
  for topology in table:
    option = f':topology={topology}'
    stages = stages_of(load(f'configs/{paper}/recipe.py', option))
    for stage, other in zip(stages, plain, strict=True):
      assert stage.mesh != other.mesh
      train = dataclasses.replace(
        stage.train, micro_batches=other.train.micro_batches
      )
      model = dataclasses.replace(stage.model, remat=other.model.remat)
      changed = {'mesh': other.mesh, 'train': train, 'model': model}
      assert dataclasses.replace(stage, **changed) == other


@pytest.mark.parametrize(
  ('arg', 'says'),
  [
    ('huge', "option 'huge' is unknown; this file has tiny, .*topology$"),
    (
      'topology=v9-1',
      'topology=v9-1 is unknown; this file has v5p-8, v5p-16, v5p-64',
    ),
    ('topology', "option 'topology' needs a value: topology=...$"),
    ('topology=', "option 'topology' needs a value: topology=...$"),
    ('tiny=yes', "option 'tiny=yes': tiny is a switch, give :tiny alone$"),
    ('tiny,topology=v5p-64', 'tiny and topology=v5p-64 exclude each other'),
  ],
)
@pytest.mark.parametrize('file', ['stage_64k', 'recipe'])
def test_options_that_a_file_lacks_are_refused_in_one_line(file, arg, says):
  module = importlib.import_module(f'configs.prolong.{file}')
  with pytest.raises(ValueError, match=says) as raised:
    module.get_config(arg)
  assert '\n' not in str(raised.value)


def test_options_come_back_as_they_were_given():
  options = {'tiny': True, 'true_long': False, 'topology': 'v5p-64'}
  arg = common.arg_of(**options)
  assert arg == 'tiny,topology=v5p-64'
  parsed = common.parse_arg(arg, tiny=False, true_long=False, topology='')
  assert parsed.to_dict() == options


def test_stages_that_differ_in_what_they_share_make_no_recipe():
  module = importlib.import_module('configs.prolong.stage_64k')
  one, two = module.get_config('tiny'), module.get_config('tiny')
  two.model.remat = 'full'
  with pytest.raises(ValueError, match='stage b has a section model unlike'):
    common.recipe_from_stages({'a': one, 'b': two})


def test_true_long_is_a_share_of_stage_4_alone(tmp_path):
  path = tmp_path / 'long.jsonl'
  text = ' '.join(f'word {i},' for i in range(60))
  lines = [f'{{"data": ["{k} {text}", "{text}"]}}' for k in range(40)]
  path.write_text('\n'.join(lines))
  config = load(
    'configs/longskywork/recipe.py',
    ':tiny,true_long',
    f'--config.corpus.conversation_files.true_long.path={path}',
  )
  make_small(config)
  for source in config.corpus.sources.values():
    source.max_chars = 50_000
  stages = stages_of(config)
  corpus = prepare_corpus(stages[0].corpus, tmp_path / 'corpus', seed=0)
  assert (corpus.conversations.lengths > 128).sum() == 40
  with_true_long = set()
  for stage in stages:
    source = BatchSource(stage.data, corpus, seed=0, num_steps=5)
    for i in range(len(source)):
      row = source.origin(i)
      is_long = {part.domain == 'true_long' for part in row.slices}
      assert is_long == {row.source == 'true_long'}
      with_true_long |= {stage.name} if True in is_long else set()
  assert with_true_long == {'long_sft'}
  weights = {name: r.weight for name, r in stages[-1].data.mixture.items()}
  assert weights == {'conversations': 0.2, 'tables': 0.4, 'true_long': 0.4}


@pytest.mark.parametrize('size', ['', 'tiny,'])
def test_other_synthetic_data_takes_the_place_of_tables(size):
  file = 'configs/longskywork/long_sft.py'
  (stage,) = stages_of(load(file, f':{size}retrieval'))
  (usual,) = stages_of(load(file, f':{size}'))
  assert stage.data.mixture.keys() == {'conversations', 'retrieval'}
  made, tables = stage.data.mixture['retrieval'], usual.data.mixture['tables']
  for name in ('weight', 'min_len', 'max_len'):
    assert getattr(made, name) == getattr(tables, name)
  assert made.reads_documents


def test_documents_of_512k_are_others_than_those_of_64k():
  (stage,) = stages_of(load('configs/prolong/stage_512k.py', ''))
  long = [r for r in stage.data.mixture.values() if r.planner == 'buckets']
  ranges = {}
  for rows in long:
    assert rows.min_len == rows.bucket_len
    ranges.setdefault(rows.domains, []).append((rows.min_len, rows.max_len))
  assert sorted(ranges.pop(('textbooks',))) == [(524_288, 0)]
  assert {domains for (domains,) in ranges} == {'code', 'books'}
  for found in ranges.values():
    assert sorted(found) == [(65_536, 524_288), (524_288, 0)]


def test_rows_of_prolong_are_pieces_that_see_themselves_alone(prepared):
  stages = {stage.name: stage for stage in small_recipe('prolong', prepared)}
  stage = stages['stage_512k']
  corpus = prepare_corpus(stage.corpus, Path(prepared), seed=0)
  source = BatchSource(stage.data, corpus, seed=0, num_steps=20)
  seen = set()
  for i in range(len(source)):
    origin, row = source.origin(i), source[i]
    lens = [part.stop - part.start for part in origin.slices]
    # The last row of an epoch may have one piece alone.
    wanted = {'long': ([512, 512], [512]), 'longest': ([1024],)}
    kind = origin.source.split('_')[-1]
    assert lens in wanted.get(kind, [lens])
    seen.add(kind)
    used = sum(lens)
    ids = np.repeat(np.arange(len(lens)) + 1, lens)
    assert row.segment_ids[:used].tolist() == ids.tolist()
    # A document's first token is no target, and positions count on.
    assert not row.loss_weights[np.cumsum(lens) - 1].any()
    assert row.loss_weights.sum() == used - len(lens)
    assert row.positions[:used].tolist() == list(range(used))
  assert seen == {'long', 'longest', 'docs', 'stdlib'}
