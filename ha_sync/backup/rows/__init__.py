"""The full backup of databases that are captured by their rows: examiner on the Active, witness on the Standby."""

from ha_sync.backup.rows.ends import ActiveEnd, StandbyEnd
from ha_sync.backup.rows.examiner import RowsExaminer
from ha_sync.backup.rows.witness import RowsWitness

__all__ = ["ActiveEnd", "RowsExaminer", "RowsWitness", "StandbyEnd"]
