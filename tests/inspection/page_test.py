"""What stands on the page and in the terminal; none of it is markup."""

import base64
import dataclasses
import html
import io
import re
from html.parser import HTMLParser

import matplotlib.image
import numpy as np
import pytest

from longctx_jax.inspection.as_text import CLOSE, OPEN, as_text
from longctx_jax.inspection.page import bars, write_inspection
from longctx_jax.inspection.rows import inspect_step
from longctx_jax.inspection.wording import share_text
from tests import small
from tests.inspection.made_rows import (
  batch_of,
  inspection_of,
  row_of,
  row_of_texts,
)

# Typographic signs as one types them.
TYPED = str.maketrans({'\u2013': '-', '\u00d7': 'x', '\u2026': '...'})
EVIL = '<script>alert("1")</script>&amp;\x1b[31m\N{SNOWMAN}'


class Page(HTMLParser):
  """A page taken apart: tags, titles, and the text of elements by class."""

  def __init__(self, path):
    super().__init__()
    self.source = path.read_text()
    self.tags, self.titles, self._open = [], [], []
    self.texts = [['', '', '']]  # (tag, class, text)
    self.feed(self.source)
    assert self._open == []

  def handle_starttag(self, tag, attrs):
    attrs = dict(attrs)
    self.tags.append((tag, attrs))
    if 'title' in attrs:
      self.titles.append(attrs['title'].translate(TYPED))
    if tag not in ('meta', 'img'):
      self._open.append((tag, attrs.get('class') or ''))
      self.texts.append([*self._open[-1], ''])

  def handle_endtag(self, tag):
    assert self._open.pop()[0] == tag
    self.texts.append(['', '', ''])

  def handle_data(self, data):
    self.texts[-1][2] += data.translate(TYPED)

  def of_class(self, name):
    return [text for _, kind, text in self.texts if name in kind.split()]

  def text(self):
    return ''.join(text for _, _, text in self.texts)


@pytest.fixture
def write(corpus, tmp_path):
  """An inspection -> its Page."""

  def write(inspection):
    path = write_inspection(inspection, corpus.chat, tmp_path)
    assert path == tmp_path / 'inspect.html'
    return Page(path)

  return write


def test_text_of_documents_is_shown_and_never_markup(corpus, write):
  row = row_of_texts(corpus.tokenizer, {EVIL: EVIL * 3, 'b': 'x = 1'})
  row = row._replace(origin=row.origin._replace(source=EVIL))
  stage = dataclasses.replace(small.stage_config(), name=EVIL, source=EVIL)
  page = write(inspection_of(stage, row))
  assert not {tag for tag, _ in page.tags} & {'script', 'i2', 'link', 'iframe'}
  assert '<script' not in page.source
  assert page.source.isascii()
  shown = EVIL.replace('\x1b', '\u241b')
  assert shown * 3 in page.text()
  assert any(shown in text for _, tag, text in page.texts if tag == '')
  assert page.of_class('border') == [''] * 2  # their names are in a <b>
  assert f'[0] {shown}' in page.text()
  assert f'row 0 of {shown}' in page.text()
  assert 'of <i>texts</i>' in page.text()
  titles = re.findall(r'<title>(.*?)</title>', page.source)
  assert any(html.unescape(t).startswith(f'd/{shown}') for t in titles)


def test_nothing_comes_from_outside_the_page(corpus, write):
  page = write(inspect_step(small.stage_config(), corpus))
  sources = [attrs['src'] for _, attrs in page.tags if 'src' in attrs]
  assert len(sources) == 4  # one picture of the mask a row
  assert all(src.startswith('data:image/png;base64,') for src in sources)
  rest = re.sub(r'src="data:[^"]*"', '', page.source)
  # Documents may hold addresses; the page refers to none.
  assert not [a for _, attrs in page.tags for a in attrs if a == 'href']
  style = rest[rest.index('<style>') : rest.index('</style>')]
  assert not re.search(r'url\(|@import|https?:', style)


