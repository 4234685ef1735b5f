"""Typed, frozen configuration: what an ml_collections file turns into.

A config file builds a `ConfigDict`; `from_config_dict` turns it into these
dataclasses once, at the border. Library code never sees a `ConfigDict`.
What a `__post_init__` refuses begins with the field's own name, because
`from_config_dict` puts the path of the section before it.

Defaults exist only where a value is mechanical (a block length, how often to
log). What a recipe decides has none: its config file must say it.
"""

import dataclasses
import hashlib
import json
import math
from typing import Any, Literal

from longctx_jax.config_from_dict import (
  ConfigError,
  check_at_least,
  fill_defaults,
  from_config_dict,
  plain_dict,
)
from longctx_jax.corpus_config import CorpusConfig
from longctx_jax.data_config import (
  ConversationRows,
  DataConfig,
  SyntheticSource,
)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """A Llama-type decoder. RoPE is apart, because stages change it."""

  vocab_size: int
  embed_dim: int
  num_layers: int
  num_heads: int
  num_kv_heads: int
  head_dim: int
  hidden_dim: int
  tie_embeddings: bool
  norm_eps: float
  param_dtype: Literal['float32', 'bfloat16']
  compute_dtype: Literal['float32', 'bfloat16']
  # Initial size of the layers' kernels against 1 / sqrt(inputs).
  block_init_scale: float
  # What the backward pass makes again: nothing; all but products and attention;
  # all but attention, whose share grows with T; all; all, with what a layer
  # starts from kept in the host's memory meanwhile.
  remat: Literal['none', 'dots', 'attention', 'full', 'offload']
  attention: Literal['dense', 'blockwise'] = 'blockwise'
  attention_block_len: int = 512  # ours: the fastest of XLA's loops at T=4096
  # What computes 'blockwise': see ops.kernels.choice.
  attention_kernel: Literal['auto', 'xla', 'cpp', 'pallas', 'cudnn'] = 'auto'
  # Tokens whose logits exist at once, on one device or on those that split the
  # vocabulary (mesh.vocab_axes).
  loss_chunk_len: int = 2048
  # Of how many of its tokens, and how many features of each, a device holds the
  # feed-forward hidden at once; 0: all. Where a device has few tokens, kernels
  # are the larger part, which width cuts down.
  mlp_chunk_len: int = 0
  mlp_chunk_width: int = 0
  # Whether queries, keys and values have a bias, as in Qwen2.
  qkv_bias: bool = False
  # Layers written out per step of the scan. On CPUs a scanned layer runs its
  # element-wise work on one core, so small models unroll them all (-1).
  scan_unroll: int = 1

  def __post_init__(self):
    check_at_least(self, 1, 'vocab_size', 'embed_dim', 'num_layers')
    check_at_least(self, 1, 'num_heads', 'num_kv_heads', 'head_dim')
    check_at_least(self, 1, 'hidden_dim', 'attention_block_len')
    check_at_least(self, 1, 'loss_chunk_len')
    check_at_least(self, 0, 'mlp_chunk_len', 'mlp_chunk_width')
    if self.hidden_dim % (self.mlp_chunk_width or 1):
      raise ConfigError(
        f'mlp_chunk_width={self.mlp_chunk_width} does not divide'
        f' hidden_dim={self.hidden_dim}'
      )
    if self.scan_unroll != -1:
      check_at_least(self, 1, 'scan_unroll')
    if self.num_heads % self.num_kv_heads:
      raise ConfigError(
        f'num_heads={self.num_heads} is not a multiple of'
        f' num_kv_heads={self.num_kv_heads}'
      )
    if self.head_dim % 2:
      raise ConfigError(f'head_dim={self.head_dim} must be even for RoPE')


# ours: beyond these, frequencies of RoPE are no longer finite numbers above 0.
_MAX_ROPE, _MIN_RAMP = 1e30, 1e-6


