"""`longctx`, disturbed in one process before a step: run by `hosts_test.py`.

DISTURB=sleep:3 has it wait for ever before it reads the batch of step 3, as on
a disk that hangs; DISTURB=term:3 sends it SIGTERM there.
"""

import os
import signal
import time

from longctx_jax import __main__, train

make_pipeline = train.make_pipeline


def disturbed(*args, **kwargs):
  what, _, when = os.environ['DISTURB'].partition(':')
  step = kwargs['start_step']
  for batch in make_pipeline(*args, **kwargs):
    if step == int(when) and what == 'term':
      os.kill(os.getpid(), signal.SIGTERM)
    if step == int(when) and what == 'sleep':
      time.sleep(1000)
    yield batch
    step += 1


if __name__ == '__main__':
  if 'DISTURB' in os.environ:
    train.make_pipeline = disturbed
  __main__.main()
