"""Everything that only a GPU can tell of the fused gate, in one command: ``make gpu-check``.

`report` runs the parts, each in processes of its own and within its share of the time, and writes
what they found. A part is a module with a function ``run(job)``; see `job` and `parts`.

Python 3.11 or later, PyTorch 2.11, NumPy, cuda-bindings and a CUDA 13 toolkit are all it needs.
"""

from benchmarks.gpu_check.missing_packages import fill_in

fill_in()