@dataclasses.dataclass(frozen=True)
class RopeConfig:
  """Rotary base and scaling; the fields of `ops.rope.rope_frequencies`."""

  base: float
  scaling: Literal['none', 'linear', 'ntk', 'yarn', 'llama3'] = 'none'
  factor: float = 1.0
  original_len: int = 0
  beta_fast: float = 32.0
  beta_slow: float = 1.0
  low_freq_factor: float = 1.0
  high_freq_factor: float = 4.0

  def __post_init__(self):
    check_at_least(self, 1, 'factor')
    if not self.base > 1:
      raise ConfigError(f'base must be above 1, got {self.base}')
    for name in ('base', 'factor'):
      if getattr(self, name) > _MAX_ROPE:
        raise ConfigError(
          f'{name} must be at most {_MAX_ROPE}, got {getattr(self, name)}'
        )
    check_at_least(self, _MIN_RAMP, 'beta_fast', 'beta_slow', 'low_freq_factor')
    if not self.low_freq_factor < self.high_freq_factor < math.inf:
      raise ConfigError(
        f'high_freq_factor must be above low_freq_factor='
        f'{self.low_freq_factor}, got {self.high_freq_factor}'
      )
    if self.scaling in ('yarn', 'llama3') and self.original_len < 1:
      raise ConfigError(
        f'scaling={self.scaling} needs original_len, the length'
        f' before stretching, got {self.original_len}'
      )

  def __str__(self) -> str:
    """What is not as it is by default, for people to read."""
    told = (
      (field.name, getattr(self, field.name))
      for field in dataclasses.fields(self)
      if getattr(self, field.name) != field.default
    )
    return ', '.join(f'{name} {value}' for name, value in told)


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """Devices along each axis; one of them may be -1: all that are left."""

  data: int = 1
  fsdp: int = -1
  context: int = 1
  tensor: int = 1
  # Groups of devices with fast links among them, as slices of TPUs are; `data`
  # spans them, all other axes stay inside of one. GPUs and CPUs do not say what
  # their slices are: equal numbers of processes make one.
  slices: int = 1
  # How the parts of a row on `context` attend to each other, and which parts
  # lie where: see ops.context_parallel and ops.sequence_layout.
  context_kind: Literal['ring', 'allgather', 'ulysses'] = 'ring'
  context_layout: Literal['contiguous', 'zigzag'] = 'zigzag'
  # Over which axes, beside tensor, the loss splits the vocabulary: logits, the
  # unembedding and its gradient. Along them it sends tokens around instead of
  # the unembedding: less to hold, and less to send if there are fewer tokens.
  vocab_axes: tuple[Literal['fsdp', 'context'], ...] = ('context',)

  def __post_init__(self):
    check_at_least(self, 1, 'slices')


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  """Optimizer and learning-rate schedule."""

  name: Literal['adamw', 'muon']
  peak_lr: float
  schedule: Literal['cosine', 'linear', 'constant']
  warmup_steps: int
  # The schedule ends at peak_lr * min_lr_ratio.
  min_lr_ratio: float
  weight_decay: float
  b1: float
  b2: float
  clip_norm: float
  # muon: peak rate of the Adam that updates embeddings and norms.
  adam_peak_lr: float = 0.0
  # In what the first moment is stored, Adam's and Muon's. The second has the
  # dtype of the parameters: it moves by (1 - b2) of a change, 1 in 20 at 0.95
  # and 1 in 1000 at 0.999, which bfloat16, rounding to 1 in 256, would lose.
  moment_dtype: Literal['float32', 'bfloat16'] = 'float32'

  def __post_init__(self):
    check_at_least(self, 0, 'peak_lr', 'warmup_steps', 'weight_decay')
    if not self.clip_norm > 0:
      raise ConfigError(f'clip_norm must be above 0, got {self.clip_norm}')
    if self.name == 'muon' and not self.adam_peak_lr > 0:
      raise ConfigError(
        'name=muon needs adam_peak_lr > 0 for embeddings'
        f' and norms, got {self.adam_peak_lr}: they would never be trained'
      )


@dataclasses.dataclass(frozen=True)
class TrainConfig:
  """The loop."""

  steps: int
  # The batch is cut into this many micro-batches, summed before the update.
  micro_batches: int
  # 'none' | 'weights' | 'weights_and_optimizer': taken over from before.
  carry_over: Literal['none', 'weights', 'weights_and_optimizer']
  # What a first stage takes over: a model folder (longctx convert), or the
  # checkpoints/ directory of a stage of another run.
  init_from: str = ''
  log_every: int = 10

  def __post_init__(self):
    check_at_least(self, 1, 'steps', 'micro_batches', 'log_every')
    if self.init_from and self.carry_over == 'none':
      raise ConfigError(
        f'init_from={self.init_from} would not be read: set'
        ' carry_over to weights or weights_and_optimizer'
      )


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
  """How often the whole training state is written, and how many are kept."""

  every_steps: int
  keep: int = 2

  def __post_init__(self):
    check_at_least(self, 1, 'every_steps', 'keep')


@dataclasses.dataclass(frozen=True)
class NeedleConfig:
  """Grid of the needle test: lengths in tokens, evenly spaced depths."""

  lengths: tuple[int, ...]
  num_depths: int
  samples: int
  # Needles in the haystack in the multi-needle test; one is asked for.
  num_needles: int


