"""What GGUF files say of themselves: each wrong value is named by its key."""

import math

import pytest

from longctx_jax.weights.gguf_file import GgufFile
from longctx_jax.weights.gguf_tokenizer import write_gguf_tokenizer
from longctx_jax.weights.tensor_table import WeightsError
from tests.weights.gguf_file_test import WORDS, write_gguf

TOKENS = 'tokenizer.ggml.'


def read(folder, *metadata):
  """All that `convert` reads of a file whose metadata are changed."""
  path = folder / 'm.gguf'
  write_gguf(path, metadata=metadata)
  file = GgufFile(path)
  write_gguf_tokenizer(file.metadata, folder, file.where)


def test_the_file_is_good_without_a_change(tmp_path):
  read(tmp_path)
  assert (tmp_path / 'tokenizer.json').exists()


@pytest.mark.parametrize(
  ('key', 'value', 'message'),
  [
    (
      'llama.attention.head_count',
      [4, 4],
      r'is \[4, 4\], and should be a whole',
    ),
    ('llama.attention.head_count', 0, 'is 0, and should be a whole number'),
    ('llama.attention.head_count_kv', [2, 2], r'is \[2, 2\], and should be'),
    ('llama.attention.key_length', '16', "is '16', and should be a whole"),
    ('llama.attention.layer_norm_rms_epsilon', math.inf, 'is inf, and should'),
    ('llama.rope.freq_base', math.nan, 'is nan, and should be a number'),
    ('llama.rope.freq_base', 0.0, 'is 0.0, and should be a number from 1 to'),
    ('llama.rope.scaling.type', 3, 'is 3, and should be a text'),
    ('llama.context_length', 0, 'is 0, and should be a whole number from 1'),
    ('llama.block_count', 'two', "is 'two', and should be a whole number"),
    (f'{TOKENS}eos_token_id', 5000, r'is 5000, and token_embd\.weight has'),
    (f'{TOKENS}bos_token_id', 20, 'is 20, and the tokenizer has the tokens 0'),
    (f'{TOKENS}token_type', [3, 1], 'is of 2 tokens, .*tokens of 7'),
    (f'{TOKENS}token_type', ['a'], r"is \['a'\], and should be a list of int"),
    (f'{TOKENS}tokens', ['a'] * 7, "has 'a' twice"),
    (f'{TOKENS}tokens', 'abc', "is 'abc', and should be a list of str"),
    (f'{TOKENS}merges', ['ab'], "has 'ab', and should have two tokens"),
    (f'{TOKENS}merges', ['b a'], "has 'b a', and should have two tokens"),
    (f'{TOKENS}merges', ['a q'], "has 'a q', and should have two tokens"),
    (f'{TOKENS}merges', [1, 2], r'is \[1, 2\], and should be a list of str'),
    (f'{TOKENS}pre', 3, 'is 3, and should be a text'),
    ('tokenizer.chat_template', 3, 'is 3, and should be a text'),
  ],
)
def test_a_wrong_value_is_named_with_file_and_key(
  tmp_path, key, value, message
):
  with pytest.raises(WeightsError, match=message) as error:
    read(tmp_path, (key, value))
  assert f'm.gguf: {key} ' in str(error.value)
  assert '\n' not in str(error.value)


def test_a_missing_value_is_named_with_file_and_key(tmp_path):
  write_gguf(tmp_path / 'm.gguf')
  file = GgufFile(tmp_path / 'm.gguf')
  del file.metadata[f'{TOKENS}merges']
  with pytest.raises(WeightsError, match=r'm\.gguf: .*ggml\.merges is missing'):
    write_gguf_tokenizer(file.metadata, tmp_path, file.where)


def test_a_long_value_is_shown_in_part(tmp_path):
  with pytest.raises(WeightsError) as error:
    read(tmp_path, (f'{TOKENS}merges', [7] * 5000))
  assert len(str(error.value)) < 250


def test_the_embedding_may_have_more_tokens_than_the_tokenizer(tmp_path):
  assert len(WORDS) == 7
  read(tmp_path, (f'{TOKENS}eos_token_id', 6))
