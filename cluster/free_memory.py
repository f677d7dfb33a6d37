"""How much memory this machine has free, and how sizes of memory are told. Knows nothing of what needs it."""

from pathlib import Path


def available_bytes() -> int:
    """Memory that new processes may take, as the kernel estimates it."""
    fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    return int(fields["MemAvailable"].split()[0]) * 1024


def mib(num_bytes: int) -> str:
    """A size in whole mebibytes."""
    return f"{num_bytes / 2**20:.0f}MiB"
