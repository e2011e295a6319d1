"""What `profile` finds, as data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from cbam_deploy.benchmarking.result import Subject
from cbam_deploy.profiling.layers import Layer
from cbam_deploy.report.result import Result
from cbam_deploy.report.units import Estimate

if TYPE_CHECKING:
    from cbam_deploy.report.content import Section


@dataclass(frozen=True)
class NetworkProfile(Subject):
    """The layers of one artefact in one runtime.

    Attributes:
        sha256: hash of the artefact's file, None for a PyTorch model.
        precision: that of the file.
        layers: in the order in which they run.
        run_seconds: median of a run as `bench` makes it, without a profiler.
        profiled_seconds: median of a run with the profiler on.
        round_seconds: median of the runs without it, in each round.
        relative: run's duration over that of the first artefact in the same rounds.
    """

    sha256: str | None
    precision: str
    layers: tuple[Layer, ...]
    run_seconds: float
    profiled_seconds: float
    round_seconds: tuple[float, ...]
    relative: Estimate | None = None

    @property
    def layers_seconds(self) -> float:
        """Sum of the layers' times."""
        return sum(layer.seconds for layer in self.layers)

    @property
    def outside_seconds(self) -> float:
        """What a run takes beside its layers; below zero where profiling made these slower."""
        return self.run_seconds - self.layers_seconds


@dataclass(frozen=True)
class ProfileReport(Result):
    """The result of `profile`.

    Attributes:
        networks: in the order of artefacts as given, then of runtimes; PyTorch last.
        settings: the options that shape the figures, and what the inputs were.
        environment: the machine and the versions (`machine.environment`).
        clocks_before: processor clocks before the first round (`machine.clocks`).
        clocks_after: the same after the last round.
        top: number of layers that are shown outside of JSON.
    """

    title: ClassVar[str] = "Profile"
    schema: ClassVar[str] = "cbam_deploy.profile"

    networks: tuple[NetworkProfile, ...]
    settings: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    clocks_before: dict[str, Any] = field(default_factory=dict)
    clocks_after: dict[str, Any] = field(default_factory=dict)
    top: int = 20

    @property
    def subtitle(self) -> str:
        """The artefacts."""
        return ", ".join(dict.fromkeys(network.artefact for network in self.networks))

    @property
    def findings(self) -> tuple[str, ...]:
        """Why a lower precision is no faster, where it is not."""
        from cbam_deploy.profiling.causes import findings

        return findings(self.networks)

    def to_json(self) -> dict[str, Any]:
        """As JSON-ready data: every field, the findings, and the sums of each network."""
        data = super().to_json()
        for network, entry in zip(self.networks, data["networks"], strict=True):
            entry["layers_seconds"] = network.layers_seconds
            entry["outside_seconds"] = network.outside_seconds
        return {**data, "findings": list(self.findings)}

    def sections(self) -> tuple[Section, ...]:
        """Where the time goes, artefact by artefact, side by side, and the machine."""
        from cbam_deploy.profiling.section import profile_sections

        return profile_sections(self)
