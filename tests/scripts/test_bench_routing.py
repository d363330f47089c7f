"""The cost of routing on the smallest of the three steps; the largest takes minutes."""

from tests.helpers.bench_scripts import load_script


def test_the_share_of_a_step_follows_from_the_rounds_of_its_leaves() -> None:
    script = load_script("routing")
    with script.as_worker(script.measuring_core(), "numpy"):
        result = script.measure(*next(script.cases()), rounds=1)
    assert (result["micro_batches"], result["sequences"]) == (12, 12)
    assert min(result["route_seconds"], result["micro_batch_seconds"]) > 0
    ratio = result["route_seconds"] / result["micro_batch_seconds"]
    assert result["share_of_step"] == {1: ratio / 12, 12: ratio / 12}
    assert script.table([result]).row_count == 1
