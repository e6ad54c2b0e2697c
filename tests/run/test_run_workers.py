"""Calls side by side: the same results as one after the other, and errors that say what they are."""

from __future__ import annotations

import os
import pickle

import pytest
import run_cells as cells
import torch

import seamark.errors
from seamark.errors import ConfigError, RunError, SeamarkError
from seamark.run import Run, Stage, Workers, result_digest

KINDS = [e for e in vars(seamark.errors).values() if isinstance(e, type) and issubclass(e, SeamarkError)]


@pytest.fixture(scope="module")
def two():
    with Workers(2) as workers:
        yield workers


@pytest.mark.parametrize("kind", KINDS)
def test_errors_survive_the_way_between_processes(kind):
    error = kind("what", where="where", fix="fix")
    found = pickle.loads(pickle.dumps(error))
    assert type(found) is kind
    assert (found.what, found.where, found.fix, str(found)) == ("what", "where", "fix", str(error))


def test_one_and_two_workers_give_equal_results_in_any_order(two, tmp_path):
    tasks = {f"t{i}": {"x": i} for i in range(5)}
    alone = {name: o.value for name, o in Workers(1).run(cells.square, tasks)}
    tasks["t0"] |= {"pause": 0.2, "wait_for": str(tmp_path / "t1")}
    tasks["t1"] |= {"leave": str(tmp_path / "t1")}
    found = [(name, o.value, o.seconds) for name, o in two.run(cells.square, tasks)]
    assert {name: value for name, value, _ in found} == alone == {f"t{i}": i * i for i in range(5)}
    assert found[0][0] != "t0"  # yielded as they finish
    assert {name: seconds for name, _, seconds in found}["t0"] >= 0.2
    backwards = dict(reversed(tasks.items()))
    assert {n: o.value for n, o in two.run(cells.square, backwards)} == alone


def test_stages_side_by_side_give_the_same_bytes(tmp_path, two):
    plan = [Stage(f"s{i}", cells.counted, {"steps": i + 1}) for i in range(3)]
    digests = []
    for name, workers, stages in (("one", None, plan), ("two", two, plan[::-1])):
        with Run(tmp_path / name) as run:
            made = run.stages("all", stages, workers)
            digests.append({n: result_digest(made[n]) for n in sorted(made)})
    assert digests[0] == digests[1]


def test_every_library_computes_with_the_threads_asked_for(two):
    before = torch.get_num_threads()
    found = [next(iter(w.run(cells.environment, {"a": {"x": 1}})))[1].value for w in (Workers(1), two)]
    assert found[0] == found[1]
    assert found[0]["torch"] == 1
    assert found[0]["pools"] == [1]
    assert torch.get_num_threads() == before


def test_several_threads_in_this_process():
    before = torch.get_num_threads()
    workers = Workers(2, threads=2)
    [(_, found)] = workers.run(cells.environment, {"a": {"x": 1}})  # one call alone needs no process
    assert found.value["torch"] == 2
    assert workers._pool is None
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("count", [1, 2])
def test_chatter_stays_off_stdout_and_the_environment_as_it_was(count, capfd):
    before = dict(os.environ)
    with Workers(count) as workers:
        list(workers.run(cells.environment, {"a": {"x": 1}}))
    found = capfd.readouterr()
    assert (found.out, found.err) == ("", "chatter that must not reach stdout\n")
    assert {k: v for k, v in os.environ.items() if k != "PYTEST_CURRENT_TEST"} == {
        k: v for k, v in before.items() if k != "PYTEST_CURRENT_TEST"
    }


@pytest.mark.parametrize("count", [1, 2])
def test_an_error_of_a_cell_comes_as_it_was_and_what_had_finished_before_it(count):
    tasks = {"good": {"x": 3}, "bad": {"x": 0, "kind": "seamark"}}
    done = {}
    with Workers(count) as workers, pytest.raises(ConfigError) as caught:
        done.update((name, outcome.value) for name, outcome in workers.run(cells.fail_or_square, tasks))
    assert (caught.value.what, caught.value.where, caught.value.fix) == ("not like this", "row 3", "Do it otherwise")
    assert done == {"good": 9}


def test_killed_and_broken_workers_are_told_apart_and_the_pool_starts_anew():
    with Workers(2) as workers:
        with pytest.raises(RunError, match="a worker process was killed"):
            list(workers.run(cells.fail_or_square, {"a": {"x": 1}, "b": {"x": 0, "kind": "killed"}}))
        assert workers._pool is None
        with pytest.raises(RuntimeError, match=r"run_cells\.OddError: strange"):
            list(workers.run(cells.fail_or_square, {"a": {"x": 1}, "b": {"x": 0, "kind": "odd"}}))


def test_a_killed_worker_costs_only_its_own_stage(tmp_path):
    good = Stage("good", cells.counted, {"steps": 2})
    with Run(tmp_path) as run, Workers(2) as workers:
        with pytest.raises(RunError, match="what is finished is kept"):
            run.stages("both", [good, Stage("bad", cells.beat_then_die, {"seconds": 0.5})], workers)
        assert run.built == ["good"]
    with Run(tmp_path) as run:
        run.stage(good)
        assert run.skipped == ["good"]


def test_no_tasks_need_no_worker():
    workers = Workers(2)
    assert list(workers.run(cells.square, {})) == []
    assert workers._pool is None
    workers.close()
    workers.close()
