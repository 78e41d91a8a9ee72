"""Stages that overlap: the order, the errors, the bounds."""

import threading

import pytest

from mrcnn.cli.pipeline import AHEAD, BEHIND, Outcome, run_overlapped
from mrcnn.errors import UserError

PATIENCE = 20  # seconds after which a test that waits for another thread has failed


@pytest.fixture(autouse=True)
def no_thread_is_left():
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) == before


class Recorder:
    """Stages that note what they see; subclasses go wrong."""

    def __init__(self):
        self.written, self.reported = [], []

    def read(self, item):
        return item * 10

    def work(self, item, value):
        return value + item

    def write(self, item, outcome):
        self.written.append((item, outcome))
        return None if outcome.error else f"note {outcome.result}"

    def report(self, item, outcome):
        assert threading.current_thread() is threading.main_thread()
        self.reported.append((item, outcome))

    def run(self, items):
        run_overlapped(items, self.read, self.work, self.write, self.report)
        return self


@pytest.mark.parametrize("count", [0, 1, AHEAD, 25])
def test_every_item_passes_in_order(count):
    done = Recorder().run(iter(range(count)))
    assert done.written == [(i, Outcome(11 * i)) for i in range(count)]
    assert done.reported == [(i, Outcome(f"note {11 * i}")) for i in range(count)]


def test_stages_overlap():
    events = {}

    def event(stage, item):
        return events.setdefault((stage, item), threading.Event())

    class Waiting(Recorder):
        """Work on item 1 ends only when item 2 has been read, and item 0 begun to be written,
        which ends only when work on item 1 has begun: no order without overlap does it."""

        def read(self, item):
            event("read", item).set()

        def work(self, item, value):
            event("work", item).set()
            if item == 1:
                assert event("read", 2).wait(PATIENCE) and event("write", 0).wait(PATIENCE)

        def write(self, item, outcome):
            event("write", item).set()
            if item == 0:
                assert event("work", 1).wait(PATIENCE)
            return super().write(item, outcome)

    assert [item for item, _ in Waiting().run(range(3)).reported] == [0, 1, 2]


def test_few_items_are_in_memory():
    lock, alive, most = threading.Lock(), 0, 0

    class Counting(Recorder):
        def read(self, item):
            nonlocal alive, most
            with lock:
                alive += 1
                most = max(most, alive)
            return item

        def write(self, item, outcome):
            nonlocal alive
            threading.Event().wait(0.002)  # slower than reading, so that items pile up
            with lock:
                alive -= 1

    Counting().run(range(40))
    assert alive == 0 and most <= AHEAD + 1 + BEHIND + 1


@pytest.mark.parametrize("stage", ["read", "work"])
@pytest.mark.parametrize("kind", [UserError, MemoryError])
def test_an_error_belongs_to_its_item(stage, kind):
    class Failing(Recorder):
        pass

    def fail(self, item, *values):
        if item in (0, 3):
            raise kind(f"item {item}")
        return getattr(Recorder, stage)(self, item, *values)

    setattr(Failing, stage, fail)
    done = Failing().run(range(6))
    for seen in (done.written, done.reported):
        assert [item for item, _ in seen] == list(range(6))
        errors = {item: str(outcome.error) for item, outcome in seen if outcome.error}
        assert errors == {0: "item 0", 3: "item 3"}
    assert done.written[4][1].result == 44


def test_out_of_memory_while_writing_belongs_to_its_item():
    class Failing(Recorder):
        def write(self, item, outcome):
            if item == 1:
                raise MemoryError
            return super().write(item, outcome)

    done = Failing().run(range(4))
    assert [type(outcome.error) for _, outcome in done.reported] == [
        type(None),
        MemoryError,
        type(None),
        type(None),
    ]


@pytest.mark.parametrize("kind", [UserError, OSError, ZeroDivisionError])
def test_nothing_is_written_after_writing_has_failed(kind):
    class Failing(Recorder):
        def write(self, item, outcome):
            if item == 2:
                raise kind("disk full")
            return super().write(item, outcome)

    stages = Failing()
    with pytest.raises(kind, match="disk full"):
        stages.run(range(50))
    assert [item for item, _ in stages.written] == [0, 1]
    assert [item for item, _ in stages.reported] == [0, 1]


@pytest.mark.parametrize("stage", ["read", "work", "report"])
@pytest.mark.parametrize("kind", [KeyboardInterrupt, ZeroDivisionError])
def test_what_is_worked_on_is_written_before_the_end(stage, kind):
    class Stopping(Recorder):
        worked = 0

        def work(self, item, value):
            result = super().work(item, value)
            self.worked += 1
            return result

    def stop(self, item, *values):
        if item == 7:
            raise kind
        return original(self, item, *values)

    original = getattr(Stopping, stage)
    setattr(Stopping, stage, stop)
    stages = Stopping()
    with pytest.raises(kind):
        stages.run(range(50))
    assert [item for item, _ in stages.written] == list(range(stages.worked))
    assert stages.worked >= 7
