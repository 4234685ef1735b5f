"""What config files share: the arguments behind the colon, the laptop's sizes.

A config file is called with the text right of the colon in
`--config=FILE.py:tiny`. Such arguments are for switches that change several
fields at once; single fields have flags of their own (--config.train.steps=2).
"""

from ml_collections import ConfigDict


def parse_arg(arg: str, **defaults: bool | str) -> ConfigDict:
  """`'tiny,topology=v5p-64'` -> {tiny: True, topology: 'v5p-64', ...}.

  What is False by default is a switch; what is '' takes a value.

  Raises:
    ValueError: a name that the config file does not know, a value too many or
      one that is missing.
  """
  parsed = ConfigDict(defaults)
  for option in filter(None, (arg or '').split(',')):
    name, equals, value = option.partition('=')
    if name not in defaults:
      raise ValueError(
        f'config option {name!r} is unknown; this file has'
        f' {", ".join(defaults)}'
      )
    is_switch = defaults[name] is False
    if is_switch and equals:
      raise ValueError(
        f'config option {option!r}: {name} is a switch, give :{name} alone'
      )
    if not is_switch and not value:
      raise ValueError(f'config option {name!r} needs a value: {name}=...')
    parsed[name] = True if is_switch else value
  return parsed


def arg_of(**options: bool | str) -> str:
  """The inverse of `parse_arg`, to ask another file for the same."""
  return ','.join(
    name if value is True else f'{name}={value}'
    for name, value in options.items()
    if value
  )


def layout(
  *,
  fsdp: int,
  context: int,
  micro_batches: int,
  remat: str = 'full',
  data: int = 1,
  tensor: int = 1,
) -> dict[str, dict]:
  """How a stage lies on a topology: an entry of a config's table of them.

  What benchmarks/plan_stages.py prints has the compiler's figures of each. The
  stages of a recipe share a model, so they take the same `remat`.
  """
  axes = {'data': data, 'fsdp': fsdp, 'context': context, 'tensor': tensor}
  return {
    'mesh': axes,
    'model': {'remat': remat},
    'train': {'micro_batches': micro_batches},
  }


def choose_topology(
  config: ConfigDict, options: ConfigDict, table: dict[str, dict]
) -> None:
  """Sets what `table` says of `options.topology`, if one is asked for.

  Names are Google's: the number counts cores in v4 and v5p, which have two a
  chip, and chips in v5e and v6e.

  Raises:
    ValueError: the table has no such topology, or it is asked for at the
      laptop's size, which takes the devices that there are.
  """
  if not options.topology:
    return
  if options.tiny:
    raise ValueError(
      f'config options tiny and topology={options.topology} exclude each other:'
      ' tiny takes the devices that there are'
    )
  if options.topology not in table:
    raise ValueError(
      f'config option topology={options.topology} is unknown; this file has'
      f' {", ".join(table)}'
    )
  config.update(table[options.topology])


def recipe_from_stages(stages: dict[str, ConfigDict]) -> ConfigDict:
  """One config of all stages: shared sections once, the rest by stage.

  Raises:
    ValueError: stages differ in a section that all must share.
  """
  config = ConfigDict({'stage_order': tuple(stages), 'stages': {}})
  shared = ('source', 'seed', 'corpus', 'model', 'evals')
  first = next(iter(stages.values()))
  for key in shared:
    config[key] = first[key]
  for name, stage in stages.items():
    other = [key for key in shared if stage[key] != first[key]]
    if other:
      raise ValueError(
        f'stage {name} has a section {other[0]} unlike that of the first stage'
      )
    config.stages[name] = ConfigDict(
      {k: stage[k] for k in stage if k not in (*shared, 'name')}
    )
  return config


def text_source(kind: str, max_chars: int) -> ConfigDict:
  """A source that can be replaced by your own text: each field is a flag."""
  return ConfigDict(
    {
      'kind': kind,
      'max_chars': max_chars,
      'path': '',
      'suffixes': (),
      'text_field': 'text',
      'name_field': '',
      'split': '',
      'errors': 'problem',
      'line_ends': 'normalise',
      'on_problem': 'skip',
      'max_document_chars': 50_000_000,
    }
  )


