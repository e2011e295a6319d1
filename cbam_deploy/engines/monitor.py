"""The builder's progress as nested bars, and Ctrl-C that cancels a build cleanly.

TensorRT calls its progress monitor from native code that no Python exception may cross. So while
it works, Ctrl-C only sets a flag; the monitor then answers that the build should stop.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


@contextmanager
def interrupt_flag() -> Iterator[threading.Event]:
    """Turn Ctrl-C into an event while the block runs; raise KeyboardInterrupt after it.

    Python delivers signals to the main thread only: in any other the event is never set.
    """
    interrupted = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield interrupted
        return
    before = signal.signal(signal.SIGINT, lambda *_: interrupted.set())
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)
        if interrupted.is_set():
            raise KeyboardInterrupt


def progress_monitor(trt: Any, bar: Progress, interrupted: threading.Event) -> Any:
    """A `trt.IProgressMonitor` that shows each running phase as a bar, nested ones indented.

    Args:
        trt: the module `tensorrt` or `tensorrt_rtx`.
        bar: where to draw.
        interrupted: when set, the build is asked to stop at its next step.
    """

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        """Called from the builder's threads; `Progress` locks by itself."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.tasks: dict[str, tuple[TaskID, int]] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            depth = self.tasks[parent_phase][1] + 1 if parent_phase in self.tasks else 0
            label = "  " * depth + phase_name
            self.tasks[phase_name] = (bar.add_task(label, total=num_steps), depth)

        def step_complete(self, phase_name: str, step: int) -> bool:
            if phase_name in self.tasks:
                bar.update(self.tasks[phase_name][0], completed=step + 1)
            return not interrupted.is_set()

        def phase_finish(self, phase_name: str) -> None:
            if phase_name in self.tasks:
                bar.remove_task(self.tasks.pop(phase_name)[0])

    return Monitor()
