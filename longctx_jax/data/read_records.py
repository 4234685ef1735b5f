"""Records of ArrayRecord files, bare or as a TFDS data set."""

from collections.abc import Callable, Iterator

from array_record.python.array_record_module import ArrayRecordReader

from longctx_jax.config_from_dict import ConfigError
from longctx_jax.corpus_config import TextSource
from longctx_jax.data.parts import (
  BadRecord,
  Document,
  Part,
  Problem,
  import_optional,
  name_from,
  read_item,
  reason,
  text_from,
)
from longctx_jax.data.read_json import object_from_json
from longctx_jax.data.source_files import find_files

# ArrayRecord refuses some files without a word.
_SILENT = 'it is no ArrayRecord, or is cut short'


def list_array_record(
  source: TextSource, domain: str, part_bytes: int
) -> list[Part]:
  """Ranges of records, each of about `part_bytes` of its file."""
  parts = []
  for name, path in find_files(source, ('.array_record', '.arrayrecord')):
    name = f'array_record/{name}'
    try:
      reader = _open_records(str(path))
    except RuntimeError:
      # Reading it fails, too, and that counts as a problem.
      parts.append(Part(source, domain, name, str(path)))
      continue
    count = reader.num_records()
    reader.close()
    num_bytes = path.stat().st_size
    parts += [
      Part(source, domain, name, str(path), start, stop)
      for start, stop in _ranges(count, num_bytes, part_bytes)
    ]
  return parts


def read_array_record(part: Part) -> Iterator[Document | Problem]:
  """The documents of records [start, stop); names end in a record's number.

  A record is a JSON object, or, where `text_field` is '', the text itself.
  """
  source = part.source

  def parse(record):
    return (
      object_from_json(record, source) if source.text_field else {'': record}
    )

  if part.stop:
    for i, record in enumerate(_records(part), part.start):
      yield _item(part, i, lambda record=record: parse(record()))
    return
  try:
    _open_records(part.path)
  except RuntimeError as error:
    why = reason(error, _SILENT)
    yield Problem(
      part.name, 'damaged', f'{part.path}: {why}. The file is left out'
    )


def list_tfds(source: TextSource, domain: str, part_bytes: int) -> list[Part]:
  """Ranges of records of one split of a prepared data set.

  Raises:
    ConfigError: there is none at `path`, it has no such split or field, or is
      stored in a format that has no random access.
  """
  records = _open_tfds(source)
  info = records.dataset_info
  for field in ('text_field', 'name_field'):
    name = getattr(source, field)
    if name and name not in info.features:
      raise ConfigError(
        f'{field}={name!r}: {source.path} has no such feature; it has'
        f' {", ".join(sorted(info.features))}'
      )
  num_bytes = int(info.splits[source.split].num_bytes)
  return [
    Part(source, domain, f'tfds/{source.split}', source.path, start, stop)
    for start, stop in _ranges(len(records), num_bytes, part_bytes)
  ]


def read_tfds(part: Part) -> Iterator[Document | Problem]:
  """The documents of records [start, stop); names end in a record's number."""
  records = _open_tfds(part.source)

  def load(i):
    try:
      return records[i]
    # Whatever the decoder of a feature raises.
    except Exception as error:
      raise BadRecord('damaged', str(error)) from error

  for i in range(part.start, part.stop):
    yield _item(part, i, lambda i=i: load(i))


def _open_tfds(source):
  tfds = import_optional('tensorflow_datasets', 'tfds')
  try:
    builder = tfds.builder_from_directory(source.path)
  except (OSError, ValueError) as error:
    raise ConfigError(
      f'path={source.path!r} holds no prepared TFDS data set: give the'
      ' directory of its version, which has a dataset_info.json'
    ) from error
  try:
    return builder.as_data_source(source.split)
  except ValueError as error:
    raise ConfigError(
      f'split={source.split!r}: {source.path} has'
      f' {", ".join(builder.info.splits)}, and slices such as train[:10%]'
    ) from error
  except NotImplementedError as error:
    raise ConfigError(
      f'path={source.path!r} has no random access: prepare it with'
      " file_format='array_record' (tfds convert_format"
      ' --out_file_format=array_record)'
    ) from error


def _item(part, i, load: Callable[[], dict]) -> Document | Problem:
  source = part.source

  def checked():
    record = load()
    text = text_from(record.get(source.text_field), source)
    return name_from(record.get(source.name_field), source), text

  return read_item(
    part, f'{part.name}@{i}', checked, lambda: f'{part.path}, record {i}'
  )


def _open_records(path) -> ArrayRecordReader:
  """Raises RuntimeError if the file is no ArrayRecord, or is damaged."""
  reader = ArrayRecordReader(path)
  if not reader.ok():
    reader.close()  # says why
  return reader


def _records(part) -> Iterator[Callable[[], bytes]]:
  """Records in order, each as a function that returns it or says it cannot."""
  reader = None
  for i in range(part.start, part.stop):
    try:
      if reader is None:
        reader = _open_records(part.path)
        reader.seek(i)
      record = reader.read()
    except RuntimeError as error:
      # One that met damage is of no further use; the records beyond it are.
      reader = None
      yield _raiser(BadRecord('damaged', reason(error, _SILENT)))
    else:
      yield lambda record=record: record


def _raiser(error):
  def fail():
    raise error

  return fail


def _ranges(count, num_bytes, part_bytes) -> Iterator[tuple[int, int]]:
  step = max(1, count * part_bytes // max(num_bytes, 1))
  for start in range(0, count, step):
    yield start, min(start + step, count)
