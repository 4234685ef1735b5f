"""One self-contained HTML page about a prepared corpus: what is in it, and not.

Everything on it is in the corpus's statistics.json; see report.py for the page
about a run.
"""

import itertools
import json
from pathlib import Path
from typing import Any

from longctx_jax import figures
from longctx_jax.data.prepare_pipeline import STATISTICS
from longctx_jax.html_page import write_page
from longctx_jax.report import Cell, short_length

PAGE = 'statistics.html'
# Name of a store -> what its tables are headed.
_HEADINGS = {
  'documents': 'Training documents',
  'heldout': 'Held-out documents',
  'conversations': 'Conversations',
}


def write_corpus_page(corpus: Path) -> Path:
  """Writes statistics.html into a prepared corpus; returns its path.

  Raises:
    FileNotFoundError: it has no statistics.json, as `longctx prepare` writes.
  """
  statistics = json.loads((corpus / STATISTICS).read_text())
  path = corpus / PAGE
  write_page(path, _page(str(corpus), statistics), {'short_len': short_length})
  return path


def _page(path, statistics):
  lengths = statistics['lengths']
  counts = statistics['counts']
  seen = counts['documents']['seen']
  return {
    'path': path,
    'statistics': statistics,
    'lengths': lengths,
    'buckets': bucket_names(lengths),
    'stores': [
      (heading, store_rows(statistics['stores'][store]['domains']))
      for store, heading in _HEADINGS.items()
    ],
    'tokens': sum(
      domain['tokens']
      for domain in statistics['stores']['documents']['domains'].values()
    ),
    'seen': seen,
    'seen_chars': counts['chars'].get('seen', 0),
    'fates': [
      (
        kind.replace('_', ' '),
        counts['documents'].get(kind, 0),
        counts['documents'].get(kind, 0) / max(seen, 1),
        counts['chars'].get(kind, 0),
      )
      for kind in _kinds(counts)
    ],
  }


def _kinds(counts):
  """What became of documents: kept, then what was dropped, largest first."""
  kinds = (set(counts['documents']) | set(counts['chars'])) - {'seen', 'kept'}
  dropped = sorted(
    kinds,
    key=lambda kind: (
      -counts['documents'].get(kind, 0),
      -counts['chars'].get(kind, 0),
      kind,
    ),
  )
  return ['kept', *dropped]


def bucket_names(lengths: list[int]) -> list[str]:
  """[4096, 8192] -> ['< 4K', '4K to 8K', 'from 8K']."""
  names = [short_length(n) for n in lengths]
  between = [f'{a} to {b}' for a, b in itertools.pairwise(names)]
  return [f'< {names[0]}', *between, f'from {names[-1]}']


def store_rows(domains: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
  """A row for each domain, and one of all if there are several.

  `longer` is the share of documents of each length or more, `shares` that of
  the tokens in each bucket, with the colours of its cell and their number.
  """
  rows = dict(domains)
  if len(rows) > 1:
    rows['all'] = {
      'documents': sum(d['documents'] for d in domains.values()),
      'tokens': sum(d['tokens'] for d in domains.values()),
      **{
        key: [
          sum(counts)
          for counts in zip(*(d[key] for d in domains.values()), strict=True)
        ]
        for key in ('documents_by_length', 'tokens_by_length')
      },
    }
  return [
    {
      'domain': name,
      **row,
      'longer': _share_cells(
        [sum(row['documents_by_length'][i:]) for i in _above(row)],
        row['documents'],
      ),
      'shares': _share_cells(row['tokens_by_length'], row['tokens']),
    }
    for name, row in rows.items()
  ]


def _above(row):
  return range(1, len(row['documents_by_length']))


def _share_cells(counts, total) -> list[tuple[Cell, int]]:
  return [(share_cell(count / total), count) for count in counts]


def share_cell(share: float) -> Cell:
  """A share to one decimal, as ProLong's tables have them; 0 is left pale."""
  text = f'{100 * share:.1f}' if share else '0'
  if text == '0.0':
    text = '<0.1'
  return Cell(text, *figures.shade(share))
