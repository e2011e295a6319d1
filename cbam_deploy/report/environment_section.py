"""Where a result was measured, as a section of a page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cbam_deploy.report.content import Section, Table


def environment_section(
    environment: Mapping[str, Any],
    clocks_before: Mapping[str, Any] | None = None,
    clocks_after: Mapping[str, Any] | None = None,
) -> Section:
    """The machine, its clocks before and after, and the versions of what ran on it.

    Args:
        environment: as `machine.environment` gives it.
        clocks_before: as `machine.clocks` gives it before the measurement.
        clocks_after: the same after it.
    """
    rows = _clocks(clocks_before or {}, clocks_after or {}) + machine_rows(environment)
    return Section("Environment", tables=(Table.facts(rows),), background=True)


def machine_rows(environment: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The machine and its software, name by name.

    Args:
        environment: as `machine.environment` gives it.
    """
    gpus = [
        f"{gpu['name']}, compute capability {'.'.join(map(str, gpu['compute_capability']))}, "
        f"{gpu['memory_bytes'] / 2**30:.0f} GiB"
        for gpu in environment.get("gpus", [])
    ]
    memory = environment.get("memory_bytes")
    threads = [f"{name}={value}" for name, value in environment.get("threads", {}).items()]
    described = [
        ("processor", environment.get("cpu")),
        ("cores", environment.get("cores")),
        ("memory", None if memory is None else f"{memory / 2**30:.1f} GiB"),
        ("GPU", ", ".join(gpus) or "none"),
        ("NVIDIA driver", environment.get("driver")),
        ("system", environment.get("os")),
        ("kernel", environment.get("kernel")),
        ("Python", environment.get("python")),
        ("thread variables", ", ".join(threads) or "none set"),
        ("packages", ", ".join(" ".join(item) for item in environment.get("packages", {}).items())),
    ]
    return [(name, str(value)) for name, value in described if value is not None]


def _clocks(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[tuple[str, str]]:
    names = {
        "cpu_mhz": "processor clock",
        "gpu_sm_mhz": "GPU clock",
        "gpu_memory_mhz": "GPU memory clock",
    }
    return [
        (f"{label}, before and after", f"{_mean(before[key])} and {_mean(after[key])} MHz")
        for key, label in names.items()
        if before.get(key) and after.get(key)
    ]


def _mean(megahertz: list[float]) -> str:
    return f"{sum(megahertz) / len(megahertz):,.0f}"
