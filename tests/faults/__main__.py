"""Disturbs processes that write, at random moments, and reports what broke: ``make faults``.

    PYTHONPATH=tests python -m faults --rounds 20 [--faults NAME...] [--subjects NAME...] [--first SEED]
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections import Counter
from pathlib import Path

from faults.faults import FAULTS, can_mount
from faults.subjects import SUBJECTS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20, help="of each fault and command")
    parser.add_argument("--faults", nargs="+", choices=list(FAULTS), default=list(FAULTS))
    parser.add_argument("--subjects", nargs="+", choices=list(SUBJECTS), default=list(SUBJECTS))
    parser.add_argument("--first", type=int, default=0, help="the first round")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        can_be_full = can_mount(Path(folder))
    if "full" in arguments.faults and not can_be_full:
        parser.error("full needs a process that may mount a disk: name the other --faults")
    start, cases, failed = time.monotonic(), Counter[str](), Counter[str]()
    for number in range(arguments.first, arguments.first + arguments.rounds):
        for fault in arguments.faults:
            disturb, subjects = FAULTS[fault]
            for name in subjects:
                if name not in arguments.subjects:
                    continue
                with tempfile.TemporaryDirectory(prefix="faults-") as folder:
                    problems = disturb(name, random.Random(f"{fault} {name} {number}"), Path(folder))
                cases[fault] += 1
                failed[fault] += bool(problems)
                if problems:
                    print(f"{fault} {name} {number}: {'; '.join(problems)}", flush=True)
        print(f"{cases.total()} cases in {time.monotonic() - start:.0f} s, {failed.total()} failures", flush=True)
    for fault, count in cases.items():
        print(f"{fault:12} {count:5} cases, {failed[fault]} failures")
    raise SystemExit(1 if failed.total() else 0)


if __name__ == "__main__":
    main()
