"""The store: opening a large one, reading short and long slices, writing.

    python -m benchmarks.store --out=store

Three tables, and with --out three files: store.json, store_reads.json and
store_pages.json. Opening is done in a new process, which reports what it took
and by how much its memory grew, files mapped into it not counted. Tokens are
those of this Python's own library by a tokenizer trained on some of it, again
and again: they compress as text does. The last table writes and reads plain
ArrayRecord files of pages, and is what the page length and the compression of
the store were chosen by.
"""

import argparse
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from array_record.python.array_record_module import (
  ArrayRecordReader,
  ArrayRecordWriter,
)

from benchmarks.timing import medians, report
from longctx_jax.data.sentencepiece_tokenizer import train_sentencepiece
from longctx_jax.data.store import DocumentStore
from longctx_jax.data.store_format import READER_OPTIONS, page_record
from longctx_jax.data.store_verify import verify_store
from longctx_jax.data.store_writer import StoredDocument, write_store

MEAN_LEN, LONG_LEN, SLICE_LEN = 300, 50_000_000, 131_072
PAGES = (4096, 8192, 16_384)
COMPRESSIONS = ('uncompressed', 'snappy', 'zstd:1', 'zstd:3', 'brotli:1')
OPEN = """
import sys, time
from longctx_jax.data.store import DocumentStore
def resident_mb():
  pages = open('/proc/self/statm').read().split()
  return (int(pages[1]) - int(pages[2])) * 4096 / 1e6
before, began = resident_mb(), time.perf_counter()
store = DocumentStore(sys.argv[1])
store.read(len(store) - 1, 0, 1)
print(time.perf_counter() - began, resident_mb() - before)
"""


def library_tokens(directory: Path) -> np.ndarray:
  """Some millions of tokens of source code, int32."""
  paths = sorted(Path(sysconfig.get_path('stdlib')).glob('*.py'))
  texts = [path.read_text(encoding='utf-8') for path in paths]
  tokenizer = train_sentencepiece(texts[:60], 8000, directory / 'tokenizer')
  return np.concatenate([tokenizer.encode(text) for text in texts])


def slices(tokens: np.ndarray, lengths: np.ndarray) -> Iterator[np.ndarray]:
  """Parts of `tokens`, each from a random place on."""
  starts = np.random.default_rng(1).integers(0, len(tokens), len(lengths))
  for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
    yield np.take(tokens, np.arange(start, start + length), mode='wrap')


def write(directory: Path, tokens: np.ndarray, lengths: np.ndarray) -> float:
  """Writes a store of documents of these lengths; returns the seconds."""
  documents = [
    StoredDocument(f'web/{i:09d}', f'domain {i % 7}', part, None)
    for i, part in enumerate(slices(tokens, lengths))
  ]
  began = time.perf_counter()
  write_store(directory, documents, tokenizer_fingerprint='', settings={})
  return time.perf_counter() - began


def measure_store(
  name: str, directory: Path, lengths: np.ndarray, seconds: float, repeats: int
) -> dict[str, object]:
  """A line about a whole store: its size, opening it, reading all of it."""
  command = [sys.executable, '-c', OPEN, str(directory)]
  opened = [
    subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for _ in range(repeats)
  ]
  open_s, open_mb = np.median(np.array([o.split() for o in opened], float), 0)
  files = [path.stat().st_size for path in directory.iterdir()]
  shards = [path.stat().st_size for path in directory.glob('*.array_record')]
  verify_s = medians({'': lambda: verify_store(directory)}, 1)['']
  return {
    'store': name,
    'documents': len(lengths),
    'Mtokens': int(lengths.sum()) / 1e6,
    'bytes a token': sum(files) / int(lengths.sum()),
    'index MB': (sum(files) - sum(shards)) / 1e6,
    'write Mtokens/s': int(lengths.sum()) / seconds / 1e6,
    'open s': float(open_s),
    'open MB': float(open_mb),
    'verify s': verify_s,
  }


