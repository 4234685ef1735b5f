"""Every number in the papers' configs has a source, or says that it is ours."""

import ast
import io
import re
import tokenize

import pytest

from tests.architecture_test import ROOT, python_files

FILES = [
  path
  for path in python_files('configs/longskywork', 'configs/prolong')
  if path.name != '__init__.py'
]
# What a comment names where a number is from; or whose it is.
SOURCE = re.compile(
  r'\bours\b|\bpaper\b|abstract|Table \d|sec\. \d|A\.2|arXiv|Skywork-13B'
  r'|Llama-3|\w+\.sh\b|\w+\.py\b|UtK'
)
# Off, on, none, all: they say nothing that needs a source.
PLAIN = (0, 1)


def unsourced(source):
  """Lines of numbers without a comment beside or right above that says whence.

  The laptop's sizes are left out: `if arg.tiny:`, and functions named tiny_*.
  """
  lines = source.splitlines()
  comments = {
    token.start[0]: token.string
    for token in tokenize.generate_tokens(io.StringIO(source).readline)
    if token.type == tokenize.COMMENT
  }

  def said(number):
    """The comment of a line: beside it, else the block right above."""
    text, number = [comments.get(number, '')], number - 1
    while not text[0] and lines[number - 1].lstrip().startswith('#'):
      text.append(comments[number])
      number -= 1
    return ' '.join(text)

  def visit(node):
    if isinstance(node, ast.If) and ast.unparse(node.test) == 'arg.tiny':
      for child in node.orelse:
        yield from visit(child)
      return
    if isinstance(node, ast.FunctionDef) and node.name.startswith('tiny_'):
      return
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
      text = said(node.lineno)
      if node.value not in PLAIN and not SOURCE.search(text):
        yield node.lineno, lines[node.lineno - 1].strip()
    for child in ast.iter_child_nodes(node):
      yield from visit(child)

  return list(dict.fromkeys(visit(ast.parse(source))))


@pytest.mark.parametrize(
  'path', FILES, ids=lambda path: str(path.relative_to(ROOT))
)
def test_every_number_has_a_source_or_is_ours(path):
  assert unsourced(path.read_text()) == []


def test_a_number_without_a_source_is_found():
  source = """
steps = 200  # abstract
# ours: as many as fit
# on a laptop
rows = 64
rate = 2e-5
pair = (
  7,  # Table 9
  8,
)
layers = 52  # the deepest
if arg.tiny:
  steps = 5
else:
  steps = 6
"""
  found = [line for _, line in unsourced(source)]
  assert found == [
    *('rate = 2e-5', '8,', 'layers = 52  # the deepest', 'steps = 6')
  ]
