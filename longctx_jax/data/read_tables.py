"""Columns of text in Parquet files and in Hugging Face datasets on disk.

A dataset saved by `Dataset.save_to_disk` is a folder of Arrow files and a list
of them, which pyarrow reads alone: `datasets` need not be installed.
"""

import contextlib
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from longctx_jax.config_from_dict import ConfigError
from longctx_jax.corpus_config import TextSource
from longctx_jax.data.parts import (
  Document,
  Part,
  Problem,
  import_optional,
  name_from,
  read_item,
  reason,
  text_from,
)
from longctx_jax.data.read_json import FREE_BYTES, MAX_EXPANSION
from longctx_jax.data.source_files import find_files

# ours: one read's worth of web pages, and half a gigabyte of the longest
# books; fewer where a row group's rows are long.
_BATCH_ROWS = 64
_BATCH_BYTES = 32 << 20


def list_parquet(
  source: TextSource, domain: str, part_bytes: int
) -> list[Part]:
  """Ranges of row groups, each of about `part_bytes` before compression.

  Raises:
    ConfigError: a file has no such columns.
  """
  pyarrow = import_optional('pyarrow', 'parquet')
  parquet = import_optional('pyarrow.parquet', 'parquet')
  parts = []
  for name, path in find_files(source, ('.parquet',)):
    name = f'parquet/{name}'
    try:
      with parquet.ParquetFile(path) as file:
        metadata, schema = file.metadata, file.schema_arrow
    except (OSError, pyarrow.ArrowException):
      # Reading it fails, too, and that counts as a problem.
      parts.append(Part(source, domain, name, str(path)))
      continue
    _check_columns(source, path, schema)
    sizes = [
      metadata.row_group(i).total_byte_size
      for i in range(metadata.num_row_groups)
    ]
    parts += [
      Part(source, domain, name, str(path), start, stop)
      for start, stop in _ranges(sizes, part_bytes)
    ]
  return parts


