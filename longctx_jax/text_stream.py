"""New tokens as text while they come: nothing is shown that may change.

A character may be spread over tokens, and so may a stop string. What could be
the beginning of either is held back until it is known to be none.
"""

from collections.abc import Sequence

from longctx_jax.data.tokenizer import Tokenizer

INCOMPLETE = '\ufffd'  # what bytes that are no character (yet) decode to
# Tokens of the prompt that are decoded with the new ones, because a tokenizer
# may drop the space that a text begins with. ours: a character has 4 bytes.
CONTEXT_LEN = 8


class TextStream:
  """The text that continues one prompt, up to the first stop string."""

  def __init__(
    self,
    tokenizer: Tokenizer,
    prompt: Sequence[int],
    stop_strings: Sequence[str] = (),
  ):
    self._decode = tokenizer.decode
    self._stop_strings = stop_strings
    self._ids = list(prompt[-CONTEXT_LEN:])
    self._before = len(self._decode(self._ids).rstrip(INCOMPLETE))
    self._given = 0
    # How many of the tokens it took to complete a stop string, if one came.
    self.stopped_after: int | None = None
    self._num_prompt = len(self._ids)

  def add(self, ids: Sequence[int]) -> str:
    """Takes more tokens, and gives the text that is now certain."""
    if self.stopped_after is not None:
      return ''
    known = len(self._ids)
    self._ids.extend(map(int, ids))
    text = self._text()
    if self._stops(text):
      # Only now token by token: which one completed it?
      for stop in range(known + 1, len(self._ids) + 1):
        text = self._text(stop)
        if found := self._stops(text):
          self.stopped_after = stop - self._num_prompt
          # Of those that end here first, the longest.
          _, start = min(found)
          return self._give(text, start)
    return self._give(text, self._certain(text.rstrip(INCOMPLETE)))

  def end(self) -> str:
    """No more tokens: gives what was held back."""
    if self.stopped_after is not None:
      return ''
    text = self._text()
    return self._give(text, len(text))

  def _text(self, stop=None):
    return self._decode(self._ids[:stop])[self._before :]

  def _stops(self, text):
    """(end, start) of the first place of each stop string that is there."""
    starts = ((stop, text.find(stop)) for stop in self._stop_strings)
    return [(start + len(stop), start) for stop, start in starts if start >= 0]

  def _give(self, text, until):
    given, self._given = self._given, max(self._given, until)
    return text[given:until]

  def _certain(self, text):
    """Length of `text` without what a stop string may begin with."""
    longest = max(map(len, self._stop_strings), default=0)
    for start in range(max(len(text) - longest + 1, 0), len(text)):
      if any(stop.startswith(text[start:]) for stop in self._stop_strings):
        return start
    return len(text)
