"""The report: what is measured stands in the cell where it belongs."""

import dataclasses
import json
import re
from xml.etree import ElementTree

import pytest

from longctx_jax import report
from longctx_jax.settings_table import ABSENT, flatten
from tests.fake_run import (
  CHATS,
  DEPTHS,
  LENGTHS,
  TEXT,
  make_stage,
  make_stages,
  make_workdir,
)
from tests.report_page import Page


@pytest.fixture
def write(tmp_path):
  """(stages, [change of a stage's results]) -> Page."""

  def write(stages, change=None):
    if not (tmp_path / 'summary.json').exists():
      make_workdir(tmp_path, stages)
    for i, stage in enumerate(stages):
      path = tmp_path / 'stages' / f'{i + 1}_{stage.name}' / 'results.json'
      results = json.loads(path.read_text())
      if change:
        change(i, results)
      path.write_text(json.dumps(results))
    path = report.write_report(stages, tmp_path)
    assert path == tmp_path / 'report.html'
    return Page(path)

  return write


def distinct_grid(first):
  """Another percentage in every cell, and lengths in an order as text."""
  return {
    length: {
      depth: (first + 5 * LENGTHS.index(int(length)) + j) / 100
      for j, depth in enumerate(DEPTHS)
    }
    for length in sorted(map(str, LENGTHS))
  }


@pytest.mark.parametrize('num_stages', [1, 4])
def test_each_needle_percentage_stands_in_its_cell(write, num_stages):
  stages = make_stages()[:num_stages]

  def change(i, results):
    results['evals']['needle'] = {
      'single': distinct_grid(1 + i),
      'multi': distinct_grid(50 + i),
    }

  page = write(stages, change)
  for i, stage in enumerate(stages):
    for nth, first in ((0, 1 + i), (1, 50 + i)):
      _, head, *rows, foot = page.table(f'{stage.name} trained on', nth)['rows']
      assert head == ['depth', '128', '256', '384', '512', '768', '1K']
      assert rows == [
        [f'{25 * j}%', *(f'{first + 5 * k + j}%' for k in range(6))]
        for j in range(5)
      ]
      mean = re.match(r'(\d+)% mean', foot[0])[1]
      # The percentages are evenly spaced: their mean lies half-way.
      assert abs(int(mean) - (first + 14.5)) <= 0.5


def test_a_new_rope_alone_has_a_heatmap_of_its_own(write):
  def change(i, results):
    if i == 1:
      grid = distinct_grid(7)
      results['needle_untrained'] = {'single': grid, 'multi': grid}

  page = write(make_stages(), change)
  alone = page.table('pretrain + RoPE of cip trained on rows of 128')
  assert alone['rows'][2][:3] == ['0%', '7%', '12%']


def test_lengths_beyond_the_training_length_are_marked(write):
  def change(i, results):
    # 100% where the stage was trained, half of it beyond.
    row_len = 512 if i % 2 else 128
    results['evals']['needle']['single'] = {
      str(n): dict.fromkeys(DEPTHS, 1.0 if n <= row_len else 0.5)
      for n in LENGTHS
    }

  page = write(make_stages(), change)
  long = page.table('cip trained on rows of 512')
  assert long['rows'][0] == ['', '≤\N{NO-BREAK SPACE}512', 'beyond']
  for classes in long['classes'][1:-1]:
    assert [i for i, c in enumerate(classes) if 'short-edge' in c] == [2]
    assert [i for i, c in enumerate(classes) if 'train-edge' in c] == [5]
  assert long['rows'][-1] == ['83% mean, 50% beyond the training length']
  short = page.table('pretrain trained on rows of 128')
  assert short['rows'][0][-1] == 'beyond the training length'
  assert 'cip 2 of 6, from 768 tokens;' in page.text_of['needle']


def test_the_result_is_said_against_the_stage_before(write):
  def change(i, results):
    results['evals']['needle']['single'] = {
      '128': {'0': 0.25 * i, '1': 0.0},
      '256': {'0': 0.0, '1': 0.0},
    }

  said = ' '.join(write(make_stages(), change).text_of['result'].split())
  assert said.startswith(
    '19% needle accuracy after long_sft, against 12% after'
  )
  assert '9 min 38 s in total' in said
  assert 'config 0123456789ab' in said


def test_one_stage_is_compared_with_nothing(write):
  page = write(make_stages()[:1])
  assert 'against' not in page.text_of['result']
  assert 'No setting differs' in page.text_of['settings']


def test_nothing_comes_from_outside_the_page(write):
  source = write(make_stages()).source
  for namespace in (
    'http://www.w3.org/2000/svg',
    'http://www.w3.org/1999/xlink',
  ):
    source = source.replace(f'"{namespace}"', '')
  assert not re.search(r'https?:|<script|<link|\bsrc=|@import', source)
  assert set(re.findall(r'url\((.)', source)) <= {'#'}


