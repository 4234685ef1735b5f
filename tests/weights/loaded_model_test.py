"""Models to be asked: from folders and runs, with another RoPE."""

import json

import jax
import numpy as np
import pytest

from longctx_jax.cached_model import layers_apart
from longctx_jax.config import ConfigError, MeshConfig, RopeConfig
from longctx_jax.data.tokenizer import TokenizerError
from longctx_jax.sharding import make_mesh
from longctx_jax.weights.loaded_model import load_model, scale_rope
from longctx_jax.weights.model_folder import (
  load_layers,
  load_params,
  open_model_folder,
)
from longctx_jax.weights.tensor_table import WeightsError
from tests.data.jinja_chat_test import CHATML
from tests.data.small_tokenizers import write_folder

PLAIN = RopeConfig(10_000.0)


@pytest.fixture
def folder(make_folder):
  """A model whose tokenizer writes text, and has a chat template."""
  folder = make_folder('llama_grouped_tied', vocab_size=420)
  write_folder(
    folder,
    bos_token='<|begin_of_text|>',
    eos_token='<|end_of_text|>',
    chat_template=CHATML,
    add_bos_token=True,
  )
  return folder


@pytest.mark.parametrize(
  ('changes', 'expected'),
  [
    ({}, PLAIN),
    ({'base': 5e5}, RopeConfig(5e5)),
    (
      {'scaling': 'ntk', 'factor': 2.0},
      RopeConfig(1e4, scaling='ntk', factor=2.0),
    ),
    (
      {'scaling': 'yarn', 'factor': 4.0},
      RopeConfig(1e4, scaling='yarn', factor=4.0, original_len=64),
    ),
  ],
)
def test_rope_is_scaled_from_the_trained_length(changes, expected):
  assert scale_rope(PLAIN, changes, 64) == expected


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'factor': 2.0}, '--rope.factor=2.0 needs --rope.scaling'),
    ({'scaling': 'yarn'}, '--rope.scaling=yarn needs --rope.factor'),
    ({'scaling': 'longer', 'factor': 2.0}, 'longer.* can be'),
  ],
)
def test_half_a_scaling_is_refused(changes, message):
  with pytest.raises(ConfigError, match=message):
    scale_rope(PLAIN, changes, 64)


LLAMA3 = RopeConfig(5e5, scaling='llama3', factor=8.0, original_len=16)


@pytest.mark.parametrize(
  'changes',
  [
    {'scaling': 'ntk', 'factor': 2.0},
    {'scaling': 'none'},
    {'scaling': 'yarn', 'factor': 8.0, 'base': 1e6},
  ],
)
def test_a_trained_scaling_is_not_taken_for_another(changes):
  with pytest.raises(ConfigError, match=r'llama3 with factor 8\.0') as error:
    scale_rope(LLAMA3, changes, 64)
  said = str(error.value)
  assert said.startswith(f'--rope.scaling={changes["scaling"]}: the model was')
  assert said.endswith('give --rope.scaling=llama3')


@pytest.mark.parametrize(
  ('changes', 'factor', 'max_len'),
  [
    ({'factor': 16.0}, 16.0, 128),
    ({'scaling': 'llama3', 'factor': 4.0}, 4.0, 32),
    ({'scaling': 'llama3'}, 8.0, 64),
    ({'base': 1e6}, 8.0, 64),
  ],
)
def test_a_trained_scaling_may_have_another_factor(
  make_folder, changes, factor, max_len
):
  folder = make_folder('llama_3.1', vocab_size=420)
  write_folder(folder, bos_token='<|begin_of_text|>')
  loaded = load_model(str(folder), rope=changes)
  assert (loaded.rope.scaling, loaded.rope.factor) == ('llama3', factor)
  assert loaded.rope.original_len == 32
  assert loaded.max_len == max_len


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'base': 0.0}, r'^--rope\.base must be above 1, got 0\.0$'),
    ({'scaling': 'ntk', 'factor': 0.0}, r'^--rope\.factor must be at least 1'),
    (
      {'scaling': 'ntk', 'factor': float('inf')},
      r'^--rope\.factor must be at most 1e\+30, got inf$',
    ),
  ],
)
def test_numbers_that_no_rope_has_are_refused(changes, message):
  with pytest.raises(ConfigError, match=message):
    scale_rope(PLAIN, changes, 64)


def test_a_scaled_model_is_made_for_longer_texts(folder, caplog):
  caplog.set_level('INFO', 'longctx_jax')
  assert load_model(str(folder)).max_len == 64
  assert not caplog.messages
  scaled = load_model(str(folder), rope={'scaling': 'ntk', 'factor': 2.0})
  assert scaled.max_len == 128
  assert scaled.rope == RopeConfig(1e4, scaling='ntk', factor=2.0)
  assert caplog.messages == [
    'RoPE, untrained: base 10000.0, scaling ntk, factor 2.0'
  ]


