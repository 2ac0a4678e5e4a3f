"""What a figure was measured on; every benchmark prints it beside its figures."""

import os
import platform
import sys
from pathlib import Path
from typing import Any

import torch


def setup(device: str = "cpu", **options: Any) -> dict[str, Any]:
    """Return processor, cores, versions and the options of a benchmark, JSON-able."""
    name = _processor() if device == "cpu" else torch.cuda.get_device_name(device)
    return {
        "device": name,
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "command": " ".join(["python", f"tools/bench/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        **options,
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
