"""Turning tensors: drawn, there and back, and in parts."""

import numpy as np
import pytest

from longctx_jax.weights.hf_config import read_architecture
from longctx_jax.weights.tensor_table import (
  WeightsError,
  axis_sizes,
  check_tensors,
  entries,
  slices_of_theirs,
  tensor_names,
  tensor_shapes,
  to_ours,
  to_theirs,
)
from tests.weights import tiny_models

MODEL = read_architecture(tiny_models.config_of('qwen2'), 'x').model
SIZES = axis_sizes(MODEL)
ENTRIES = {entry.path: entry for entry in entries(MODEL)}


def drawn(entry):
  shape = tensor_shapes(MODEL)[tensor_names(entry, MODEL)[0]]
  return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


def test_heads_stand_apart_and_inputs_first():
  # Two heads of two rows (outputs), three inputs.
  theirs = np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9], [10, 11, 12]])
  ours = to_ours(
    theirs, ENTRIES['blocks.attention.query'], {'N': 2, 'H': 2, 'D': 3}
  )
  assert ours.tolist() == [
    [[1, 4], [7, 10]],  # from the first input to both heads
    [[2, 5], [8, 11]],
    [[3, 6], [9, 12]],
  ]


@pytest.mark.parametrize('path', ENTRIES)
def test_there_and_back_is_the_same(path):
  entry = ENTRIES[path]
  x = drawn(entry)
  ours = to_ours(x, entry, SIZES)
  assert ours.shape == tuple(SIZES[a] for a in entry.ours)
  np.testing.assert_array_equal(to_theirs(ours, entry), x)


@pytest.mark.parametrize('path', ENTRIES)
def test_a_part_read_is_the_part_of_the_whole(path):
  entry = ENTRIES[path]
  x = drawn(entry)
  # All but the head dim, which is never split.
  for axis in set(entry.ours) - {'H'}:
    half = slice(SIZES[axis] // 2, None)
    index = [half if a == axis else slice(None) for a in entry.ours]
    theirs, part_sizes = slices_of_theirs(index, entry, SIZES)
    np.testing.assert_array_equal(
      to_ours(x[theirs], entry, part_sizes),
      to_ours(x, entry, SIZES)[tuple(index)],
    )


def test_a_cut_through_heads_is_refused():
  index = (slice(None), slice(None), slice(0, 4))
  with pytest.raises(ValueError, match='H cannot be cut'):
    slices_of_theirs(index, ENTRIES['blocks.attention.query'], SIZES)


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (
      lambda s: s.pop('model.layers.1.mlp.up_proj.weight'),
      r'^F lacks the tensor model\.layers\.1\.mlp\.up_proj\.weight$',
    ),
    (
      lambda s: (s.pop('lm_head.weight'), s.pop('model.norm.weight')),
      r'^F lacks the tensor lm_head\.weight and 1 more$',
    ),
    (
      lambda s: s.update({'model.layers.2.mlp.up_proj.weight': (44, 32)}),
      r'holds the tensor model\.layers\.2\..* no place',
    ),
    (
      lambda s: s.update({'model.norm.weight': (31,)}),
      r'model\.norm\.weight has the shape \(31,\), .* \(32,\)',
    ),
  ],
)
def test_what_does_not_fit_is_named(change, message):
  shapes = tensor_shapes(MODEL)
  check_tensors(shapes, MODEL, 'F')
  change(shapes)
  with pytest.raises(WeightsError, match=message):
    check_tensors(shapes, MODEL, 'F')


def test_what_transformers_passes_over_is_passed_over():
  tied = read_architecture(tiny_models.config_of('qwen2_tied'), 'x').model
  shapes = {
    **tensor_shapes(tied),
    'model.layers.0.self_attn.rotary_emb.inv_freq': (4,),
    'lm_head.weight': (61, 32),
  }
  check_tensors(shapes, tied, 'F')