def test_prompts_are_chats_or_texts_with_their_begin(folder):
  loaded = load_model(str(folder))
  tokenizer = loaded.tokenizer
  chat = loaded.prompt([('user', 'Hello')])
  assert chat[0] == tokenizer.control_id('<|im_start|>')
  raw = loaded.prompt([('user', 'Hello')], chat=False)
  assert raw.tolist() == [
    tokenizer.bos_id,
    *tokenizer.encode('Hello').tolist(),
  ]


@pytest.mark.parametrize(
  ('fields', 'begins'),
  [
    ({'add_bos_token': False}, False),
    ({'tokenizer_class': 'LlamaTokenizerFast'}, True),
    ({'tokenizer_class': 'Qwen2Tokenizer'}, False),
  ],
)
def test_a_begin_stands_where_transformers_puts_one(folder, fields, begins):
  config = folder / 'tokenizer_config.json'
  there = json.loads(config.read_text())
  del there['add_bos_token']
  config.write_text(json.dumps(there | fields))
  assert len(load_model(str(folder)).begin) == begins


def test_layers_apart_are_those_of_the_whole(folder):
  opened = open_model_folder(folder)
  model = opened.architecture.model
  for mesh in (
    make_mesh(MeshConfig(), jax.devices()[:1]),
    make_mesh(MeshConfig(fsdp=4, tensor=2)),
  ):
    whole = load_params(model, opened.tensors, mesh)
    expected = layers_apart(whole, model, mesh)
    found = load_layers(model, opened.tensors, mesh)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(
      jax.tree.leaves(found), jax.tree.leaves(expected), strict=True
    ):
      assert a.sharding.is_equivalent_to(b.sharding, a.ndim)
      np.testing.assert_array_equal(a, b)


def test_a_directory_that_is_neither_is_refused(tmp_path, folder):
  with pytest.raises(ConfigError, match='neither a model folder nor a workdir'):
    load_model(str(tmp_path))
  with pytest.raises(ConfigError, match='is a model, and has no stages'):
    load_model(str(folder), stage='sft')


@pytest.mark.parametrize(
  ('name', 'text', 'message'),
  [
    ('config.json', b'{"a"', r'cannot read .*config\.json: '),
    ('config.json', b'{"a": "\xff"}', r'cannot read .*config\.json: '),
    ('config.json', b'3', r'config\.json is no JSON object'),
    (
      'generation_config.json',
      b'{"eos_token_id": "x"}',
      r"generation_config\.json: eos_token_id is 'x', and should be",
    ),
    (
      'tokenizer_config.json',
      b'{"chat_template": 5}',
      r'tokenizer_config\.json: chat_template is 5, and should be a text',
    ),
    (
      'tokenizer_config.json',
      b'{"chat_template": [{"name": "default"}]}',
      r'tokenizer_config\.json: chat_template\.template is missing',
    ),
    (
      'tokenizer_config.json',
      b'{"bos_token": "<|begin_of_text|>", "add_bos_token": "no"}',
      r"tokenizer_config\.json: add_bos_token is 'no', and should be true",
    ),
    (
      'chat_template.jinja',
      b'{% for %}',
      r'/chat_template\.jinja: the chat template is damaged: ',
    ),
    ('chat_template.jinja', b'\xff', r'/chat_template\.jinja: .* decode'),
    (
      'tokenizer_config.json',
      b'{"chat_template": "{% for %}"}',
      r'/tokenizer_config\.json: the chat template is damaged: ',
    ),
  ],
)
def test_a_damaged_file_is_named_in_a_line(folder, name, text, message):
  (folder / name).write_bytes(text)
  with pytest.raises((WeightsError, TokenizerError), match=message) as error:
    load_model(str(folder))
  assert '\n' not in str(error.value)


def test_the_model_writes_what_its_losses_say(folder):
  """Greedy tokens are the predictions of a forward pass over them."""
  loaded = load_model(str(folder))
  mesh = make_mesh(MeshConfig(), jax.devices()[:1])
  prompt = loaded.prompt([('user', 'Hello there')])
  made = loaded.generator(mesh).generate([prompt], max_new_tokens=6)[0]
  row = np.concatenate([prompt, made.tokens])
  predictor = loaded.predictor(mesh, split=MeshConfig(), batch_tokens=256)
  _, predictions = next(iter(predictor.rows([row])))
  assert predictions[len(prompt) - 1 :].tolist() == made.tokens.tolist()
