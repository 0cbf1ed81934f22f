"""What the operator writes: one model per block, units, loading with file and line; the only source of policy.

`load_spec` gives the one type that everything else reads. Nothing here imports Dagster or a client of another system.
"""

from synapse_ops.spec.document import Spec, default_spec
from synapse_ops.spec.loaded import LoadedSpec
from synapse_ops.spec.loading import load_spec
from synapse_ops.spec.secrets import SecretRef

__all__ = ["LoadedSpec", "SecretRef", "Spec", "default_spec", "load_spec"]
