"""Claims of processes that share a folder."""

import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor

import pytest

from sde_onnx.errors import OutputError
from sde_onnx.generate.claims import Claims

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX's locks")
TURNS, PROCESSES = 300, 3


def join_and_leave(path, together, left):
    for turn in range(TURNS):
        together.wait(60)
        with Claims(path).at_work():
            together.wait(60)
        together.wait(60)
        if path.exists():
            left.append(turn)
        together.wait(60)
        path.unlink(missing_ok=True)


def hold(path, seeds, held, tried):
    claims = Claims(path)
    with claims.at_work():
        if claims.claim(seeds):
            held.set()
        tried.wait(60)


def test_seeds_that_another_process_has_claimed_and_their_neighbours(tmp_path):
    context = multiprocessing.get_context("spawn")
    held, tried = context.Event(), context.Event()
    path = tmp_path / ".run.lock"
    other = context.Process(target=hold, args=(path, [4, 2**64 - 1], held, tried))
    other.start()
    try:
        assert held.wait(60)
        claims, done = Claims(path), []
        with claims.at_work(last=lambda: done.append("too early")):
            assert {seed for seed in (0, 3, 4, 5, 2**62, 2**63, 2**64 - 2, 2**64 - 1) if not claims.claim([seed])} == {
                4, 2**64 - 1}
            assert not claims.claim([7, 4])
    finally:
        tried.set()
        other.join()
    assert other.exitcode == 0
    with Claims(path).at_work(last=lambda: done.append("by the last")):
        assert path.exists()
    assert done == ["by the last"]
    assert not path.exists()


def those_to_be_had(path, seeds):
    claims = Claims(path)
    with claims.at_work():
        return [seed for seed in seeds if claims.claim([seed])]


def test_what_is_given_back_is_for_others_and_its_neighbours_are_not(tmp_path):
    path = tmp_path / ".run.lock"
    claims = Claims(path)
    with claims.at_work(), ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as other:
        assert claims.claim([4, 5, 6, 7])
        claims.release([5])
        assert other.submit(those_to_be_had, path, [3, 4, 5, 6, 7, 8]).result() == [3, 5, 8]


def test_a_lock_goes_where_the_last_fails(tmp_path):
    def fail():
        raise OutputError("a scrap cannot be removed")

    for _ in range(2):   # a lock that was held would be in the way of the second
        claims = Claims(tmp_path / ".run.lock")
        with pytest.raises(OutputError, match="a scrap"), claims.at_work(last=fail):
            assert not claims.others()
        assert not claims.others()
        assert list(tmp_path.iterdir()) == []


def test_of_those_who_leave_at_the_same_moment_the_last_removes_the_file(tmp_path):
    context = multiprocessing.get_context("spawn")
    together = context.Barrier(PROCESSES)
    with context.Manager() as manager:
        left = manager.list()
        processes = [context.Process(target=join_and_leave, args=(tmp_path / ".run.lock", together, left))
                     for _ in range(PROCESSES)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        assert [process.exitcode for process in processes] == [0] * PROCESSES
        assert sorted(set(left)) == []