def test_the_picture_on_the_page_is_the_mask_of_the_row(corpus, write):
  texts = {'a': 'import os\n' * 8, 'b': 'x = 1\n', 'c': 'y = 2 + 3\n'}
  row = row_of_texts(corpus.tokenizer, texts, seq_len=128)
  page = write(inspection_of(small.stage_config(), row))
  (src,) = [attrs['src'] for tag, attrs in page.tags if tag == 'img']
  png = base64.b64decode(src.partition(',')[2])
  image = matplotlib.image.imread(io.BytesIO(png))[..., :3]
  ids = row.batch.segment_ids
  assert ids.max() == 3
  causal = np.tri(128, dtype=bool)
  mask = (ids[:, None] == ids[None]) & (ids > 0)[:, None] & causal
  assert ((image < 1).any(axis=-1) == mask).all()
  assert f'{mask.sum():,} of 8,256 causal pairs attend' in page.text()
  # Tiles of attention_block_len, as the kernel makes them.
  tiles = int(mask.reshape(4, 32, 4, 32).any(axis=(1, 3)).sum())
  assert f'makes {tiles} tiles of 32 x 32, {10 * tiles}.0%' in page.text()


def test_the_context_window_of_the_step_is_named(corpus, write):
  schedule = [{'step': 0, 'window': 32}, {'step': 2, 'window': 128}]
  stage = small.stage_config(data={'window_schedule': schedule})
  page = write(inspect_step(stage, corpus, step=1, num_rows=1))
  assert '128 tokens, in windows of 80 ' in ' '.join(page.text().split())
  assert 'in windows' not in write(inspect_step(stage, corpus, step=2)).text()


def test_colours_are_of_documents_and_grey_is_not_trained_on(corpus, write):
  symbol = corpus.tokenizer.bos_id
  tokens = [symbol, *corpus.tokenizer.encode('ab cd').tolist()]
  T = len(tokens)
  batch = batch_of(tokens, [1] * T, loss_weights=[0] * (T - 2) + [0.25, 0])
  page = write(
    inspection_of(small.stage_config(), row_of(batch, ('a', 'd', 3, 3 + T)))
  )
  spans = [kind for tag, kind, _ in page.texts if tag == 'span']
  assert spans[-4:] == ['border d0', 'd0 off sym', 'd0 off', 'd0']
  assert page.titles[-3:] == [
    'tokens 0-0, segment 1, weight 0',
    f'tokens 1-{T - 2}, segment 1, weight 0',
    f'tokens {T - 1}-{T - 1}, segment 1, weight 0.25',
  ]


def test_bars_are_as_wide_as_what_they_stand_for():
  row = row_of(
    batch_of(range(1, 9), [1, 1, 2, 2, 2, 2, 0, 0], [0, 1, 0, 1, 2, 3, 0, 0]),
    ('a', 'd', 0, 2),
    ('b', 'd', 0, 3),
    ('a', 'd', 2, 3),
  )
  drawn = {
    name: [(part.x, part.width, part.style) for part in parts]
    for name, parts in bars(row)
  }
  assert drawn == {
    'documents': [
      (0, 0.25, 'd0'),
      (0.25, 0.375, 'd1'),
      (0.625, 0.125, 'd0'),
    ],
    'segments': [(0, 0.25, 's0'), (0.25, 0.5, 's1')],
    'targets': [(0.125, 0.125, 'target'), (0.375, 0.375, 'target')],
  }


def test_parts_too_narrow_to_see_are_put_together_and_counted():
  T, length = 100_000, 10
  slices = [(f'{k}', 'd', 0, length) for k in range(5000)]
  row = row_of(
    batch_of(
      np.ones(T), np.append(np.repeat(np.arange(5000), 10) + 1, [0] * 50_000)
    ),
    *slices,
  )
  documents, segments, _ = (parts for _, parts in bars(row))
  for parts, what in ((documents, 'slices'), (segments, 'segments')):
    assert len(parts) <= 400
    assert sum(part.width for part in parts) == pytest.approx(0.5)
    assert parts[0].title == f'25 {what}, tokens 0 to 249'


