"""Checksums of what a run measured: ``SHA256SUMS`` in its folder, as ``sha256sum -c`` reads it too.

A file's checksum is noted before the file is moved into its place, and what stands there until then stays right beside it. A
writer that is killed between the two therefore leaves a file that is as it was written. Folders of earlier versions have no
checksums, nor have runs that were taken from kept results: what nothing is known of is taken as it is.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from cl_softcot.errors import UserError
from cl_softcot.files import atomic_write_text, dump_json, read_json, read_jsonl, sha256_of
from cl_softcot.results.folder import SUMS

_LINE = re.compile(r"([0-9a-f]{64})  (.+)")


class Checksums:
    """Of the files in a folder; one process at a time writes there."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    @property
    def path(self) -> Path:
        return self.folder / SUMS

    # ------------------------------------------------------------------------------------------------------- writing

    def write_text(self, path: Path, text: str) -> None:
        """``atomic_write_text``, with a checksum.

        Raises:
            UserError: if the disk is full or the place cannot be written; the old content is intact then.
        """
        new = sha256_of(text.encode("utf-8"))
        noted = self._note(path, new)
        atomic_write_text(path, text)
        if len(noted) > 1:
            self._note(path, new)  # what stood there before is gone

    def write_json(self, path: Path, value: Any) -> None:
        """``atomic_write_json``, with a checksum; raises like ``write_text``."""
        self.write_text(path, dump_json(value, indent=2) + "\n")

    def _note(self, path: Path, new: str) -> tuple[str, ...]:
        """The checksums that the file may have from now on: that of what is there, if it was right, and the new one."""
        known = self._known()
        before = known.get(self._name(path), ())
        there = sha256_of(path) if before and path.exists() else None
        wanted = tuple(dict.fromkeys([*(old for old in before if old == there), new]))
        if wanted != before:
            known[self._name(path)] = wanted
            atomic_write_text(self.path, "".join(f"{one}  {name}\n" for name in sorted(known) for one in known[name]))
        return wanted

    # ------------------------------------------------------------------------------------------------------- reading

    def knows(self, path: Path) -> bool:
        """Whether the file was written with a checksum, also where it is not there any more."""
        return self._name(path) in self._known()

    def changed(self, path: Path) -> bool:
        """Whether a file that is there is not as it was written."""
        sums = self._known().get(self._name(path))
        return sums is not None and path.exists() and sha256_of(path) not in sums

    def matches(self, path: Path, text: str) -> bool:
        """Whether this is what was written there; also where nothing is known of it."""
        sums = self._known().get(self._name(path))
        return sums is None or sha256_of(text.encode("utf-8")) in sums

    def all_changed(self) -> list[Path]:
        """Every file that is not as it was written; what is missing is not named."""
        places = {self.folder / name: sums for name, sums in self._known().items()}
        return [path for path, sums in places.items() if path.exists() and sha256_of(path) not in sums]

    def check(self, *paths: Path) -> None:
        """
        Raises:
            UserError: if one of these files is not as it was written.
        """
        for path in paths:
            if self.changed(path):
                raise UserError(
                    f"this file was changed after the run wrote it (its checksum in {SUMS} is another)",
                    where=str(path),
                    fix="Put it back as it was, or start the experiment again: what can still be measured is measured again.",
                )

    def read_json(self, path: Path) -> Any:
        """``files.read_json`` of a file that is as it was written; raises like ``check`` otherwise."""
        self.check(path)
        return read_json(path)

    def read_jsonl(self, path: Path) -> list[Any]:
        """``files.read_jsonl``, likewise."""
        self.check(path)
        return read_jsonl(path)

    def _known(self) -> dict[str, tuple[str, ...]]:
        known: dict[str, tuple[str, ...]] = {}
        try:
            text = self.path.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return known
        for found in map(_LINE.fullmatch, text.splitlines()):
            if found:
                known[found[2]] = (*known.get(found[2], ()), found[1])
        return known

    def _name(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()
