"""FLOPs of a step against the compiler's own analysis, and by hand."""

import dataclasses
import functools

import jax
import pytest

from longctx_jax import sharding
from longctx_jax.config import MeshConfig
from longctx_jax.plan.step_flops import (
  count_products,
  document_pairs,
  forward_runs,
  step_flops,
  tile_pairs,
)
from longctx_jax.train_step import (
  abstract_batch,
  abstract_state,
  make_train_step,
)
from tests import small


def traced_step(mesh=None, num_slices=1, **model):
  """A step of three layers, wide enough for products to be most of it."""
  config = small.stage_config(
    model={
      'vocab_size': 1024,
      'embed_dim': 128,
      'num_layers': 3,
      'num_heads': 4,
      'head_dim': 32,
      'hidden_dim': 512,
      'loss_chunk_len': 1024,  # all tokens: no loop
      **model,
    }
  )
  mesh = mesh or sharding.make_mesh(MeshConfig(), jax.devices()[:1])
  config = dataclasses.replace(
    config,
    mesh=MeshConfig(**mesh.shape, slices=num_slices),
    train=dataclasses.replace(config.train, micro_batches=num_slices),
  )
  step = make_train_step(config, mesh)
  return config, step.trace(
    abstract_state(config, mesh), abstract_batch(config, mesh)
  )


@functools.cache
def products(remat):
  config, traced = traced_step(attention='dense', remat=remat)
  return config, count_products(traced.jaxpr)


@pytest.mark.slow
@pytest.mark.parametrize('remat', ['none', 'full'])
def test_hardware_flops_are_those_of_the_compiler(remat):
  # Written out, layers are counted one by one by the compiler too; dense
  # attention is of products that both see.
  config, traced = traced_step(attention='dense', remat=remat, scan_unroll=-1)
  cost = traced.lower().compile().cost_analysis()
  flops = step_flops(config, traced.jaxpr, document_len=0)
  # Beside products it counts what is done number by number.
  assert 0.85 * cost['flops'] < flops.hardware < 1.02 * cost['flops']


def test_a_scan_of_layers_computes_what_written_out_layers_compute():
  _, scanned = products('none')
  _, traced = traced_step(attention='dense', remat='none', scan_unroll=-1)
  assert count_products(traced.jaxpr) == scanned


def test_products_are_those_of_the_formula():
  config, counted = products('none')
  flops = step_flops(
    config, traced_step(attention='dense')[1].jaxpr, document_len=0
  )
  # Dense attention makes all pairs, causal or not.
  B, T = config.data.batch_size, config.data.seq_len
  model = config.model
  extra = B * (T * T - document_pairs(T, 0))
  all_pairs = 3 * 2 * 2 * model.num_layers * model.num_heads * model.head_dim
  assert counted == pytest.approx(flops.model + all_pairs * extra)


def test_full_remat_makes_the_layers_products_once_more_but_for_the_last():
  config, none = products('none')
  _, full = products('full')
  model, tokens = config.model, config.data.batch_size * config.data.seq_len
  unembedding = 6 * tokens * model.embed_dim * model.vocab_size
  layers = none - unembedding
  # Nobody asks again for the outcome of a layer, or the product it ends in.
  down = 2 * tokens * model.embed_dim * model.hidden_dim * model.num_layers
  assert full - none == pytest.approx(layers / 3 - down)


@pytest.mark.parametrize(
  ('remat', 'runs'), [('none', 3), ('attention', 3), ('full', 6)]
)
def test_attention_runs_again_where_remat_drops_it(remat, runs):
  config, traced = traced_step(remat=remat)
  assert forward_runs(traced.jaxpr) == runs
  micro = dataclasses.replace(
    config, train=dataclasses.replace(config.train, micro_batches=2)
  )
  mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:1])
  halves = make_train_step(micro, mesh).trace(
    abstract_state(micro, mesh), abstract_batch(micro, mesh)
  )
  assert forward_runs(halves.jaxpr) == 2 * runs
  assert (
    step_flops(micro, halves.jaxpr, document_len=0).hardware
    == step_flops(config, traced.jaxpr, document_len=0).hardware
  )


@pytest.mark.slow
def test_a_mesh_computes_in_all_what_one_device_does():
  _, one = traced_step()
  _, eight = traced_step(sharding.make_mesh(MeshConfig(fsdp=2, context=4)))
  assert count_products(eight.jaxpr) == pytest.approx(
    count_products(one.jaxpr), rel=0.01
  )
  assert forward_runs(eight.jaxpr) == forward_runs(one.jaxpr)
  # Slices have a `shard_map` of their own around those of what they run.
  mesh = sharding.make_mesh(MeshConfig(data=2, fsdp=2, context=2))
  _, slices = traced_step(mesh, num_slices=2)
  assert count_products(slices.jaxpr) == pytest.approx(
    count_products(one.jaxpr), rel=0.01
  )
  assert forward_runs(slices.jaxpr) == 2 * forward_runs(one.jaxpr)


def test_kernels_make_whole_tiles():
  # A row of 8 in blocks of 2: 1 + 2 + 3 + 4 tiles of 4 pairs.
  assert document_pairs(8, 0) == 36
  assert tile_pairs(8, 0, 2) == 40
  # Documents of 4: twice 1 + 2 tiles.
  assert document_pairs(8, 4) == 20
  assert tile_pairs(8, 4, 2) == 24
  # Documents of 3 and a rest of 2, in blocks of 2: theirs are 0-1, 1-2, 3.
  assert document_pairs(8, 3) == 6 + 6 + 3
  assert tile_pairs(8, 3, 2) == (3 + 3 + 1) * 4


@pytest.mark.parametrize(('platform', 'backward'), [('tpu', 7), ('gpu', 5)])
def test_attention_makes_its_products_in_whole_tiles(platform, backward):
  config, traced = traced_step(attention_block_len=32)
  flops = step_flops(config, traced.jaxpr, document_len=0, platform=platform)
  # Rows of 128 tokens: 1 + 2 + 3 + 4 tiles of 32 x 32. Forward two products of
  # each, for each of four heads of 32 numbers.
  tiles = config.data.batch_size * 10 * 32 * 32
  one_product = 2 * tiles * 4 * 32
  attention = flops.hardware - count_products(traced.jaxpr)
  assert attention == pytest.approx(3 * (2 + backward) * one_product)


def test_short_documents_need_less_of_the_model_and_of_the_hardware():
  config, traced = traced_step()
  one, many = (
    step_flops(config, traced.jaxpr, document_len=n) for n in (0, 32)
  )
  assert one.model == one.model_causal == many.model_causal
  assert many.model < one.model
  assert many.hardware < one.hardware
