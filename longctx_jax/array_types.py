"""The axis legend of the whole package, and the shape checker.

Annotations, einsum strings and documentation all use these letters:

  B  batch rows (`batch_size`)        V  vocabulary (`vocab_size`)
  T  query positions (`seq_len`)      L  layers, the scan axis (`num_layers`)
  S  key/value positions              C  chunk or block length inside an op
  N  query heads (`num_heads`)        R  shards of the `context` mesh axis
  K  key/value heads (`num_kv_heads`) F  feed-forward width (`hidden_dim`)
  G  query heads per key/value head,  D  model width (`embed_dim`)
     N = K * G                        P  documents in a row
  H  head width (`head_dim`)

Mesh axes are words instead (`data`, `fsdp`, `context`, `tensor`), so that the
two never collide. `@typed` checks shapes and dtypes when a function is traced:
a compiled step pays nothing for it, so it stays on in production.
"""

from beartype import beartype
from jaxtyping import jaxtyped

typed = jaxtyped(typechecker=beartype)
