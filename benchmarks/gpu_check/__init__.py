"""Everything that only a GPU can tell of the fused gate, in one command: ``make gpu-check``.

`report` runs the parts, each in a process of its own and within its share of the time, and writes
what they found. A part is a module with a function ``run(job)``; see `job` and `parts`.
"""
