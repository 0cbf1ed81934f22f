"""Puts a verified backup into a fresh throwaway cluster: roles, tablespaces, the database, its data, its settings."""

from __future__ import annotations

from pathlib import Path

from synapse_ops.domain.backup.dump_record import DumpRecord
from synapse_ops.domain.database.globals_script import statements_for_new_cluster
from synapse_ops.domain.progress import ReportProgress
from synapse_ops.operations.backup.deadline import Deadline
from synapse_ops.operations.database.archive_restore import (
    apply_properties,
    create_database,
    drop_what_the_source_lacks,
    execute_statements,
    read_database_statements,
    run_pg_restore,
    size_reporter,
)
from synapse_ops.operations.database.staged_dump import StagedBackup
from synapse_ops.operations.database.throwaway_server import Throwaway


def restore_into_throwaway(
    throwaway: Throwaway,
    staged: StagedBackup,
    record: DumpRecord,
    *,
    scratch_dir: Path,
    deadline: Deadline,
    progress: ReportProgress,
) -> None:
    """Restore roles, tablespaces and the database under its own name into a fresh cluster; any warning raises."""
    name, tools = record.source.database, throwaway.server.tools
    elsewhere = throwaway.conninfo("template1" if name == "postgres" else "postgres")
    roles = statements_for_new_cluster(staged.globals_script, throwaway.superuser)
    in_place = ["SET allow_in_place_tablespaces = on"] if staged.globals_script.tablespaces else []
    execute_statements(elsewhere, [*in_place, *roles], what="the roles of the backup")
    statements = read_database_statements(tools, staged.archive, name, scratch_dir=scratch_dir, deadline=deadline)

    def create() -> None:
        create_database(elsewhere, statements, name)
        drop_what_the_source_lacks(throwaway.conninfo(name), staged.structure)

    report = size_reporter(elsewhere, name, record.source.database_size_bytes, progress)
    run_pg_restore(
        tools,
        staged.archive,
        throwaway.conninfo(name),
        create=create,
        scratch_dir=scratch_dir,
        deadline=deadline,
        report=report,
    )
    execute_statements(throwaway.conninfo(name), staged.supplement, what="the supplement of the backup")
    apply_properties(elsewhere, statements, name)
