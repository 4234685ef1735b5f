"""`longctx prepare` against `datasets.map`, in MB of text a second and core.

    python -m benchmarks.prepare --megabytes=40 --out=prepare.json

Every rival runs in a process of its own and does all of its work: reading
JSONL, tokenising with the same tokenizer.json, and writing what training reads
(`prepare` a store with checksums, statistics and a held-out split; `datasets` a
table of Arrow). A core is what the processes used of one, start-up included, so
that cores that others keep busy count for nobody, and rivals take turns, so
that a machine that slows down does so for all of them. The documents are source
code of this Python, numbered, so that none is like another.
"""

import argparse
import json
import logging
import os
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from benchmarks.requires import require
from benchmarks.timing import report
from longctx_jax.progress import Progress

CORES = os.cpu_count()
LOOP = """
import sys
from pathlib import Path
from longctx_jax.config_from_dict import from_config_dict
from longctx_jax.data.prepare_pipeline import prepare_at_scale
from longctx_jax.corpus_config import CorpusConfig
directory, out, num_cores = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
config = from_config_dict(CorpusConfig, {
  'sources': {'code': {
    'kind': 'jsonl', 'path': str(directory / 'texts.jsonl'),
    'max_chars': 10**15}},
  'vocab_size': 20_000, 'heldout_frac': 0.01, 'eos': 'none', 'bos': 'none',
  'conversations': {}, 'max_conversation_len': 1000,
  'chat_template': 'chatml',
  'tokenizer_path': str(directory / 'tokenizer.json'),
  'added_tokens': ['<|im_start|>', '<|im_end|>'],
  'filters': {'deduplicate': True}})
"""
RIVALS = {
  'prepare': LOOP
  + """
made = prepare_at_scale(config, out, seed=0)
print(made.documents.lengths.sum() + made.heldout.lengths.sum())
""",
  'prepare, Beam': LOOP
  + """
from longctx_jax.data.prepare_beam import beam_runner
run = beam_runner('DirectRunner', ['direct_num_workers=' + num_cores])
made = prepare_at_scale(config, out, seed=0, run=run)
print(made.documents.lengths.sum() + made.heldout.lengths.sum())
""",
  'datasets.map': """
import datasets, sys, tokenizers
datasets.disable_progress_bars()
directory, out, num_cores = sys.argv[1:]
tokenizer = tokenizers.Tokenizer.from_file(directory + '/tokenizer.json')
texts = datasets.load_dataset(
  'json', data_files=directory + '/texts.jsonl', split='train', cache_dir=out)
def encode(batch):
  found = tokenizer.encode_batch_fast(batch['text'], add_special_tokens=False)
  return {'ids': [each.ids for each in found]}
ids = texts.map(encode, batched=True, batch_size=BATCH, num_proc=PROCESSES,
                remove_columns=['text'])
import pyarrow.compute as pc
print(pc.sum(pc.list_value_length(ids.data.column('ids'))).as_py())
""",
}


def write_texts(directory: Path, megabytes: float) -> float:
  """Documents and a tokenizer; returns the MB of text."""
  paths = sorted(Path(sysconfig.get_path('stdlib')).rglob('*.py'))
  texts, read = [], 0
  for path in paths:
    text = path.read_bytes().decode('utf-8', 'ignore').replace('\r', '')
    if len(text) >= 200 and 'site-packages' not in path.parts:
      texts.append(text)
      read += len(text)
    if read > 1e6 * megabytes:
      break
  written, i = 0, 0
  with (directory / 'texts.jsonl').open('w') as file:
    while written < 1e6 * megabytes:
      text = f'# {i}\n{texts[i % len(texts)]}'
      json.dump({'text': text}, file)
      file.write('\n')
      written += len(text.encode())
      i += 1
  tokenizer = tokenizers.Tokenizer(models.BPE())
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = decoders.ByteLevel()
  tokenizer.train_from_iterator(
    texts[:200],
    trainers.BpeTrainer(
      vocab_size=16_000,
      initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
      show_progress=False,
    ),
  )
  tokenizer.save(str(directory / 'tokenizer.json'))
  return written / 1e6


def run_once(program: str, directory: Path) -> tuple[float, float, int]:
  """Wall seconds and processor seconds of a rival, and the tokens it made."""
  with tempfile.TemporaryDirectory() as out:
    began, before = time.perf_counter(), os.times()
    made = subprocess.run(
      [sys.executable, '-c', program, directory, f'{out}/c', str(CORES)],
      check=True,
      stdout=subprocess.PIPE,
      text=True,
    ).stdout
    after = os.times()
    wall = time.perf_counter() - began
  # Of children that have ended, and of theirs.
  used = (
    after.children_user
    + after.children_system
    - before.children_user
    - before.children_system
  )
  return wall, used, int(made.split()[-1])


def measure(
  rivals: dict[str, str], directory: Path, megabytes: float, repeats: int
) -> list[dict[str, object]]:
  """Medians of each rival's seconds; they take turns."""
  runs = {name: [] for name in rivals}
  with Progress('measured', repeats * len(rivals)) as progress:
    for i in range(repeats):
      for k, (name, program) in enumerate(rivals.items(), 1):
        runs[name].append(run_once(program, directory))
        progress.update(i * len(rivals) + k)
  rows = []
  for name, each in runs.items():
    wall, used, tokens = map(statistics.median, zip(*each, strict=True))
    rows.append(
      {
        'rival': name,
        'MB': megabytes,
        'tokens': tokens,
        'wall_s': wall,
        'core_s': used,
        'MB_per_core_s': megabytes / used,
        'MB_per_s': megabytes / wall,
      }
    )
  return rows


def main() -> None:
  """Prints the table, and writes it if asked to."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--megabytes', type=float, default=40)
  parser.add_argument('--repeats', type=int, default=3)
  parser.add_argument('--out', default='')
  args = parser.parse_args()
  require('apache_beam', 'datasets')
  logging.basicConfig(format='%(message)s')
  logging.getLogger('longctx_jax.progress').setLevel(logging.INFO)
  with tempfile.TemporaryDirectory() as directory:
    megabytes = write_texts(Path(directory), args.megabytes)
    rivals = {}
    for name, program in RIVALS.items():
      if name != 'datasets.map':
        rivals[name] = program
        continue
      # 1000 is the library's default; documents as long as these fill memory
      # and cores less evenly with it than with 100.
      for batch, processes in ((1000, None), (100, None), (100, CORES)):
        filled = program.replace('BATCH', str(batch)).replace(
          'PROCESSES', str(processes)
        )
        rivals[f'{name}({batch=}, num_proc={processes})'] = filled
    rows = measure(rivals, Path(directory), megabytes, args.repeats)
  report(rows, args.out)


if __name__ == '__main__':
  main()
