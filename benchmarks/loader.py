"""Tokens a second from stored documents to batches: ours, `datasets`, Grain.

    pip install -r benchmarks/requirements.txt
    python -m benchmarks.loader --out=loader.json
    python -m benchmarks.loader --memory --out=loader_memory.json

The same documents, log-normal in length, are written three times: as a store of
ours; as a dataset of Arrow (`datasets`, int32 as `map` with a tokenizer leaves
them); and as ArrayRecord files with a document a record, for Grain. All rivals
shuffle documents, pack them end to end, and give batches of 524,288 tokens with
targets, weights, segment ids and positions. `datasets` has a packing collator
of plain NumPy, with 2 processes in a DataLoader of PyTorch, which hands batches
on in shared memory. Grain packs by its ConcatThenSplitIterDataset. Ours is what
training reads, in one column chunk-interleaved.

A run is a process of its own that reads an epoch, or for --seconds; rivals take
turns, and medians are printed. Tokens count from the second batch on, padding
never. The kernel has all files in memory. With --compression=zstd ours keeps
the pages that it decompressed last, up to the store's cache_bytes, which an
epoch begins without.

With --memory our loader makes 100,000 rows of 4096 tokens, in threads and in 2
processes. Resident memory counts files mapped by all processes, each time, as
well as batches on their way in shared memory; `anonymous` is what the processes
have of their own.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from benchmarks.planners import draw_lengths
from benchmarks.requires import require

BATCH_TOKENS = 524_288
ROW_LENS = (4096, 65_536, 524_288)
GRAIN_FILES = 16  # each read of one copies its index: a file alone takes longer
INTERLEAVED = {'docs_per_row': 8, 'num_chunks': 2, 'split': 'random'}
MEMORY_ROWS = (10_000, 25_000, 50_000, 100_000)
Fields = tuple[np.ndarray, ...]  # as those of Batch, [B, T] each


def write_documents(
  directory: Path, num_documents: int, compression: str = 'none'
) -> int:
  """The same documents for all rivals; returns how many tokens they have."""
  # Here, for it is much to import for a process that only reads.
  import datasets
  import pyarrow as pa
  from array_record.python.array_record_module import ArrayRecordWriter

  from benchmarks.store import library_tokens, slices
  from longctx_jax.data.store_writer import StoredDocument, write_store

  lengths = draw_lengths(num_documents)
  documents = list(slices(library_tokens(directory), lengths))
  write_store(
    directory / 'store',
    (StoredDocument(f'{i}', 'web', d, None) for i, d in enumerate(documents)),
    tokenizer_fingerprint='',
    settings={},
    compression=compression,
  )
  writers = [
    ArrayRecordWriter(f'{directory}/{k:02d}.array_record', 'group_size:1')
    for k in range(GRAIN_FILES)
  ]
  for i, document in enumerate(documents):
    writers[i % GRAIN_FILES].write(document.astype('<u2').tobytes())
  for writer in writers:
    writer.close()
  parts = [
    pa.ListArray.from_arrays(
      np.cumsum([0, *map(len, part)], dtype=np.int32), np.concatenate(part)
    )
    for part in (documents[k : k + 1000] for k in range(0, num_documents, 1000))
  ]
  table = pa.table({'tokens': pa.chunked_array(parts)})
  datasets.disable_progress_bars()
  datasets.Dataset(table).save_to_disk(directory / 'arrow')
  return int(lengths.sum())


def our_batches(
  directory: Path, row_len: int, processes: int, planner: str, steps: int = 0
) -> Iterator[Fields]:
  """What `train` reads; an epoch, or so many steps."""
  from absl import flags

  from longctx_jax.data.pipeline import BatchSource, make_pipeline
  from longctx_jax.data.store import DocumentStore
  from longctx_jax.data_config import DataConfig, DocumentRows

  flags.FLAGS.mark_as_parsed()  # Grain reads one of its own
  is_packed = planner == 'concat'
  options = {} if is_packed else INTERLEAVED
  config = DataConfig(
    seq_len=row_len,
    batch_size=BATCH_TOKENS // row_len,
    document_mask=is_packed,
    restart_positions=is_packed,
    loss_normalizer='token',
    mixture={'web': DocumentRows('documents', 1.0, (), planner, **options)},
  )
  store = DocumentStore(directory / 'store')
  # Of a corpus, rows of documents need no more.
  corpus = types.SimpleNamespace(
    documents=store, tokenizer=types.SimpleNamespace(fingerprint='')
  )
  steps = steps or int(store.lengths.sum()) // BATCH_TOKENS
  source = BatchSource(config, corpus, seed=0, num_steps=steps)
  return make_pipeline(source, config.batch_size, num_workers=processes)


def pack(documents: Iterator[np.ndarray], row_len: int) -> Iterator[Fields]:
  """A packing collator as one writes it with NumPy."""
  shape = BATCH_TOKENS // row_len, row_len
  counting = np.arange(row_len, dtype=np.int32)

  def empty():
    ints = [np.zeros(shape, np.int32) for _ in range(4)]
    tokens, targets, segment_ids, positions = ints
    return tokens, targets, np.zeros(shape, np.float32), segment_ids, positions

  fields, row, at, segment = empty(), 0, 0, 1
  for document in documents:
    start = 0
    while start < len(document):
      part = document[start : start + row_len - at]
      stop = at + len(part)
      tokens, targets, weights, segment_ids, positions = fields
      tokens[row, at:stop] = part
      targets[row, at : stop - 1] = part[1:]
      weights[row, at : stop - 1] = 1
      segment_ids[row, at:stop] = segment
      positions[row, at:stop] = counting[: len(part)]
      start, at, segment = start + len(part), stop, segment + 1
      if at == row_len:
        row, at, segment = row + 1, 0, 1
      if row == shape[0]:
        yield fields
        fields, row = empty(), 0


def hugging_face_batches(
  directory: Path, row_len: int, processes: int
) -> Iterator[Fields]:
  """Shuffled documents of `datasets`, packed."""
  import datasets

  documents = datasets.load_from_disk(directory / 'arrow').shuffle(seed=0)

  def packed(shard):
    # In batches: document by document is many times slower.
    read = shard.with_format('numpy').iter(batch_size=1000)
    return pack((d for batch in read for d in batch['tokens']), row_len)

  if not processes:
    return packed(documents)
  import torch
  from torch.utils import data

  class Packed(data.IterableDataset):
    def __iter__(self):
      worker = data.get_worker_info()
      for fields in packed(documents.shard(worker.num_workers, worker.id)):
        yield [torch.from_numpy(field) for field in fields]

  loader = data.DataLoader(Packed(), batch_size=None, num_workers=processes)
  return (tuple(field.numpy() for field in fields) for fields in loader)


def grain_batches(
  directory: Path, row_len: int, processes: int
) -> Iterator[Fields]:
  """Shuffled records, packed by Grain."""
  import grain
  from absl import flags
  from grain.experimental import ConcatThenSplitIterDataset

  flags.FLAGS.mark_as_parsed()
  paths = sorted(map(str, directory.glob('*.array_record')))
  dataset = grain.MapDataset.source(grain.sources.ArrayRecordDataSource(paths))
  dataset = dataset.shuffle(0).map(_from_record).to_iter_dataset()
  dataset = ConcatThenSplitIterDataset(
    dataset, length_struct={'tokens': row_len}
  )
  dataset = dataset.batch(BATCH_TOKENS // row_len).map(_with_targets)
  if processes:
    options = grain.MultiprocessingOptions(num_workers=processes)
    dataset = dataset.mp_prefetch(options)
  return iter(dataset)


def _from_record(record):
  return {'tokens': np.frombuffer(record, '<u2').astype(np.int32)}


def _with_targets(packed):
  tokens, segment_ids = packed['tokens'], packed['tokens_segment_ids']
  targets = np.zeros_like(tokens)
  targets[:, :-1] = tokens[:, 1:]
  weights = np.zeros(tokens.shape, np.float32)
  weights[:, :-1] = segment_ids[:, 1:] == segment_ids[:, :-1]
  return tokens, targets, weights, segment_ids, packed['tokens_positions']


RIVALS = {
  'ours': lambda *args: our_batches(*args, 'concat'),
  'ours, interleaved': lambda *args: our_batches(*args, 'interleave'),
  'datasets': hugging_face_batches,
  'grain': grain_batches,
}
PROCESSES = (0, 2)  # that read beside the one that trains


def tokens_per_s(batches: Iterator[Fields], seconds: float) -> float:
  """Of all batches after the first, or of as many as come in `seconds`."""
  next(batches)
  tokens, began = 0, time.perf_counter()
  for fields in batches:
    tokens += np.count_nonzero(fields[3])  # segment ids: padding is none
    if time.perf_counter() - began > seconds:
      break
  return tokens / (time.perf_counter() - began)


def in_a_process(directory: Path, *args: object) -> float | list:
  """What `only` prints in a process of its own."""
  command = [sys.executable, '-m', 'benchmarks.loader', '--only', directory]
  done = subprocess.run(
    [*map(str, command), json.dumps(args)],
    stdout=subprocess.PIPE,
    stderr=subprocess.DEVNULL,
    check=True,
  )
  return json.loads(done.stdout)


def measure_all(
  directory: Path, row_lens: Sequence[int], repeats: int, seconds: float
) -> list[dict[str, object]]:
  """The table: medians of each rival at each length of rows."""
  rows = []
  for row_len in row_lens:
    rates = {(name, n): [] for name in RIVALS for n in PROCESSES}
    for _ in range(repeats):
      for (name, processes), found in rates.items():
        found.append(in_a_process(directory, name, row_len, processes, seconds))
    medians = {rival: statistics.median(rates[rival]) for rival in rates}
    peer = max(m for (name, _), m in medians.items() if 'ours' not in name)
    for (name, processes), rate in medians.items():
      rows.append(
        {
          'loader': name,
          'row_len': row_len,
          'processes': processes,
          'Mtokens_per_s': rate / 1e6,
          'of_faster_peer': rate / peer,
        }
      )
  return rows


def memory(pids: list[int]) -> dict[str, float]:
  """MB of processes: resident, and anonymous alone."""
  totals = dict.fromkeys(('Rss', 'Anonymous'), 0)
  for pid in pids:
    for line in Path(f'/proc/{pid}/smaps_rollup').read_text().splitlines():
      name, *rest = line.split()
      if name[:-1] in totals:
        totals[name[:-1]] += int(rest[0]) * 1024 / 1e6
  return {'resident_MB': totals['Rss'], 'anonymous_MB': totals['Anonymous']}


def measure_memory(directory: Path, processes: int) -> list[dict[str, object]]:
  """Memory of all processes of our loader after so many rows."""
  import multiprocessing

  batch_size = BATCH_TOKENS // ROW_LENS[0]
  steps = -(-MEMORY_ROWS[-1] // batch_size)
  batches = our_batches(directory, ROW_LENS[0], processes, 'concat', steps)
  marks = [-(-rows // batch_size) for rows in MEMORY_ROWS]
  lines = []
  for step, _ in enumerate(batches, start=1):
    if step in marks:
      children = [child.pid for child in multiprocessing.active_children()]
      lines.append(
        {
          'processes': processes,
          'rows': step * batch_size,
          **memory([os.getpid(), *children]),
        }
      )
  return lines


def only(directory: Path, args: list) -> None:
  """Prints one figure, or the lines about memory, as JSON."""
  if args[0] == 'memory':
    result = measure_memory(directory, args[1])
  else:
    name, row_len, processes, seconds = args
    result = tokens_per_s(RIVALS[name](directory, row_len, processes), seconds)
  print(json.dumps(result), flush=True)
  # Processes that still read need not be waited for, nor their errors.
  os._exit(0)


def main() -> None:
  """Prints the table."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--documents', type=int, default=110_000)
  parser.add_argument('--repeats', type=int, default=3)
  parser.add_argument('--seconds', type=float, default=5)
  parser.add_argument(
    '--compression',
    choices=('none', 'zstd'),
    default='none',
    help='of our store',
  )
  parser.add_argument('--row_lens', type=int, nargs='+', default=ROW_LENS)
  parser.add_argument('--memory', action='store_true')
  parser.add_argument('--out', default='')
  parser.add_argument('--only', nargs=2, help='used by the script itself')
  args = parser.parse_args()
  if args.only:
    only(Path(args.only[0]), json.loads(args.only[1]))
    return
  require('datasets', 'torch')
  # Here, for it imports JAX, which no process that reads needs.
  from benchmarks.timing import report

  with tempfile.TemporaryDirectory() as scratch:
    directory = Path(scratch)
    tokens = write_documents(directory, args.documents, args.compression)
    print(f'{args.documents:,} documents, {tokens:,} tokens')
    if args.memory:
      rows = [
        line
        for processes in PROCESSES
        for line in in_a_process(directory, 'memory', processes)
      ]
    else:
      rows = measure_all(directory, args.row_lens, args.repeats, args.seconds)
  report(rows, args.out)


if __name__ == '__main__':
  main()
