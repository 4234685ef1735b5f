"""Small sources in every format, written the way their own tools write them."""

import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter

from longctx_jax.data.read_json import _zstd_module

zstd = _zstd_module()


def write_jsonl(path: Path, records: list[dict]) -> None:
  """One object a line, compressed as the suffix says."""
  lines = ''.join(json.dumps(record) + '\n' for record in records)
  write_bytes(path, lines.encode())


def write_bytes(path: Path, content: bytes) -> None:
  """`content`, compressed as the suffix says."""
  path.parent.mkdir(parents=True, exist_ok=True)
  if path.suffix == '.gz':
    content = gzip.compress(content)
  elif path.suffix == '.zst':
    content = zstd.compress(content)
  path.write_bytes(content)


def write_parquet(path: Path, table: dict, group_rows: int = 3) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  pyarrow.parquet.write_table(
    pyarrow.table(table),
    path,
    row_group_size=group_rows,
    write_batch_size=16,  # rows a page, or more: a page is read as a whole
  )


def write_hf_dataset(folder: Path, tables: list[dict]) -> None:
  """The layout of `datasets.Dataset.save_to_disk`, one file for each table."""
  folder.mkdir(parents=True)
  names = [
    f'data-{i:05d}-of-{len(tables):05d}.arrow' for i in range(len(tables))
  ]
  for name, table in zip(names, tables, strict=True):
    table = pyarrow.table(table)
    with pyarrow.ipc.new_stream(folder / name, table.schema) as stream:
      stream.write_table(table, max_chunksize=2)
  state = {
    '_data_files': [{'filename': name} for name in names],
    '_fingerprint': '0',
    '_format_type': None,
    '_split': 'train',
  }
  (folder / 'state.json').write_text(json.dumps(state))
  (folder / 'dataset_info.json').write_text('{}')


def write_array_record(path: Path, records: list[bytes]) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  writer = ArrayRecordWriter(str(path), 'group_size:1')
  for record in records:
    writer.write(record)
  writer.close()


def write_tfds(folder: Path, records: list[dict], file_format: str) -> Path:
  """A prepared data set `tale` with one split, and its directory."""

  class Tale(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version('1.0.0')
    MODULE_PATH = str(folder)

    def _info(self):
      text = tfds.features.Text()
      features = {'text': text, 'title': text, 'number': np.int64}
      features = {key: features[key] for key in records[0]}
      return tfds.core.DatasetInfo(
        builder=self, features=tfds.features.FeaturesDict(features)
      )

    def _split_generators(self, dl_manager):
      return {'train': self._generate_examples()}

    def _generate_examples(self):
      yield from enumerate(records)

  builder = Tale(data_dir=folder, file_format=file_format)
  builder.download_and_prepare()
  return Path(builder.data_dir)
