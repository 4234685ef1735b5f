"""Folders of tiny models, as Hugging Face lays them out."""

import json

import numpy as np
import pytest
from tokenizers import Tokenizer, models

from longctx_jax.weights.hf_config import read_architecture
from longctx_jax.weights.safetensors_files import (
  TensorSpec,
  write_safetensors,
)
from longctx_jax.weights.tensor_table import tensor_shapes
from tests.weights import tiny_models


@pytest.fixture
def make_folder(tmp_path):
  """(family, changes to its config.json) -> a whole model folder."""

  def make(name='llama', dtype=np.float32, **changes):
    folder = tmp_path / name
    folder.mkdir()
    fields = {**tiny_models.config_of(name), **changes}
    (folder / 'config.json').write_text(json.dumps(fields))
    shapes = tensor_shapes(read_architecture(fields, name).model)
    made = tiny_models.random_tensors(shapes)
    dtype = np.dtype(dtype)
    specs = [TensorSpec(name, shape, dtype) for name, shape in shapes.items()]
    write_safetensors(folder, specs, made.__getitem__)
    words = {f'w{i}': i for i in range(tiny_models.BASE['vocab_size'])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token='w0'))
    tokenizer.save(str(folder / 'tokenizer.json'))
    return folder

  return make
