"""A corpus with everything in it that can happen to a document, in small."""

import gzip
import hashlib
import json

import numpy as np

from longctx_jax.data.read_json import FREE_BYTES, MAX_EXPANSION
from tests import small

WORDS = ('the', 'context', 'long', 'short', 'needle', 'hay', 'row', 'model')
# Tasks of two parts or so, where a large corpus has thousands.
PREPARE = {'seed': 0, 'task_bytes': 4000}


def write_texts(directory):
  """Files, and records: some empty, short, equal, damaged, of other systems."""
  rng = np.random.default_rng(0)
  texts = [
    '\n\n'.join(' '.join(rng.choice(WORDS, 70)) for _ in range(n)) + '\n'
    for n in (*(1 + i % 6 for i in range(30)), 20)
  ]
  (directory / 'files').mkdir(parents=True)
  for i, text in enumerate(texts):
    (directory / 'files' / f'{i}.txt').write_text(text)
  (directory / 'files' / 'short.txt').write_text('short\n')
  (directory / 'files' / 'binary.txt').write_bytes(b'\xff' * 300)
  records = [
    *({'text': text.replace('\n', '\r\n')} for text in texts[3:9]),
    *({'text': f'{i} {text}'} for i, text in enumerate(texts)),
    *({'text': texts[5]} for _ in range(3)),
    {'text': ''},
    {'body': texts[6]},
  ]
  lines = [*map(json.dumps, records), '{"text":']
  (directory / 'records.jsonl').write_text('\n'.join(lines) + '\n')
  return directory


def config_of(
  directory,
  max_chars=30_000,
  max_files=20_000,
  line_ends='normalise',
  **changes,
):
  """All of it: more than one source, none of which fits its budget."""
  files = {'kind': 'text_files', 'path': str(directory / 'files')}
  records = {'kind': 'jsonl', 'path': str(directory / 'records.jsonl')}
  fields = {
    'sources': {
      'files': {**files, 'max_chars': max_files, 'line_ends': line_ends},
      'records': {**records, 'max_chars': max_chars, 'line_ends': line_ends},
    },
    'filters': {'deduplicate': True, 'max_tokens': 700},
    'vocab_size': 320,
    'heldout_frac': 0.2,
    'conversations': {'extract': 20, 'needle': 20},
    'max_conversation_len': 2000,
  }
  return small.corpus_config(**{**fields, **changes})


# All that may become of a document that is not kept.
DROPS = {
  *('bad_json', 'bad_utf8', 'empty', 'no_text_field', 'no_name_field'),
  *('too_large', 'unreadable', 'damaged', 'expands_too_much'),
  *('too_short', 'too_long', 'double', 'over_budget'),
}


def write_drops(directory):
  """`write_texts`, and something to drop for each reason there is."""
  write_texts(directory)
  # What a disk with a bad sector gives: an error on reading, not on opening.
  (directory / 'files' / 'unreadable.txt').symlink_to('/proc/self/mem')
  named = directory / 'named'
  named.mkdir()
  records = [
    *({'id': i, 'text': f'{i} ' + 'named words\n' * 40} for i in range(9)),
    {'text': 'nobody named these words\n' * 20},
    {'id': 9, 'text': 'x' * 7_000},
  ]
  lines = '\n'.join(map(json.dumps, records)).encode()
  (named / 'a.jsonl').write_bytes(lines)
  (named / 'b.jsonl.gz').write_bytes(gzip.compress(lines)[:-20])
  bomb = gzip.compress(bytes(FREE_BYTES + (24 << 20)))
  assert len(bomb) * MAX_EXPANSION < 24 << 20
  (named / 'c.jsonl.gz').write_bytes(bomb)
  return directory


def config_of_drops(directory):
  """A corpus of all that `write_drops` wrote."""
  sources = {
    'files': {'kind': 'text_files', 'path': str(directory / 'files')},
    'records': {'kind': 'jsonl', 'path': str(directory / 'records.jsonl')},
    'named': {
      'kind': 'jsonl',
      'path': str(directory / 'named'),
      'name_field': 'id',
      'max_document_chars': 6_000,
    },
  }
  return config_of(
    directory,
    sources={
      name: {**source, 'max_chars': 20_000} for name, source in sources.items()
    },
    filters={
      'deduplicate': True,
      'min_tokens': 40,
      'max_tokens': 700,
      'too_long': 'drop',
    },
  )


def files_of(directory):
  """Path below `directory` -> hash, of all files."""
  return {
    str(path.relative_to(directory)): hashlib.sha256(
      path.read_bytes()
    ).hexdigest()
    for path in directory.rglob('*')
    if path.is_file()
  }
