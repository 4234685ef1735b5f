"""Writing a store: whole or not at all, in one process or from many shards."""

import json
import pickle
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from longctx_jax.data import store_writer
from longctx_jax.data.store import DocumentStore
from longctx_jax.data.store_format import StoreError
from longctx_jax.data.store_verify import StoreReport, verify_store
from tests.data.stored_documents import (
  COMPRESSIONS,
  FILES,
  files_of,
  make_documents,
  write,
)


@pytest.fixture
def directory(tmp_path):
  return tmp_path / 'corpus' / 'store'


def read_all(store):
  return [
    (store.name(i), *(part.tolist() for part in store.read(i, 0, int(n))))
    for i, n in enumerate(store.lengths)
  ]


def write_from_shards(directory, parts):
  """As a pipeline does it; the shards are finished last to first."""
  partial = store_writer.begin_store(directory)
  shards = [
    store_writer.write_shard(partial / f'of worker {i}', part, page_tokens=8)
    for i, part in reversed(list(enumerate(parts)))
  ]
  store_writer.finish_store(
    directory,
    shards[::-1],
    tokenizer_fingerprint='0123456789ab',
    settings={'max_chars': 7},
  )
  return DocumentStore(directory)


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
  # The same tokens in all, cut at another place.
  same = np.concatenate([document.tokens for document in documents])
  uncut = [document._replace(loss_mask=None) for document in documents]
  changes.append(
    [uncut[0]._replace(tokens=same[:6]), uncut[1]._replace(tokens=same[6:])]
  )
  fingerprints = [
    write(tmp_path / str(i), variant).fingerprint
    for i, variant in enumerate([documents, *changes])
  ]
  assert len(set(fingerprints)) == len(fingerprints)
  assert write(tmp_path / 'again', documents).fingerprint == fingerprints[0]
  assert {len(fingerprint) for fingerprint in fingerprints} == {12}


def test_shards_written_apart_are_the_store_written_at_once(tmp_path):
  documents = make_documents([4] * 20)
  at_once = write(tmp_path / 'a', documents, page_tokens=8, shard_tokens=4 * 5)
  parts = [documents[i : i + 5] for i in range(0, 20, 5)]
  # A worker that no document fell to writes a shard of none.
  apart = write_from_shards(tmp_path / 'b', [*parts[:2], [], *parts[2:]])
  assert read_all(apart) == read_all(at_once)
  assert apart.fingerprint == at_once.fingerprint
  assert files_of(tmp_path / 'a') == files_of(tmp_path / 'b')
  assert write_from_shards(tmp_path / 'c', parts[::-1]).fingerprint != (
    at_once.fingerprint
  )


def test_files_of_failed_attempts_do_not_stay(directory):
  partial = store_writer.begin_store(directory)
  shard = store_writer.write_shard(partial / 'a', make_documents([5]))
  store_writer.write_shard(partial / 'b', make_documents([5]))
  store_writer.finish_store(
    directory, [shard], tokenizer_fingerprint='', settings={}
  )
  assert files_of(directory) == set(FILES)


def test_shards_of_different_pages_are_refused(directory):
  partial = store_writer.begin_store(directory)
  shards = [
    store_writer.write_shard(
      partial / str(n), make_documents([5]), page_tokens=n
    )
    for n in (4, 8)
  ]
  with pytest.raises(ValueError, match='pages of different sizes'):
    store_writer.finish_store(
      directory, shards, tokenizer_fingerprint='', settings={}
    )


def test_shards_that_are_packed_differently_make_a_store(directory):
  documents = make_documents([40, 50, 60])
  partial = store_writer.begin_store(directory)
  shards = [
    store_writer.write_shard(
      partial / str(i), [document], compression=compression, page_tokens=16
    )
    for i, (document, compression) in enumerate(
      zip(documents, ['none', 'zstd', 'none'], strict=True)
    )
  ]
  store_writer.finish_store(
    directory, shards, tokenizer_fingerprint='', settings={}
  )
  assert [tokens for _, tokens, _ in read_all(DocumentStore(directory))] == [
    document.tokens.tolist() for document in documents
  ]


def test_manifest_counts_what_is_there(directory):
  write(directory, make_documents([5, 6, 7, 8]), page_tokens=4, shard_tokens=11)
  manifest = json.loads((directory / 'manifest.json').read_text())
  assert (manifest['documents'], manifest['tokens']) == (4, 26)
  assert manifest['domains'] == [
    {'name': 'domain 0', 'documents': 2, 'tokens': 13},
    {'name': 'domain 1', 'documents': 1, 'tokens': 6},
    {'name': 'domain 2', 'documents': 1, 'tokens': 7},
  ]
  counts = [(s['documents'], s['tokens']) for s in manifest['shards']]
  assert counts == [(2, 11), (2, 15)]
  # Pages of 4 tokens, and one record of names.
  assert [s['records'] for s in manifest['shards']] == [4, 5]


def test_more_domains_than_can_be_told_apart_are_refused(
  directory, monkeypatch
):
  monkeypatch.setattr(store_writer, 'MAX_DOMAINS', 2)
  with pytest.raises(ValueError, match='3 domains are more than the 2'):
    write(directory, make_documents([5, 5, 5]))


def test_settings_come_back_as_json_has_them(directory):
  partial = store_writer.begin_store(directory)
  shard = store_writer.write_shard(partial / 'a', make_documents([5]))
  settings = {'b': (1, 2), 'a': {10: 'ä', 9: None}}
  store_writer.finish_store(
    directory, [shard], tokenizer_fingerprint='', settings=settings
  )
  expected = {'b': [1, 2], 'a': {'10': 'ä', '9': None}}
  assert DocumentStore(directory).settings == expected


