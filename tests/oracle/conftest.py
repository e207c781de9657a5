"""Tests against another library, which has an environment of its own: ``make test-oracle``."""

from __future__ import annotations

import importlib.util

collect_ignore_glob = [] if importlib.util.find_spec("nnsight") else ["test_*.py"]
