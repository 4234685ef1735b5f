"""config.json: what is read, what is written, what is refused."""

import dataclasses
import json

import pytest

from longctx_jax.config import RopeConfig
from longctx_jax.ops.rope import rope_frequencies
from longctx_jax.weights.hf_config import hf_config, read_architecture
from longctx_jax.weights.tensor_table import WeightsError
from tests.weights import tiny_models


def read(name='llama', **changes):
  return read_architecture({**tiny_models.config_of(name), **changes}, 'F')


def written(architecture, **changes):
  fields = hf_config(
    architecture.model,
    architecture.rope,
    **{
      'max_len': architecture.max_len,
      'dtype': 'float32',
      'bos_id': 1,
      'eos_ids': architecture.eos_ids,
      **changes,
    },
  )
  return json.loads(json.dumps(fields))


@pytest.mark.parametrize('name', tiny_models.FAMILIES)
def test_what_is_written_reads_as_what_was_read(name):
  architecture = read(name)
  assert read_architecture(written(architecture), 'F') == architecture


def test_the_model_that_is_written_is_a_plain_llama_or_qwen2():
  for name, expected in (
    ('mistral', 'LlamaForCausalLM'),
    ('qwen2', 'Qwen2ForCausalLM'),
  ):
    assert written(read(name))['architectures'] == [expected]


@pytest.mark.parametrize(
  'fields',
  [
    {'rope_theta': 7e5, 'rope_scaling': {'type': 'linear', 'factor': 3.0}},
    {
      'rope_theta': 1.0,  # not looked at
      'rope_parameters': {
        'rope_theta': 7e5,
        'rope_type': 'linear',
        'factor': 3.0,
      },
    },
  ],
  ids=['transformers 4', 'transformers 5'],
)
def test_rope_is_found_where_either_transformers_keeps_it(fields):
  assert read(**fields).rope == RopeConfig(7e5, scaling='linear', factor=3.0)


def test_ntk_is_written_as_the_base_that_it_is():
  rope = RopeConfig(1e4, scaling='ntk', factor=8.0)
  fields = written(read()._replace(rope=rope))
  assert fields['rope_scaling'] is None
  expected, _ = rope_frequencies(8, 1e4, scaling='ntk', factor=8.0)
  found, _ = rope_frequencies(8, fields['rope_theta'])
  assert found == pytest.approx(expected)


def test_an_extended_model_says_so():
  longer = read()._replace(rope=RopeConfig(260_000.0))
  fields = written(longer, max_len=200_000, eos_ids=(2, 5))
  assert fields['rope_theta'] == 260_000.0
  assert fields['max_position_embeddings'] == 200_000
  assert fields['eos_token_id'] == [2, 5]


def test_missing_sizes_are_what_transformers_takes_them_for():
  fields = tiny_models.config_of('llama')
  del fields['num_key_value_heads'], fields['tie_word_embeddings']
  model = read_architecture(fields, 'F').model
  assert (model.num_kv_heads, model.head_dim, model.tie_embeddings) == (
    4,
    8,
    False,
  )
  assert dataclasses.asdict(model)['qkv_bias'] is False


@pytest.mark.parametrize(
  ('fields', 'max_len'),
  [
    ({'model_type': 'mistral', 'sliding_window': 40}, 40),
    ({'model_type': 'mistral', 'sliding_window': 4096}, 64),
    ({'model_type': 'qwen2', 'sliding_window': 40}, 64),
    (
      {
        'model_type': 'qwen2',
        'sliding_window': 40,
        'use_sliding_window': True,
      },
      40,
    ),
  ],
)
def test_a_text_is_as_long_as_the_window_at_most(fields, max_len, caplog):
  assert read(**fields).max_len == max_len
  said = [
    m for m in caplog.messages if '40 tokens, its sliding_window, not' in m
  ]
  assert len(said) == len(caplog.messages) == (max_len < 64)


def test_skywork_is_a_llama_whatever_code_it_names():
  fields = {
    'model_type': 'skywork',
    'architectures': ['SkyworkForCausalLM'],
    'auto_map': {'AutoConfig': 'configuration_skywork.SkyworkConfig'},
  }
  assert read(**fields) == read()


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'model_type': 'gpt2'}, "F: model_type is 'gpt2', and can be llama, "),
    ({'hidden_size': None}, 'F: hidden_size is missing'),
    ({'hidden_act': 'gelu'}, "hidden_act='gelu' is not supported"),
    ({'attention_bias': True}, 'attention_bias=True is not supported'),
    ({'mlp_bias': True}, 'mlp_bias=True is not supported'),
    ({'num_key_value_heads': 3}, 'num_heads=4 is not a multiple of'),
    ({'num_attention_heads': 0}, 'F: num_attention_heads is 0'),
    ({'model_type': {}}, 'F: model_type is {}, and should be a text'),
    ({'rope_parameters': 'yarn'}, "F: rope_parameters is 'yarn', and should"),
    ({'rope_scaling': [1]}, r'F: rope_scaling is \[1\], and should be an'),
    ({'rope_theta': '1e4'}, "F: rope_theta is '1e4', and should be a number"),
    (
      {'rope_scaling': {'rope_type': 'linear', 'factor': '2'}},
      r"F: rope_scaling\.factor is '2', and should be a number",
    ),
    (
      {'rope_parameters': {'rope_type': 'linear', 'factor': -1}},
      r'F: rope_parameters\.factor is -1, and should be a number from 1 to',
    ),
    ({'num_key_value_heads': '4'}, "F: num_key_value_heads is '4', and"),
    ({'head_dim': '8'}, "F: head_dim is '8', and should be a whole number"),
    ({'rms_norm_eps': 'small'}, "F: rms_norm_eps is 'small', and should be"),
    ({'eos_token_id': '</s>'}, "F: eos_token_id is '</s>', and should be a"),
    ({'tie_word_embeddings': 'no'}, "F: tie_word_embeddings is 'no', and"),
    ({'sliding_window': '9'}, "F: sliding_window is '9', and should be"),
    (
      {'rope_scaling': {'rope_type': 'dynamic', 'factor': 2.0}},
      "type 'dynamic' is not supported",
    ),
    (
      {
        'rope_scaling': {
          'rope_type': 'yarn',
          'factor': 2.0,
          'attention_factor': 1.5,
        }
      },
      'attention_factor of YaRN',
    ),
    ({'max_position_embeddings': None}, 'max_position_embeddings is missing'),
  ],
)
def test_what_is_not_ours_is_refused_by_name(fields, message):
  with pytest.raises(WeightsError, match=message):
    read(**fields)