def all_documents() -> ConfigDict:
  """Filters that let every document through, but stubs."""
  return ConfigDict(
    {
      'deduplicate': False,
      'min_chars': 200,  # ours: shorter ones, such as an __init__.py of imports
      'min_tokens': 0,
      'max_tokens': 0,
      'too_long': 'cut',
    }
  )


def lookup_lists(
  weight: float, *, min_len: int, max_len: int, question_frac: float
) -> ConfigDict:
  """A source of lists of words to look up: what a laptop's model can learn.

  With a tenth of the tables of every other task and layout, needle accuracy at
  512 tokens fell from 45% to 5%.

  Every other list has remarks: bare ones hold nothing to be distracted by, as
  the texts that hide needles do. Needle accuracy with bare lists alone, and
  with remarks in half of those of long SFT, all else equal (one run a seed, the
  key that the answer repeats counted too):

      seed   at 512 tokens   at 1,024 tokens
         1   100% -> 100%      95% -> 98%
         2    55% ->  88%      32% -> 72%
  """
  return ConfigDict(
    {
      'kind': 'tables',
      'weight': weight,
      'tasks': {'retrieve': 1.0},
      'layouts': {'plain': 1.0, 'annotated': 1.0},
      'num_columns': 2,
      'min_len': min_len,
      'max_len': max_len,
      'question_frac': question_frac,
      'max_questions': 100,
    }
  )


def shrink_to_laptop(config: ConfigDict) -> None:
  """Model, corpus and evaluations that two CPU cores train in minutes.

  Everything here is ours: what learned to look things up soonest in experiments
  on two cores. Muon did at these settings where Adam had not.
  """
  config.source = f'{config.source}, laptop size'
  config.corpus = ConfigDict(
    {
      **config.corpus.to_dict(),
      # Real text that is there, or downloads by name in seconds.
      'sources': {
        'code': {'kind': 'packages', 'max_chars': 1_500_000},
        'stdlib': {'kind': 'stdlib', 'max_chars': 1_500_000},
        'books': text_source('books', 1_500_000),
        'docs': {'kind': 'docs', 'max_chars': 1_000_000},
      },
      'vocab_size': 2048,
      # One is trained, whatever the full size is given.
      'tokenizer_path': '',
      'bos_token': '',
      'eos_token': '',
      'chat_template': 'plain',
      'heldout_frac': 0.05,
      # The needle's wording is in here, at the short length only: whether
      # training on long tables carries it to long texts is the question.
      'conversations': {
        'write_function': 500,
        'define': 500,
        'extract': 3_000,
        'needle': 12_000,
      },
      'max_conversation_len': 128,
    }
  )
  config.model.update(
    {
      'vocab_size': 2048,
      'embed_dim': 128,
      'num_layers': 2,
      'num_heads': 4,
      'num_kv_heads': 4,
      'head_dim': 32,
      'hidden_dim': 256,
      'compute_dtype': 'float32',
      # From small kernels the layers learn to match keys at once: lists of
      # three words, 400 steps of 1,024 tokens, accuracy 1.00 against 0.31.
      'block_init_scale': 0.2,
      'remat': 'none',
      'mlp_chunk_len': 0,
      'mlp_chunk_width': 0,
      'scan_unroll': -1,
      # Short rows hold several documents: small tiles skip more.
      'attention_block_len': 128,
    }
  )
  config.evals = ConfigDict(
    {
      'needle': {
        'lengths': (128, 256, 512, 768, 1024, 1536),
        'num_depths': 5,
        'samples': 8,
        'num_needles': 4,
      },
      'table_lengths': (128, 1024),
      'table_samples': 8,
      'validation_len': 1024,
      'validation_rows': 32,
      'batch_tokens': 16_384,
    }
  )
