"""How far the job is: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from tqdm import tqdm

_LINE_SECONDS = 10.0


class Progress:
    """Counts files done and failed."""

    def __init__(self, files: int):
        self.files, self.done, self.failed = files, 0, 0
        self.started = self.shown = time.monotonic()
        self.first = 0.0
        self.bar = tqdm(total=files, unit="file", smoothing=0.05) if sys.stderr.isatty() else None

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        if self.bar is not None:
            self.bar.close()
        elif kind is None:
            self._line()

    def add(self, failed: bool) -> None:
        """One more file."""
        self.done += 1
        self.first = self.first or time.monotonic()
        self.failed += failed
        if self.bar is not None:
            self.bar.set_postfix(failed=self.failed, refresh=False)
            self.bar.update()
        elif time.monotonic() - self.shown >= _LINE_SECONDS:
            self._line()

    def _line(self) -> None:
        self.shown = time.monotonic()
        line = f"{self.done}/{self.files} files, {self.failed} failed, {self.shown - self.started:.0f} s"
        if 1 < self.done < self.files:  # until then the time went into starting workers
            each = (self.shown - self.first) / (self.done - 1)
            line += f", about {each * (self.files - self.done):.0f} s to go"
        print(line, file=sys.stderr, flush=True)
