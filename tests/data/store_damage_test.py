"""A damaged store: what is read is what was written, or an error says where."""

import copy
import json
import os
import shutil
import zlib

import numpy as np
import pytest
from array_record.python.array_record_module import (
  ArrayRecordReader,
  ArrayRecordWriter,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from longctx_jax.data.counts import Counts
from longctx_jax.data.store import DocumentStore
from longctx_jax.data.store_format import WRITER_OPTIONS, StoreError
from longctx_jax.data.store_verify import verify_store
from tests.data.stored_documents import (
  COMPRESSIONS,
  FILES,
  INDEX,
  SHARD,
  make_documents,
  mask_of,
  write,
)

MANIFEST, PLACES = 'manifest.json', 'places.npy'
PAGE = 64
DOCUMENTS = make_documents([500, 1, 30, 20, 1000, 7])


@pytest.fixture
def directory(tmp_path):
  return tmp_path / 'store'


@pytest.fixture(scope='module', params=COMPRESSIONS)
def whole(request, tmp_path_factory):
  """A store that tests leave as it is."""
  directory = tmp_path_factory.mktemp('whole') / 'store'
  write(directory, DOCUMENTS, page_tokens=PAGE, compression=request.param)
  return directory


@pytest.fixture(scope='module')
def scratch(whole, tmp_path_factory):
  """One to damage again and again, whose files link to those of `whole`."""
  directory = tmp_path_factory.mktemp('scratch') / 'store'
  shutil.copytree(whole, directory, copy_function=os.link)
  return directory


def unreadable(directory):
  """(documents that cannot be read, messages); others are as written."""
  try:
    store = DocumentStore(directory, cache_bytes=0)
  except StoreError as error:
    return set(range(len(DOCUMENTS))), [str(error)]
  failed, messages = set(), []
  for i, document in enumerate(DOCUMENTS):
    try:
      name, (tokens, mask) = store.name(i), store.read(i, 0, len(document[2]))
    except StoreError as error:
      failed.add(i)
      messages.append(str(error))
    else:
      assert name == document.name
      assert store.domain_names[store.domain_ids[i]] == document.domain
      np.testing.assert_array_equal(tokens, document.tokens)
      np.testing.assert_array_equal(mask, mask_of(document))
  return failed, messages


def rewrite(path, content):
  """Not in place: the file is a link to that of another store."""
  path.unlink()
  path.write_bytes(content)


@settings(max_examples=300, deadline=None)
@given(
  data=st.data(),
  where=st.floats(0, 1, exclude_max=True),
  flip=st.integers(1, 255),
)
def test_flipped_bits_are_found_or_change_nothing(
  whole, scratch, data, where, flip
):
  name = data.draw(st.sampled_from(sorted(p.name for p in whole.iterdir())))
  content = bytearray((whole / name).read_bytes())
  # ArrayRecord fills blocks of 64 KiB with zeros; content comes first.
  end = min(len(content), 8000) if name == SHARD else len(content)
  content[int(where * end)] ^= flip
  rewrite(scratch / name, content)
  failed, messages = unreadable(scratch)
  assert all(name in message and '\n' not in message for message in messages)
  if name == SHARD:
    found = set(verify_store(scratch).damaged_documents())
    # What lies between records does not matter where they are read in place.
    assert found >= failed if (whole / PLACES).exists() else found == failed
  elif name in INDEX:
    assert len(failed) == len(DOCUMENTS)
  shutil.copyfile(whole / name, scratch / name)


def test_flips_of_a_shard_hit_pages_names_and_nothing_else(whole, scratch):
  # What the test above relies on: that its flips do damage.
  content = (whole / SHARD).read_bytes()
  hit = set()
  for i in range(0, 8000, 40):
    damaged = bytearray(content)
    damaged[i] ^= 1
    rewrite(scratch / SHARD, damaged)
    hit |= {damage.record for damage in verify_store(scratch).damage}
  pages = -(-sum(len(document.tokens) for document in DOCUMENTS) // PAGE)
  assert hit >= set(range(pages + 1))
  rewrite(scratch / SHARD, content)


@pytest.mark.parametrize(
  ('name', 'says'),
  [
    (SHARD, r'has \d+ bytes, and \d+ were written'),
    *((name, 'its checksum is') for name in INDEX),
    (MANIFEST, 'it is no manifest'),
  ],
)
def test_truncated_file_is_named(whole, scratch, name, says):
  if not (whole / name).exists():
    pytest.skip('compressed records have no places')
  content = (whole / name).read_bytes()
  steps = range(0, len(content), -(-len(content) // 40))
  for length in [*steps, len(content) - 1]:
    rewrite(scratch / name, content[:length])
    with pytest.raises(StoreError, match=f'{name}.*{says}.*corpus again'):
      DocumentStore(scratch)
  rewrite(scratch / name, content)


def test_documents_that_nobody_counted_are_refused(directory):
  kept = {f'domain {i}': Counts() for i in range(3)}
  for account in kept.values():
    account.see(10)
    account.keep(10)
  store = write(directory, make_documents([5, 6, 7]), accounts=kept)
  assert store.accounts == kept
  with pytest.raises(ValueError, match=r'of domain 0, .* and 2 are stored'):
    write(directory, make_documents([5, 6, 7, 8]), accounts=kept)
  manifest = json.loads((directory / MANIFEST).read_text())
  del manifest['checksum']
  for count, says in (
    ('kept', '1 documents were seen, and 2 kept or dropped'),
    ('seen', '2 documents were seen, and 1 kept or dropped'),
  ):
    changed = copy.deepcopy(manifest)
    changed['counts']['domain 1']['documents'][count] += 1
    # By whoever changed it, with care.
    text = json.dumps(changed, sort_keys=True)
    changed['checksum'] = zlib.crc32(text.encode())
    (directory / MANIFEST).write_text(json.dumps(changed))
    for look in (DocumentStore, verify_store):
      with pytest.raises(
        StoreError, match=rf'manifest\.json: of .*1, .*{says}'
      ):
        look(directory)


@pytest.mark.parametrize('name', FILES)
def test_missing_file_is_named(directory, name):
  write(directory, make_documents([5]))
  (directory / name).unlink()
  with pytest.raises(StoreError, match=f'{name}.*No such file'):
    DocumentStore(directory)


def damage_page(path, page):
  """Flips bits of one page of a shard; returns the damage that is found."""
  content = path.read_bytes()
  # From the end on, so that what is hit is the page and not what is before it.
  for i in reversed(range(0, min(len(content), 8000), 50)):
    damaged = bytearray(content)
    damaged[i] ^= 255
    path.write_bytes(damaged)
    (*damage,) = verify_store(path.parent).damage
    if [d.record for d in damage] == [page]:
      return damage[0]
  raise AssertionError(f'no flip hits page {page}')


@pytest.mark.parametrize('compression', COMPRESSIONS)
def test_a_slice_is_read_though_other_pages_are_damaged(directory, compression):
  (document,) = documents = make_documents([1000])
  write(directory, documents, page_tokens=100, compression=compression)
  damage_page(directory / SHARD, 4)
  store = DocumentStore(directory)
  for start, stop in ((0, 400), (500, 1000), (399, 400), (500, 501)):
    tokens, _ = store.read(0, start, stop)
    np.testing.assert_array_equal(tokens, document.tokens[start:stop])
  for start, stop in ((0, 401), (499, 500), (0, 1000)):
    with pytest.raises(StoreError, match=f'{SHARD}: document 0 .*record 4'):
      store.read(0, start, stop)


@pytest.mark.parametrize('compression', COMPRESSIONS)
def test_a_shard_without_one_of_its_pages_is_named(directory, compression):
  # A whole file of ArrayRecord's, and as long: it is filled up with zeros.
  documents = make_documents([10] * 6)
  write(directory, documents, page_tokens=10, compression=compression)
  path = directory / SHARD
  reader = ArrayRecordReader(str(path))
  records, num_bytes = reader.read_all(), path.stat().st_size
  reader.close()
  del records[2]
  writer = ArrayRecordWriter(str(path), WRITER_OPTIONS[compression])
  for record in records:
    writer.write(record)
  writer.close()
  assert path.stat().st_size == num_bytes
  with pytest.raises(StoreError, match=f'{SHARD} .* 6 records, and 7 were'):
    DocumentStore(directory)
  (damage,) = verify_store(directory).damage
  assert damage[:3] == (path, None, range(6))


@pytest.mark.parametrize('compression', COMPRESSIONS)
def test_a_hole_of_a_shard_takes_the_documents_in_it(directory, compression):
  # What a copy that was cut short may leave: pages are missing, bytes are not.
  lengths = [100_000] * 8
  documents = make_documents(lengths)
  write(directory, documents, compression=compression)
  path = directory / SHARD
  content = bytearray(path.read_bytes())
  content[1_000_000:1_200_000] = bytes(200_000)
  path.write_bytes(content)
  lost = verify_store(directory).damaged_documents()
  assert 1 <= len(lost) <= 3
  store = DocumentStore(directory)
  for i, document in enumerate(documents):
    if i in lost:
      with pytest.raises(StoreError, match=f'{SHARD}: document {i} .*record'):
        store.read(i, 0, lengths[i])
    else:
      tokens, _ = store.read(i, 0, lengths[i])
      np.testing.assert_array_equal(tokens, document.tokens)


def test_every_document_of_a_damaged_page_is_listed(directory):
  #   documents of the second shard's pages    [1 1 1 2] [2 3 3 3] [4]
  lengths = [9, 3, 2, 3, 1, 4]
  write(directory, make_documents(lengths), page_tokens=4, shard_tokens=9)
  path = directory / 'documents-00001-of-00003.array_record'
  damage = damage_page(path, 1)
  assert damage.path == path
  assert damage.documents == range(2, 4)
  assert damage.reason
  report = verify_store(directory, num_threads=1)
  # Pages and one record of names in each shard.
  assert (report.documents, report.tokens, report.records) == (6, 22, 10)
  assert report.damaged_documents() == [2, 3]
  store = DocumentStore(directory)
  for i in (0, 1, 4, 5):
    assert len(store.read(i, 0, lengths[i])[0]) == lengths[i]


@pytest.mark.parametrize('change', [lambda c: c[:-1], lambda c: b'', None])
def test_a_lost_shard_is_listed_with_its_documents(directory, change):
  write(directory, make_documents([5] * 6), shard_tokens=10)
  path = directory / 'documents-00001-of-00003.array_record'
  if change:
    path.write_bytes(change(path.read_bytes()))
  else:
    path.unlink()
  with pytest.raises(StoreError, match=path.name):
    DocumentStore(directory)
  (damage,) = verify_store(directory).damage
  assert damage[:3] == (path, None, range(2, 4))


def test_shards_that_changed_places_are_found(directory):
  # As large as each other, each whole, and each under the other's name.
  write(directory, make_documents([5] * 4), shard_tokens=10)
  first, second = sorted(directory.glob('*.array_record'))
  content = first.read_bytes()
  assert len(content) == second.stat().st_size
  first.write_bytes(second.read_bytes())
  second.write_bytes(content)
  store = DocumentStore(directory)
  for i in range(4):
    with pytest.raises(StoreError, match=r'its checksum is \d+, and \d+ in'):
      store.read(i, 0, 5)
  assert verify_store(directory).damaged_documents() == [0, 1, 2, 3]


def test_a_damaged_footer_is_not_taken_for_an_empty_shard(directory):
  write(directory, make_documents([5] * 4))
  path = directory / SHARD
  content = bytearray(path.read_bytes())
  # The last block says where the index is; without it there are no records.
  content[-65_536:] = bytes(65_536)
  path.write_bytes(content)
  with pytest.raises(StoreError, match='it has 0 records, and 2 were written'):
    DocumentStore(directory)
  assert verify_store(directory).damaged_documents() == [0, 1, 2, 3]


@pytest.mark.parametrize(
  ('change', 'says'),
  [
    ({'format_version': 1}, 'has format version 1, and this program reads 2'),
    ({'format_version': None}, 'has format version None'),
    ({'page_tokens': 3}, 'its checksum is'),
    ({'fingerprint': '0123456789ab'}, 'its checksum is'),
    ({'settings': {}}, 'its checksum is'),
    ({'checksum': None}, 'and None was written'),
  ],
)
def test_other_manifest_is_refused(directory, change, says):
  write(directory, make_documents([5]))
  path = directory / MANIFEST
  path.write_text(json.dumps(json.loads(path.read_text()) | change))
  with pytest.raises(StoreError, match=f'{MANIFEST} .*{says}'):
    DocumentStore(directory)


@pytest.mark.parametrize('text', ['', '{}', '[]', '"a"', 'null', '{"a": '])
def test_file_that_is_no_manifest_is_refused(directory, text):
  write(directory, make_documents([5]))
  (directory / MANIFEST).write_text(text)
  with pytest.raises(StoreError, match=f'{MANIFEST} is damaged: it is no man'):
    DocumentStore(directory)


def test_index_of_another_store_is_refused(directory, tmp_path):
  write(directory, make_documents([5, 6]))
  write(tmp_path / 'other', make_documents([6, 5]))
  shutil.copy(tmp_path / 'other' / 'offsets.npy', directory)
  with pytest.raises(StoreError, match=r'offsets\.npy is damaged'):
    DocumentStore(directory)
