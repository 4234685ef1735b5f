"""InfiniteBench's retrieval texts, shared by its test and by training data.

arXiv:2402.13718; OpenBMB/InfiniteBench at 88b3daa
(data/construct_synthetic_dataset.py, src/prompt.py `yarn_mistral`).
"""

import uuid
from typing import NamedTuple

import numpy as np

NOISE = (
  'The grass is green. The sky is blue. The sun is yellow. Here we go. There'
  ' and back again.\n'
)


class Wording(NamedTuple):
  """How a task is asked, and how its answer begins."""

  prompt: str  # with {context} and {input}
  prefix: str  # what the answer begins with
  input: str


_MEMORIZE = 'There is an important info hidden inside a lot of irrelevant text.'
WORDINGS = {
  'passkey': Wording(
    f'{_MEMORIZE} Find it and memorize it. I will quiz you about the important'
    ' information.\n\n{context}\n\n{input}',
    'The pass key is',
    'What is the pass key?',
  ),
  'number_string': Wording(
    f'{_MEMORIZE} Find it. I will quiz you about the important information'
    ' there.\n\n{context}\n\n{input}',
    'The sequence of digits is',
    'What is the sequence of digits?',
  ),
  'kv_retrieval': Wording(
    'Extract the value corresponding to the specified key in the JSON object'
    ' below.\n\n{context}\n\n{input}',
    '',
    '\nKey: "{key}"\nThe value associated with the specified key is: ',
  ),
}


def draw_key(rng: np.random.Generator, task: str) -> str:
  """Five digits; of number_string, five more that repeat what is there."""
  digits = [str(d) for d in rng.integers(10, size=5)]
  if task == 'number_string':
    for _ in range(5):
      at = int(rng.integers(len(digits)))
      digits.insert(at, digits[at])
  return ''.join(digits)


def hide_key(task: str, key: str, num_noise: int, before: int) -> str:
  """The context: `before` of the `num_noise` lines stand before the key's."""
  line = {
    'passkey': f'The pass key is {key}. Remember it. {key} is the pass key.\n',
    'number_string': (
      f'The sequence of digits is {key}. Remember it. {key} is the sequence of'
      ' digits.\n'
    ),
  }[task]
  return NOISE * before + line + NOISE * (num_noise - before)


def draw_uuid(rng: np.random.Generator) -> str:
  """A random UUID of version 4."""
  return str(uuid.UUID(bytes=rng.bytes(16), version=4))
