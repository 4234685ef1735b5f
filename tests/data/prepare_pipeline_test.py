"""Large corpora: as in memory, whoever runs the tasks, and in what order."""

import json
import random
import shutil

import numpy as np
import pytest

from longctx_jax.config import ConfigError
from longctx_jax.data.counts import Counts
from longctx_jax.data.documents import is_heldout
from longctx_jax.data.parts import DocumentError
from longctx_jax.data.prepare import open_corpus, prepare_corpus
from longctx_jax.data.prepare_pipeline import STATISTICS, prepare_at_scale
from longctx_jax.data.prepare_tasks import list_tasks
from longctx_jax.data.store_format import StoreError
from longctx_jax.data.store_verify import verify_store
from longctx_jax.data.store_writer import StoredDocument, write_store
from tests.data.large_corpus import (
  DROPS,
  PREPARE,
  config_of,
  config_of_drops,
  files_of,
  write_drops,
  write_texts,
)


@pytest.fixture(scope='module')
def texts(tmp_path_factory):
  return write_texts(tmp_path_factory.mktemp('texts'))


@pytest.fixture(scope='module')
def prepared(texts, tmp_path_factory):
  directory = tmp_path_factory.mktemp('prepared') / 'corpus'
  return directory, prepare_at_scale(config_of(texts), directory, **PREPARE)


def contents(store):
  """(name, domain, tokens) of all documents, in an order of their own."""
  return sorted(
    (
      store.name(i),
      store.domain_names[store.domain_ids[i]],
      store.read(i, 0, n)[0].tolist(),
    )
    for i, n in enumerate(store.lengths.tolist())
  )


@pytest.mark.parametrize(
  'changes',
  [
    {},
    {'filters': {}, 'line_ends': 'keep'},
    {'filters': {'max_tokens': 300, 'too_long': 'drop', 'min_tokens': 90}},
    {'max_chars': 10**9, 'max_files': 10**9},
    {'max_chars': 7_000, 'heldout_frac': 0.5},
    {'max_files': 7_400},  # leaves too little for the document that crosses it
    {'max_files': 7_400, 'filters': {'min_chars': 0}},
    {'max_chars': 10**9, 'filters': {'min_chars': 900}},
  ],
  ids=str,
)
def test_a_large_corpus_is_the_one_that_is_made_in_memory(
  texts, tmp_path, changes
):
  config = config_of(texts, **changes)
  assert len(list_tasks(config, tmp_path, task_bytes=4000)) > 10
  expected = prepare_corpus(config, tmp_path / 'a', seed=0)
  made = prepare_at_scale(config, tmp_path / 'b', **PREPARE)
  assert made.tokenizer.fingerprint == expected.tokenizer.fingerprint
  assert contents(made.documents) == contents(expected.documents)
  assert contents(made.heldout) == contents(expected.heldout)
  assert made.conversations.fingerprint == expected.conversations.fingerprint
  # Of files, not all are read in memory once the budget is full.
  for each in (made, expected):
    assert each.documents.accounts.keys() == {'files', 'records'}
  assert (
    made.documents.accounts['records'] == expected.documents.accounts['records']
  )
  assert made.conversations.accounts == expected.conversations.accounts
  # And a run opens either.
  prepare_corpus(config, tmp_path / 'b', seed=0)


@pytest.mark.parametrize('make', [prepare_corpus, prepare_at_scale])
def test_texts_as_short_as_the_filter_says_are_stored(tmp_path, make):
  (tmp_path / 'texts').mkdir()
  lengths = [0, 1, 149, 150, 151, *[400] * 30]
  for i, length in enumerate(lengths):
    text = f'{i} words of some text\n' * 40
    (tmp_path / 'texts' / f'{i}.txt').write_text(text[:length])
  text = {'kind': 'text_files', 'max_chars': 10**6}
  sources = {'text': {**text, 'path': str(tmp_path / 'texts')}}
  for least, too_short in ((None, 4), (151, 3), (150, 2), (1, 0), (0, 0)):
    config = config_of(
      tmp_path,
      sources=sources,
      filters={} if least is None else {'min_chars': least},
      vocab_size=330,
      conversations={},
    )
    corpus = make(config, tmp_path / f'{least}', seed=0)
    counts = corpus.documents.accounts['text'].of_both()
    # What holds no text has no length to be too short.
    assert counts.documents['empty'] == 1
    assert counts.documents['too_short'] == too_short
    stored = len(corpus.documents) + len(corpus.heldout)
    assert stored == len(lengths) - 1 - too_short


@pytest.mark.parametrize('make', [prepare_corpus, prepare_at_scale])
def test_a_text_that_is_cut_to_nothing_is_never_stored(texts, tmp_path, make):
  files = {'kind': 'text_files', 'path': str(texts / 'files')}
  sources = {
    'whole': {**files, 'max_chars': 10**6},
    'cut': {**files, 'max_chars': 3},
  }
  config = config_of(texts, sources=sources, filters={'min_chars': 0})
  accounts = make(config, tmp_path / 'c', seed=0).documents.accounts
  whole, cut = (accounts[name].of_both().documents for name in sources)
  assert whole['kept'] == cut['too_short'] == 32
  assert cut['kept'] == 0


