"""Short instruction data made from real documents: stage 3 of LongSkywork.

The paper's own SFT data is not public; these kinds are ours, chosen because
their answers can be read off real text: code and docstrings from Python
sources, questions about a paragraph, and needles in a stretch of any text.
"""

import ast
import re
import warnings
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from longctx_jax.config_from_dict import ConfigError
from longctx_jax.data.documents import Document
from longctx_jax.data.needles import draw_needles, hide_needles

Turns = list[tuple[str, str]]

# (document, rng, longest text in characters) -> conversations.
Maker = Callable[[Document, np.random.Generator, int], Iterator[Turns]]

MIN_PARAGRAPH_CHARS = 100  # ours: about a sentence
NUM_PHRASES = 3  # ours: questions about one paragraph
MAX_NEEDLES = 5  # ours: in one paragraph


def _functions(document: Document) -> Iterator[tuple[ast.AST, str]]:
  """Documented functions of a Python document, and their first line of doc."""
  try:
    # Parsing warns of escapes that its authors have to mend, not our users.
    with warnings.catch_warnings(action='ignore'):
      tree = ast.parse(document.text)
  except (SyntaxError, ValueError, RecursionError):
    return
  for node in ast.walk(tree):
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
      doc = ast.get_docstring(node)
      if doc and not node.name.startswith('_'):
        yield node, doc.splitlines()[0].strip()


def _write_function(
  document: Document, rng: np.random.Generator, max_chars: int
) -> Iterator[Turns]:
  """Docstring -> the function that it documents."""
  del rng
  # Not `splitlines`: to Python a form feed ends no line.
  lines = document.text.split('\n')
  for node, doc in _functions(document):
    if not isinstance(node, ast.FunctionDef) or len(node.body) < 2:
      continue
    # Signature and body, without the docstring that is the question.
    docstring, after = node.body[:2]
    head = lines[node.lineno - 1 : docstring.lineno - 1]
    body = lines[docstring.end_lineno : node.end_lineno]
    if not head or after.lineno == docstring.end_lineno:
      continue  # all on one line
    indent = len(head[0]) - len(head[0].lstrip())
    if any(line[:indent].strip() for line in head + body):
      continue  # a string whose lines start left of the function
    source = '\n'.join(line[indent:] for line in head + body)
    if len(source) <= max_chars:
      yield [(f'Write the Python function {node.name}: {doc}', source)]


def _define(
  document: Document, rng: np.random.Generator, max_chars: int
) -> Iterator[Turns]:
  """Name -> the first line of its docstring."""
  del rng, max_chars
  for node, doc in _functions(document):
    if len(doc) > 20:  # ours: shorter ones ("Constructor.") define nothing
      what = 'class' if isinstance(node, ast.ClassDef) else 'function'
      yield [(f'What is the {what} {node.name}?', doc)]


def _paragraphs(document: Document, max_chars: int) -> Iterator[str]:
  """Paragraphs, cut at a word; short ones have little to ask about."""
  for block in re.split(r'\n\s*\n', document.text):
    text = ' '.join(block.split())
    if len(text) >= MIN_PARAGRAPH_CHARS:
      yield (
        text if len(text) <= max_chars else text[:max_chars].rsplit(' ', 1)[0]
      )


def _extract(
  document: Document, rng: np.random.Generator, max_chars: int
) -> Iterator[Turns]:
  """A paragraph, and what follows some phrases that occur once in it."""
  for text in _paragraphs(document, max_chars // 2):
    words = text.split()
    phrases = [' '.join(words[i : i + 3]) for i in range(len(words) - 3)]
    # Not `count`, which misses those that overlap: '= = =' in '= = = ='.
    once = [i for i, p in enumerate(phrases) if text.find(p) == text.rfind(p)]
    if len(once) < NUM_PHRASES:
      continue
    chosen = rng.choice(once, NUM_PHRASES, replace=False).tolist()
    turns = [(f'What follows: {phrases[i]}', words[i + 3]) for i in chosen]
    question, answer = turns[0]
    yield [(f'{text}\n {question}', answer), *turns[1:]]


def _find_needles(
  document: Document, rng: np.random.Generator, max_chars: int
) -> Iterator[Turns]:
  """A stretch of text as it stands, with needles in it, each asked for."""
  first = int(rng.integers(max_chars))
  for start in range(first, len(document.text) - max_chars, max_chars):
    needles = draw_needles(rng, int(rng.integers(1, MAX_NEEDLES + 1)))
    # Some haystacks are hardly more than their needles.
    length = int(max_chars * rng.uniform(0.05, 1))
    words = re.findall(r'\s*\S+', document.text[start : start + length])
    places = rng.integers(0, len(words) + 1, len(needles)).tolist()
    hidden = [[needle.sentence] for needle in needles]
    haystack = ''.join(hide_needles(words, hidden, places)).strip()
    asked = [needles[i] for i in rng.permutation(len(needles))]
    turns = [(needle.question, needle.answer) for needle in asked]
    yield [(f'{haystack}\n {turns[0][0]}', turns[0][1]), *turns[1:]]


# Kind of conversation -> how it is made, and from which documents.
KINDS: dict[str, Maker] = {
  'write_function': _write_function,
  'define': _define,
  'extract': _extract,
  'needle': _find_needles,
}
FROM_CODE = ('write_function', 'define')
FROM_PROSE = ('extract',)  # the others are made from any document


def check_kind(kind: str) -> None:
  """Raises ConfigError for an unknown kind of conversation."""
  if kind not in KINDS:
    raise ConfigError(
      f'corpus.conversations: unknown kind {kind!r}, there are'
      f' {", ".join(KINDS)}'
    )


def make_conversations(
  kind: str,
  documents: Sequence[Document],
  count: int,
  rng: np.random.Generator,
  *,
  max_chars: int,
) -> list[Turns]:
  """Up to `count` conversations of one kind, spread over the documents.

  Each has about `max_chars` characters at most.

  The needle kind goes over the documents again until it has `count`; the
  others end when the documents have no more to give.

  Raises:
    ConfigError: for an unknown kind.
  """
  check_kind(kind)
  made: list[Turns] = []
  while len(made) < count:
    before = len(made)
    for document in documents:
      made += KINDS[kind](document, rng, max_chars)
    if kind != 'needle' or len(made) == before:
      break
  order = rng.permutation(len(made))[:count]
  return [made[i] for i in order.tolist()]
