"""Problems and results as files of one JSON object a line."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path

from ttc_runtime.result import Result


@dataclass
class Problems:
    """A problems file as read. records: its good lines. errors: a message for each broken one."""

    records: list[dict] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


def read_problems(name: str | Path, limit: int | None = None) -> Problems:
    """Read problems, one JSON object ``{"id", "problem", "answer"}`` a line.

    name: a file, or ``zoo:NAME`` for a set that ships with the package. limit: take only so many
    good lines. The id defaults to the line number. Broken lines are reported with their numbers and
    left out. Raises ValueError for a file that is not there or a limit below 1.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"problems: limit must be >= 1, got {limit}")
    if str(name).startswith("zoo:"):
        from ttc_runtime import zoo

        name = zoo.problems(str(name)[4:])
    path = Path(name)
    if not path.is_file():
        raise ValueError(f"problems: no such file: {str(name)!r}")
    found = Problems()
    seen: set[str] = set()
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if not line.strip():
            continue
        try:
            record = {"id": number, **_problem(line)}
            if str(record["id"]) in seen:
                raise ValueError(f"the id {record['id']!r} occurs twice")
        except ValueError as error:
            found.errors.append(f"{path}, line {number}: {error}")
            continue
        seen.add(str(record["id"]))
        found.records.append(record)
        if len(found.records) == limit:
            break
    return found


def _problem(line: bytes) -> dict:
    record = json.loads(line)  # UnicodeDecodeError and JSONDecodeError are ValueErrors
    if not isinstance(record, dict):
        raise ValueError(f"expected a JSON object, got {type(record).__name__}")
    if not isinstance(record.get("problem"), str) or not record["problem"]:
        raise ValueError(f"expected a non-empty text 'problem', got {record.get('problem')!r}")
    return record


class ResultWriter:
    """Appends results to a file, a whole line each, and knows what is already there.

    path: the results file, made if missing. strategy, seed: of this run; lines of others are kept
    but do not count as done, and neither do failed ones. A last line that a crash tore is cut off.
    Raises ValueError for a line in the middle that is no JSON, OSError if the file cannot be used.
    """

    def __init__(self, path: str | Path, strategy: str, seed: int) -> None:
        self.path = Path(path)
        self.done: set[str] = set()
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            self._end = self._read(strategy, seed)
            if os.path.isfile(self.path):
                os.ftruncate(self._file, self._end)
        except BaseException:
            os.close(self._file)
            raise

    def _read(self, strategy: str, seed: int) -> int:
        """Note what is done; returns where the last whole line ends."""
        if not os.path.isfile(self.path):
            return 0
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                record = json.loads(line)
                ours = record["strategy"] == strategy and record["seed"] == seed
            except (ValueError, TypeError, KeyError) as error:
                raise ValueError(f"{self.path}, line {number}: not a result: {error}") from error
            if ours and "error" not in record:
                self.done.add(str(record["id"]))
        return len(whole)

    def write(self, result: Result) -> None:
        """Append one result. Raises OSError if it cannot be written, the file then as before."""
        line = json.dumps(result.record(), ensure_ascii=False).encode() + b"\n"
        written = 0
        try:
            while written < len(line):
                written += os.pwrite(self._file, line[written:], self._end + written)
        except OSError as error:
            if os.path.isfile(self.path):
                os.ftruncate(self._file, self._end)
            raise OSError(
                error.errno,
                f"result {result.id!r} could not be written "
                f"({os.strerror(error.errno or 0)}); the results before it are kept",
                str(self.path),
            ) from error
        self._end += len(line)
        self.done.add(str(result.id))

    def __enter__(self) -> ResultWriter:
        return self

    def __exit__(self, *_) -> None:
        os.close(self._file)
