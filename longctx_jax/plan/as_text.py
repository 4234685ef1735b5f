"""Plans as plain text, for a terminal: one screen each."""

from collections.abc import Sequence

from longctx_jax.plan.plan_stage import Plan

NETWORKS = {
  'hbm': 'HBM',
  'ici': 'ICI',
  'dcn': 'DCN',
  'compute': 'compute',
  'host': 'host memory',
}


def as_text(plan: Plan) -> str:
  """One stage on one topology."""
  data, memory, flops = plan.config.data, plan.memory, plan.flops
  mesh = ' x '.join(f'{axis} {n}' for axis, n in plan.axis_sizes.items())
  lines = [
    f'stage {plan.config.name}: {data.batch_size:,} rows of {data.seq_len:,}'
    f' tokens on {chips_text(plan)}',
    f'mesh {mesh}; remat {plan.config.model.remat};'
    f' compiled in {plan.seconds:.0f} s',
    '',
    verdict(plan),
    f'  arguments    {gb(memory.arguments)}  parameters, optimizer, batch',
    f'  temporaries  {gb(memory.temporaries)}',
    f'  outputs      {gb(memory.outputs)} '
    f' {gb(memory.aliased).strip()} of it in the place of arguments',
    f'  total        {gb(memory.total)}  of {gb(memory.capacity).strip()}',
    '',
    f'FLOPs of a step, all chips, {documents_text(plan)}:',
    f'  model        {flops.model:10.3g}',
    f'  model if a row were one document {flops.model_causal:10.3g}',
    f'  hardware     {flops.hardware:10.3g}  with what remat makes again',
  ]
  if plan.time is None:
    return '\n'.join([*lines, '', plan.problem])
  lines += [
    '',
    'collective            axis              times   GB a chip sends',
  ]
  for one in plan.sent[:8]:
    network = ' (DCN)' if one.crosses_slices else ''
    lines.append(
      f'  {one.kind:19} {one.axis + network:15} {one.count:8,.0f}'
      f' {one.bytes / 1e9:14,.3f}'
    )
  if len(plan.sent) > 8:
    rest = sum(one.bytes for one in plan.sent[8:])
    lines.append(f'  and {len(plan.sent) - 8} more: {rest / 1e9:,.3f} GB')
  time = plan.time
  terms = ', '.join(
    f'{NETWORKS[name]} {seconds:.3g}'
    for name, seconds in time._asdict().items()
  )
  lines += [
    '',
    f'predicted, from {plan.chip.source}; nobody ran it:',
    f'  step         {time.step_s:10.3g} s at the least ({terms});'
    f' {time.unhidden_s:.3g} s if nothing is hidden',
    f'  bottleneck   {NETWORKS[time.bottleneck]}',
    f'  tokens/s     {plan.tokens_per_step / time.step_s:10,.0f} at the most',
    f'  MFU          {100 * plan.mfu:10.1f} % at the most',
    f'  {plan.config.train.steps:,} steps  {plan.days:.3g} days,'
    f' {plan.chip_hours:,.0f} chip-hours at the least',
  ]
  return '\n'.join(lines)


def search_text(plans: Sequence[Plan]) -> str:
  """A line for each choice, in the order given."""
  lines = [
    'mesh (data fsdp context tensor)  remat        GB of'
    f' {plans[0].memory.capacity / 1e9:.1f}  predicted s  bottleneck'
  ]
  for plan in plans:
    mesh = ' '.join(f'{n:5}' for n in plan.axis_sizes.values())
    total = f'{plan.memory.total / 1e9:10.2f}'
    if not plan.memory.fits:
      over = (plan.memory.total - plan.memory.capacity) / 1e9
      rest = f'too large by {over:.2f} GB'
    elif plan.time is None:
      rest = plan.problem
    else:
      name = NETWORKS[plan.time.bottleneck]
      rest = f'{plan.time.step_s:11.3g}  {name}'
    lines.append(f'{mesh:31}  {plan.config.model.remat:10} {total}     {rest}')
  return '\n'.join(lines)


def verdict(plan: Plan) -> str:
  """Whether it fits, and by how much."""
  spare = plan.memory.capacity - plan.memory.total
  if plan.memory.fits:
    return f'fits: {gb(spare).strip()} of a chip are left'
  return f'does not fit: {gb(-spare).strip()} a chip too much'


def chips_text(plan: Plan) -> str:
  """'16 chips (v5p:2x2x4)'."""
  slices = f'{plan.num_slices} x ' if plan.num_slices > 1 else ''
  return f'{plan.num_chips:,} chips ({slices}{plan.topology})'


def documents_text(plan: Plan) -> str:
  """What is assumed of documents."""
  if plan.document_len:
    return f'in documents of {plan.document_len:,} tokens'
  return 'rows of one document'


def gb(num_bytes: float) -> str:
  """Ten to the ninth bytes."""
  return f'{num_bytes / 1e9:8.2f} GB'
