"""Short instruction data made from real documents: stage 3 of LongSkywork.

The paper's own SFT data is not public; these kinds are ours, chosen because
their answers can be read off real text: code and docstrings from Python
sources, questions about a paragraph, and needles in a paragraph.
"""

import ast
import re
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from longctx_jax.data.documents import Document
from longctx_jax.data.needles import draw_needles, hide_needles

Turns = list[tuple[str, str]]

# ours: conversations short enough for a short SFT row, in characters.
MAX_SOURCE_CHARS = 600
MAX_PARAGRAPH_CHARS = 500


def _functions(document: Document) -> Iterator[tuple[ast.AST, str]]:
  """Documented functions of a Python document, and their first line of doc."""
  try:
    tree = ast.parse(document.text)
  except (SyntaxError, ValueError, RecursionError):
    return
  for node in ast.walk(tree):
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
      doc = ast.get_docstring(node)
      if doc and not node.name.startswith('_'):
        yield node, doc.splitlines()[0].strip()


def _write_function(
  document: Document, rng: np.random.Generator
) -> Iterator[Turns]:
  """Docstring -> the function that it documents."""
  del rng
  lines = document.text.splitlines()
  for node, doc in _functions(document):
    if not isinstance(node, ast.FunctionDef) or len(node.body) < 2:
      continue
    # Signature and body, without the docstring that is the question.
    head = lines[node.lineno - 1 : node.body[0].lineno - 1]
    body = lines[node.body[1].lineno - 1 : node.end_lineno]
    indent = len(head[0]) - len(head[0].lstrip()) if head else 0
    source = '\n'.join(line[indent:] for line in head + body)
    if head and len(source) <= MAX_SOURCE_CHARS:
      yield [(f'Write the Python function {node.name}: {doc}', source)]


def _define(document: Document, rng: np.random.Generator) -> Iterator[Turns]:
  """Name -> the first line of its docstring."""
  del rng
  for node, doc in _functions(document):
    if len(doc) > 20:  # ours: shorter ones ("Constructor.") define nothing
      what = 'class' if isinstance(node, ast.ClassDef) else 'function'
      yield [(f'What is the {what} {node.name}?', doc)]


def _paragraphs(document: Document) -> Iterator[str]:
  for block in re.split(r'\n\s*\n', document.text):
    text = ' '.join(block.split())
    if len(text) >= 200:
      yield text[:MAX_PARAGRAPH_CHARS].rsplit(' ', 1)[0]


def _extract(document: Document, rng: np.random.Generator) -> Iterator[Turns]:
  """A paragraph, and what follows some phrases that occur once in it."""
  for text in _paragraphs(document):
    words = text.split()
    phrases = [' '.join(words[i : i + 3]) for i in range(len(words) - 3)]
    once = [i for i, p in enumerate(phrases) if text.count(p) == 1]
    if len(once) < 4:
      continue
    chosen = rng.choice(once, 4, replace=False).tolist()
    turns = [(f'What follows: {phrases[i]}', words[i + 3]) for i in chosen]
    question, answer = turns[0]
    yield [(f'{text}\n {question}', answer), *turns[1:]]


def _find_needles(
  document: Document, rng: np.random.Generator
) -> Iterator[Turns]:
  """A paragraph with needles in it, each asked for."""
  for text in _paragraphs(document):
    needles = draw_needles(rng, int(rng.integers(1, 6)))
    # Log-uniform, so that some haystacks are hardly more than their needles.
    length = int(len(text) * np.exp(rng.uniform(np.log(0.05), 0)))
    words = re.findall(r'\s*\S+', text[:length])
    places = rng.integers(0, len(words) + 1, len(needles)).tolist()
    hidden = [[needle.sentence] for needle in needles]
    haystack = ''.join(hide_needles(words, hidden, places)).strip()
    asked = [needles[i] for i in rng.permutation(len(needles))]
    turns = [(needle.question, needle.answer) for needle in asked]
    yield [(f'{haystack}\n {turns[0][0]}', turns[0][1]), *turns[1:]]


# Kind of conversation -> (documents it can be made from, how).
KINDS: dict[str, Callable[[Document, np.random.Generator], Iterator[Turns]]] = {
  'write_function': _write_function,
  'define': _define,
  'extract': _extract,
  'needle': _find_needles,
}
FROM_CODE = ('write_function', 'define')


def make_conversations(
  kind: str,
  documents: Sequence[Document],
  count: int,
  rng: np.random.Generator,
) -> list[Turns]:
  """Up to `count` conversations of one kind, spread over the documents.

  The needle kind goes over the documents again until it has `count`; the
  others end when the documents have no more to give.

  Raises:
    ValueError: for an unknown kind.
  """
  if kind not in KINDS:
    raise ValueError(
      f'corpus.conversations: unknown kind {kind!r}, there are'
      f' {", ".join(KINDS)}'
    )
  made: list[Turns] = []
  while len(made) < count:
    before = len(made)
    for document in documents:
      made += KINDS[kind](document, rng)
    if kind != 'needle' or len(made) == before:
      break
  order = rng.permutation(len(made))[:count]
  return [made[i] for i in order.tolist()]