def test_text_of_the_user_is_shown_and_never_markup(write):
  name = '<b>"1" & $x_2$'
  stages = tuple(
    dataclasses.replace(stage, source='<script>alert(1)</script>')
    for stage in (make_stage(name), make_stage('_next', 256))
  )
  page = write(stages)
  assert name not in page.source
  assert '<script' not in page.source
  assert page.text_of['title'] == '<script>alert(1)</script>'
  assert page.text_of['h1'] == '<script>alert(1)</script>'
  assert page.table('Settings that differ')['rows'][0] == [
    'setting',
    name,
    '_next',
  ]
  for svg in svgs(page):
    texts = [element.text for element in svg.iter() if element.text]
    assert name in texts
    assert '_next' in texts


def svgs(page):
  found = re.findall(r'<svg.*?</svg>', page.source, re.DOTALL)
  assert len(found) == 2
  return [ElementTree.fromstring(text) for text in found]


def test_figures_have_names_and_ids_of_their_own(write):
  page = write(make_stages())
  assert len(page.ids) == len(set(page.ids))
  for svg in svgs(page):
    assert svg.get('role') == 'img'
    assert 'loss' in svg.get('aria-label')
    assert svg.get('viewBox')
    assert svg.get('width') is None
  # A reference inside a figure leads to an element of the same page.
  used = re.findall(r'(?:url\(|href=")#([\w-]+)', page.source)
  assert used
  assert set(used) <= set(page.ids)


MADE = {
  'kind': 'retrieval',
  'weight': 1.0,
  'tasks': {'needle': 1.0, 'passkey': 1.0},
  'min_len': 64,
  'max_len': 100,
}
NO_NEEDLES = {'extract': 9, 'needle': 0}
EXTRACTS = {**CHATS, 'conversations': ('extract',)}
NEEDLES = {**CHATS, 'conversations': ('extract', 'needle')}
ASKED = "The needle's wording is among the training conversations of "
NOT_ASKED = "The needle's wording is not in the training data of these stages: "


@pytest.mark.parametrize(
  ('stages', 'wording'),
  [
    (
      (make_stage('one'), make_stage('two', mixture={'chats': NEEDLES})),
      ASKED + 'stage two (rows of 128), in texts of at most 128 tokens'
      ' (corpus.max_conversation_len).',
    ),
    (
      make_stages(),
      ASKED + 'stages sft (rows of 128) and long_sft (rows of 512), in texts of'
      ' at most 128 tokens (corpus.max_conversation_len); the rows of stage'
      ' long_sft (rows of 512) are longer, and have it at that short length'
      ' only.',
    ),
    (
      (
        make_stage('one', mixture={'c': CHATS}),
        make_stage('two', mixture={'m': MADE}),
      ),
      "The needle's wording is in the rows of stage two (rows of 128), in texts"
      ' of up to 100 tokens that are made when they are read. '
      + ASKED
      + 'stage one (rows of 128), in texts of at most 128 tokens'
      ' (corpus.max_conversation_len).',
    ),
    (
      (
        make_stage(
          'one',
          mixture={'m': {**MADE, 'weight': 0.5}, 'c': {**CHATS, 'weight': 0.5}},
        ),
      ),
      "The needle's wording is in the rows of stage one (rows of 128), in texts"
      ' of up to 100 tokens that are made when they are read.',
    ),
    (
      (
        make_stage(
          'one',
          mixture={'m': {**MADE, 'tasks': {'passkey': 1.0, 'needle': 0.0}}},
        ),
      ),
      NOT_ASKED + 'needle conversations are made, but no stage reads them.',
    ),
    (
      (make_stage('one', mixture={'chats': EXTRACTS}),),
      NOT_ASKED + 'needle conversations are made, but no stage reads them.',
    ),
    (
      (make_stage('one', mixture={'c': CHATS}, conversations={'extract': 9}),),
      NOT_ASKED + 'no needle conversations are made.',
    ),
    (
      (make_stage('one', mixture={'c': CHATS}, conversations=NO_NEEDLES),),
      NOT_ASKED + 'no needle conversations are made.',
    ),
    (
      (
        make_stage(
          'one',
          mixture={'c': {**CHATS, 'weight': 0.0}, 'text': TEXT},
        ),
      ),
      NOT_ASKED + 'needle conversations are made, but no stage reads them.',
    ),
  ],
)
def test_whether_training_has_the_wording_of_the_needle(write, stages, wording):
  assert write(stages).text_of['wording'] == wording


