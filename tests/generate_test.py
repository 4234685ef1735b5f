"""Continuing prompts: batches, devices, stops, streams, compilations."""

import dataclasses
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

from longctx_jax import sharding
from longctx_jax.config import ConfigError, MeshConfig, RopeConfig
from longctx_jax.data.hf_tokenizer import HuggingFaceTokenizer
from longctx_jax.decode_loop import NO_TOKEN, bucket, chunk_lens, chunks_of
from longctx_jax.generate import Generator, PromptError
from longctx_jax.model import model_graph
from longctx_jax.sampling import Sampling
from tests import small
from tests.data.small_tokenizers import byte_level_bpe
from tests.random_params import graph_and_params

V, LONGEST, NEW = 512, 190, 7
CONFIG = dataclasses.replace(
  small.stage_config().model, vocab_size=V, num_layers=1, embed_dim=16
)
ROPE = RopeConfig(10_000.0)
PARAMS = graph_and_params(CONFIG, ROPE)[1]
DRAWN = Sampling(temperature=1.0, top_k=100, top_p=0.95)
# Chunks of 64 and 128 tokens; the longest prompt takes one of each.
SIZES = {'chunk_len': 128, 'steps_per_call': 3}


def mesh_of(**sizes):
  num_devices = int(np.prod([*sizes.values()], initial=1))
  return sharding.make_mesh(
    MeshConfig(fsdp=1, **sizes), jax.devices()[:num_devices]
  )


@pytest.fixture(scope='module')
def tokenizer(tmp_path_factory):
  path = tmp_path_factory.mktemp('hf') / 'tokenizer.json'
  byte_level_bpe().save(str(path))
  return HuggingFaceTokenizer(path)


@pytest.fixture(scope='module')
def generator(tokenizer):
  return Generator(CONFIG, ROPE, PARAMS, tokenizer=tokenizer, **SIZES)


def prompts_of(*lengths, seed=0):
  rng = np.random.default_rng(seed)
  return [rng.integers(0, 400, n).astype(np.int32) for n in lengths]


@jax.jit
def dense_logits(tokens):
  """Logits [T, V] of one row, by a full forward pass."""
  dense = dataclasses.replace(CONFIG, attention='dense')
  model = nnx.merge(model_graph(dense, ROPE), PARAMS)
  positions = jnp.arange(len(tokens), dtype=jnp.int32)[None]
  x = model(tokens[None], jnp.ones_like(tokens)[None], positions)
  return x[0] @ model.unembedding_matrix()


def assert_greedy(prompt, tokens, num_drawn):
  """Each token is the likeliest, given all before it."""
  row = np.zeros(max(LONGEST, len(prompt)) + NEW, np.int32)
  row[: len(prompt)] = prompt
  row[len(prompt) : len(prompt) + len(tokens)] = tokens
  logits = np.asarray(dense_logits(row))[:, :num_drawn]
  for k, token in enumerate(tokens.tolist()):
    at = logits[len(prompt) + k - 1]
    assert at[token] >= at.max() - 1e-5


def tokens_of(generated):
  return [each.tokens.tolist() for each in generated]


# One row always is of the same length, so that all share what is compiled.
@given(
  st.lists(
    st.integers(1, 3)
    | st.integers(62, 66)
    | st.integers(126, 130)
    | st.integers(188, LONGEST),
    min_size=3,
    max_size=3,
  ),
  st.integers(0, 99),
)
def test_greedy_tokens_are_those_of_full_forward_passes(
  generator, tokenizer, lengths, seed
):
  prompts = prompts_of(*lengths, LONGEST, seed=seed)
  generated = generator.generate(prompts, max_new_tokens=NEW)
  for prompt, (tokens, _, stopped_by) in zip(prompts, generated, strict=True):
    assert len(tokens) == NEW
    assert stopped_by == 'length'
    assert_greedy(prompt, tokens, tokenizer.vocab_size)


def test_the_log_says_what_reads_prompts_and_why(caplog):
  xla = dataclasses.replace(CONFIG, attention_kernel='xla')
  with caplog.at_level(logging.INFO):
    Generator(xla, ROPE, PARAMS, **SIZES)
  assert "prompts: kernel 'xla' (the config names it)" in caplog.messages


def test_the_cache_has_room_for_what_a_chunk_is_longer_than_its_prompt():
  (prompt,) = prompts_of(260)
  generator = Generator(CONFIG, ROPE, PARAMS, chunk_len=512)
  tokens, *_ = generator.generate([prompt], max_new_tokens=2)[0]
  assert_greedy(prompt, tokens, V)


