"""GGUF: quantised and permuted here by hand, read back; damaged files."""

import struct

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind

from longctx_jax.ops.rope import rope_frequencies
from longctx_jax.weights.gguf_file import GgufFile
from longctx_jax.weights.hf_config import read_architecture
from longctx_jax.weights.tensor_table import (
  WeightsError,
  check_tensors,
  tensor_shapes,
)
from tests.weights import tiny_models

# Quantisation is by blocks of 32.
SIZES = {'hidden_size': 64, 'intermediate_size': 96, 'head_dim': 16}
THEIRS = {
  'input_layernorm.weight': 'attn_norm.weight',
  'post_attention_layernorm.weight': 'ffn_norm.weight',
  'self_attn.o_proj.weight': 'attn_output.weight',
  'mlp.gate_proj.weight': 'ffn_gate.weight',
  'mlp.up_proj.weight': 'ffn_up.weight',
  'mlp.down_proj.weight': 'ffn_down.weight',
  **{
    f'self_attn.{x}_proj.{kind}': f'attn_{x}.{kind}'
    for x in 'qkv'
    for kind in ('weight', 'bias')
  },
  'model.embed_tokens.weight': 'token_embd.weight',
  'model.norm.weight': 'output_norm.weight',
  'lm_head.weight': 'output.weight',
}
WORDS = ['<s>', 'a', 'b', 'ab', '\u0120', 'c', '<x>']


def gguf_name(name):
  if name.startswith('model.layers.'):
    _, _, layer, rest = name.split('.', 3)
    return f'blk.{layer}.{THEIRS[rest]}'
  return THEIRS[name]


def interleave(x, num_heads):
  """Rows 0 1 2 3 of a head -> 0 2 1 3, as convert_hf_to_gguf.py does."""
  head_dim = len(x) // num_heads
  order = [
    head * head_dim + half * head_dim // 2 + i
    for head in range(num_heads)
    for i in range(head_dim // 2)
    for half in (0, 1)
  ]
  return x[order]


def architecture_of(name):
  return read_architecture({**tiny_models.config_of(name), **SIZES}, 'x')


def write_gguf(
  path, name='llama_grouped_tied', kind=Kind.F32, metadata=(), tensors=()
):
  """A file of a tiny model; the tensors that it should give back."""
  architecture = architecture_of(name)
  model, rope = architecture.model, architecture.rope
  arch = 'qwen2' if model.qkv_bias else 'llama'
  writer = gguf.GGUFWriter(path, arch)
  writer.add_context_length(64)
  writer.add_embedding_length(model.embed_dim)
  writer.add_block_count(model.num_layers)
  writer.add_feed_forward_length(model.hidden_dim)
  writer.add_head_count(model.num_heads)
  writer.add_head_count_kv(model.num_kv_heads)
  writer.add_key_length(model.head_dim)
  writer.add_layer_norm_rms_eps(model.norm_eps)
  writer.add_rope_freq_base(rope.base)
  writer.add_tokenizer_model('gpt2')
  writer.add_tokenizer_pre('smollm')
  writer.add_token_list(WORDS)
  writer.add_token_types([3, 1, 1, 1, 1, 1, 3])
  writer.add_token_merges(['a b'])
  writer.add_bos_token_id(0)
  writer.add_eos_token_id(5)
  for key, value in metadata:
    writer.add_key_value(key, value, gguf.GGUFValueType.get_type(value))
  expected = {}
  made = tiny_models.random_tensors(tensor_shapes(model))
  for key, x in made.items():
    stored = x
    for letter, heads in (('q', model.num_heads), ('k', model.num_kv_heads)):
      if arch == 'llama' and key.endswith(f'{letter}_proj.weight'):
        stored = interleave(x, heads)
    if x.ndim == 1:
      writer.add_tensor(gguf_name(key), stored)
      expected[key] = x
      continue
    packed = gguf.quants.quantize(stored, kind)
    writer.add_tensor(gguf_name(key), packed, raw_dtype=kind)
    # Quantisation works along rows, whose order does not matter to it.
    expected[key] = gguf.quants.dequantize(
      gguf.quants.quantize(x, kind), kind
    ).reshape(x.shape)
  for key, x in tensors:
    writer.add_tensor(key, x)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return expected


@pytest.mark.parametrize(
  'kind', [Kind.F32, Kind.F16, Kind.Q8_0, Kind.Q4_1, Kind.Q4_0]
)
@pytest.mark.parametrize('name', ['llama_grouped_tied', 'qwen2'])
def test_every_tensor_comes_back_under_its_name_and_in_order(
  tmp_path, name, kind
):
  expected = write_gguf(tmp_path / 'm.gguf', name, kind)
  file = GgufFile(tmp_path / 'm.gguf')
  assert file.shapes == {n: x.shape for n, x in expected.items()}
  for key, x in expected.items():
    found = file.read(key)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, x)
    part = (slice(1, 3),)
    np.testing.assert_array_equal(file.read(key, part), x[1:3])