def test_settings_that_differ_come_first_and_are_marked(write):
  page = write(make_stages())
  table = page.table('Settings that differ')
  rows = {row[0]: row[1:] for row in table['rows'][2:]}
  assert list(rows)[:6] == [
    'data.batch_size',
    'data.seq_len',
    'optimizer.peak_lr',
    'rope.base',
    'train.carry_over',
    'train.steps',
  ]
  assert all(path.startswith('data.mixture.') for path in list(rows)[6:])
  assert rows['optimizer.peak_lr'] == ['0.005', '0.002', '0.005', '0.005']
  assert rows['data.mixture.tables.tasks.sort'] == [*[ABSENT] * 3, '0.5']
  marked = {
    row[0]: ['changed' in c for c in classes[1:]]
    for row, classes in zip(table['rows'], table['classes'], strict=True)
  }
  assert marked['rope.base'] == [False, True, False, False]
  assert marked['optimizer.peak_lr'] == [False, True, True, False]
  # What a stage no longer has is not marked there.
  assert marked['data.mixture.text.planner'] == [False] * 4
  assert table['rows'][1] == ['source', *[make_stages()[0].source] * 4]


def test_every_setting_is_on_the_page_once(write):
  stages = make_stages()
  page = write(stages)
  shown = [
    row[0]
    for caption in ('Settings that differ', 'The same in every stage')
    for row in page.table(caption)['rows'][1:]
  ]
  paths = {path for s in stages for path in flatten(dataclasses.asdict(s))}
  assert sorted(shown) == sorted(paths - {'name'})
  same = {r[0]: r[1:] for r in page.table('The same in every stage')['rows']}
  assert same['evals.batch_tokens'] == ['16,384'] * 4
  assert same['evals.needle.lengths'][0] == '128, 256, 384, 512, 768, 1024'
  assert same['train.init_from'] == ["''"] * 4


def test_table_accuracy_stands_by_layout_length_task_and_stage(write):
  def change(i, results):
    results['evals']['tables'] = {
      '512': {'plain retrieve': 0.5 + i / 100, 'csv sort': 0.25 + i / 100},
      '128': {'plain retrieve': 0.75 + i / 100},
    }

  page = write(make_stages(), change)
  assert page.table('plain')['rows'][0] == ['', '128 tokens', '512 tokens']
  assert page.table('plain')['rows'][2:] == [
    ['retrieve', '75%', '76%', '77%', '78%', '50%', '51%', '52%', '53%']
  ]
  assert page.table('csv')['rows'][2:] == [
    ['sort', *[ABSENT] * 4, '25%', '26%', '27%', '28%']
  ]


def test_times_and_speeds_add_up(write):
  rows = write(make_stages()).table('Wall time')['rows']
  assert rows[2][:6] == ['cip', '100', '204,800', '41 s', '22 s', '4,995']
  assert rows[-1] == [
    'total 9 min 38 s',
    '1,200',
    '2,457,600',
    '8 min 12 s',
    '1 min 26 s',
    *['', '', ''],
  ]


def test_goodput_is_shown_of_runs_that_know_theirs(write):
  def change(i, results):
    if i == 0:
      del results['goodput']

  rows = write(make_stages()[:2], change).table('Wall time')['rows']
  assert [row[6:] for row in rows[:3]] == [
    ['goodput', 'lost to restarts'],
    [ABSENT, ABSENT],
    ['80%', '1 min 01 s'],
  ]


def test_validation_losses_stand_by_position_and_stage(write):
  def change(i, results):
    results['evals']['val_loss'] = 4 + i / 8
    results['evals']['val_loss_by_position'] = {'0-64': 5 + i, '64-128': 3 + i}

  rows = write(make_stages()[:2], change).table('Validation loss')['rows']
  assert rows == [
    ['position', 'pretrain', 'cip'],
    ['0-64', '5.000', '6.000'],
    ['64-128', '3.000', '4.000'],
    ['all', '4.000', '4.125'],
  ]


def test_the_same_run_gives_the_same_bytes(write):
  first = write(make_stages()).source
  assert write(make_stages()).source == first
  # A date, or who drew the figure, would differ tomorrow or elsewhere.
  assert '<metadata' not in first
  assert first.isascii()


def test_a_line_cut_off_in_the_metrics_is_left_out(write, tmp_path):
  stages = make_stages()[:2]
  whole = write(stages).source
  path = tmp_path / 'stages' / '1_pretrain' / 'metrics.jsonl'
  path.write_text(path.read_text() + '{"step": 299, "loss": 4.')
  assert write(stages).source == whole


def test_a_stage_without_metrics_is_still_reported(write, tmp_path):
  stages = make_stages()[:2]
  write(stages)
  for path in tmp_path.glob('stages/*/metrics.jsonl'):
    path.unlink()
    page = write(stages)
  assert 'No metrics were logged' in page.text_of['curves']


@pytest.mark.parametrize(
  ('share', 'text'),
  [(0, '0%'), (0.001, '1%'), (0.5, '50%'), (0.999, '99%'), (1, '100%')],
)
def test_all_and_none_are_kept_for_all_and_none(share, text):
  assert report.percent(share) == text
