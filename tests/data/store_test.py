"""Store: any slice of what was written is read, by any thread or process."""

import collections
import concurrent.futures
import os
import pickle
import subprocess
import sys
import threading
import unittest.mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longctx_jax.data import store as store_module
from longctx_jax.data import store_writer
from longctx_jax.data.store import DocumentStore
from longctx_jax.data.store_format import NAMES_PER_RECORD, StoreError
from tests.architecture_test import ROOT
from tests.data.stored_documents import (
  COMPRESSIONS,
  SHARD,
  make_documents,
  mask_of,
  write,
)


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


@pytest.fixture
def directory(tmp_path):
  return tmp_path / 'corpus' / 'store'


WITH_FEW_FILES = """
import gc, os, pathlib, random, resource, sys
from concurrent.futures import ThreadPoolExecutor
from longctx_jax.data.store import DocumentStore
from longctx_jax.data.store_verify import verify_store
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
store = DocumentStore(pathlib.Path(sys.argv[1]), cache_bytes=0)
documents = [*range(len(store))] * 5
random.Random(0).shuffle(documents)
def read(i):
  return store.name(i) == f'n\u00e4me {i}' and len(store.read(i, 0, 5)[0]) == 5
with ThreadPoolExecutor(8) as pool:
  assert all(pool.map(read, documents))
print(len(os.listdir('/proc/self/fd')), len(verify_store(sys.argv[1]).damage))
"""


