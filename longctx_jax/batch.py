"""Batch: the one contract between the data pipeline and the model."""

from typing import Any, NamedTuple


class Batch(NamedTuple):
  """What a training step reads, and all that it reads; every field is [B, T].

  Numpy on the host, `jax.Array` on the mesh. One row that packs the documents
  `11 12 13` and `21 22`, with a document mask and restarting positions:

      tokens        11 12 13 21 22  0     int32
      targets       12 13 21 22  0  0     int32, already shifted
      loss_weights   1  1  0  1  0  0     float32, 0 = not trained on
      segment_ids    1  1  1  2  2  0     int32, 1-based, 0 = padding
      positions      0  1  2  0  1  0     int32, what RoPE rotates by

  A query may attend to a key iff both have the same non-zero segment id and
  the key is not in the future. Rows of one segment (CIP) attend causally.
  """

  tokens: Any
  targets: Any
  loss_weights: Any
  segment_ids: Any
  positions: Any