def measure_reads(
  name: str, directory: Path, length: int, repeats: int
) -> dict[str, object]:
  """A line about slices of up to `length` tokens at random places."""
  # No page stays: what is measured is reading.
  store = DocumentStore(directory, cache_bytes=0)
  rng = np.random.default_rng(2)
  count = max(4, min(2000, 30_000_000 // length))
  documents = rng.integers(0, len(store), count).tolist()
  parts = []
  for document in documents:
    total = int(store.lengths[document])
    start = int(rng.integers(0, max(total - length, 0) + 1))
    parts.append((document, start, min(start + length, total)))
  tokens = sum(stop - start for _, start, stop in parts)

  def read():
    for part in parts:
      store.read(*part)

  seconds = medians({'': read}, repeats)['']
  return {
    'slices': name,
    'tokens each': tokens / count,
    'ms each': 1e3 * seconds / count,
    'Mtokens/s': tokens / seconds / 1e6,
  }


def measure_pages(
  page_tokens: int, compression: str, tokens: np.ndarray, path: Path
) -> dict[str, object]:
  """A line about a file of pages, read one by one at random and in order."""
  starts = range(0, len(tokens) - page_tokens, page_tokens)
  trained = np.ones(page_tokens, bool)
  records = [page_record(tokens[s : s + page_tokens], trained) for s in starts]
  began = time.perf_counter()
  writer = ArrayRecordWriter(str(path), f'group_size:1,{compression}')
  for record in records:
    writer.write(record)
  writer.close()
  seconds = time.perf_counter() - began
  reader = ArrayRecordReader(
    str(path), options=READER_OPTIONS, file_reader_buffer_size=32_768
  )
  N = len(records)
  order = np.random.default_rng(0).permutation(N).tolist()
  read_s = medians(
    {
      'at random': lambda: [reader.read(i, i + 1) for i in order],
      'in one call': lambda: reader.read(0, N),
    },
    3,
  )
  return {
    'page': page_tokens,
    'compression': compression,
    'bytes a token': path.stat().st_size / (N * page_tokens),
    'write Mtokens/s': N * page_tokens / seconds / 1e6,
    'read us a page': 1e6 * read_s['at random'] / N,
    'Mtokens/s': N * page_tokens / read_s['at random'] / 1e6,
    'in one call': N * page_tokens / read_s['in one call'] / 1e6,
  }


def main() -> None:
  """Prints the tables."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument(
    '--out', default='', help='start of the JSON files to write'
  )
  parser.add_argument('--documents', type=int, default=1_000_000)
  parser.add_argument('--repeats', type=int, default=3)
  args = parser.parse_args()
  with tempfile.TemporaryDirectory() as scratch:
    directory = Path(scratch)
    tokens = library_tokens(directory)
    lengths = {
      'short': np.random.default_rng(0).integers(
        1, 2 * MEAN_LEN, args.documents
      ),
      'long': np.array([LONG_LEN]),
    }
    stores = [
      measure_store(
        name,
        directory / name,
        each,
        write(directory / name, tokens, each),
        args.repeats,
      )
      for name, each in lengths.items()
    ]
    reads = [
      measure_reads(what, directory / name, length, args.repeats)
      for what, name, length in (
        ('short documents', 'short', 2 * MEAN_LEN),
        ('128K of a document of 50M', 'long', SLICE_LEN),
        ('all of the document of 50M', 'long', LONG_LEN),
      )
    ]
    pages = [
      measure_pages(page_tokens, compression, tokens, directory / 'pages')
      for page_tokens in PAGES
      for compression in COMPRESSIONS
    ]
  report(stores, args.out and f'{args.out}.json')
  report(reads, args.out and f'{args.out}_reads.json')
  report(pages, args.out and f'{args.out}_pages.json')


if __name__ == '__main__':
  main()
