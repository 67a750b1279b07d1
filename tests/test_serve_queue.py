"""Batching across requests: fairness, bounds, cancellation, failures, and that nothing is mixed up."""

import asyncio
import random

import numpy as np
import pytest

from inranker.batching import plan_batches
from inranker.serve.problem import Kind, RequestError
from inranker.serve.queue import RankQueue
from serve_helpers import WordEngine, margin


def run(engine, scenario, **options):
    """Run `scenario(queue)` on a started queue."""

    async def main():
        queue = RankQueue(engine, **options)
        queue.start()
        try:
            return await asyncio.wait_for(scenario(queue), 30)
        finally:
            engine.gate.set()
            await asyncio.to_thread(queue.close)

    return asyncio.run(main())


async def begun(engine):
    """Wait until the engine is busy."""
    assert await asyncio.to_thread(engine.busy.wait, 10)


def documents(name, count, words):
    return [f"{name} " * (words - 1) + f"word{i}" for i in range(count)]


def test_answers_are_each_requests_own_whatever_else_waits():
    engine = WordEngine(batch_tokens=40)
    engine.parallel = 3
    rng = random.Random(0)

    async def scenario(queue):
        async def one(i):
            query = f"q{i} red"
            texts = [" ".join(rng.choices(["red", "fox", f"q{i}"], k=rng.randint(1, 30))) for _ in range(i % 7)]
            scored = await queue.score(engine.encode(query, texts))
            return scored.logits.tolist(), [margin(query, text) for text in texts]

        return await asyncio.gather(*(one(i) for i in range(60)))

    for got, expected in run(engine, scenario):
        assert got == expected
    assert any(len(set(batch)) > 1 for batch in engine.batches)


def test_batches_are_bounded_by_tokens_and_hold_pairs_of_like_length():
    engine = WordEngine(batch_tokens=60)
    engine.gate.clear()
    lengths = [1, 2, 5, 9, 14, 22, 35, 50, 59]

    async def scenario(queue):
        first = asyncio.ensure_future(queue.score(engine.encode("plug", ["x"])))
        await begun(engine)
        work = [queue.score(engine.encode(f"q{n}", documents("w", 4, n))) for n in lengths]
        waiting = asyncio.gather(first, *work)
        await asyncio.sleep(0)
        engine.gate.set()
        await waiting

    run(engine, scenario)
    for batch in engine.batches[1:]:
        tokens = [int(query[1:]) + 1 for query in batch]
        assert max(tokens) * len(tokens) <= 60
        assert min(tokens) >= 0.7 * max(tokens)


def test_a_short_request_is_not_stuck_behind_a_long_one():
    engine = WordEngine(batch_tokens=40)
    engine.gate.clear()

    async def scenario(queue):
        long = asyncio.ensure_future(queue.score(engine.encode("long", documents("w", 400, 9))))
        await begun(engine)
        short = asyncio.ensure_future(queue.score(engine.encode("short", documents("w", 4, 9))))
        await asyncio.sleep(0.01)
        engine.gate.set()
        await short
        assert not long.done()
        await long

    run(engine, scenario)
    place = next(i for i, batch in enumerate(engine.batches) if "short" in batch)
    assert place <= 5  # of 101 batches


def test_a_turn_is_kept_until_it_is_used_up():
    """Two requests of the same small size are answered one after the other, not both late."""
    engine = WordEngine(batch_tokens=40)
    engine.gate.clear()

    async def scenario(queue):
        plug = asyncio.ensure_future(queue.score(engine.encode("plug", ["x"])))
        await begun(engine)
        both = [queue.score(engine.encode(name, documents("w", 8, 9))) for name in ("first", "second")]
        waiting = asyncio.gather(plug, *both)
        await asyncio.sleep(0.01)
        engine.gate.set()
        await waiting

    run(engine, scenario)
    assert [set(batch) for batch in engine.batches[1:]] == [{"first"}, {"first"}, {"second"}, {"second"}]


def test_priority_goes_first():
    engine = WordEngine(batch_tokens=20)
    engine.gate.clear()

    async def scenario(queue):
        plug = asyncio.ensure_future(queue.score(engine.encode("plug", ["x"])))
        await begun(engine)
        work = [queue.score(engine.encode(f"p{p}", documents("w", 2, 9)), priority=p) for p in (5, 0, 9)]
        waiting = asyncio.gather(plug, *work)
        await asyncio.sleep(0.01)
        engine.gate.set()
        await waiting

    run(engine, scenario)
    assert [batch[0] for batch in engine.batches] == ["plug", "p0", "p5", "p9"]