@pytest.mark.parametrize('compression', COMPRESSIONS)
def test_a_store_may_be_empty(directory, compression):
  store = write(directory, [], compression=compression)
  assert files_of(directory) == {
    name for name in FILES if name != 'places.npy' or compression == 'none'
  }
  assert (len(store), store.domain_names, store.lengths.tolist()) == (0, (), [])
  assert store.is_compressed == (compression == 'zstd')
  assert pickle.loads(pickle.dumps(store)).fingerprint == store.fingerprint
  assert verify_store(directory) == StoreReport(0, 0, 0, ())
  for read in (lambda: store.read(0, 0, 1), lambda: store.name(0)):
    with pytest.raises(IndexError, match='document 0 of a store of 0 docum'):
      read()


def test_of_empty_shards_one_is_kept_if_there_is_no_other(tmp_path):
  document = make_documents([5])
  for parts, num_shards in (([[], []], 1), ([[], document, []], 1)):
    store = write_from_shards(tmp_path / 'store', parts)
    assert len(store) == sum(map(len, parts))
    shards = list((tmp_path / 'store').glob('*.array_record'))
    assert len(shards) == num_shards
  alone = write_from_shards(tmp_path / 'alone', [document])
  assert store.fingerprint == alone.fingerprint


@pytest.mark.parametrize(
  ('change', 'says'),
  [
    ({'tokens': np.zeros(0, np.int32)}, r"me 1' has tokens of shape \(0,\)"),
    ({'tokens': np.zeros((2, 2), np.int32)}, r'tokens of shape \(2, 2\)'),
    ({'tokens': np.full(5, 2**32 + 1)}, r"me 1' has tokens outside"),
    ({'tokens': np.array([1, 2, -1, 2, 1])}, r'2\^31\): -1 to 2'),
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
  assert list(directory.parent.iterdir()) == [directory]


HEAD = (
  'import os, pathlib, resource, sys\n'
  'import numpy as np\n'
  'from longctx_jax.data.store_writer import StoredDocument, write_store\n'
  'directory = pathlib.Path(sys.argv[1])\n'
)


def test_killed_run_leaves_no_store_and_does_not_disturb_the_next(directory):
  command = HEAD + (
    'def documents():\n'
    "  yield StoredDocument('a', 'b', np.arange(9), None)\n"
    '  os._exit(9)\n'
    'write_store(directory, documents(), tokenizer_fingerprint="",\n'
    '  settings={})\n'
  )
  done = subprocess.run([sys.executable, '-c', command, directory], check=False)
  assert done.returncode == 9
  partial = directory.with_name('store.partial')
  assert list(directory.parent.iterdir()) == [partial]
  (partial / 'left over').touch()
  # What a run leaves that is killed between two renames.
  directory.with_name('store.replaced').mkdir()
  write(directory, make_documents([5]))
  assert list(directory.parent.iterdir()) == [directory]
  assert files_of(directory) == set(FILES)


def test_what_a_killed_run_had_set_aside_is_kept_until_there_is_another(
  directory,
):
  write(directory, make_documents([5]))
  directory.rename(directory.with_name('store.replaced'))

  def documents():
    yield from make_documents([9])
    raise OSError('a source is gone')

  with pytest.raises(OSError, match='a source is gone'):
    write(directory, documents())
  assert DocumentStore(directory).lengths.tolist() == [5]


@pytest.mark.slow
def test_run_killed_at_any_time_leaves_a_whole_store(directory):
  command = HEAD + (
    'for i in range(10**6):\n'
    '  documents = [\n'
    "    StoredDocument(f'{i} {j}', 'b', np.arange(i + j, 5000 + i), None)\n"
    '    for j in range(20)\n'
    '  ]\n'
    "  write_store(directory, documents, tokenizer_fingerprint='',\n"
    '    settings={}, page_tokens=100, shard_tokens=9000)\n'
    "  print('written', flush=True)\n"
  )
  rng = random.Random(0)
  replaced = directory.with_name('store.replaced')
  for _ in range(25):
    child = subprocess.Popen(
      [sys.executable, '-c', command, directory], stdout=subprocess.PIPE
    )
    assert child.stdout.readline() == b'written\n'
    time.sleep(rng.uniform(0, 0.1))
    child.send_signal(signal.SIGKILL)
    child.communicate()
    # Between its two renames the store bears its second name.
    whole = directory if directory.exists() else replaced
    store = DocumentStore(whole)
    i = int(store.name(0).split()[0])
    for j in range(20):
      tokens, _ = store.read(j, 0, int(store.lengths[j]))
      assert tokens.tolist() == list(range(i + j, 5000 + i))
    assert verify_store(whole).damage == ()


def test_directory_that_is_no_store_is_left_alone(directory):
  directory.mkdir(parents=True)
  (directory / 'thesis.tex').touch()
  with pytest.raises(StoreError, match='is not a store'):
    write(directory, make_documents([5]))
  assert (directory / 'thesis.tex').exists()


@pytest.mark.parametrize(
  ('limit', 'documents'),
  [
    # Fails in a shard, and in the index of many documents.
    (100_000, "[('a', rng.integers(0, 50_000, 100_000))]"),
    (300_000, "[('a', np.ones(1, int))] * 50_000"),
  ],
  ids=['shard', 'index'],
)
def test_full_disk_is_named_and_nothing_is_left(directory, limit, documents):
  # A limit on the size of a file fails the writer's own threads, as ENOSPC
  # does; it holds for a process, so this one is not the place for it.
  pytest.importorskip('resource')
  command = HEAD + (
    f'resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n'
    'rng = np.random.default_rng(0)\n'
    f'documents = {documents}\n'
    'try:\n'
    '  write_store(\n'
    "    directory, [StoredDocument(n, 'b', t, None) for n, t in documents],\n"
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
