"""Which documents a corpus holds: what chose them, and what became of them."""

from collections.abc import Mapping
from typing import Any

from longctx_jax.data import counts


def corpus_rules(
  settings: Mapping[str, Any], accounts: Mapping[str, counts.Counts]
) -> list[tuple[str, str]]:
  """(what it is about, rule): settings that decide, and counts if there are.

  Args:
    settings: the corpus's, from the manifest of its training documents.
    accounts: what became of the documents of each source, from the same.
  """
  names = {}
  for name, source in settings['sources'].items():
    names.setdefault(source['max_chars'], []).append(name)
  limits = ', '.join(
    f'{n:,} of {"every source" if len(names) == 1 else " and ".join(of)}'
    for n, of in names.items()
  )
  filters = dict(settings['filters'])
  if not filters['max_tokens']:
    del filters['too_long']  # nothing is
  filters = ', '.join(f'{name}={v}' for name, v in filters.items() if v)
  rules = [
    (
      'documents',
      f'max_chars: {limits}; heldout_frac='
      f'{settings["heldout_frac"]} kept from training; filters:'
      f' {filters or "none"}',
    )
  ]
  total = sum(accounts.values(), counts.Counts())
  ends = total.documents
  if ends['seen']:
    dropped = total.dropped()
    became = [
      f'{ends["kept"]:,} to train on',
      f'{ends[counts.HELDOUT]:,} held out',
      *(f'{n:,} {kind.replace("_", " ")}' for kind, n in dropped.items()),
    ]
    rules.append(
      ('what became of them', f'{ends["seen"]:,} seen: {", ".join(became)}')
    )
  return rules