def read_parquet(part: Part) -> Iterator[Document | Problem]:
  """The documents of row groups [start, stop); names end in a row's number.

  As of compressed JSONL, no more is read than is in reason for the file's size.
  """
  pyarrow = import_optional('pyarrow', 'parquet')
  parquet = import_optional('pyarrow.parquet', 'parquet')
  row, left = 0, FREE_BYTES
  try:
    # Neither the file nor a column of a row group is held as a whole. Where
    # pages have checksums, a flipped bit is found: it may read as other text.
    with parquet.ParquetFile(
      part.path,
      pre_buffer=False,
      buffer_size=1 << 20,
      page_checksum_verification=True,
    ) as file:
      metadata = file.metadata
      row = sum(metadata.row_group(i).num_rows for i in range(part.start))
      for i in range(part.start, part.stop):
        group = metadata.row_group(i)
        columns = _columns_of(group, part.source)
        left += MAX_EXPANSION * sum(c.total_compressed_size for c in columns)
        if sum(c.total_uncompressed_size for c in columns) > left:
          yield _expands_too_much(part, row)
          return
        # A row takes what rows do on average, or a text that all rows share.
        row_bytes = max(
          group.total_byte_size // max(group.num_rows, 1),
          *(_dictionary_bytes(part.path, column) for column in columns),
        )
        batches = file.iter_batches(
          min(_BATCH_ROWS, _BATCH_BYTES // (row_bytes + 1) + 1),
          row_groups=[i],
          columns=_columns(part.source),
          use_threads=False,
        )
        for item in _items(part, batches, row):
          left -= len(item.text) if isinstance(item, Document) else 0
          if left < 0:
            yield _expands_too_much(part, row)
            return
          yield item
          row += 1
  except (OSError, pyarrow.ArrowException) as error:
    yield _damaged(part, row, error)


def _columns_of(group, source):
  """What the metadata of a row group say of the columns that are read."""
  every = map(group.column, range(group.num_columns))
  return [c for c in every if c.path_in_schema in _columns(source)]


def _dictionary_bytes(path, column) -> int:
  """Bytes of the texts that a column's rows refer to: one may be all of them.

  They are in a page whose header begins with two numbers in Thrift's compact
  form: the kind of page, and its size before compression.
  """
  if not column.has_dictionary_page:
    return 0
  with open(path, 'rb') as file:
    file.seek(column.dictionary_page_offset)
    header = file.read(16)
  kind, size = b'\x15\x04', 0
  if not header.startswith(kind + b'\x15'):
    return column.total_uncompressed_size  # at most
  for k, byte in enumerate(header[3:]):
    size |= (byte & 127) << 7 * k
    if byte < 128:
      break
  return size >> 1


def list_hf_dataset(source: TextSource, domain: str) -> list[Part]:
  """A part for each Arrow file of a dataset, or of its `split`.

      path              holds
      mine              state.json: a Dataset
      mine              dataset_dict.json: a DatasetDict, of which `split`
      .../mine-*.arrow  what `load_dataset` leaves in its cache

  Raises:
    ConfigError: there is no such split or column, or rows were selected in a
      list beside the data.
  """
  pyarrow = import_optional('pyarrow', 'hf_dataset')
  files = _arrow_files(source)
  for _, path in files:
    try:
      with _open_arrow(path) as batches:
        schema = batches.schema
    except (OSError, pyarrow.ArrowException):
      continue  # reading it fails, too, and that counts as a problem
    _check_columns(source, path, schema)
  return [
    Part(source, domain, f'hf_dataset/{name}', str(path), 0, sys.maxsize)
    for name, path in files
  ]


def read_hf_dataset(part: Part) -> Iterator[Document | Problem]:
  """The documents of one Arrow file; names end in the row's number in it."""
  pyarrow = import_optional('pyarrow', 'hf_dataset')
  row = 0
  try:
    with _open_arrow(part.path) as batches:
      for item in _items(part, batches, 0):
        yield item
        row += 1
  except (OSError, pyarrow.ArrowException) as error:
    yield _damaged(part, row, error)


def _arrow_files(source) -> list[tuple[str, Path]]:
  """(name, path) of a dataset's files, in the order of its rows."""
  root = folder = Path(source.path)
  if (root / 'dataset_dict.json').is_file():
    splits = _read_json(root / 'dataset_dict.json', 'splits')
    if source.split not in splits:
      raise ConfigError(
        f'split={source.split!r}: {source.path} has {", ".join(splits)}'
      )
    folder = root / source.split
  elif source.split:
    raise ConfigError(
      f'split={source.split!r}: {source.path} has no splits (it holds no'
      ' dataset_dict.json)'
    )
  state = folder / 'state.json'
  if folder == root and not state.is_file():
    return find_files(source, ('.arrow',))
  if _read_json(state, '_indices_data_files', None):
    raise ConfigError(
      f'{folder} is a selection of rows by a list beside them: save it again,'
      ' after dataset.flatten_indices()'
    )
  files = [
    folder / file['filename'] for file in _read_json(state, '_data_files')
  ]
  return [(path.relative_to(root).as_posix(), path) for path in files]


def _read_json(path, field, *default):
  try:
    content = json.loads(path.read_text(encoding='utf-8'))
    return content.get(field, *default) if default else content[field]
  except (OSError, ValueError, KeyError) as error:
    raise ConfigError(
      f'{path} is not what save_to_disk writes: {error!r}'
    ) from error


@contextlib.contextmanager
def _open_arrow(path):
  """The record batches of a stream, as `datasets` writes it, or of a file."""
  pyarrow = import_optional('pyarrow', 'hf_dataset')
  with pyarrow.memory_map(str(path)) as mapped:
    magic = mapped.read(6)
    mapped.seek(0)
    if magic != b'ARROW1':
      yield pyarrow.ipc.open_stream(mapped)
    else:
      yield _ArrowFile(pyarrow.ipc.open_file(mapped))


class _ArrowFile:
  """Goes through an Arrow file as through a stream."""

  def __init__(self, file):
    self._file = file
    self.schema = file.schema

  def __iter__(self):
    return map(self._file.get_batch, range(self._file.num_record_batches))


def _columns(source) -> list[str]:
  return sorted({source.text_field, source.name_field} - {''})


def _check_columns(source, path, schema):
  for field in ('text_field', 'name_field'):
    name = getattr(source, field)
    if name and name not in schema.names:
      raise ConfigError(
        f'{field}={name!r}: {path} has no such column; it has'
        f' {", ".join(schema.names)}'
      )
  kind = schema.field(source.text_field).type
  if not _is_text(kind):
    raise ConfigError(
      f'text_field={source.text_field!r}: this column of {path} is {kind}, not'
      ' text'
    )


def _is_text(kind):
  pyarrow = import_optional('pyarrow', 'parquet')
  if pyarrow.types.is_dictionary(kind):
    kind = kind.value_type
  return kind in (
    *(pyarrow.string(), pyarrow.large_string()),
    *(pyarrow.binary(), pyarrow.large_binary()),
  )


def _items(part, batches, first_row) -> Iterator[Document | Problem]:
  source, row = part.source, first_row
  for batch in batches:
    for start in range(0, batch.num_rows, _BATCH_ROWS):
      piece = batch.slice(start, _BATCH_ROWS)
      texts = _values(piece, source.text_field)
      names = _values(piece, source.name_field) if source.name_field else texts
      for text, name in zip(texts, names, strict=True):
        yield _item(part, row, text, name)
        row += 1


def _item(part, row, text, name):
  source = part.source

  def load():
    checked = text_from(text.as_py(), source)
    return name_from(
      name.as_py() if source.name_field else None, source
    ), checked

  return read_item(
    part, f'{part.name}@{row}', load, lambda: f'{part.path}, row {row}'
  )


def _values(batch, field) -> Iterable:
  """A column's values; of text the bytes, as Arrow does not check them."""
  pyarrow = import_optional('pyarrow', 'parquet')
  column = batch.column(field)
  if pyarrow.types.is_dictionary(column.type) and _is_text(column.type):
    texts = column.dictionary.cast(pyarrow.large_binary())
    # Each is a view of the one text.
    return [
      pyarrow.scalar(None) if i is None else texts[i]
      for i in column.indices.to_pylist()
    ]
  # 64-bit offsets: a batch may hold more than 2 GB.
  return (
    column.cast(pyarrow.large_binary()) if _is_text(column.type) else column
  )


def _ranges(sizes: list[int], part_bytes: int) -> Iterator[tuple[int, int]]:
  """[start, stop) of neighbours that hold `part_bytes` or a little more."""
  start = held = 0
  for i, size in enumerate(sizes):
    held += size
    if held >= part_bytes or i == len(sizes) - 1:
      yield start, i + 1
      start, held = i + 1, 0


def _expands_too_much(part, row):
  return Problem(
    f'{part.name}@{row}',
    'expands_too_much',
    f'{part.path}, row {row}: up to here it expands to more than'
    f' {MAX_EXPANSION} times its size, as decompression bombs do. The rest of'
    ' the file is left out',
  )


def _damaged(part, row, error):
  return Problem(
    f'{part.name}@{row}',
    'damaged',
    f'{part.path}, row {row}: {reason(error, "it cannot be read")}. The rest of'
    ' the file is left out',
  )
