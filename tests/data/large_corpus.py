"""A corpus with everything in it that can happen to a document, in small."""

import json

import numpy as np

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


def config_of(directory, max_chars=30_000, max_files=20_000, **changes):
  """All of it: more than one source, none of which fits its budget."""
  files = {'kind': 'text_files', 'path': str(directory / 'files')}
  records = {'kind': 'jsonl', 'path': str(directory / 'records.jsonl')}
  fields = {
    'sources': {
      'files': {**files, 'max_chars': max_files},
      'records': {**records, 'max_chars': max_chars},
    },
    'filters': {'deduplicate': True, 'max_tokens': 700},
    'vocab_size': 320,
    'heldout_frac': 0.2,
    'conversations': {'extract': 20, 'needle': 20},
    'max_conversation_len': 2000,
  }
  return small.corpus_config(**{**fields, **changes})
