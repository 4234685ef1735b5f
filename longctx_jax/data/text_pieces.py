r"""Long texts in pieces, for tokenizers to which that makes no difference.

A `tokenizer.json` splits a text by patterns and tokenises each split by itself,
but the library makes all splits of a text before it lets go of any: those of a
book fill memory, leave the processor's caches, and are made on one core. Pieces
of the text have the same tokens if they end where splits of the whole text do:

    He| said| that|,| and|\n|Then| it| was| over|.
      ^     ^       ^            ^   ^    ^    before spaces

Whether a tokenizer ends a split there is read off its description: each of its
steps must be one of those below. Any other tokenizer gets its texts whole.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator
from typing import Any

import tokenizers

# ours: about this long, pieces stay in a core's cache. Half or twice as long
# ones take as much time, those of 16,000 characters a little more.
PIECE_CHARS = 4_000
# Texts may be cut before a space that follows something else than white space.
# Chinese and Japanese have none: before a comma or full stop after a letter.
_CUT = re.compile(
  r'\S(?= )|[\u4e00-\u9fa5\u3041-\u3096\u30a1-\u30fa](?=[\u3001\u3002\uff0c])'
)

# What patterns of `Split` consist of. No match of any of these reaches across a
# cut, and none looks across one: what looks ahead is white space, up to the
# first character that is none. In tokenizer.json of the models named.
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_UPPER, _LOWER = r'\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}', r'\p{Ll}\p{Lm}\p{Lo}\p{M}'
_WORDS = (
  r'[^\r\n\p{L}\p{N}]?\p{L}+',  # Llama 3, Qwen 2
  r'[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+',  # Qwen 3.5
  *(  # GPT-4o, Llama 4, MiniMax; without contractions: Mistral's tekken
    rf'[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]{upper}[{_LOWER}]{lower}{contractions}'
    for upper, lower in ('*+', '+*')
    for contractions in ('', f'{_CONTRACTIONS}?')
  ),
)
_WHITE_SPACE = r'\s+'
_OTHERS = (
  _CONTRACTIONS,
  r'\p{N}',
  r'\p{N}{1,3}',
  r' ?[^\s\p{L}\p{N}]+[\r\n]*',
  r' ?[^\s\p{L}\p{N}]+[\r\n/]*',
  r' ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*',
  r'\s*[\r\n]+',
  r'\s+(?!\S)',
)
_ONE = '|'.join(map(re.escape, (*_WORDS, _WHITE_SPACE, *_OTHERS)))
_KNOWN = re.compile(rf'(?:{_ONE})(?:\|(?:{_ONE}))*')


def pieces(text: str) -> Iterator[str]:
  """`text` in pieces of `PIECE_CHARS` characters, or what more it takes."""
  start = 0
  while len(text) - start > PIECE_CHARS and (
    cut := _CUT.search(text, start + PIECE_CHARS - 1)
  ):
    yield text[start : cut.end()]
    start = cut.end()
  yield text[start:]


def may_be_cut(
  description: dict[str, Any], added: Iterable[tokenizers.AddedToken]
) -> bool:
  """Whether the `pieces` of every text have the tokens of the text.

  Args:
    description: the content of a tokenizer.json.
    added: its added tokens. Special ones in a text are left to be split with
      it, all the same no other one is found where they are.
  """
  # Other normalizers need not name their type.
  normalizer = description.get('normalizer') or {'type': 'NFC'}
  if normalizer.get('type') != 'NFC':
    return False
  for token in added:
    looks_around = token.single_word or token.lstrip or token.rstrip
    # Tokens may be looked for before and after the text is normalised.
    content = unicodedata.normalize('NFC', token.content)
    if _CUT.search(content) or (looks_around and not token.special):
      return False
  steps = description.get('pre_tokenizer') or {'type': ''}
  steps = steps['pretokenizers'] if steps['type'] == 'Sequence' else [steps]
  # It makes other characters of all, so that what follows finds none of its.
  if any(step['type'] == 'ByteLevel' for step in steps[:-1]):
    return False
  return all(map(_is_known, steps)) and any(map(_ends_at_cuts, steps))


def _is_known(step) -> bool:
  """Whether cutting what a step gets cuts what it gives, and no more."""
  match step['type']:
    case 'ByteLevel':
      return not step['add_prefix_space']
    case 'Digits':
      return True
    case 'Split' if step['behavior'] == 'Isolated' and not step['invert']:
      return bool(_KNOWN.fullmatch(step['pattern'].get('Regex', '')))
  return False


def _ends_at_cuts(step) -> bool:
  """Whether a step that is known ends a split wherever texts may be cut."""
  if step['type'] == 'ByteLevel':  # GPT-2's pattern, of the library's own
    return step.get('use_regex', True)
  pattern = f'|{step["pattern"]["Regex"]}|' if step['type'] == 'Split' else ''
  words = any(f'|{word}|' in pattern for word in _WORDS)
  return words and f'|{_WHITE_SPACE}|' in pattern
