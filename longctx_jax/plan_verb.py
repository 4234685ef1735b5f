"""`longctx plan`: will a stage fit on these TPUs, and how fast is it."""

import dataclasses
import json
from pathlib import Path

import jax
from absl import flags

from longctx_jax.command_line import fail, parse_flags
from longctx_jax.config import (
  StageConfig,
  from_config_dict,
  stages_from_recipe,
)
from longctx_jax.plan.as_text import as_text, search_text
from longctx_jax.plan.page import write_plan_page
from longctx_jax.plan.plan_stage import as_json, plan_stage
from longctx_jax.plan.search import best_first, search
from longctx_jax.plan.topology import known_topologies
from longctx_jax.workdir import write_atomically


def plan_verb(argv: list[str]) -> None:
  """Plans a stage or all stages of a recipe; prints, writes what is asked."""
  values = parse_flags(
    'plan', argv, config=True, directories={}, define=_define_flags
  )
  if not values.topology:
    fail(
      '--topology=NAME is missing (longctx plan --help); known are'
      f' {known_topologies()}'
    )
  # Nothing runs, so no accelerator is needed that a run may be holding.
  jax.config.update('jax_platforms', 'cpu')
  stages = _stages(values)
  how = {'document_len': values.document_len}
  if values.search:
    if len(stages) > 1:
      fail('--search is for one stage: name it by --stage')
    plans = []
    for plan in search(
      stages[0], values.topology, num_meshes=values.num_meshes, **how
    ):
      print(search_text([plan]).splitlines()[-1], flush=True)
      plans.append(plan)
    if not plans:
      fail(
        f'no mesh of --topology={values.topology} divides the sizes of'
        f' {stages[0].name}'
      )
    plans = best_first(plans)
    print(f'\nbest first\n{search_text(plans)}')
  else:
    plans = []
    for stage in stages:
      plan = plan_stage(stage, values.topology, **how)
      print(as_text(plan), end='\n\n', flush=True)
      plans.append(plan)
  if values.json:
    answers = [as_json(plan) for plan in plans]
    whole = answers[0] if len(answers) == 1 else {'stages': answers}
    write_atomically(Path(values.json), json.dumps(whole, indent=2) + '\n')
  if values.html:
    write_plan_page(plans, Path(values.html))


def _stages(values):
  if 'stages' in values.config:
    stages = _named(stages_from_recipe(values.config), values)
  else:
    stages = (from_config_dict(StageConfig, values.config),)
  if not values.slices:
    return stages
  return tuple(
    dataclasses.replace(
      stage, mesh=dataclasses.replace(stage.mesh, slices=values.slices)
    )
    for stage in stages
  )


def _named(stages, values):
  if not values.stage:
    return stages
  named = [stage for stage in stages if stage.name == values.stage]
  if not named:
    names = ', '.join(stage.name for stage in stages)
    fail(f'--stage={values.stage}: the recipe has {names}')
  return tuple(named)


def _define_flags(values: flags.FlagValues) -> None:
  for name, default, what in (
    ('topology', '', 'TPUs to compile for, such as v5p:2x2x4, or v5p-32'),
    ('stage', '', 'stage of a recipe, else all of them'),
    ('json', '', 'file for the figures'),
    ('html', '', 'file for a page with a memory bar a stage'),
  ):
    flags.DEFINE_string(name, default, what, flag_values=values)
  for name, default, least, what in (
    ('slices', 0, 0, 'slices of that topology; 0: as many as mesh.slices'),
    (
      'document_len',
      0,
      0,
      'tokens of the documents in a row, where they are masked; 0: a row each',
    ),
    ('num_meshes', 8, 1, 'how many meshes --search compiles for'),
  ):
    flags.DEFINE_integer(
      name, default, what, lower_bound=least, flag_values=values
    )
  flags.DEFINE_bool(
    'search',
    False,
    'try meshes and remat policies; print those that fit, best first',
    flag_values=values,
  )
