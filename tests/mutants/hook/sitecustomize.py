"""Runs in every Python process that has this folder on its path: one module is read from a changed copy."""

import os
from importlib.machinery import SourceFileLoader
from pathlib import Path

if "SDE_ONNX_MUTANT" in os.environ:
    path, changed = os.environ["SDE_ONNX_MUTANT"].split(os.pathsep)
    get_code = SourceFileLoader.get_code

    def get_changed_code(self, fullname):
        if self.path == path:
            return compile(Path(changed).read_bytes(), path, "exec", dont_inherit=True)
        return get_code(self, fullname)

    SourceFileLoader.get_code = get_changed_code