@pytest.mark.parametrize('name', ['llama', 'llama_grouped_tied', 'qwen2'])
def test_its_metadata_give_the_config_of_the_model(tmp_path, name):
  write_gguf(tmp_path / 'm.gguf', name)
  file = GgufFile(tmp_path / 'm.gguf')
  expected = architecture_of(name)._replace(eos_ids=(5,))
  assert read_architecture(file.config, 'x') == expected
  check_tensors(file.shapes, architecture_of(name).model, 'x')


@pytest.mark.parametrize('factor', [8.0, 32.0])
def test_the_frequencies_of_llama_3_are_recognised(tmp_path, factor):
  plain, _ = rope_frequencies(16, 10_000.0)
  scaled, _ = rope_frequencies(
    16, 10_000.0, scaling='llama3', factor=factor, original_len=8192
  )
  factors = (plain / scaled).astype(np.float32)
  write_gguf(
    tmp_path / 'm.gguf', 'llama', tensors=[('rope_freqs.weight', factors)]
  )
  rope = read_architecture(GgufFile(tmp_path / 'm.gguf').config, 'x').rope
  assert (rope.scaling, rope.factor, rope.original_len) == (
    'llama3',
    factor,
    8192,
  )


@pytest.mark.parametrize('length', [5, 8, 16])
def test_other_frequencies_are_refused(tmp_path, length):
  write_gguf(
    tmp_path / 'm.gguf',
    'llama',
    tensors=[('rope_freqs.weight', np.full(length, 1.5, np.float32))],
  )
  with pytest.raises(WeightsError, match=r'rope_freqs\.weight is not that of'):
    GgufFile(tmp_path / 'm.gguf')


def cut(size):
  return lambda data: data[:size]


def huge_array(data):
  """An array of 2**60 numbers, by its header."""
  key = b'tokenizer.ggml.token_type'
  at = data.index(key) + len(key)
  start = struct.pack('<II', 9, 5)
  assert data[at : at + 8] == start
  return data[: at + 8] + struct.pack('<Q', 1 << 60) + data[at + 16 :]


def huge_string(data):
  key = b'tokenizer.ggml.pre'
  at = data.index(key) + len(key) + 4
  return data[:at] + struct.pack('<Q', 1 << 62) + data[at + 8 :]


@pytest.mark.parametrize(
  'damage',
  [
    cut(0),
    cut(3),
    cut(30),
    cut(400),
    cut(-40),
    huge_array,
    huge_string,
    lambda data: b'GGML' + data[4:],
    lambda data: data[:4] + struct.pack('<I', 77) + data[8:],
  ],
)
def test_damage_is_named_with_the_file(tmp_path, damage):
  path = tmp_path / 'm.gguf'
  write_gguf(path)
  path.write_bytes(damage(path.read_bytes()))
  with pytest.raises(WeightsError, match=r'm\.gguf: not a whole GGUF file: .'):
    GgufFile(path)


@pytest.mark.parametrize(
  ('kwargs', 'message'),
  [
    (
      {'tensors': [('blk.0.ffn_gate_inp.weight', np.zeros(32, np.float32))]},
      r'm\.gguf holds the tensor blk\.0\.ffn_gate_inp\.weight',
    ),
    (
      {'metadata': [('llama.rope.scaling.type', 'longrope')]},
      "RoPE scaling 'longrope' is not supported",
    ),
  ],
)
def test_what_a_llama_does_not_have_is_named(tmp_path, kwargs, message):
  write_gguf(tmp_path / 'm.gguf', **kwargs)
  with pytest.raises(WeightsError, match=message):
    GgufFile(tmp_path / 'm.gguf')


def test_another_architecture_is_named(tmp_path):
  writer = gguf.GGUFWriter(tmp_path / 'm.gguf', 'gemma')
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  with pytest.raises(WeightsError, match="'gemma', and can be llama, qwen2"):
    GgufFile(tmp_path / 'm.gguf')


def test_a_missing_file_is_named(tmp_path):
  with pytest.raises(
    WeightsError, match=r'cannot read .*absent\.gguf: No such'
  ):
    GgufFile(tmp_path / 'absent.gguf')