@pytest.mark.parametrize('make', [prepare_corpus, prepare_at_scale])
def test_a_filter_that_is_too_strict_for_all_is_named(tmp_path, make):
  (tmp_path / 'a.jsonl').write_text('{"text": "short"}\n')
  source = {'kind': 'jsonl', 'max_chars': 10**6}
  sources = {'records': {**source, 'path': str(tmp_path / 'a.jsonl')}}
  message = (
    r'1 documents of records as too_short \(corpus\.filters\.min_chars\)'
  )
  with pytest.raises(ConfigError, match=message):
    make(config_of(tmp_path, sources=sources), tmp_path / 'c', seed=0)


def test_every_kind_of_drop_is_in_the_corpus_and_accounted_for(prepared):
  directory, corpus = prepared
  statistics = json.loads((directory / STATISTICS).read_text())
  documents = statistics['counts']['documents']
  assert set(documents) == {
    *('seen', 'kept', 'double', 'over_budget', 'too_short'),
    *('bad_json', 'bad_utf8', 'empty', 'no_text_field'),
  }
  assert documents['seen'] == 31 + 2 + 6 + 31 + 3 + 3
  assert documents['kept'] == len(corpus.documents) + len(corpus.heldout)
  chars = statistics['counts']['chars']
  assert chars['seen'] == sum(n for k, n in chars.items() if k != 'seen')
  assert chars['line_ends'] > 0
  longest = max(corpus.documents.lengths.max(), corpus.heldout.lengths.max())
  assert longest == 700
  assert statistics['cut_to_max_tokens'] > 0


def test_manifests_add_up_whatever_becomes_of_documents(tmp_path):
  config = config_of_drops(write_drops(tmp_path / 'texts'))
  corpus = prepare_at_scale(config, tmp_path / 'c', **PREPARE)
  manifests = {
    name: json.loads((tmp_path / 'c' / name / 'manifest.json').read_text())
    for name in ('documents', 'heldout')
  }
  drops = set()
  for name, manifest in manifests.items():
    domains = {d['name']: d['documents'] for d in manifest['domains']}
    for source, counts in manifest['counts'].items():
      for unit in counts.values():
        assert unit['seen'] == sum(n for k, n in unit.items() if k != 'seen')
      assert counts['documents']['kept'] == domains[source], (name, source)
      drops |= set(counts['documents'])
  assert drops == {'seen', 'kept', 'training', 'heldout', *DROPS}
  training, heldout = (each['counts'] for each in manifests.values())
  # Files, and lines; that of a bomb counts as one.
  assert {k: n['documents']['seen'] for k, n in training.items()} == {
    'files': 31 + 3,
    'records': 6 + 31 + 3 + 3,
    'named': 11 + 11 + 1,
  }
  assert sum(n['documents']['kept'] for n in training.values()) == len(
    corpus.documents
  )
  assert sum(n['documents']['heldout'] for n in training.values()) == len(
    corpus.heldout
  )
  assert (
    heldout['named']['documents']['training']
    == (training['named']['documents']['kept'])
  )


def test_stores_that_count_differently_are_no_corpus(prepared, tmp_path):
  directory, corpus = prepared
  shutil.copytree(directory, tmp_path / 'c')
  documents = [StoredDocument('a', 'files', np.ones(9, np.int32), None)]
  counts = Counts()
  counts.see()
  counts.keep(0)
  write_store(
    tmp_path / 'c' / 'heldout',
    documents,
    tokenizer_fingerprint=corpus.tokenizer.fingerprint,
    settings=corpus.heldout.settings,
    accounts={'files': counts},
  )
  with pytest.raises(StoreError, match='its documents and its heldout count'):
    open_corpus(tmp_path / 'c')


def test_task_sizes_change_shards_and_not_documents(texts, prepared, tmp_path):
  config = config_of(texts)
  made = prepare_at_scale(config, tmp_path / 'c', seed=0)
  names = [made.documents.name(i) for i in range(len(made.documents))]
  in_tasks = prepared[1].documents
  assert names == [in_tasks.name(i) for i in range(len(in_tasks))]
  assert contents(made.documents) == contents(in_tasks)
  assert made.documents.fingerprint != in_tasks.fingerprint


def run_anyhow(step, numbers, done, progress):
  """In another order, each of them twice, as runners that retry may do."""
  numbers = [*numbers, *numbers]
  random.Random(0).shuffle(numbers)
  for number in numbers:
    step(number)
  name, job = step.args
  if name == 'write':
    # What is done is not done again.
    shards = list((job.corpus / 'documents.partial').iterdir())
    assert len(shards) == len(set(numbers))


def test_the_bytes_do_not_depend_on_who_runs_the_tasks(
  texts, prepared, tmp_path
):
  prepare_at_scale(config_of(texts), tmp_path / 'c', run=run_anyhow, **PREPARE)
  assert files_of(tmp_path / 'c') == files_of(prepared[0])
  assert not verify_store(tmp_path / 'c' / 'documents').damage


