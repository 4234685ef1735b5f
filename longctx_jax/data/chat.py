"""Conversations to tokens, with loss on the assistant's turns alone.

    <bos><|user|> What is 2+2?<|assistant|> 4<|end|>
      0     0      0  0  0  0       0       1   1      loss mask

A turn's text follows a space, so that a word is the same token wherever it
stands in a sentence, a table or an answer.
"""

from collections.abc import Sequence

import numpy as np

from longctx_jax.data.tokenizer import Tokenizer


def encode_conversation(
  tokenizer: Tokenizer, turns: Sequence[tuple[str, str]]
) -> tuple[np.ndarray, np.ndarray]:
  """Tokens (int32) and loss mask (bool) of (user, assistant) turns."""
  tokens, mask = [tokenizer.bos_id], [False]
  for user, assistant in turns:
    prompt = encode_prompt(tokenizer, user)
    answer = encode_answer(tokenizer, assistant)
    tokens += prompt + answer
    mask += [False] * len(prompt) + [True] * len(answer)
  return np.array(tokens, np.int32), np.array(mask, bool)


def encode_prompt(tokenizer: Tokenizer, user: str) -> list[int]:
  """One user turn, up to and including the assistant's marker."""
  text = tokenizer.encode(' ' + user).tolist()
  return [tokenizer.user_id, *text, tokenizer.assistant_id]


def encode_answer(tokenizer: Tokenizer, assistant: str) -> list[int]:
  """One assistant turn, with the end marker it must learn to give."""
  return [*tokenizer.encode(' ' + assistant).tolist(), tokenizer.end_id]
