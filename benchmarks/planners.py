"""Seconds and memory that each planner takes for a million documents.

Lengths are log-normal with a median of 800 tokens and reach 500,000; rows have
65,536. Each planner runs in a process of its own, whose peak resident memory,
interpreter and NumPy included, is what the table gives. No accelerator is used.

    python -m benchmarks.planners --out=planners.json
"""

import argparse
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from longctx_jax.data import interleave, packing
from longctx_jax.data.row_plan import dropped_tokens

PLANS = {
  'concat': (packing.concat_rows, {}),
  'concat_drop': (packing.concat_and_drop_rows, {}),
  'whole': (packing.whole_document_rows, {}),
  'best_fit': (packing.best_fit_rows, {}),
  'buckets': (packing.bucket_rows, {'bucket_len': 8192}),
  'interleave': (
    interleave.interleaved_rows,
    {'docs_per_row': 8, 'num_chunks': 2, 'split': 'random'},
  ),
  'untie': (
    interleave.untied_rows,
    {
      'chunk_probs': (0.2, 0.3, 0.5),
      'min_chunk_len': 16,
      'interleave_prob': 0.8,
    },
  ),
}


def draw_lengths(num_documents: int) -> np.ndarray:
  """Log-normal lengths, median 800, none above 500,000."""
  # ours: 1.3 gives the web's tail, 4% above 8K and a document in 3,000 above
  # 64K.
  lengths = np.random.default_rng(0).lognormal(np.log(800), 1.3, num_documents)
  return np.clip(lengths, 1, 500_000).astype(np.int64)


def measure(name: str, num_documents: int, row_len: int) -> dict[str, object]:
  """One line of the table, of a planner that runs in this process."""
  planner, options = PLANS[name]
  lengths = draw_lengths(num_documents)
  if name == 'whole':
    lengths = np.minimum(lengths, row_len)  # it refuses longer ones
  began = time.perf_counter()
  plan = planner(lengths, row_len, np.random.default_rng(0), **options)
  seconds = time.perf_counter() - began
  return {
    'planner': name,
    'documents': num_documents,
    'seconds': seconds,
    'peak_MB': peak_bytes() / 1e6,
    'rows': len(plan),
    'slices': len(plan.documents),
    'full_percent': 100 * plan.num_tokens / (len(plan) * row_len),
    'dropped_percent': 100 * dropped_tokens(plan, lengths) / lengths.sum(),
  }


def peak_bytes() -> int:
  """Most resident memory this process had, as Linux tells it.

  Not getrusage's, which begins at what the parent process has.
  """
  status = Path('/proc/self/status').read_text()
  return int(re.search(r'VmHWM:\s*(\d+) kB', status)[1]) * 1024


def measure_all(num_documents: int, row_len: int) -> list[dict[str, object]]:
  """The table: every planner, each in a process of its own."""
  rows = []
  for name in PLANS:
    command = [sys.executable, '-m', 'benchmarks.planners', f'--only={name}']
    command += [f'--documents={num_documents}', f'--row_len={row_len}']
    run = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    rows.append(json.loads(run.stdout))
  return rows


def main() -> None:
  """Prints a table, or one line of it as JSON."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--documents', type=int, default=1_000_000)
  parser.add_argument('--row_len', type=int, default=65_536)
  parser.add_argument('--only', choices=list(PLANS))
  parser.add_argument('--out', default='')
  args = parser.parse_args()
  if args.only:
    print(json.dumps(measure(args.only, args.documents, args.row_len)))
    return
  # Here, for it imports JAX, whose memory is not what is measured.
  from benchmarks.timing import report

  report(measure_all(args.documents, args.row_len), args.out)


if __name__ == '__main__':
  main()