@dataclasses.dataclass(frozen=True)
class EvalsConfig:
  """What is measured after a stage."""

  needle: NeedleConfig
  table_lengths: tuple[int, ...]
  table_samples: int
  validation_len: int
  validation_rows: int
  batch_tokens: int


@dataclasses.dataclass(frozen=True)
class StageConfig:
  """One stage of a recipe: everything that `longctx train` needs."""

  name: str
  # Where the recipe comes from, shown in the report.
  source: str
  seed: int
  corpus: CorpusConfig
  data: DataConfig
  model: ModelConfig
  rope: RopeConfig
  mesh: MeshConfig
  optimizer: OptimizerConfig
  train: TrainConfig
  checkpoint: CheckpointConfig
  evals: EvalsConfig

  def __post_init__(self):
    if self.data.batch_size % self.train.micro_batches:
      raise ConfigError(
        f'data.batch_size={self.data.batch_size} does not divide into'
        f' train.micro_batches={self.train.micro_batches}'
      )
    # More is common: embeddings padded to a size that devices like.
    if self.model.vocab_size < self.corpus.vocab_size:
      raise ConfigError(
        f'model.vocab_size={self.model.vocab_size} has no room for the tokens'
        f' of corpus.vocab_size={self.corpus.vocab_size}: set it to that, or'
        ' above'
      )
    seq_len = self.data.seq_len
    for name, source in self.data.mixture.items():
      if isinstance(source, ConversationRows):
        self._check_conversations(name, source)
      if isinstance(source, SyntheticSource) and source.max_len > seq_len:
        raise ConfigError(
          f'data.mixture.{name}.max_len={source.max_len} does not fit into rows'
          f' of data.seq_len={seq_len}'
        )

  def _check_conversations(self, name: str, source: ConversationRows):
    """Their kinds are there, and none is too long for rows of whole ones."""
    corpus = self.corpus
    if not corpus.asks_for_conversations:
      raise ConfigError(
        f'data.mixture.{name}: the corpus has no conversations. Ask for some'
        ' (corpus.conversations.extract=1000, or'
        ' corpus.conversation_files.NAME.path), or take this source out of'
        ' data.mixture'
      )
    there = [*corpus.conversations, *corpus.conversation_files]
    absent = [kind for kind in source.conversations if kind not in there]
    if absent:
      raise ConfigError(
        f'data.mixture.{name}.conversations: {absent[0]} is neither in'
        ' corpus.conversations nor in corpus.conversation_files, which have'
        f' {", ".join(there)}'
      )
    if source.planner != 'whole':
      return
    for kind in source.conversations or there:
      field, longest = corpus.longest_conversation(kind)
      if longest > self.data.seq_len:
        raise ConfigError(
          f'data.mixture.{name}: conversations of up to'
          f' corpus.{field}={longest} tokens do not fit whole into'
          f' rows of data.seq_len={self.data.seq_len}'
        )


SHARED_SECTIONS = ('source', 'seed', 'corpus', 'model', 'evals')


def stages_from_recipe(config: Any) -> tuple[StageConfig, ...]:
  """The stages of a recipe `ConfigDict`, in `stage_order`.

  A recipe holds once what all stages share (`SHARED_SECTIONS`), and under
  `stages` what each has of its own.
  """
  fields = plain_dict(config)
  for key in ('stages', 'stage_order', *SHARED_SECTIONS):
    if key not in fields:
      raise ConfigError(
        f'config.{key} is missing: a recipe needs stages, stage_order and'
        f' {", ".join(SHARED_SECTIONS)}. A file of one stage is run by'
        ' `longctx train`'
      )
  stages, order = fields.pop('stages'), fields.pop('stage_order')
  if sorted(order) != sorted(stages):
    raise ConfigError(
      f'config.stage_order {tuple(order)} does not list the stages'
      f' {tuple(stages)}'
    )
  return tuple(
    from_config_dict(
      StageConfig,
      {'name': name, **fields, **stages[name]},
      f'config.stages.{name}',
    )
    for name in order
  )


def add_defaults(config: Any) -> None:
  """Gives the `ConfigDict` of a stage or recipe every field with a default."""
  fill_defaults(StageConfig, config)
  if 'stages' in config:
    for stage in config.stages.values():
      fill_defaults(StageConfig, stage)


def to_json(config: Any) -> str:
  """A dataclass config as JSON, for `config.json` and the checkpoint."""
  return json.dumps(dataclasses.asdict(config), indent=2)


def config_hash(*configs: Any) -> str:
  """Twelve hex digits that change with any field."""
  text = '\n'.join(to_json(config) for config in configs)
  return hashlib.sha256(text.encode()).hexdigest()[:12]