@pytest.mark.parametrize('sampling', [Sampling(), DRAWN], ids=str)
def test_a_row_does_not_depend_on_the_others(generator, sampling):
  a, b, c, d = prompts_of(90, 5, LONGEST, 64)
  how = {'max_new_tokens': NEW, 'sampling': sampling, 'seed': 3}
  together = tokens_of(generator.generate([a, b, c], **how))
  others = tokens_of(generator.generate([c, b, d], **how))
  alone = tokens_of(generator.generate([a], **how))
  assert together[1] == others[1]
  assert together[0] == alone[0]
  assert together[2] != others[2]


def test_draws_repeat_with_their_seed_and_differ_between_rows(
  generator, tokenizer
):
  (prompt,) = prompts_of(9)
  how = {'max_new_tokens': NEW, 'sampling': DRAWN}
  first, again, other = (
    tokens_of(generator.generate([prompt] * 4, seed=seed, **how))
    for seed in (0, 0, 1)
  )
  assert first == again
  one_by_one = Generator(
    CONFIG, ROPE, PARAMS, tokenizer=tokenizer, steps_per_call=1
  )
  assert tokens_of(one_by_one.generate([prompt] * 4, **how)) == first
  assert len({tuple(tokens) for tokens in first + other}) == 8
  greedy = tokens_of(generator.generate([prompt] * 4, max_new_tokens=NEW))
  assert len({tuple(tokens) for tokens in greedy}) == 1


@pytest.mark.parametrize(
  'sizes',
  [
    {'context': 8},
    pytest.param({'context': 4, 'tensor': 2}, marks=pytest.mark.slow),
    pytest.param({'data': 2, 'context': 4}, marks=pytest.mark.slow),
  ],
  ids=str,
)
def test_eight_devices_continue_as_one_does(generator, tokenizer, sizes):
  spread = Generator(
    CONFIG, ROPE, PARAMS, mesh_of(**sizes), tokenizer=tokenizer, **SIZES
  )
  prompts = prompts_of(LONGEST, 7, 64)
  for sampling in (Sampling(), DRAWN):
    how = {'max_new_tokens': NEW, 'sampling': sampling}
    got = spread.generate(prompts, **how)
    assert tokens_of(got) == tokens_of(generator.generate(prompts, **how))


def test_a_stop_token_ends_its_row_and_is_left_out(generator):
  prompts = prompts_of(5, 20)
  free = generator.generate(prompts, max_new_tokens=NEW)
  stop = int(free[0].tokens[4])
  got = generator.generate(prompts, max_new_tokens=NEW, stop_ids=[stop])
  for before, after in zip(free, got, strict=True):
    expected = before.tokens.tolist()
    ended = stop in expected
    assert after.stopped_by == ('token' if ended else 'length')
    until = expected.index(stop) if ended else NEW
    assert after.tokens.tolist() == expected[:until]
  assert len(got[0].tokens) <= 4


def test_a_stop_string_ends_its_row_wherever_calls_end(tokenizer):
  ids = range(tokenizer.vocab_size)
  readable = [i for i in ids if tokenizer.decode([i]).isalnum()]
  params = {**PARAMS, 'unembedding': np.zeros_like(PARAMS['unembedding'])}
  params['unembedding'][:, readable] = PARAMS['unembedding'][:, readable]

  def generate(steps_per_call, **how):
    generator = Generator(
      *(CONFIG, ROPE, params),
      tokenizer=tokenizer,
      chunk_len=128,
      steps_per_call=steps_per_call,
    )
    prompts = [np.array(readable[:5]), np.array(readable[-20:])]
    return generator.generate(prompts, max_new_tokens=NEW, **how)

  tokens, text, _ = generate(1)[0]
  assert text.isalnum()
  # What only began like a stop string is shown in the end.
  assert generate(3, stop_strings=[text[-2:] + '!'])[0].text == text
  stop = text[2:4]
  for steps in (1, 3, 16):
    got = generate(steps, stop_strings=[stop])[0]
    assert got.text == text[: text.index(stop)]
    assert got.stopped_by == 'string'
    # No token more than it takes to complete the stop string.
    count = len(got.tokens)
    assert got.tokens.tolist() == tokens[:count].tolist()
    assert stop in tokenizer.decode(tokens[:count])
    assert stop not in tokenizer.decode(tokens[: count - 1])