def test_a_cancelled_request_frees_its_place_and_is_not_scored():
    engine = WordEngine(batch_tokens=20)
    engine.gate.clear()

    async def scenario(queue):
        async def one(name):
            with queue.place():
                return await queue.score(engine.encode(name, documents("w", 50, 9)))

        plug = asyncio.ensure_future(one("plug"))
        await begun(engine)
        gone = asyncio.ensure_future(one("gone"))
        await asyncio.sleep(0.01)
        assert queue.taken == 2
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        assert queue.taken == 1
        engine.gate.set()
        await plug

    run(engine, scenario, places=2)
    assert not any("gone" in batch for batch in engine.batches)


def test_a_request_cancelled_half_way_stops():
    engine = WordEngine(batch_tokens=20, seconds=0.01)

    async def scenario(queue):
        task = asyncio.ensure_future(queue.score(engine.encode("half", documents("w", 400, 9))))
        await asyncio.sleep(0.1)
        task.cancel()
        await asyncio.sleep(0.1)
        return len(engine.batches)

    after = run(engine, scenario)
    assert 1 < after < 100
    assert len(engine.batches) <= after + 1


def test_a_full_queue_refuses_and_says_when_to_come_back():
    engine = WordEngine()
    engine.gate.clear()

    async def scenario(queue):
        async def one():
            with queue.place():
                await queue.score(engine.encode("q", ["x"]))

        waiting = [asyncio.ensure_future(one()) for _ in range(3)]
        await asyncio.sleep(0.01)
        with pytest.raises(RequestError) as error, queue.place():
            pass
        assert error.value.kind is Kind.OVERLOADED
        assert int(error.value.headers["retry-after"]) >= 1
        engine.gate.set()
        await asyncio.gather(*waiting)
        with queue.place():
            pass

    run(engine, scenario, places=3)


def test_only_the_request_that_breaks_the_engine_fails():
    engine = WordEngine(batch_tokens=400)
    engine.gate.clear()

    async def scenario(queue):
        plug = asyncio.ensure_future(queue.score(engine.encode("plug", ["x"])))
        await begun(engine)
        names = ["good one", "explode now", "good two"]
        work = [queue.score(engine.encode(name, documents("w", 3, 9))) for name in names]
        waiting = asyncio.gather(plug, *work, return_exceptions=True)
        await asyncio.sleep(0.01)
        engine.gate.set()
        return await waiting

    _, one, bad, two = run(engine, scenario)
    assert isinstance(bad, RuntimeError)
    for name, scored in (("good one", one), ("good two", two)):
        assert scored.logits.tolist() == [margin(name, d) for d in documents("w", 3, 9)]


def test_closing_finishes_what_waits():
    engine = WordEngine(batch_tokens=20, seconds=0.002)

    async def main():
        queue = RankQueue(engine)
        queue.start()
        work = [asyncio.ensure_future(queue.score(engine.encode(f"q{i}", documents("w", 20, 9)))) for i in range(5)]
        await asyncio.sleep(0.01)
        await asyncio.to_thread(queue.close)
        with pytest.raises(RequestError), queue.place():
            pass
        return await asyncio.gather(*work)

    assert [len(scored.logits) for scored in asyncio.run(main())] == [20] * 5


def test_an_engine_whose_batches_matter_gets_its_own_batches_of_each_request():
    engine = WordEngine(batch_tokens=60, batch_dependent=True)
    engine.gate.clear()
    texts = {f"q{i}": [" ".join(["w"] * n) for n in np.random.default_rng(i).integers(1, 50, 30)] for i in range(3)}

    async def scenario(queue):
        work = [asyncio.ensure_future(queue.score(engine.encode(q, t))) for q, t in texts.items()]
        await asyncio.sleep(0.01)
        engine.gate.set()
        await asyncio.gather(*work)

    run(engine, scenario)
    for query, documents_ in texts.items():
        items = engine.encode(query, documents_)
        expected = [len(batch) for batch in plan_batches([item.tokens for item in items], 60)]
        assert [len(batch) for batch in engine.batches if batch[0] == query] == expected
    assert all(len(set(batch)) == 1 for batch in engine.batches)
