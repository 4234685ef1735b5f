"""The page and the pictures of results."""

import json

import matplotlib.image
import numpy as np
import pytest

from longctx_jax.suites.page import (
  heatmap_of,
  print_suite,
  write_evaluation,
  write_png,
)

CELLS = {
  '100': {'0': {'score': 1.0, 'num': 2}, '0.5': {'score': 0.5, 'num': 2}},
  '2000': {'0.5': {'score': 0.0, 'num': 2}},
}
SUITE = {
  'score': 0.5,
  'num': 6,
  'truncated': 0.25,
  'answer_lost': 0.125,
  'cells': CELLS,
}
MEAN = {'loss': 2.0, 'low': 1.5, 'high': 2.25}
LOSSES = {
  'num_documents': 3,
  'length': 512,
  'num_targets': 64,
  'loss': MEAN,
  'by_position': {'0-64': MEAN, '64-128': MEAN},
  'by_context': {'64': MEAN, '448': {**MEAN, 'loss': 1.75}},
}
RESULTS = {
  'model': 'models/<b>one</b> $x$',
  'max_len': 1000,
  'about': 'Made for tests.',
  'suites': {'needle': SUITE, 'perplexity': LOSSES},
}


def test_cells_stand_by_length_and_depth_and_those_beyond_are_marked():
  drawn = heatmap_of('needle', SUITE, 1000)
  assert drawn['lengths'] == [100, 2000]
  assert [
    (depth, [shown.text for shown in cells]) for depth, cells in drawn['rows']
  ] == [('0%', ['100%', '\u2013']), ('50%', ['50%', '0%'])]
  assert drawn['edge'] == 1
  assert heatmap_of('needle', SUITE, 4000)['edge'] == -1


RANGES = {**SUITE, 'shortest': {'100': 60, '2000': 2000}}


def test_ranges_of_lengths_are_labelled(tmp_path, capsys):
  drawn = heatmap_of('kv_retrieval', RANGES, 1000)
  assert drawn['labels'] == ['60\u2013100', '2,000']
  results = {**RESULTS, 'suites': {'kv_retrieval': RANGES}}
  page = write_evaluation(results, tmp_path).read_text()
  assert '>60&#8211;100</th>' in page
  assert '>2,000</th>' in page
  print_suite('kv_retrieval', RANGES)
  assert '  depth  60\u2013100  2000\n' in capsys.readouterr().out


@pytest.mark.parametrize('ways', [(600, 1), (1, 600)])
def test_a_picture_of_hundreds_of_cells_is_not_too_large(tmp_path, ways):
  lengths, depths = ways
  cells = {
    str(1000 + n): {
      f'{d / 1000:g}': {'score': 0.0, 'num': 1} for d in range(depths)
    }
    for n in range(lengths)
  }
  drawn = heatmap_of('needle', {**SUITE, 'cells': cells}, 8192)
  write_png(drawn, 'm', tmp_path / 'needle.png')
  shape = matplotlib.image.imread(tmp_path / 'needle.png').shape
  assert max(shape[:2]) <= 9000


def test_the_page_says_what_was_asked_and_what_was_cut(tmp_path):
  page = write_evaluation(RESULTS, tmp_path).read_text()
  assert '&lt;b&gt;one&lt;/b&gt;' in page
  assert '<b>one' not in page
  assert 'needle: 50%' in page
  assert '25% of the prompts lost their middle' in page
  assert '12% of all lost what answers them' in page
  assert 'perplexity: 7.39' in page
  assert page.count('<svg ') == 2
  assert 'http' not in page.replace('http://www.w3.org', '')


def test_the_picture_has_a_colour_for_each_cell(tmp_path):
  write_evaluation(RESULTS, tmp_path)
  image = matplotlib.image.imread(tmp_path / 'needle.png')
  pixels = np.round(255 * image.reshape(-1, 4)).astype(int)
  colours = {tuple(c) for c in pixels.tolist()}
  drawn = heatmap_of('needle', SUITE, 1000)
  for _, cells in drawn['rows']:
    for shown in cells:
      rgba = np.array(matplotlib.colors.to_rgba(shown.background))
      assert tuple(np.round(255 * rgba).astype(int).tolist()) in colours, shown
  assert not (tmp_path / 'perplexity.png').exists()


def test_results_are_printed_as_a_table(capsys):
  print_suite('needle', SUITE)
  print_suite('perplexity', LOSSES)
  assert capsys.readouterr().out.splitlines() == [
    '',
    'needle: 50% of 6',
    '  depth   100  2000',
    '     0%  100%     \u2013',
    '    50%   50%    0%',
    '',
    'perplexity: perplexity 7.39',
    '  tokens before    loss               95%',
    '             64  2.0000  1.5000 to 2.2500',
    '            448  1.7500  1.5000 to 2.2500',
  ]


def test_results_are_json(tmp_path):
  assert json.loads(json.dumps(RESULTS)) == RESULTS