def test_pieces_come_while_there_is_more_to_come(generator):
  prompts = prompts_of(5, 20)
  pieces = list(generator.stream(prompts, max_new_tokens=NEW))
  whole = generator.generate(prompts, max_new_tokens=NEW)
  for row, (tokens, text, stopped_by) in enumerate(whole):
    own = [piece for piece in pieces if piece.row == row]
    # The first token, then calls of three.
    assert [len(piece.tokens) for piece in own] == [1, 3, 3]
    assert np.concatenate([p.tokens for p in own]).tolist() == tokens.tolist()
    assert ''.join(piece.text for piece in own) == text
    assert [p.stopped_by for p in own] == ['', '', stopped_by]


def test_a_call_ends_when_all_rows_are_done(generator):
  """On the device: what is not drawn is not computed either."""
  model, params = generator._model, generator._params
  draw = generator._draw(Sampling(), 0, [])
  start = np.zeros(2, np.int32)

  def emitted(done, stop_step=99):
    """Which tokens are none, and how many places of the cache are filled."""
    tokens, cache = generator._programs.next_tokens(
      params,
      model.make_cache(2, 64),
      *(generator._on_rows(x) for x in (start, start, np.array(done))),
      np.int32(1),
      np.int32(stop_step),
      draw,
    )
    filled = np.any(np.asarray(cache[0].values) != 0, axis=(0, 2)).sum()
    return (np.asarray(tokens) == NO_TOKEN).tolist(), filled

  no, yes = [True] * 3, [False] * 3
  assert emitted([True, True]) == ([no, no], 0)
  assert emitted([True, False]) == ([no, yes], 3)
  assert emitted([False, False], 3) == ([[False, False, True]] * 2, 2)


def test_one_compilation_for_each_bucket_of_sizes(tokenizer):
  # A rope of its own, so that no other test has compiled anything for it.
  generator = Generator(
    CONFIG, RopeConfig(12_345.0), PARAMS, tokenizer=tokenizer, **SIZES
  )

  def compiled():
    return [program._cache_size() for program in generator._programs]

  for lengths in ((150, 70), (140, 129), (180, 1), (1, 160)):
    for sampling in (Sampling(), DRAWN, Sampling(0.5)):
      generator.generate(
        prompts_of(*lengths),
        max_new_tokens=lengths[1] % 5 + 1,
        sampling=sampling,
        seed=lengths[0],
        stop_ids=range(lengths[1] % 4),
        stop_strings=['zzz'],
      )
  # A chunk of 128, in which a row may end or not, and one of 64.
  assert compiled() == [1, 2, 1, 1]
  generator.generate(prompts_of(300, 1), max_new_tokens=2)
  assert compiled() == [2, 4, 1, 2]


def test_chunks_in_which_no_row_ends_leave_out_the_last_layer(generator):
  """All but its keys and values, as counted in what is compiled."""
  cache = generator._model.make_cache(1, 64)
  chunk = jnp.zeros((1, 64), jnp.int32)
  x, row = jnp.zeros((1, CONFIG.embed_dim)), jnp.zeros(1, jnp.int32)
  fill, read = (
    program.lower(generator._params, cache, *args).compile().cost_analysis()
    for program, args in (
      (generator._programs.fill_chunk, (chunk, np.int32(0))),
      (generator._programs.read_chunk, (x, chunk, np.int32(0), row)),
    )
  )
  # The model's only layer is its last: two projections are left.
  projections = 2 * 2 * 64 * CONFIG.embed_dim * CONFIG.num_kv_heads
  projections *= CONFIG.head_dim
  assert projections <= fill['flops'] < 2 * projections
  assert read['flops'] > 5 * fill['flops']


@pytest.mark.parametrize(
  'context', [1, pytest.param(8, marks=pytest.mark.slow)]
)
def test_no_call_copies_the_cache(context):
  generator = Generator(CONFIG, ROPE, PARAMS, mesh_of(context=context))
  model, params = generator._model, generator._params
  cache = model.make_cache(1, 65_536)
  cache_bytes = sum(x.nbytes for x in jax.tree.leaves(cache)) // context
  row = generator._on_rows(np.zeros(1, np.int32))
  x = generator._on_rows(np.zeros((1, CONFIG.embed_dim), np.float32))
  chunk = generator._on_rows(np.zeros((1, 64), np.int32))
  draw = generator._draw(Sampling(), 0, [])
  start = np.int32(0)
  programs = generator._programs
  for program, args in (
    (programs.fill_chunk, (cache, chunk, start)),
    (programs.read_chunk, (cache, x, chunk, start, row)),
    (programs.next_tokens, (cache, row, row, row > 0, start, start, draw)),
  ):
    stats = program.lower(params, *args).compile().memory_analysis()
    assert stats.alias_size_in_bytes >= cache_bytes
    # Scores of one token for all heads are a quarter of keys and values here,
    # twice over: before and after the exponential.
    assert stats.temp_size_in_bytes < 0.75 * cache_bytes


