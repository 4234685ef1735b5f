"""Where records of an uncompressed ArrayRecord file lie, to read them there.

ArrayRecord's reader takes about 10 us a record, whatever the record holds. With
its place at hand, a record is a stretch of the file that one call reads, and so
are records that follow each other.

An ArrayRecord file is one of Riegeli's, a run of chunks, one record in each if
they are written in groups of one. Every 64 KiB a header of its own parts
whatever lies there, so places count the bytes between these headers:

    file    [24][ signature 40 | header 40 | 0 n size | record | hea][24][der ..
    place        0               40                     85 ...

(riegeli's doc/riegeli_records_file_format.md.) A place is noted only where the
bytes found there have the checksum of the record that was written.
"""

import itertools
import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

_BLOCK, _BLOCK_HEADER = 65_536, 24
_PAYLOAD = _BLOCK - _BLOCK_HEADER
_CHUNK_HEADER = 40  # of the signature, too, which is a chunk without data
# A chunk begins with how it is compressed, and the bytes of its records' sizes.
_UNCOMPRESSED = 0
_SIZES_AT = _CHUNK_HEADER + 2
_MAX_SIZES = 10  # bytes of a varint of 64 bits


# What lies between records that follow each other: the head of a chunk.
_MAX_GAP = _SIZES_AT + _MAX_SIZES


class RecordError(ValueError):
  """A record that cannot be read; `number` is its place in the request."""

  def __init__(self, number: int, reason: str):
    super().__init__(reason)
    self.number = number


class RecordFile:
  """A file that is open until nobody has it any more."""

  def __init__(self, path: Path):
    self.descriptor = os.open(path, os.O_RDONLY)

  def __del__(self):
    if hasattr(self, 'descriptor'):
      os.close(self.descriptor)


class _Chunk(NamedTuple):
  record: int  # its place
  size: int
  stop: int  # where the next chunk begins


def find_places(
  file: RecordFile, checksums: Sequence[int]
) -> np.ndarray | None:
  """Place and bytes of every record, int64 [2, records], by its checksum.

  Args:
    file: all of which is written.
    checksums: CRC-32 of each record, in order.

  Returns:
    None if the file is not built as this module says, so that only ArrayRecord
    can read it.
  """
  places, at = np.empty((2, len(checksums)), np.int64), _CHUNK_HEADER
  num_bytes = os.fstat(file.descriptor).st_size
  for i, checksum in enumerate(checksums):
    chunk = _chunk_at(file, at)
    if chunk is None or _in_file(chunk.stop - 1) >= num_bytes:
      return None
    record = read_stretch(file, chunk.record, chunk.record + chunk.size)
    if zlib.crc32(record) != checksum:
      return None
    places[:, i] = chunk.record, chunk.size
    at = chunk.stop
  return places


def read_records(
  files: Mapping[int, RecordFile],
  numbers: np.ndarray,
  places: np.ndarray,
  checksums: np.ndarray,
) -> list[memoryview]:
  """Records of several files; those that follow each other in one go.

  Args:
    files: by number.
    numbers: of the file of each record.
    places: int64 [2, records], as `find_places` gives them.
    checksums: CRC-32 of each record.

  Raises:
    RecordError: a record cannot be read, or is not what was written.
  """
  starts, stops = places[0], places.sum(axis=0)
  gaps = starts[1:] - stops[:-1]
  apart = (gaps < 0) | (gaps > _MAX_GAP) | (numbers[1:] != numbers[:-1])
  firsts = np.append(0, np.flatnonzero(apart) + 1)
  afters = np.append(firsts[1:], len(starts))
  origins = np.repeat(starts[firsts], afters - firsts)
  within = zip(
    (starts - origins).tolist(),
    (stops - origins).tolist(),
    checksums.tolist(),
    strict=True,
  )
  records, number = [], None
  for wanted, start, stop, count in zip(
    numbers[firsts].tolist(),
    starts[firsts].tolist(),
    stops[afters - 1].tolist(),
    (afters - firsts).tolist(),
    strict=True,
  ):
    if number != wanted:
      # The name holds it open, should another thread close it meanwhile.
      file, number = files[wanted], wanted
    try:
      run = read_stretch(file, start, stop)
    except (OSError, ValueError) as error:
      raise RecordError(len(records), str(error)) from error
    for begin, end, checksum in itertools.islice(within, count):
      record = run[begin:end]
      if (found := zlib.crc32(record)) != checksum:
        raise RecordError(
          len(records), f'its checksum is {found}, and {checksum} in the index'
        )
      records.append(record)
  return records


def _chunk_at(file, at):
  """The chunk at a place, or None if it is not one uncompressed record."""
  head = bytes(read_stretch(file, at, at + _SIZES_AT + _MAX_SIZES, short=True))
  if len(head) <= _SIZES_AT:
    return None
  # hash 8, bytes of data 8, hash 8, kind 1, records 7, bytes of records 8
  num_bytes = int.from_bytes(head[8:16], 'little')
  kind, records = head[24:25], int.from_bytes(head[25:32], 'little')
  size = int.from_bytes(head[32:40], 'little')
  compression, num_sizes = head[_CHUNK_HEADER:_SIZES_AT]
  if (kind, records, compression) != (b'r', 1, _UNCOMPRESSED):
    return None
  if num_bytes != 2 + num_sizes + size:
    return None
  record = at + _SIZES_AT + num_sizes
  return _Chunk(record, size, record + size)


def read_stretch(
  file: RecordFile, start: int, stop: int, *, short: bool = False
) -> memoryview:
  """The bytes from place `start` to place `stop`.

  Args:
    short: whether the file may end before.

  Raises:
    OSError: the file cannot be read.
    ValueError: it ends before.
  """
  begin = _in_file(start)
  end = _in_file(stop - 1) + 1
  content = os.pread(file.descriptor, end - begin, begin)
  # The first header inside of what was read.
  header = _BLOCK - begin % _BLOCK
  if header < len(content):
    parts = [content[:header]]
    parts += [
      content[i + _BLOCK_HEADER : i + _BLOCK]
      for i in range(header, len(content), _BLOCK)
    ]
    content = b''.join(parts)
  if len(content) < stop - start and not short:
    raise ValueError(f'the file ends before byte {end}')
  return memoryview(content)


def _in_file(place: int) -> int:
  return place + _BLOCK_HEADER * (place // _PAYLOAD + 1)
