"""Consumers that crash, lose replies, claim and trim in any order, against a model.

Whatever they do, an entry that a group has not acknowledged is still there, the lag is the number
of entries that really wait, and in the end every group has seen every entry and the stream is
empty.
"""

from contextlib import closing
from random import Random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from hypothesis.stateful import run_state_machine_as_test as run

from rsky_pipeline.streams.append import append
from rsky_pipeline.streams.connection import connect
from rsky_pipeline.streams.consumer import Delivery, trim
from rsky_pipeline.streams.lag import inspect
from tests.consumers import GroupReader
from tests.integration.streams.support import entries, ids, own_pending, stored, values

WHO = st.sampled_from([(group, name) for group in ("g1", "g2") for name in ("a", "b", "c")])
GROUPS = st.sampled_from([("g1",), ("g1", "g2")])


class Consumers(RuleBasedStateMachine):
    """Three consumers in one or two groups."""

    url = ""

    @initialize(groups=GROUPS)
    def begin(self, groups: tuple[str, ...]) -> None:
        self.store = connect(self.url, name="model")
        self.store.call("FLUSHALL")
        self.added = 0
        self.deleted: set[int] = set()  # by an operator
        self.seen: dict[str, set[int]] = {group: set() for group in groups}
        self.acknowledged: dict[str, set[int]] = {group: set() for group in groups}
        self.delivered: dict[str, int] = dict.fromkeys(groups, 0)  # up to this number
        self.held: dict[tuple[str, str], dict[str, Delivery]] = {}

    def reader(self, who: tuple[str, str]) -> GroupReader | None:
        group, name = who
        if group not in self.seen:
            return None
        reader = GroupReader(self.store, "s", group, name)
        reader.ensure()
        return reader

    def take(self, who: tuple[str, str], deliveries: list[Delivery]) -> None:
        self.held.setdefault(who, {}).update({item.id: item for item in deliveries})
        self.seen[who[0]].update(values(deliveries))

    @rule(count=st.integers(1, 12))
    def produce(self, count: int) -> None:
        # Groups exist before the first entry, as a role makes them when it starts.
        for group in self.seen:
            self.reader((group, "a"))
        append(self.store, entries(count, first=self.added))
        self.added += count

    @rule(who=WHO, count=st.integers(1, 9), lost=st.booleans())
    def read(self, who: tuple[str, str], count: int, lost: bool) -> None:
        if reader := self.reader(who):
            page = reader.read_new(count, 0)
            if page:
                self.delivered[who[0]] = max(values(page)) + 1
            if not lost:
                self.take(who, page)

    @rule(who=WHO, pick=st.randoms(use_true_random=False))
    def acknowledge(self, who: tuple[str, str], pick: Random) -> None:
        reader, held = self.reader(who), self.held.get(who)
        if reader is None or not held:
            return
        chosen = pick.sample(sorted(held), pick.randint(1, len(held)))
        reader.acknowledge(chosen)
        done = [held.pop(entry_id) for entry_id in chosen]
        self.acknowledged[who[0]].update(values(done))

    @rule(who=WHO)
    def crash(self, who: tuple[str, str]) -> None:
        self.held.pop(who, None)

    @rule(who=WHO, size=st.integers(1, 5))
    def recover(self, who: tuple[str, str], size: int) -> None:
        if reader := self.reader(who):
            self.take(who, self.all_pending(reader, size))

    @rule(who=WHO, count=st.integers(1, 9))
    def claim(self, who: tuple[str, str], count: int) -> None:
        if reader := self.reader(who):
            self.take(who, reader.claim_idle(0, "0-0", count, self.held.get(who, {})).deliveries)

    @rule()
    def trim(self) -> None:
        trim(self.store, "s")

    @rule(number=st.integers(0, 60))
    def delete(self, number: int) -> None:
        if entry_id := stored(self.store).get(number):
            self.store.call("XDEL", "s", entry_id)
            self.deleted.add(number)

    @invariant()
    def nothing_wanted_is_gone(self) -> None:
        every, there = set(range(self.added)), stored(self.store)
        for done in self.acknowledged.values():
            assert every - done - self.deleted <= there.keys()

    @invariant()
    def lag_is_what_waits(self) -> None:
        there = stored(self.store)
        for group in inspect(self.store, "s").groups:
            waiting = [number for number in there if number >= self.delivered[group.name]]
            assert group.lag == len(waiting)

    def all_pending(self, reader: GroupReader, size: int) -> list[Delivery]:
        found: list[Delivery] = []
        after = "-"
        for _ in range(self.added + 1):  # a page that repeats itself would not end
            page = own_pending(reader, size, after)
            if not page:
                return found
            found += page
            after = f"({page[-1].id}"
        raise AssertionError("the pages of own pending entries do not end")

    def teardown(self) -> None:
        """Let one consumer of each group finish the work of all."""
        if not hasattr(self, "store"):
            return
        with closing(self.store):
            for group in self.seen:
                reader = self.reader((group, "a"))
                assert reader is not None
                start = "0-0"
                for _ in range(self.added + 2):
                    claimed = reader.claim_idle(0, start, 7)
                    self.seen[group].update(values(claimed.deliveries))
                    reader.acknowledge(ids(claimed.deliveries))
                    start = claimed.next_start
                    if start == "0-0":
                        break
                assert start == "0-0"
                while page := reader.read_new(7, 0):
                    self.seen[group].update(values(page))
                    reader.acknowledge(ids(page))
                assert self.seen[group] | self.deleted == set(range(self.added)) | self.deleted
                assert own_pending(reader) == []
            trim(self.store, "s")
            assert stored(self.store) == {}
            report = inspect(self.store, "s")
            assert {(group.pending, group.lag) for group in report.groups} <= {(0, 0)}


def test_consumers_in_any_order_lose_nothing(clean_redis: str) -> None:
    Consumers.url = clean_redis
    run(Consumers, settings=settings(max_examples=60, stateful_step_count=30, deadline=None))