def test_a_store_may_have_more_shards_than_files_may_be_open(directory):
  write(directory, make_documents([5] * 90), shard_tokens=5)
  done = subprocess.run(
    [sys.executable, '-c', WITH_FEW_FILES, str(directory)],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  num_open, num_damaged = map(int, done.stdout.split())
  assert num_open < 16 + 8 + 8  # the store's, and those of its threads
  assert not num_damaged
  assert 'has 90 shards, of which 16 are kept open' in done.stderr
  assert '(ulimit -n) to 360' in done.stderr


@settings(max_examples=40, deadline=None)
@given(
  lengths=st.lists(st.integers(1, 50), min_size=1, max_size=8),
  page_tokens=st.integers(1, 60),
  shard_tokens=st.integers(1, 200),
  compression=st.sampled_from(COMPRESSIONS),
  data=st.data(),
)
def test_any_slice_of_any_document_comes_back(
  tmp_path_factory, lengths, page_tokens, shard_tokens, compression, data
):
  documents = make_documents(lengths, seed=data.draw(st.integers(0, 99)))
  store = write(
    tmp_path_factory.mktemp('store') / 'a',
    documents,
    page_tokens=page_tokens,
    shard_tokens=shard_tokens,
    compression=compression,
  )
  assert len(store) == len(lengths)
  assert store.lengths.dtype == np.int64
  assert store.lengths.tolist() == lengths
  assert store.settings == {'max_chars': 7}
  assert store.tokenizer_fingerprint == '0123456789ab'
  for i, document in enumerate(documents):
    assert store.name(i) == document.name
    assert store.domain_names[store.domain_ids[i]] == document.domain
    start = data.draw(st.integers(0, lengths[i]))
    stop = data.draw(st.integers(start, lengths[i]))
    tokens, mask = store.read(i, start, stop)
    assert (tokens.dtype, mask.dtype) == (np.int32, np.bool_)
    np.testing.assert_array_equal(tokens, document.tokens[start:stop])
    np.testing.assert_array_equal(mask, mask_of(document)[start:stop])


@settings(max_examples=40, deadline=None)
@given(
  lengths=st.lists(st.integers(1, 50), min_size=1, max_size=8),
  page_tokens=st.integers(1, 60),
  shard_tokens=st.integers(1, 200),
  compression=st.sampled_from(COMPRESSIONS),
  cache_bytes=st.sampled_from([0, 100, 1 << 20]),
  together=st.sampled_from([2, 1024]),
  data=st.data(),
)
def test_many_slices_of_any_documents_come_back_end_to_end(
  tmp_path_factory,
  lengths,
  page_tokens,
  shard_tokens,
  compression,
  cache_bytes,
  together,
  data,
):
  directory = tmp_path_factory.mktemp('store') / 'a'
  documents = make_documents(lengths, large_ids=data.draw(st.booleans()))
  write(
    directory,
    documents,
    page_tokens=page_tokens,
    shard_tokens=shard_tokens,
    compression=compression,
  )
  store = DocumentStore(directory, cache_bytes=cache_bytes)
  slices = []
  for _ in range(data.draw(st.integers(0, 9))):
    document = data.draw(st.integers(0, len(lengths) - 1))
    start = data.draw(st.integers(0, lengths[document]))
    stop = data.draw(st.integers(start, lengths[document]))
    slices.append((document, start, stop))
  fields = np.array(slices, np.int64).reshape(-1, 3).T
  with unittest.mock.patch.object(store_module, '_PAGES_TOGETHER', together):
    tokens, mask = store.read_many(*fields)
  assert (tokens.dtype, mask.dtype) == (np.int32, np.bool_)
  wanted, masks = [], []
  for i, start, stop in slices:
    wanted += documents[i].tokens[start:stop].tolist()
    masks += mask_of(documents[i])[start:stop].tolist()
  assert (tokens.tolist(), mask.tolist()) == (wanted, masks)
  # Whatever is in work, the cache keeps to its size, or to one page.
  assert store._cached_bytes <= max(cache_bytes, 60 * 5)


def test_what_is_read_belongs_to_the_reader(directory):
  (document,) = documents = make_documents([5])
  store = write(directory, documents)
  tokens, mask = store.read(0, 0, 5)
  tokens[:], mask[:] = 0, False
  tokens, mask = store.read(0, 0, 5)
  np.testing.assert_array_equal(tokens, document.tokens)
  assert mask.all()


def test_every_one_of_many_names_comes_back(directory):
  documents = make_documents([1] * (2 * NAMES_PER_RECORD + 1))
  store = write(directory, documents, shard_tokens=NAMES_PER_RECORD + 500)
  names = [store.name(i) for i in range(len(store))]
  assert names == [document.name for document in documents]
  for i in (-1, len(store)):
    with pytest.raises(IndexError, match=f'document {i} of a store of 2049'):
      store.name(i)


def test_ids_too_large_for_two_bytes_come_back(directory):
  tokens = np.array([0, 65_535, 65_536, 2**31 - 1, 7], np.int32)
  documents = [make_documents([5])[0]._replace(tokens=tokens)]
  for page_tokens in (1, 2, 5):
    store = write(directory, documents, page_tokens=page_tokens)
    assert store.read(0, 0, 5)[0].tolist() == tokens.tolist()


def test_slices_of_one_page_read_it_once(directory):
  documents = make_documents([100, 100])
  store = write(directory, documents, page_tokens=100, compression='zstd')
  store.read(0, 0, 10)
  (directory / SHARD).write_bytes(b'')
  store.read(0, 50, 60)
  with pytest.raises(StoreError):
    store.read(1, 0, 10)


def test_a_shard_that_is_cut_while_it_is_open_is_named(directory):
  store = write(directory, make_documents([100, 100]), page_tokens=100)
  content = (directory / SHARD).read_bytes()
  (directory / SHARD).write_bytes(content[:200])
  with pytest.raises(StoreError, match=rf'{SHARD}: document 1 .* ends before'):
    store.read(1, 0, 10)
  with pytest.raises(StoreError, match=rf'{SHARD}: document 1 .* ends before'):
    store.name(1)


def test_a_store_without_places_is_read_by_array_record(
  directory, monkeypatch, caplog
):
  # As all were written once, and as a future ArrayRecord may have it.
  documents = make_documents([100, 30])
  expected = write(directory, documents, page_tokens=16)
  monkeypatch.setattr(store_writer, 'find_places', lambda *_: None)
  store = write(directory, documents, page_tokens=16)
  assert 'ArrayRecord wrote it in a way of its own' in caplog.text
  assert not (directory / 'places.npy').exists()
  assert store.fingerprint == expected.fingerprint
  for i, document in enumerate(documents):
    tokens, mask = store.read(i, 3, 30)
    assert tokens.tolist() == document.tokens[3:30].tolist()
    assert mask.tolist() == mask_of(document)[3:30].tolist()
    assert store.name(i) == document.name


def test_compressed_pages_take_less_room(directory):
  (document,) = make_documents([200_000])
  documents = [document._replace(tokens=document.tokens % 7)]
  (size, packed) = (
    write(directory, documents, compression=compression)._shards[0].bytes
    for compression in COMPRESSIONS
  )
  assert packed < size


def test_cache_forgets_the_page_used_longest_ago(directory):
  documents = make_documents([100] * 5)
  # Of 300 bytes, 200 and 200: the first has a mask.
  documents = [documents[i] for i in (1, 2, 4)]
  write(directory, documents, page_tokens=100, compression='zstd')
  store = DocumentStore(directory, cache_bytes=699)
  for document in (0, 1, 0, 2):
    store.read(document, 0, 1)
  (directory / SHARD).write_bytes(b'')
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
  good = (0, 2, 3)
  with pytest.raises(IndexError, match=f'document {document}'):
    store.read_many(*np.array([good, (document, start, stop), good]).T)


@pytest.mark.parametrize('compression', COMPRESSIONS)
def test_threads_read_what_one_thread_reads(
  directory, fast_switching, compression
):
  documents = make_documents(range(1, 60))
  sizes = {'page_tokens': 16, 'shard_tokens': 500}
  write(directory, documents, compression=compression, **sizes)
  store = DocumentStore(directory, cache_bytes=500)
  store._cache = WatchedCache()
  order = np.random.default_rng(0).integers(0, 59, 1000).tolist()
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    results = pool.map(lambda i: store.read(i, 0, i + 1)[0], order)
    for i, tokens in zip(order, results, strict=True):
      np.testing.assert_array_equal(tokens, documents[i].tokens)
  assert store._cache.collisions == 0


def test_pickled_copy_reads_the_same_and_takes_no_index_along(directory):
  documents = make_documents([200_000, *([1] * 5000)])
  store = write(directory, documents)
  store.read(0, 0, 1)
  pickled = pickle.dumps(store)
  assert len(pickled) < 1000
  tokens, _ = pickle.loads(pickled).read(0, 5, 200_000)
  np.testing.assert_array_equal(tokens, documents[0].tokens[5:])


def test_pickled_copy_of_a_store_that_was_replaced_is_refused(directory):
  pickled = pickle.dumps(write(directory, make_documents([5])))
  write(directory, make_documents([6]))
  with pytest.raises(StoreError, match=r'store was replaced while in use'):
    pickle.loads(pickled)


def test_store_that_is_open_outlives_its_replacement(directory):
  (document,) = documents = make_documents([5000])
  store = write(directory, documents, page_tokens=10)
  write(directory, make_documents([6]))
  tokens, _ = store.read(0, 0, 5000)
  np.testing.assert_array_equal(tokens, document.tokens)


# Alone in its process, which has no other threads.
FORK = """
import multiprocessing, os, sys
from longctx_jax.data.store import DocumentStore
store = DocumentStore(sys.argv[1])
def read():
  try:
    print(store.name(0), store.read(0, 0, 50)[0].tolist())
  except ValueError as error:
    print(error)
with store._lock:
  child = multiprocessing.get_context('fork').Process(target=read)
  child.start()
  child.join(20)
child.kill()
"""


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork')
@pytest.mark.parametrize('compression', COMPRESSIONS)
def test_forked_child_reads_or_refuses_though_the_parent_held_the_lock(
  directory, compression
):
  (document,) = documents = make_documents([50])
  write(directory, documents, page_tokens=4, compression=compression)
  found = subprocess.run(
    [sys.executable, '-c', FORK, directory],
    check=True,
    stdout=subprocess.PIPE,
    encoding='utf-8',
  ).stdout
  if compression == 'none':
    assert found == f'{document.name} {document.tokens.tolist()}\n'
  else:
    assert 'compressed and was opened before a fork' in found
