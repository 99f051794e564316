"""Runs hostile cases, one a core at a time, and reports them: ``make fuzz``.

    PYTHONPATH=tests python -m fuzz --cases 100000 [--kinds NAME...] [--first SEED]
"""

from __future__ import annotations

import argparse
import math
import os
import re
import time
from collections import Counter
from itertools import product

from fuzz.harness import Failure, run_cases
from fuzz.kinds import KINDS, SLOW, prepare
from sde_onnx.errors import escaped

SAID_EVERY = 5000   # cases


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=1000, help="in all")
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--first", type=int, default=0, help="the first seed of each kind")
    arguments = parser.parse_args()
    a_seed = sum(1 / SLOW.get(kind, 1) for kind in arguments.kinds)   # cases of a seed, on average
    seeds = range(arguments.first, arguments.first + math.ceil(arguments.cases / a_seed))
    cases = ((kind, seed) for seed, kind in product(seeds, arguments.kinds) if seed % SLOW.get(kind, 1) == 0)
    counts: Counter[str] = Counter()
    distinct: dict[tuple[str, str], list[Failure]] = {}
    start = time.monotonic()
    for kind, _, failure in run_cases(KINDS, cases, prepare, cores=sorted(os.sched_getaffinity(0))):
        counts[kind] += 1
        if (done := sum(counts.values())) % SAID_EVERY == 0:
            print(f"{done} cases in {time.monotonic() - start:.0f} s, {len(distinct)} distinct failures", flush=True)
        if failure is not None:
            short = re.sub(r"[\d'\"]+", "#", failure.problem.partition(": ")[2])[:90]
            found = distinct.setdefault((kind, short), [])
            found.append(failure)
            if len(found) == 1:
                print(f"{kind} {failure.seed}: {escaped(failure.problem)}", flush=True)
    failed = Counter(dict.fromkeys(counts, 0))
    for (kind, _), found in distinct.items():
        failed[kind] += len(found)
    print(f"{sum(counts.values())} cases in {time.monotonic() - start:.0f} s")
    for kind, count in counts.items():
        print(f"{kind:20} {count:7} cases, {failed[kind]} failures, "
              f"{sum(name == kind for name, _ in distinct)} distinct")
    raise SystemExit(1 if distinct else 0)


if __name__ == "__main__":
    main()
