"""How a block walks its slice of a map, as the kernels have it in ``kernels/tile.cuh``."""

from __future__ import annotations

from dataclasses import dataclass

from cbam_deploy.plugins.entries import boolean, element_type
from cbam_deploy.plugins.gate import Gate

_BATCH = 4  # Tiling::batch


@dataclass(frozen=True)
class Tiling:
    """How a block walks its slice: the template ``Tiling`` of ``kernels/tile.cuh``.

    Attributes:
        gate: gives element, layout and vector.
        threads: T, of the block.
        column_lanes: Q, a power of two.
        warp: lanes of a warp: 32, but for the tests on the host.
    """

    gate: Gate
    threads: int
    column_lanes: int
    warp: int = 32

    @property
    def channel_scratch(self) -> int:
        """Statistics in shared memory for the reduction over positions."""
        return 0 if self.gate.storage.rows_are_channels else self._column_scratch

    @property
    def position_scratch(self) -> int:
        """Statistics in shared memory for the reduction over channels."""
        return self._column_scratch if self.gate.storage.rows_are_channels else 0

    @property
    def chunk(self) -> int:
        """Rows that are copied to shared memory together."""
        return self.threads // self.column_lanes * _BATCH

    @property
    def _column_scratch(self) -> int:
        warps_per_row = max(1, self.column_lanes * self.gate.storage.run_rows // self.warp)
        warp_rows = self.threads // self.warp // warps_per_row
        exchange = min(self.gate.vector, 4 * self.warp * warps_per_row // self.column_lanes)
        return warp_rows * self.column_lanes * exchange

    @property
    def expression(self) -> str:
        """The C++ type."""
        gate = self.gate
        return (
            f"cbam::Tiling<{element_type(gate)}, cbam::Layout::{gate.layout}, "
            f"{boolean(gate.stored > gate.channels)}, {gate.vector}, {self.threads}, "
            f"{self.column_lanes}>"
        )