def test_a_long_row_makes_no_long_page(corpus, write):
  """512K tokens in 4,096 documents: cut, and the page says by how much."""
  T, num_documents = 524_288, 4096
  batch = batch_of(
    np.random.default_rng(0).integers(300, 768, T),
    np.repeat(np.arange(num_documents), 128) + 1,
    np.tile(np.arange(128), num_documents),
  )
  slices = [(f'document {k}', 'd', 0, 128) for k in range(num_documents)]
  page = write(inspection_of(small.stage_config(), row_of(batch, *slices)))
  assert len(page.source) < 1_000_000
  assert page.of_class('gap') == [
    '... 516,096 tokens left out, 4,096 to 520,191 ...'
  ]
  assert '... 3,896 stretches left out ...' in page.text()


def test_positions_that_restart_are_in_the_table(corpus, write):
  texts = {'one': 'import os\n', 'two': 'x = 1\n', 'three': 'x = 1 + 2\n'}
  row = row_of_texts(corpus.tokenizer, texts, seq_len=64)
  assert len(row.stretches) == 3
  page = write(inspection_of(small.stage_config(), row))
  cells = [text for tag, _, text in page.texts if tag == 'td']
  for stretch in row.stretches:
    n = stretch.stop - stretch.start
    k = cells.index(stretch.origin.name)
    assert cells[k - 2 : k] == [f'{stretch.start}', f'{n}']
    assert cells[k + 1 : k + 5] == [
      stretch.origin.domain,
      f'{stretch.origin.start:,}-{stretch.origin.stop:,}',
      f'{stretch.segment}',
      f'0-{n - 1}',
    ]


@pytest.mark.parametrize(
  ('share', 'text'),
  [
    *((None, '-'), (0, '0.0%'), (1e-6, '<0.1%'), (0.1234, '12.3%')),
    *((0.9999, '>99.9%'), (0.1 + 0.2 + 0.7 - 1e-16, '100.0%'), (1, '100.0%')),
  ],
)
def test_shares_keep_none_and_all_for_none_and_all(share, text):
  assert share_text(share) == text


def test_the_page_says_which_documents_the_corpus_holds(corpus, write):
  inspection = inspect_step(small.stage_config(), corpus, num_rows=1)
  page = write(inspection).text()
  for _, rule in inspection.corpus:
    assert rule in page


def test_the_terminal_says_the_same_counts(corpus):
  inspection = inspect_step(small.stage_config(), corpus, num_rows=2)
  text = as_text(inspection, corpus.chat)
  (line,) = [x for x in text.splitlines() if x.startswith('  all ')]
  total = inspection.counts.total
  assert line.split() == [
    *('all', f'{total.rows}', f'{total.tokens:,}', f'{total.padding:,}'),
    *(f'{total.targets:,}', f'{total.weight:,.2f}', f'{total.slices}'),
    *(f'{total.documents}', '-', '100.0%', '100.0%', '100.0%', '100.0%'),
  ]
  for column, _ in inspection.counts.rules:
    assert f'\n{column}: ' in text
  assert '\ncorpus, documents: max_chars: 60,000 of every source' in text
  for row in inspection.rows:
    assert f'row {row.number}: row {row.origin.number} of' in text
    for stretch in row.stretches[:6]:
      assert f'{stretch.origin.domain}/{stretch.origin.name} ' in text


def test_the_terminal_shows_targets_and_what_is_left_out(corpus):
  tokens = corpus.tokenizer.encode('ab\ncd\x1b[31m')
  T = len(tokens)
  half = batch_of(tokens, [1] * T, loss_weights=[0, 1] + [0] * (T - 2))
  long = batch_of(np.tile(tokens, 1000), [1] * 1000 * T)
  rows = row_of(half, ('a', 'd', 0, T)), row_of(long, ('b', 'd', 0, 1000 * T))
  text = as_text(inspection_of(small.stage_config(), *rows), corpus.chat)
  assert '\x1b' not in text
  pieces = [corpus.tokenizer.decode(tokens[k : k + 1]) for k in range(3)]
  assert (
    f'{pieces[0]}{pieces[1]}{OPEN}{pieces[2]}{CLOSE}'.replace(
      '\n', '\N{RETURN SYMBOL}'
    )
    in text
  )
  assert f'... {1000 * T - 300:,} tokens left out ...' in text
