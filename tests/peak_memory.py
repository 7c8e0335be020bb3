"""The most memory that a process held, for programs that tests and benchmarks run in processes of their own.

Not getrusage: a process begins with the peak of the one that started it, so a large one would hide all that is smaller.
"""

from __future__ import annotations

# An expression for such a program: KiB. Linux alone says it.
PEAK_KIB = 'next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM:"))'
