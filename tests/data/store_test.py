"""Store: what is written is read, whole or not at all, and damage is named."""

import collections
import concurrent.futures
import json
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longctx_jax.data.store import (
  DocumentStore,
  StoredDocument,
  StoreError,
  write_store,
)

RECORDS = 'documents.array_record'
MANIFEST = 'manifest.json'


def make_documents(lengths, seed=0):
  """Every second document has a loss mask."""
  rng = np.random.default_rng(seed)
  return [
    StoredDocument(
      f'name {i}',
      f'domain {i % 3}',
      rng.integers(0, 50_000, length, dtype=np.int32),
      rng.integers(0, 2, length, dtype=np.uint8) if i % 2 else None,
    )
    for i, length in enumerate(lengths)
  ]


class WatchedCache(collections.OrderedDict):
  """Counts threads that look into it while another one does."""

  def __init__(self):
    super().__init__()
    self.inside = threading.Lock()
    self.collisions = 0

  def __contains__(self, key):
    if not self.inside.acquire(blocking=False):
      self.collisions += 1
      return super().__contains__(key)
    # Long enough for the interpreter to switch threads a few times.
    found = [super(WatchedCache, self).__contains__(key) for _ in range(50)]
    self.inside.release()
    return found[0]


@pytest.fixture
def fast_switching():
  """Threads take turns so often that they would meet inside the cache."""
  interval = sys.getswitchinterval()
  sys.setswitchinterval(1e-6)
  yield
  sys.setswitchinterval(interval)


def write(directory, documents):
  write_store(
    directory,
    documents,
    tokenizer_fingerprint='0123456789ab',
    settings={'max_chars': 7},
  )
  return DocumentStore(directory)


@pytest.fixture
def directory(tmp_path):
  return tmp_path / 'corpus' / 'store'


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_any_slice_of_any_document_comes_back(tmp_path_factory, data):
  lengths = data.draw(st.lists(st.integers(1, 50), min_size=1, max_size=8))
  documents = make_documents(lengths, seed=data.draw(st.integers(0, 99)))
  store = write(tmp_path_factory.mktemp('store') / 'a', documents)
  assert store.lengths.dtype == np.int64
  assert store.lengths.tolist() == lengths
  assert store.names == [document.name for document in documents]
  assert store.domains == [document.domain for document in documents]
  assert store.settings == {'max_chars': 7}
  assert store.tokenizer_fingerprint == '0123456789ab'
  for i, document in enumerate(documents):
    start = data.draw(st.integers(0, lengths[i]))
    stop = data.draw(st.integers(start, lengths[i]))
    tokens, mask = store.read(i, start, stop)
    assert (tokens.dtype, mask.dtype) == (np.int32, np.bool_)
    np.testing.assert_array_equal(tokens, document.tokens[start:stop])
    expected = (
      np.ones(stop - start)
      if document.loss_mask is None
      else document.loss_mask[start:stop]
    )
    np.testing.assert_array_equal(mask, expected)
    assert not tokens.flags.writeable
    assert not mask.flags.writeable


def test_fingerprint_changes_with_any_part_of_a_document(tmp_path):
  documents = make_documents([5, 6])
  masked = documents[1]
  changes = [
    documents[::-1],
    documents[:1],
    [documents[0], masked._replace(name='other')],
    [documents[0], masked._replace(domain='other')],
    [documents[0], masked._replace(tokens=masked.tokens + 1)],
    [documents[0], masked._replace(loss_mask=1 - masked.loss_mask)],
    [documents[0], masked._replace(loss_mask=None)],
  ]
  fingerprints = [
    write(tmp_path / str(i), variant).fingerprint
    for i, variant in enumerate([documents, *changes])
  ]
  assert len(set(fingerprints)) == len(fingerprints)
  assert write(tmp_path / 'again', documents).fingerprint == fingerprints[0]
  assert {len(fingerprint) for fingerprint in fingerprints} == {12}


def test_slices_of_one_document_read_it_once(directory):
  store = write(directory, make_documents([100, 100]))
  store.read(0, 0, 10)
  (directory / RECORDS).write_bytes(b'')
  store.read(0, 50, 60)
  with pytest.raises(StoreError):
    store.read(1, 0, 10)


def test_cache_forgets_the_document_used_longest_ago(directory):
  write(directory, make_documents([100] * 3))
  # Room for two documents: 5 bytes a token, masks of ones included.
  store = DocumentStore(directory, cache_bytes=1000)
  for document in (0, 1, 0, 2):
    store.read(document, 0, 1)
  (directory / RECORDS).write_bytes(b'')
  store.read(0, 0, 1)
  store.read(2, 0, 1)
  with pytest.raises(StoreError):
    store.read(1, 0, 1)


