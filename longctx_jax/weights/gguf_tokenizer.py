"""The tokenizer inside a GGUF file, written as Hugging Face's files.

Byte-level BPE alone: its tokens and merges are in the metadata, and the rule
that cuts text into words is named there.
"""

import json
from pathlib import Path
from typing import Any

from tokenizers import (
  AddedToken,
  Regex,
  Tokenizer,
  decoders,
  models,
  pre_tokenizers,
)

from longctx_jax.weights.tensor_table import WeightsError
from longctx_jax.weights.typed_fields import Fields

_KEYS = 'tokenizer.ggml.'
_CONTROL, _USER_DEFINED = 3, 4  # llama.cpp's llama_token_type
# How Llama 3 and Qwen2 cut text into words: the pre_tokenizer of their
# tokenizer.json; they differ in how many digits make a word.
_WORDS = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s|"
  r' ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+'
)


def write_gguf_tokenizer(
  metadata: dict[str, Any], folder: Path, where: str
) -> None:
  """Writes tokenizer.json and tokenizer_config.json.

  Raises:
    WeightsError: a kind of tokenizer that is not supported, or half of one.
  """
  there = Fields(metadata, where)
  kind = there.text(f'{_KEYS}model', None)
  rule = there.text(f'{_KEYS}pre', 'default')
  words = _word_rule(rule)
  if kind != 'gpt2' or words is None:
    raise WeightsError(
      f'{where}: its tokenizer ({kind}, {rule}) is not'
      ' supported: give a folder with tokenizer.json or tokenizer.model by'
      ' --tokenizer=DIR'
    )
  tokens = there.list_of(f'{_KEYS}tokens', str)
  kinds = there.list_of(f'{_KEYS}token_type', int)
  if len(kinds) != len(tokens):
    raise WeightsError(
      f'{where}: {_KEYS}token_type is of {len(kinds)} tokens, {_KEYS}tokens of'
      f' {len(tokens)}'
    )
  vocabulary = {token: i for i, token in enumerate(tokens)}
  if len(vocabulary) < len(tokens):
    twice = next(t for i, t in enumerate(tokens) if vocabulary[t] != i)
    raise WeightsError(f'{where}: {_KEYS}tokens has {twice!r} twice')
  merges = []
  for merge in there.list_of(f'{_KEYS}merges', str):
    pair = tuple(merge.split(' '))
    if len(pair) != 2 or not vocabulary.keys() >= {*pair, ''.join(pair)}:
      raise WeightsError(
        f'{where}: {_KEYS}merges has {merge!r}, and should have two tokens that'
        ' are one together'
      )
    merges.append(pair)
  model = models.BPE(
    vocab=vocabulary,
    merges=merges,
    # As Llama 3's tokenizer.json says: a word that is a token is that token.
    ignore_merges=rule == 'llama-bpe',
  )
  tokenizer = Tokenizer(model)
  tokenizer.pre_tokenizer = words
  tokenizer.decoder = decoders.ByteLevel()
  for token, kind in zip(tokens, kinds, strict=True):
    if kind == _CONTROL:
      added = AddedToken(token, special=True, normalized=False)
      tokenizer.add_special_tokens([added])
    elif kind == _USER_DEFINED:
      tokenizer.add_tokens([AddedToken(token, normalized=False)])
  tokenizer.save(str(folder / 'tokenizer.json'))
  config: dict[str, Any] = {'tokenizer_class': 'PreTrainedTokenizerFast'}
  for name in ('bos', 'eos'):
    i = there.whole(f'{_KEYS}{name}_token_id', None, least=0)
    if i is not None and i >= len(tokens):
      raise WeightsError(
        f'{where}: {_KEYS}{name}_token_id is {i}, and the tokenizer has the'
        f' tokens 0 to {len(tokens) - 1}'
      )
    config[f'{name}_token'] = None if i is None else tokens[i]
  if template := there.text('tokenizer.chat_template', None):
    config['chat_template'] = template
  (folder / 'tokenizer_config.json').write_text(json.dumps(config, indent=2))


def _word_rule(name: str) -> pre_tokenizers.PreTokenizer | None:
  plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
  if name in ('default', 'gpt-2'):
    return plain
  if name == 'smollm':
    digits = pre_tokenizers.Digits(individual_digits=True)
    return pre_tokenizers.Sequence([digits, plain])
  digits = {'llama-bpe': '{1,3}', 'qwen2': ''}
  if name not in digits:
    return None
  split = pre_tokenizers.Split(Regex(_WORDS % digits[name]), 'isolated')
  cut = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
  return pre_tokenizers.Sequence([split, cut])
