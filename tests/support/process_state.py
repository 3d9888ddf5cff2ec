"""What a caller may mind of its process, to compare before and after a call."""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
import warnings
from typing import Any

from tokloss_ray.cluster import one_machine
from tokloss_ray.storage import failures


def process_state() -> dict[str, Any]:
    """By what it is about."""
    import ray.data

    return {
        "handlers": [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)],
        "hook": sys.unraisablehook,
        "streams": (sys.stdout, sys.stderr),
        "files": [os.fstat(fd)[:3] for fd in (0, 1, 2)],
        "warnings": list(warnings.filters),
        "garbage": (gc.isenabled(), gc.get_freeze_count(), gc.get_threshold()),
        "environment": {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"},
        "settings": (id(ray.data.DataContext.get_current()), ray.data.DataContext.get_current()),
        "levels": [(h.name, h.level) for h in logging.getLogger("ray.data").handlers],
        "storage": failures._effort.get().tries,
        "patches": {path: one_machine.find(path) for path in (*one_machine.STATS, one_machine.AUTOSCALER)},
    }
