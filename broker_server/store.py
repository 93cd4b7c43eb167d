"""`run.sqlite`: all that a run's rounds leave, and the checkpoint to go on from.

One round is one transaction, so a server that is killed leaves whole rounds only. Write-ahead
logging lets others read while a run writes. The tables are in `broker_server.schema`.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from broker_server.books.agreement import Agreement
from broker_server.record import RoundRecord
from broker_server.schema import (
    BYTES_OF_ROUND,
    SCHEMA,
    SCHEMA_VERSION,
    comparison_rows,
    end_amounts,
    from_rows,
    to_comparisons,
    to_rows,
    without_end,
)
from edge_runtime.errors import ConfigError, DataError

FILE_NAME = "run.sqlite"
_APPLICATION_ID = 0x464D4F45  # "FMOE": tells our files from other SQLite databases


class Store:
    """A run's store. Use it from one thread, and close it, or use it as a context manager."""

    def __init__(self, path: Path) -> None:
        """Opens an existing file; `create` and `open` are the ways in."""
        self.path = path
        with _explained(path):
            self._database = sqlite3.connect(
                f"{path.absolute().as_uri()}?mode=rw", uri=True, isolation_level=None
            )
            self._database.execute("PRAGMA foreign_keys = ON")

    @classmethod
    def create(cls, directory: Path) -> Store:
        """A new store in `directory`, which is made if need be; `ConfigError` if it has a run.

        One that broke off before its first round is none: its store is used again.
        """
        path = Path(directory) / FILE_NAME
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch(exist_ok=False)
        except FileExistsError:
            if path.parent.is_dir():
                return cls._take_over(path.parent)
            raise ConfigError(
                f"{path.parent}: is not a directory; choose another with --out"
            ) from None
        except OSError as error:
            raise ConfigError(
                f"{path.parent}: cannot be written: {error.strerror}; choose another directory "
                "with --out"
            ) from None
        store = cls(path)
        with _explained(path):
            store._database.execute("PRAGMA journal_mode = WAL")
        with store._transaction() as database:
            for statement in SCHEMA.split(";"):
                database.execute(statement)
            database.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            database.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
        return store

    @classmethod
    def _take_over(cls, directory: Path) -> Store:
        """The store in `directory`, if it has no round and nobody else has it open."""
        try:
            store = cls.open(directory)
        except DataError as error:
            raise ConfigError(f"{error}; choose another directory with --out") from None
        try:
            if store.rounds():
                raise ConfigError(
                    f"{directory}: holds a run already; go on with it by --resume, or choose "
                    "another directory with --out"
                )
            for mode in ("DELETE", "WAL"):  # leaving WAL succeeds only for its sole user
                store._database.execute(f"PRAGMA journal_mode = {mode}")
        except sqlite3.OperationalError as error:
            store.close()
            raise ConfigError(
                f"{directory}: another run has just begun there ({error}); choose another "
                "directory with --out"
            ) from None
        except BaseException:
            store.close()
            raise
        return store

    @classmethod
    def open(cls, directory: Path) -> Store:
        """The store of the run in `directory`; `DataError` if there is none that we can read."""
        path = Path(directory) / FILE_NAME
        if not path.is_file():
            raise DataError(f"{directory}: no {FILE_NAME} there; expected the directory of a run")
        store = cls(path)
        try:
            with store._transaction() as database:
                (application,) = database.execute("PRAGMA application_id").fetchone()
                (version,) = database.execute("PRAGMA user_version").fetchone()
            if application != _APPLICATION_ID:
                raise DataError(f"{path}: not the store of a flexmoe run")
            if version != SCHEMA_VERSION:
                raise DataError(
                    f"{path}: schema version {version}; this flexmoe reads version "
                    f"{SCHEMA_VERSION}; use the release that wrote it"
                )
        except DataError:
            store.close()
            raise
        return store

    def close(self) -> None:
        self._database.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def describe(self, experiment_toml: str, facts: Mapping[str, Any]) -> None:
        """Say what runs, in place of what was said before."""
        rows = [(f"fact.{key}", json.dumps(value)) for key, value in facts.items()]
        with self._transaction() as database:
            database.execute("DELETE FROM run")
            database.executemany(
                "INSERT INTO run VALUES (?, ?)", [("experiment", experiment_toml), *rows]
            )

    def facts(self) -> dict[str, Any]:
        """The facts, as `describe` was given them last."""
        with self._transaction() as database:
            rows = database.execute(
                "SELECT substr(key, 6), value FROM run WHERE key LIKE 'fact.%' ORDER BY rowid"
            ).fetchall()
        return {key: json.loads(value) for key, value in rows}

    def write_round(self, record: RoundRecord, checkpoint: bytes | None = None) -> None:
        """Store a round and, if given, the checkpoint to go on from after it; all or nothing.

        A round that is there already is replaced, and all later ones are dropped: they are of the
        past that the server has gone back behind.
        """
        rows = to_rows(record)
        with self._transaction() as database:
            database.execute("DELETE FROM rounds WHERE round >= ?", (record.round,))
            for table, cells in rows.items():
                _insert(database, table, cells)
            if checkpoint is not None:
                database.execute("DELETE FROM checkpoint")
                database.execute("INSERT INTO checkpoint VALUES (?, ?)", (record.round, checkpoint))

    def write_final(self, record: RoundRecord, agreement: Agreement) -> None:
        """Store what the end of the run adds to the last round's bytes, and how counts agree."""
        rows, number = to_rows(record), record.round
        sets = ", ".join(f"{name} = ?" for name in BYTES_OF_ROUND)
        with self._transaction() as database:
            figures = [getattr(record, name) for name in BYTES_OF_ROUND]
            self._add_end(number, end_amounts(figures, record.drops))
            database.execute(f"UPDATE rounds SET {sets} WHERE round = ?", (*figures, number))
            for table in ("bytes", "drops"):
                database.execute(f"DELETE FROM {table} WHERE round = ?", (number,))
                _insert(database, table, rows[table])
            database.execute("DELETE FROM agreement")
            _insert(database, "agreement", comparison_rows(number, agreement))

    def _add_end(self, number: int, amounts: Mapping[str, int]) -> None:
        """Note by how much `amounts` are above what the store has of this round."""
        (figures,) = self._select(number, ", ".join(BYTES_OF_ROUND), "rounds")
        had = end_amounts(figures, dict(self._select(number, "reason, count", "drops")))
        self._database.executemany(
            "INSERT INTO ends VALUES (?, ?, ?) "
            "ON CONFLICT (round, what) DO UPDATE SET amount = amount + excluded.amount",
            [(number, what, amount - had.get(what, 0)) for what, amount in amounts.items()],
        )

    def agreement(self) -> Agreement:
        """How the counts of bytes agreed when the run ended; empty while it goes on."""
        with self._transaction() as database:
            (last,) = database.execute("SELECT max(round) FROM rounds").fetchone()
            return to_comparisons(partial(self._select, last))

    def load_checkpoint(self) -> tuple[int, bytes] | None:
        """The newest checkpoint and the round that it was taken after."""
        with self._transaction() as database:
            row = database.execute("SELECT round, data FROM checkpoint").fetchone()
        return None if row is None else (int(row[0]), bytes(row[1]))

    def records(self) -> list[RoundRecord]:
        """All rounds, in order, equal to what was written."""
        with self._transaction() as database:  # one point in time, even while a run writes
            rounds = database.execute("SELECT round FROM rounds ORDER BY round").fetchall()
            return [from_rows(partial(self._select, number)) for (number,) in rounds]

    def rounds(self) -> int:
        """How many rounds there are."""
        with self._transaction() as database:
            (count,) = database.execute("SELECT count(*) FROM rounds").fetchone()
        return int(count)

    def finished(self, records: Sequence[RoundRecord]) -> list[RoundRecord]:
        """`records` with the figures that each had when its round finished, as they were shown
        then: what the end of the run, or of a part of it, moved is not in them."""
        ends: dict[int, dict[str, int]] = {}
        with self._transaction() as database:
            for number, what, amount in database.execute("SELECT round, what, amount FROM ends"):
                ends.setdefault(number, {})[what] = amount
        return [
            without_end(record, ends[record.round]) if record.round in ends else record
            for record in records
        ]

    def _select(self, number: int, columns: str, table: str, order: str = "rowid") -> list[Any]:
        query = f"SELECT {columns} FROM {table} WHERE round = ? ORDER BY {order}"
        return self._database.execute(query, (number,)).fetchall()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """All or nothing."""
        with _explained(self.path):
            self._database.execute("BEGIN")
            try:
                yield self._database
                self._database.execute("COMMIT")
            finally:
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")


def _insert(database: sqlite3.Connection, table: str, rows: Sequence[Sequence[Any]]) -> None:
    if rows:
        marks = ", ".join("?" * len(rows[0]))
        database.executemany(f"INSERT INTO {table} VALUES ({marks})", rows)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """`DataError` for what a user can mend: a full disk, a broken or locked file."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        # Its other subclasses are mistakes of ours.
        if isinstance(error, sqlite3.OperationalError) or type(error) is sqlite3.DatabaseError:
            raise DataError(f"{path}: cannot be read or written: {error}") from None
        raise