def test_an_unreadable_document_stops_or_is_counted(texts, tmp_path, caplog):
  config = config_of(texts)
  with caplog.at_level('WARNING'):
    prepare_at_scale(config, tmp_path / 'c', **PREPARE)
  assert any(
    '1 documents of records left out as bad_json' in message
    for message in caplog.messages
  )
  source = {'kind': 'jsonl', 'max_chars': 10**6, 'on_problem': 'stop'}
  source['path'] = str(texts / 'records.jsonl')
  config = config_of(texts, sources={'records': source})
  with pytest.raises(
    DocumentError, match=r'records\.jsonl, line 41: it has no text'
  ):
    prepare_at_scale(config, tmp_path / 'd', **PREPARE)
  assert not (tmp_path / 'd').exists()


def test_more_text_than_the_sample_trains_on_the_first_of_it(texts, tmp_path):
  config = config_of(texts)
  made = {
    chars: prepare_at_scale(
      config, tmp_path / f'{chars}', sample_chars=chars, **PREPARE
    )
    for chars in (15_000, 10**6)
  }
  fingerprints = {each.tokenizer.fingerprint for each in made.values()}
  assert len(fingerprints) == 2
  names = [contents(each.documents) for each in made.values()]
  assert [n for n, _, _ in names[0]] == [n for n, _, _ in names[1]]


def test_filters_that_leave_nothing_are_named(texts, tmp_path):
  config = config_of(texts, filters={'min_tokens': 10**6})
  with pytest.raises(ConfigError, match='a length of 1000000 to any tokens'):
    prepare_at_scale(config, tmp_path / 'c', **PREPARE)
  config = config_of(texts, heldout_frac=1e-9)
  with pytest.raises(ConfigError, match=r'empty corpus: .* 0 held-out'):
    prepare_at_scale(config, tmp_path / 'd', **PREPARE)


@pytest.mark.parametrize('make', [prepare_corpus, prepare_at_scale])
@pytest.mark.parametrize(
  ('too_short', 'message'),
  [
    ('held-out', r'none of the 5 held-out .* 99 to any tokens: raise corpus.h'),
    ('training', r'none of the 35 training .* 99 to any tokens: give more te'),
  ],
)
def test_filters_that_leave_one_store_empty_say_which(
  tmp_path, make, too_short, message
):
  (tmp_path / 'texts').mkdir()
  for i in range(40):
    held = is_heldout(f'text_files/{i}.txt', 0.2)
    words = 50 if held == (too_short == 'held-out') else 400
    (tmp_path / 'texts' / f'{i}.txt').write_text(f'{i} ' + 'words ' * words)
  text = {'kind': 'text_files', 'max_chars': 10**6}
  sources = {'text': {**text, 'path': str(tmp_path / 'texts')}}
  filters = {'min_tokens': 99}
  config = config_of(tmp_path, sources=sources, filters=filters, vocab_size=330)
  with pytest.raises(ConfigError, match=message):
    make(config, tmp_path / 'c', seed=0)


@pytest.mark.parametrize('make', [prepare_corpus, prepare_at_scale])
def test_a_wrong_text_field_is_named_with_its_source(texts, tmp_path, make):
  source = {'kind': 'jsonl', 'max_chars': 10**6, 'text_field': 'prose'}
  path = tmp_path / 'a.jsonl'
  path.write_text('{"body": "x"}\n' * 3)
  sources = {'records': {**source, 'path': str(path)}}
  with pytest.raises(ConfigError) as raised:
    make(config_of(texts, sources=sources), tmp_path / 'c', seed=0)
  assert str(raised.value) == (
    f"corpus.sources.records: text_field='prose': none of 3 records of {path}"
    f" has text in it; {path}, byte 0: its field 'prose' is absent, not text"
  )


@pytest.mark.parametrize('make', [prepare_corpus, prepare_at_scale])
def test_an_empty_corpus_says_what_was_left_out(tmp_path, make):
  (tmp_path / 'a.jsonl').write_text('{"text": "short"}\n{\n{\n')
  source = {'kind': 'jsonl', 'max_chars': 10**6}
  sources = {'records': {**source, 'path': str(tmp_path / 'a.jsonl')}}
  with pytest.raises(ConfigError, match='2 documents of records as bad_json'):
    make(config_of(tmp_path, sources=sources), tmp_path / 'c', seed=0)


def test_sources_of_nothing_are_an_empty_corpus(texts, tmp_path):
  (tmp_path / 'nothing.jsonl').touch()
  source = {'kind': 'jsonl', 'max_chars': 10**6}
  source['path'] = str(tmp_path / 'nothing.jsonl')
  config = config_of(texts, sources={'records': source})
  for make in (prepare_corpus, prepare_at_scale):
    with pytest.raises(ConfigError, match='empty corpus: 0 training and 0 '):
      make(config, tmp_path / 'c', seed=0)