def test_ids_that_the_tokenizer_does_not_have_are_never_drawn(tokenizer):
  """Embeddings may be padded; what they hold there was never trained."""
  assert tokenizer.vocab_size < V
  params = {**PARAMS, 'unembedding': np.array(PARAMS['unembedding'])}
  params['unembedding'][:, tokenizer.vocab_size :] *= 100
  (prompt,) = prompts_of(9)
  how = {'max_new_tokens': NEW, 'sampling': Sampling(temperature=2.0)}
  free = Generator(CONFIG, ROPE, params, **SIZES)
  assert max(free.generate([prompt], **how)[0].tokens) >= tokenizer.vocab_size
  bound = Generator(CONFIG, ROPE, params, tokenizer=tokenizer, **SIZES)
  assert max(bound.generate([prompt], **how)[0].tokens) < tokenizer.vocab_size


@pytest.mark.parametrize(
  ('lengths', 'how', 'message'),
  [
    (
      (3, 95),
      {'max_new_tokens': 6},
      r'prompt 1 has 95 tokens, and with max_new_tokens=6 does not fit into'
      r' max_len=100: shorten it',
    ),
    ((3, 0), {'max_new_tokens': 1}, r'prompt 1 is empty'),
    ((), {'max_new_tokens': 1}, r'there are no prompts'),
    ((3,), {'max_new_tokens': 0}, r'max_new_tokens must be at least 1, got 0'),
    ((3,), {'max_new_tokens': 1, 'seed': 2**63}, r'seed must be at most 92'),
    ((3,), {'max_new_tokens': 2**31}, r'max_new_tokens must be at most 21474'),
    ((3,), {'max_new_tokens': 1, 'stop_strings': ['a']}, r'need a tokenizer'),
  ],
)
def test_what_cannot_be_continued_is_refused_in_a_line(lengths, how, message):
  generator = Generator(CONFIG, ROPE, PARAMS, max_len=100)
  with pytest.raises(PromptError, match=message) as error:
    generator.stream(prompts_of(*lengths), **how)
  assert '\n' not in str(error.value)


def test_wrong_tokens_tokenizers_and_meshes_are_refused(tokenizer):
  generator = Generator(CONFIG, ROPE, PARAMS, tokenizer=tokenizer)
  for wrong in (-1, V):
    with pytest.raises(PromptError, match='prompt 1 has tokens from'):
      generator.stream([np.array([1]), np.array([1, wrong])], max_new_tokens=1)
  with pytest.raises(PromptError, match='an empty one'):
    generator.stream([[1]], max_new_tokens=1, stop_strings=['a', ''])
  few = dataclasses.replace(CONFIG, vocab_size=300)
  with pytest.raises(PromptError, match='only 300 tokens'):
    Generator(few, ROPE, PARAMS, tokenizer=tokenizer)
  with pytest.raises(ConfigError, match=r'num_kv_heads=2 .* 4 shards'):
    Generator(CONFIG, ROPE, PARAMS, mesh_of(tensor=4))


@given(st.integers(1, 5000), st.sampled_from([1, 2, 3, 8, 24]))
def test_chunks_hold_the_prompt_with_little_to_spare(T, num_shards):
  lengths = chunk_lens(512, num_shards)
  chunks = list(chunks_of(T, lengths))
  assert set(chunks) <= set(lengths)
  assert all(length % num_shards == 0 for length in lengths)
  assert T <= sum(chunks) < max(2 * T, T + lengths[0])
  starts = np.cumsum([0, *chunks[:-1]])
  assert all(s % c == 0 for s, c in zip(starts, chunks, strict=True))


@given(st.integers(1, 10**7), st.sampled_from([64, 72]))
def test_a_bucket_is_hardly_larger_than_what_is_in_it(size, multiple):
  got = bucket(size, multiple)
  assert got % multiple == 0
  assert size <= got < size * 9 / 8 + multiple


def test_there_are_eight_buckets_for_each_doubling():
  buckets = {bucket(size, 1) for size in range(2048, 4096)}
  assert sorted(buckets) == list(range(2048, 4097, 256))
