"""Records of a run as lines of JSON, written as they come, so that a run can stop at any moment."""

from __future__ import annotations

import json
from pathlib import Path

from bench.machine import origin
from bench.runner import Shape
from bench.summary import shape_of


class Journal:
    """Records of one build on one GPU; later ones replace earlier ones of the same case.

    Args:
        path: file of JSON lines; need not exist.
        facts: the head of the result; records of another `origin` are not ours.
    """

    def __init__(self, path: Path, facts: dict) -> None:
        self._path = path
        self._origin = origin(facts)
        self._cases: dict[Shape, dict[str, dict]] = {}
        for line in path.read_text().splitlines() if path.exists() else []:
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:
                continue  # the line that was being written when the run was stopped
            if entry["origin"] == self._origin:
                self._keep(entry["record"])

    def of(self, shape: Shape) -> dict[str, dict]:
        """Records of one case by provider."""
        return self._cases.get(shape, {})

    def add(self, record: dict) -> None:
        self._keep(record)
        with self._path.open("a") as file:
            file.write(json.dumps({"origin": self._origin, "record": record}) + "\n")

    def records(self) -> list[dict]:
        return [record for case in self._cases.values() for record in case.values()]

    def _keep(self, record: dict) -> None:
        self._cases.setdefault(shape_of(record), {})[record["provider"]] = record
