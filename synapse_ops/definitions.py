"""What Dagster loads: the definitions of every group, merged. Nothing else is done here.

`definitions` is evaluated by the code server and by each run worker, not by the import: a spec is read then, and a run
worker of a supervised code server ties itself to the supervisor.
"""

import multiprocessing

import dagster as dg


@dg.definitions
def definitions() -> dg.Definitions:
    """Return all assets, checks, jobs, schedules and sensors of the spec in force."""
    from synapse_ops.defs.everything import merged_definitions

    if multiprocessing.parent_process() is not None:  # a run worker, started by the code server
        from synapse_ops.services.dagster.process_tree import end_with_supervisor

        end_with_supervisor()
    return merged_definitions()