@pytest.mark.parametrize(
  ('document', 'start', 'stop'),
  [(2, 0, 1), (-1, 0, 1), (0, 0, 6), (0, -1, 2), (0, 3, 2)],
)
def test_reading_beyond_a_document_is_refused(directory, document, start, stop):
  store = write(directory, make_documents([5, 5]))
  with pytest.raises(IndexError, match=f'document {document}'):
    store.read(document, start, stop)


def test_threads_read_what_one_thread_reads(directory, fast_switching):
  documents = make_documents(range(1, 60))
  write(directory, documents)
  store = DocumentStore(directory, cache_bytes=500)
  store._cache = WatchedCache()
  order = np.random.default_rng(0).integers(0, 59, 2000).tolist()
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    results = pool.map(lambda i: store.read(i, 0, i + 1)[0], order)
    for i, tokens in zip(order, results, strict=True):
      np.testing.assert_array_equal(tokens, documents[i].tokens)
  assert store._cache.collisions == 0


def test_pickled_copy_reads_the_same_and_takes_no_cache_along(directory):
  documents = make_documents([200_000, 5])
  store = write(directory, documents)
  store.read(0, 0, 1)
  pickled = pickle.dumps(store)
  assert len(pickled) < 10_000
  tokens, _ = pickle.loads(pickled).read(0, 5, 200_000)
  np.testing.assert_array_equal(tokens, documents[0].tokens[5:])


def _read_and_exit(store, expected):
  os._exit(0 if store.read(0, 0, 5)[0].tolist() == expected else 1)


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork')
def test_forked_child_reads_though_the_parent_held_the_lock(directory):
  documents = make_documents([50])
  store = write(directory, documents)
  with store._lock:
    child = multiprocessing.get_context('fork').Process(
      target=_read_and_exit, args=(store, documents[0].tokens[:5].tolist())
    )
    child.start()
    child.join(20)
  if child.exitcode is None:
    child.kill()
  assert child.exitcode == 0


def test_empty_corpus_is_refused(directory):
  with pytest.raises(ValueError, match='the corpus is empty'):
    write(directory, [])
  assert list(directory.parent.iterdir()) == []


@pytest.mark.parametrize(
  ('change', 'says'),
  [
    ({'tokens': np.zeros(0, np.int32)}, r"'name 1' has tokens of shape \(0,\)"),
    ({'tokens': np.zeros((2, 2), np.int32)}, r'tokens of shape \(2, 2\)'),
    ({'loss_mask': np.ones(4)}, '5 tokens and a loss mask of shape'),
  ],
)
def test_malformed_document_is_named(directory, change, says):
  first, second = make_documents([5, 5])
  with pytest.raises(ValueError, match=says):
    write(directory, [first, second._replace(**change)])
  assert list(directory.parent.iterdir()) == []


def test_tokens_that_are_not_integers_are_refused(directory):
  (document,) = make_documents([5])
  with pytest.raises(TypeError):
    write(directory, [document._replace(tokens=np.ones(5))])


def test_new_store_replaces_the_old_one_only_when_complete(directory):
  old = write(directory, make_documents([5])).fingerprint

  def interrupted():
    yield from make_documents([6])
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    write(directory, interrupted())
  assert DocumentStore(directory).fingerprint == old
  assert list(directory.parent.iterdir()) == [directory]
  assert write(directory, make_documents([6])).lengths.tolist() == [6]


def test_killed_run_leaves_no_store_and_does_not_disturb_the_next(directory):
  command = (
    'import os, pathlib, sys\n'
    'import numpy as np\n'
    'from longctx_jax.data.store import StoredDocument, write_store\n'
    'def documents():\n'
    "  yield StoredDocument('a', 'b', np.arange(9), None)\n"
    '  os._exit(9)\n'
    'write_store(pathlib.Path(sys.argv[1]), documents(),\n'
    "  tokenizer_fingerprint='', settings={})\n"
  )
  done = subprocess.run([sys.executable, '-c', command, directory], check=False)
  assert done.returncode == 9
  partial = directory.with_name('store.partial')
  assert list(directory.parent.iterdir()) == [partial]
  (partial / 'left over').touch()
  write(directory, make_documents([5]))
  assert list(directory.parent.iterdir()) == [directory]
  assert {p.name for p in directory.iterdir()} == {RECORDS, MANIFEST}


