"""What a traced function is made of."""

import collections

import jax


def equations(jaxpr):
  """All equations of a jaxpr, those inside of loops and kernels too."""
  for eqn in jaxpr.eqns:
    yield eqn
    for param in jax.tree.leaves(
      list(eqn.params.values()), is_leaf=lambda x: hasattr(x, 'eqns')
    ):
      if hasattr(param, 'eqns'):
        yield from equations(param)


def primitives(jaxpr):
  """How often each primitive is written in a jaxpr, by name."""
  return collections.Counter(eqn.primitive.name for eqn in equations(jaxpr))
