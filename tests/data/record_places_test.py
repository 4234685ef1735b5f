"""Places of records: what lies there is what ArrayRecord was given."""

import zlib

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from hypothesis import given, settings
from hypothesis import strategies as st

from longctx_jax.data.record_places import (
  RecordError,
  RecordFile,
  find_places,
  read_records,
)

PLAIN = 'group_size:1,uncompressed'


def write(path, sizes, options=PLAIN, seed=0):
  """Records of these sizes, and their checksums."""
  rng = np.random.default_rng(seed)
  records = [rng.bytes(size) for size in sizes]
  writer = ArrayRecordWriter(str(path), options)
  for record in records:
    writer.write(record)
  writer.close()
  return records, [zlib.crc32(record) for record in records]


@settings(max_examples=40, deadline=None)
@given(
  sizes=st.lists(
    # A header of 24 bytes comes every 65,536: before, in and after a record,
    # in the head of a chunk, and several times in one record.
    st.one_of(st.integers(1, 300), st.integers(65_300, 65_600), st.just(2**18)),
    min_size=1,
    max_size=12,
  ),
  data=st.data(),
)
def test_records_are_read_where_they_lie(tmp_path_factory, sizes, data):
  directory = tmp_path_factory.mktemp('records')
  records, checksums, files, places = [], [], [], []
  for k in range(2):
    path = directory / str(k)
    made, sums = write(path, sizes[k:] + sizes[:k])
    files.append(RecordFile(path))
    places.append(find_places(files[k], sums))
    records.append(made)
    checksums.append(sums)
  places, checksums = np.array(places), np.array(checksums)
  assert places[:, 1].tolist() == [[*map(len, made)] for made in records]
  which = st.tuples(st.integers(0, 1), st.integers(0, len(sizes) - 1))
  wanted = data.draw(st.lists(which, min_size=1, max_size=9))
  number, record = np.array(wanted).T
  found = read_records(
    files, number, places[number, :, record].T, checksums[number, record]
  )
  assert [bytes(f) for f in found] == [records[k][i] for k, i in wanted]
  in_a_row = read_records(
    files, np.zeros(len(sizes), int), places[0], checksums[0]
  )
  assert [bytes(f) for f in in_a_row] == records[0]


def test_records_of_two_files_are_not_read_in_one_go(tmp_path):
  files, places, checksums, records = [], [], [], []
  for name, seed in (('a', 0), ('b', 1)):
    made, sums = write(tmp_path / name, [50, 60], seed=seed)
    files.append(RecordFile(tmp_path / name))
    places.append(find_places(files[-1], sums))
    checksums.append(sums)
    records.append(made)
  # The second begins where it would if it followed the first.
  part = np.stack([places[0][:, 0], places[1][:, 1]], axis=1)
  sums = np.array([checksums[0][0], checksums[1][1]])
  found = read_records(files, np.array([0, 1]), part, sums)
  assert [bytes(f) for f in found] == [records[0][0], records[1][1]]


@pytest.mark.parametrize(
  'options', ['group_size:1,zstd:3', 'group_size:1,snappy', 'group_size:2']
)
def test_what_is_built_otherwise_is_left_to_array_record(tmp_path, options):
  _, checksums = write(tmp_path / 'a', [50, 60, 70], options)
  assert find_places(RecordFile(tmp_path / 'a'), checksums) is None


def test_places_are_noted_of_what_was_written_alone(tmp_path):
  _, checksums = write(tmp_path / 'a', [50, 60, 70])
  file = RecordFile(tmp_path / 'a')
  assert find_places(file, checksums) is not None
  assert find_places(file, [*checksums[:2], checksums[2] ^ 1]) is None
  assert find_places(file, [*checksums, 0]) is None
  content = (tmp_path / 'a').read_bytes()
  for length in (0, 64, 100, 130, 300):
    (tmp_path / 'b').write_bytes(content[:length])
    assert find_places(RecordFile(tmp_path / 'b'), checksums) is None


def test_the_record_that_cannot_be_read_is_told(tmp_path):
  records, checksums = write(tmp_path / 'a', [50, 60, 70])
  file = RecordFile(tmp_path / 'a')
  places = find_places(file, checksums)
  content = bytearray((tmp_path / 'a').read_bytes())
  content[content.index(records[1])] ^= 1
  (tmp_path / 'a').write_bytes(content)
  order = np.array([2, 0, 1])
  part = np.zeros(3, int), places[:, order], np.array(checksums)[order]
  with pytest.raises(RecordError, match='its checksum is') as error:
    read_records([file], *part)
  assert error.value.number == 2
  (tmp_path / 'a').write_bytes(content[:150])
  with pytest.raises(RecordError, match='the file ends before byte') as error:
    read_records([file], *part)
  assert error.value.number == 0
