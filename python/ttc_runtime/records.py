"""Problems and results as files of one JSON object a line."""

from __future__ import annotations

import inspect
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


def settings(value: object) -> object:
    """Settings of a strategy, budget or the like as JSON values; what has none becomes its name.

    >>> from ttc_runtime.budget import Budget
    >>> settings(Budget(tokens=9))["tokens"]
    9
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return [settings(item) for item in value]
    if isinstance(value, dict):
        return {str(key): settings(item) for key, item in value.items()}
    if inspect.isroutine(value) or isinstance(value, type) or not hasattr(value, "__dict__"):
        return getattr(value, "__qualname__", type(value).__qualname__)
    known = {key: settings(item) for key, item in vars(value).items() if key[:1] != "_"}
    return {"type": type(value).__qualname__, **known}


def read_results(path: str | Path) -> list[dict]:
    """The records of a results file; a last line that a crash tore is left out.

    Raises ValueError for a file that is not there or holds something else.
    """
    if not Path(path).is_file():
        raise ValueError(f"results: no such file: {str(path)!r}")
    content = Path(path).read_bytes()
    records = []
    for number, line in enumerate(content[: content.rfind(b"\n") + 1].splitlines(), 1):
        try:
            record = json.loads(line)
            record["strategy"], record["seed"], record["id"]  # or it is no result
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path}, line {number}: not a result: {error}") from error
        records.append(record)
    return records


class ResultWriter:
    """Appends results to a file, a whole line each, and knows what is already there.

    path: the results file, made if missing. strategy, seed, config: of this run, written with each
    result; lines of other runs are kept but do not count as done, and neither do failed ones. A
    last line that a crash tore is cut off. Raises ValueError for a line in the middle that is no
    JSON, OSError if the file cannot be used.
    """

    def __init__(
        self, path: str | Path, strategy: str, seed: int, config: dict | None = None
    ) -> None:
        self.path = Path(path)
        self.config = json.loads(json.dumps(config))
        self.done: set[str] = set()
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            self._run = (strategy, seed, self.config)
            self._end = self._read()
            if os.path.isfile(self.path):
                os.ftruncate(self._file, self._end)
        except BaseException:
            os.close(self._file)
            raise

    def _read(self) -> int:
        """Note what is done; returns where the last whole line ends."""
        if not os.path.isfile(self.path):
            return 0
        for record in read_results(self.path):
            if self._is_ours(record) and "error" not in record:
                self.done.add(str(record["id"]))
        return self.path.read_bytes().rfind(b"\n") + 1

    def _is_ours(self, record: dict) -> bool:
        return (record["strategy"], record["seed"], record.get("config")) == self._run

    def write(self, result: Result) -> None:
        """Append one result. Raises OSError if it cannot be written, the file then as before."""
        record = result.record()
        if self.config is not None:
            record["config"] = self.config
        line = json.dumps(record, ensure_ascii=False).encode() + b"\n"
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

    def finish(self, ids: list) -> None:
        """Put this run's results, all there, in the order of the problems' ids.

        Problems end in whatever order; a file that was interrupted and one that was not are the
        same after this. Of a problem that failed and was tried again only the last line stays. The
        file is replaced as a whole, so there is a complete one at any moment.
        """
        if not os.path.isfile(self.path):
            return
        place = {str(name): i for i, name in enumerate(ids)}
        others: list[bytes] = []
        ours: dict[str, bytes] = {}
        for line in self.path.read_bytes().splitlines(keepends=True):
            record = json.loads(line)
            if self._is_ours(record) and str(record["id"]) in place:
                ours[str(record["id"])] = line
            else:
                others.append(line)
        content = b"".join([*others, *(ours[name] for name in sorted(ours, key=place.__getitem__))])
        if content == self.path.read_bytes():
            return
        whole = self.path.with_name(f".{self.path.name}.new")
        with whole.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(whole, self.path)
        os.close(self._file)
        self._file, self._end = os.open(self.path, os.O_RDWR), len(content)

    def __enter__(self) -> ResultWriter:
        return self

    def __exit__(self, *_) -> None:
        os.close(self._file)
