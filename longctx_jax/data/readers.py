"""Kinds of source, and the two functions that read any of them.

Kinds, and what one document is:

    stdlib        a top-level package or module of the standard library, its
                  files one after the other, without tests
    packages      an installed distribution, likewise
    books         a State of the Union address, a play, a volume of poems;
                  downloaded, none (and one warning) where that fails
    docs          a topic of Python's reference, or all docstrings of one
                  module of the standard library; these are in `stdlib` too
    text_files    one *.txt or *.md
    repositories  one source tree, its files one after the other
    jsonl         a line of *.jsonl, *.jsonl.gz or *.jsonl.zst
    parquet       a row of *.parquet
    hf_dataset    a row of a Hugging Face dataset, as `save_to_disk` leaves it
    array_record  a record of *.array_record
    tfds          an example of a prepared TFDS data set
"""

from collections.abc import Iterator
from pathlib import Path

from longctx_jax.corpus_config import TextSource
from longctx_jax.data import (
  read_installed,
  read_json,
  read_records,
  read_tables,
  read_text,
)
from longctx_jax.data.parts import (
  PART_BYTES,
  Document,
  DocumentError,
  Part,
  Problem,
)

# Kinds whose parts hold one document, of the part's name.
ONE_PER_PART = ('stdlib', 'packages', 'docs', 'text_files', 'repositories')
_LIST = {
  'stdlib': read_installed.list_stdlib,
  'packages': read_installed.list_packages,
  'docs': read_installed.list_docs,
  'text_files': read_text.list_files,
  'repositories': read_text.list_repositories,
  'hf_dataset': read_tables.list_hf_dataset,
}
_LIST_IN_RANGES = {
  'jsonl': read_json.list_jsonl,
  'parquet': read_tables.list_parquet,
  'array_record': read_records.list_array_record,
  'tfds': read_records.list_tfds,
}
_READ = {
  'stdlib': read_installed.read_stdlib,
  'packages': read_installed.read_package,
  'books': read_installed.read_books,
  'docs': read_installed.read_docs,
  'text_files': read_text.read_file,
  'repositories': read_text.read_repository,
  'jsonl': read_json.read_jsonl,
  'parquet': read_tables.read_parquet,
  'hf_dataset': read_tables.read_hf_dataset,
  'array_record': read_records.read_array_record,
  'tfds': read_records.read_tfds,
}


def list_parts(
  source: TextSource,
  domain: str,
  cache_dir: Path,
  *,
  part_bytes: int = PART_BYTES,
) -> list[Part]:
  """The parts of `source`, of about `part_bytes` each where they can be cut.

  Looks at names, sizes and schemas alone, and reads no document.

  Raises:
    ConfigError: there is nothing at `source.path`, or a column or package that
      it takes is absent.
  """
  if source.kind == 'books':
    return read_installed.list_books(source, domain, cache_dir)
  if source.kind in _LIST_IN_RANGES:
    return _LIST_IN_RANGES[source.kind](source, domain, part_bytes)
  return _LIST[source.kind](source, domain)


def read_part(part: Part) -> Iterator[Document | Problem]:
  """The documents of a part and what took the place of others, in order.

  Raises:
    DocumentError: the first problem, if `part.source.on_problem` is 'stop'.
  """
  for item in _READ[part.source.kind](part):
    if isinstance(item, Problem) and part.source.on_problem == 'stop':
      raise DocumentError(
        f"{item.message} ({item.kind}; on_problem='skip' counts such documents"
        ' and goes on)'
      )
    yield item