def test_directory_that_is_no_store_is_left_alone(directory):
  directory.mkdir(parents=True)
  (directory / 'thesis.tex').touch()
  with pytest.raises(StoreError, match='is not a store'):
    write(directory, make_documents([5]))
  assert (directory / 'thesis.tex').exists()


def test_full_disk_is_named_and_nothing_is_left(directory):
  # A limit on the size of a file fails the writer's own threads, as ENOSPC
  # does; it holds for a process, so this one is not the place for it.
  pytest.importorskip('resource')
  command = (
    'import pathlib, resource, sys\n'
    'import numpy as np\n'
    'from longctx_jax.data.store import StoredDocument, write_store\n'
    'resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n'
    'rng = np.random.default_rng(0)\n'
    'documents = [\n'
    "  StoredDocument('a', 'b', rng.integers(0, 50_000, 100_000), None)\n"
    ']\n'
    'try:\n'
    '  write_store(pathlib.Path(sys.argv[1]), documents,\n'
    "    tokenizer_fingerprint='', settings={})\n"
    'except OSError as error:\n'
    '  print(error)\n'
  )
  done = subprocess.run(
    [sys.executable, '-c', command, directory],
    capture_output=True,
    text=True,
    check=True,
  )
  assert done.stdout.startswith(f'cannot write the store {directory}: ')
  assert 'File too large' in done.stdout
  assert list(directory.parent.iterdir()) == []


def test_directory_that_cannot_be_made_is_named(tmp_path):
  (tmp_path / 'file').touch()
  with pytest.raises(OSError, match=r'cannot write the store .*file/store'):
    write(tmp_path / 'file' / 'store', make_documents([5]))


@pytest.mark.parametrize('name', [RECORDS, MANIFEST])
def test_missing_file_is_named(directory, name):
  write(directory, make_documents([5]))
  (directory / name).unlink()
  with pytest.raises(StoreError, match=f'{name}.*No such file'):
    DocumentStore(directory)


@pytest.mark.parametrize('name', [RECORDS, MANIFEST])
def test_truncated_file_is_named(directory, name):
  write(directory, make_documents([50_000]))
  path = directory / name
  path.write_bytes(path.read_bytes()[:-1])
  with pytest.raises(StoreError, match=f'{name}.*Prepare the corpus again'):
    DocumentStore(directory)


def test_damaged_record_is_named_and_the_others_are_read(directory):
  documents = make_documents([50_000, 50_000, 5])
  write(directory, documents)
  path = directory / RECORDS
  content = bytearray(path.read_bytes())
  for i in range(1000, 1100):
    content[i] ^= 255
  path.write_bytes(content)
  store = DocumentStore(directory)
  with pytest.raises(StoreError, match=f'{RECORDS}: document 0 cannot be read'):
    store.read(0, 0, 5)
  tokens, _ = store.read(2, 0, 5)
  np.testing.assert_array_equal(tokens, documents[2].tokens)


@pytest.mark.parametrize(
  ('change', 'says'),
  [
    ({'format_version': 2}, 'has format version 2, and this program reads 1'),
    ({'format_version': None}, 'has format version None'),
    ({'names': ['one', 'two']}, 'lacks some documents'),
    ({'names': [], 'domains': [], 'lengths': []}, 'lacks some documents'),
  ],
)
def test_other_manifest_is_refused(directory, change, says):
  write(directory, make_documents([5]))
  path = directory / MANIFEST
  path.write_text(json.dumps(json.loads(path.read_text()) | change))
  with pytest.raises(StoreError, match=f'{MANIFEST} .*{says}'):
    DocumentStore(directory)


def test_manifest_without_a_field_is_refused(directory):
  write(directory, make_documents([5]))
  path = directory / MANIFEST
  manifest = json.loads(path.read_text())
  del manifest['fingerprint']
  path.write_text(json.dumps(manifest))
  with pytest.raises(StoreError, match='is damaged: it lacks fingerprint'):
    DocumentStore(directory)


def test_manifest_of_other_lengths_than_the_records_is_refused(directory):
  write(directory, make_documents([5]))
  path = directory / MANIFEST
  manifest = json.loads(path.read_text()) | {'lengths': [7]}
  path.write_text(json.dumps(manifest))
  with pytest.raises(StoreError, match='document 0 has 20 bytes, and 7 tokens'):
    DocumentStore(directory)
