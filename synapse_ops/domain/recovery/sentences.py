"""A recovery in words: what a person reads before the approval, and what became of it. Pure."""

from __future__ import annotations

from typing import Any

from synapse_ops.domain.recovery.recovery_record import IMPACT, INTEGRITY, RESTORED, SWITCH, VALIDATION, RecoveryRecord
from synapse_ops.errors import counted

_SIZES = ("bytes", "points", "keys")


def prepared_lines(record: RecoveryRecord) -> list[str]:
    """Return what a person reads before the approval, its command last. record: is prepared."""
    restored, integrity = record.steps[RESTORED], record.steps[INTEGRITY]
    took = f"restored in {restored['seconds']:.1f} s, checked in {integrity['seconds']:.1f} s"
    lines = [f"recovery {record.id}, until {record.until}: {took}; nothing was replaced"]
    replaced = record.steps.get(IMPACT, {}).get("replaces", ())
    lines += [f"  it takes the place of the copy with digest {one}, which was removed" for one in replaced]
    for one in record.chosen:
        part = restored["parts"][one.what]
        size = ", ".join(f"{part[name]:,} {name}" for name in _SIZES if name in part)
        at = part.get("last_commit_at") or (one.at.isoformat() if one.at else "")
        lines.append(f"  {one.what}: backup {one.backup_id}, as of {at or 'its end'}; {size or 'taken up'}")
        lines += [f"    {one.note}"] if one.note else []
    lines += [f"  {what} begins empty: {why}" for what, why in record.empty.items()]
    for name, found in integrity["databases"].items():
        of = f"{found['tables']} tables, {found['rows']:,} rows"
        lines.append(f"  {name}: {of}; pages and indexes of {found['relations_checked']} relations read")
    lines += [f"  {one['sentence']}" for one in integrity["stores"]]
    lines += [f"  FAULT {fault}" for fault in record.faults]
    if not record.faults:
        lines.append(f"put it into service:  synapse-ops recover --apply {record.digest}")
    return lines


def done_lines(record: RecoveryRecord) -> list[str]:
    """Return what became of it, in numbers. record: is done."""
    switch, found = record.steps[SWITCH], record.steps[VALIDATION]
    lines = [f"recovery {record.id} is in service"]
    as_of = record.steps[RESTORED]["parts"]["cluster"].get("last_commit_at")
    lines += [f"  the last transaction that is in it was committed at {as_of}"] if as_of else []
    lines += [f"  fenced: {_fence(one)}" for one in switch.get("fenced", ())]
    lines += [f"  gone, as a person states: {switch['gone']}"] if switch.get("gone") else []
    predicted = "never measured before" if found["predicted_s"] is None else f"predicted {found['predicted_s']:.1f} s"
    met = "met" if found["rto_met"] else "MISSED"
    lines += [
        f"  restore {found['restore_s']:.1f} s ({predicted}); all steps without waiting {found['work_s']:.1f} s",
        f"  first look to first write {found['since_begun_s']:.1f} s; objectives.rto {found['rto_s']:.0f} s: {met}",
    ]
    if found["lost_writes"] is not None:
        counted_here = "acknowledged writes of the example application, which lists its own, that are not there"
        lines.append(f"  {counted_here}: {found['lost_writes']}; writes of other clients are not counted")
    if "base_backup" in found:
        lines.append(f"  base backup of the restored server: {found['base_backup']}")
    if "base_backup_fault" in found:
        lines.append(f"  NO base backup: {found['base_backup_fault']}; then: synapse-ops backup now cluster")
    return lines


def _fence(one: dict[str, Any]) -> str:
    killed = counted(one["killed"], "process", "processes")
    return f"{one['node']}, {killed} killed, {'kept in ' + one['kept'] if one['kept'] else 'nothing was left of it'}"
