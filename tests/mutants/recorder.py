"""A pytest plugin: how many seconds each test takes, as JSON, beside what the file says of others."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

seconds: Counter[str] = Counter()


def pytest_runtest_logreport(report):
    seconds[report.nodeid] += report.duration


def pytest_sessionfinish(session):
    if not hasattr(session.config, "workerinput"):
        file = Path(os.environ["SDE_ONNX_SECONDS"])
        others = json.loads(file.read_text()) if file.exists() else {}
        file.write_text(json.dumps(others | seconds))
