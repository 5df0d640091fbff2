"""The ledger against a naive model: what is finished never comes again, what is not is never skipped."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

import pytest
from hypothesis import given, settings, target
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cador_trio.kafka.ledger import MAX_BEGUN, MAX_METADATA, CommitPoint, Delivered, Ledger


def point_of(ledger: Ledger) -> CommitPoint:
    point = ledger.commit_point()
    assert point is not None
    return point


def restored(ledger: Ledger) -> Ledger:
    """What the next owner of the partition knows, if all was committed."""
    point = point_of(ledger)
    return Ledger(point.offset, point.metadata)


@dataclass
class Topic:
    """The truth about one partition, kept as plainly as possible."""

    records: list[int] = field(default_factory=list)  # offsets that exist, ascending
    done: set[int] = field(default_factory=set)  # their effects are committed
    begun: dict[int, int] = field(default_factory=dict)  # as last committed

    @property
    def end(self) -> int:
        return self.records[-1] + 1 if self.records else 0

    def truth(self, offset: int) -> Delivered:
        """What the ledger should tell of a record."""
        if offset in self.done:
            return Delivered(is_done=True, begun=0)
        return Delivered(is_done=False, begun=min(self.begun.get(offset, 0), MAX_BEGUN))


HOLES = st.one_of(st.just(0), st.integers(0, 3), st.sampled_from([100, 5_000, 1_000_000, 2**40]))


class LedgerMachine(RuleBasedStateMachine):
    """A partition whose owners come and go; transactions commit effects and offsets together, as in Kafka."""

    @initialize(start=st.sampled_from([0, 7, 10**12]), holes=st.lists(HOLES, min_size=4, max_size=12))
    def open(self, start: int, holes: list[int]) -> None:
        self.start = start
        self.topic = Topic()
        self.produce(holes)
        self.committed: CommitPoint | None = None
        self.take_over(0)

    def take_over(self, count: int) -> None:
        """A new owner, who knows what is committed, reads so many records."""
        if self.committed is None:
            self.ledger, self.read_to = Ledger(None, ""), self.start
        else:
            self.ledger = Ledger(self.committed.offset, self.committed.metadata)
            self.read_to = self.committed.offset
        assert not self.ledger.is_dirty
        self.in_hand: dict[int, int] = {}  # delivered and unfinished -> begun before
        self.at_work: set[int] = set()
        self.deliver(count)

    @rule(holes=st.lists(HOLES, min_size=1, max_size=8))
    def produce(self, holes: list[int]) -> None:
        for hole in holes:
            self.topic.records.append(max(self.topic.end, self.start) + hole)

    @rule(count=st.integers(1, 12))
    def deliver(self, count: int) -> None:
        for offset in [offset for offset in self.topic.records if offset >= self.read_to][:count]:
            told = self.ledger.deliver(offset)
            assert told == self.topic.truth(offset)
            if not told.is_done:
                self.in_hand[offset] = self.topic.begun.get(offset, 0)
            self.read_to = offset + 1

    @precondition(lambda self: self.in_hand)
    @rule(data=st.data())
    def begin(self, data: st.DataObject) -> None:
        for offset in data.draw(st.sets(st.sampled_from(sorted(self.in_hand)), min_size=1, max_size=4)):
            assert self.ledger.may_begin(offset)  # this few always fit
            self.ledger.begin(offset)
            self.at_work.add(offset)

    @precondition(lambda self: self.at_work)
    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        offset = data.draw(st.sampled_from(sorted(self.at_work)))
        self.ledger.give_back(offset)
        self.at_work.discard(offset)

    @rule(data=st.data(), fails=st.sampled_from([False, False, False, True]))
    def commit(self, data: st.DataObject, fails: bool) -> None:
        """A transaction with the effects of some, begun or not; it may be aborted."""
        offsets: set[int] = set()
        if self.in_hand:
            offsets = data.draw(st.sets(st.sampled_from(sorted(self.in_hand)), max_size=4))
        point = self.ledger.commit_point(offsets)
        if point is None or fails:
            return
        self.committed = point
        self.topic.done |= offsets
        for offset, before in self.in_hand.items():
            self.topic.begun[offset] = before + (offset in self.at_work)
        self.ledger.finish(offsets)
        self.ledger.note_committed(point)
        assert not self.ledger.is_dirty
        for offset in offsets:
            del self.in_hand[offset]
        self.at_work -= offsets
        self.check_successor(data)

    def check_successor(self, data: st.DataObject) -> None:
        """Whoever takes over now learns the truth about every record that still exists."""
        gone = data.draw(st.sets(st.sampled_from(self.topic.records), max_size=6))
        assert self.committed is not None
        successor = Ledger(self.committed.offset, self.committed.metadata)
        for offset in self.topic.records:
            if offset >= self.committed.offset and offset not in gone:
                assert successor.deliver(offset) == self.topic.truth(offset)

    @rule(data=st.data(), count=st.integers(0, 12))
    def crash(self, data: st.DataObject, count: int) -> None:
        """The owner dies, or loses the partition; some records are compacted away; another owner goes on."""
        for offset in data.draw(
            st.sets(st.sampled_from(self.topic.records[:-1]), max_size=min(3, len(self.topic.records) - 2))
        ):
            self.topic.records.remove(offset)
        self.take_over(count)

    @invariant()
    def nothing_unfinished_is_skipped(self) -> None:
        if self.committed is not None:
            skipped = {offset for offset in self.topic.records if offset < self.committed.offset}
            assert skipped <= self.topic.done

    @invariant()
    def a_commit_fits(self) -> None:
        point = self.ledger.commit_point()
        assert point is None or (point.metadata.isascii() and len(point.metadata) <= MAX_METADATA)

    @invariant()
    def figures_are_true(self) -> None:
        assert self.ledger.unfinished == len(self.in_hand)
        assert self.ledger.lowest_unfinished == min(self.in_hand, default=None)


LedgerMachine.TestCase.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
TestLedger = LedgerMachine.TestCase


# How far apart records lie, and how many of them are more than the metadata can tell of.
CROWDS = st.sampled_from([(1, 2_300), (2, 2_300), (40, 1_500), (2_000, 1_200), (10**6, 900), (2**42, 500)])


@settings(max_examples=12, deadline=None)
@given(crowd=CROWDS, randomness=st.randoms(use_true_random=False), deaths=st.integers(0, 2))
def test_whatever_may_begin_fits_however_it_ends(crowd: tuple[int, int], randomness: Random, deaths: int) -> None:
    """Begun in any order as far as allowed, finished, given back or begun anew after a death: each commit fits."""
    step, count = crowd
    ledger = Ledger(5, "")
    widest = 0
    for _ in range(deaths + 1):
        position = point_of(ledger).offset
        coming = (offset for offset in range(10, 10 + step * count, step) if offset >= position)
        unfinished = [offset for offset in coming if not ledger.deliver(offset).is_done]
        begun = begin_until_full(ledger, unfinished, randomness)
        for some in (begun[::3], begun[1::3]):
            points = point_of(ledger), ledger.commit_point(some)
            ledger.finish(some)
            widest = max(widest, *(len(point.metadata) for point in points if point is not None))
        for offset in begun[2::6]:
            ledger.give_back(offset)
        ledger = restored(ledger)
    target(float(widest))
    assert widest <= MAX_METADATA


def begin_until_full(ledger: Ledger, offsets: list[int], randomness: Random) -> list[int]:
    """Those that may, asked about in a random order, or from the lowest one on; and the lowest always."""
    begun: list[int] = []
    refused = 0
    order = randomness.sample(offsets, len(offsets)) if randomness.random() < 0.5 else offsets
    for offset in [*order, *offsets[:1]]:
        if ledger.may_begin(offset):
            ledger.begin(offset)
            begun.append(offset)
        else:
            refused += 1
            if refused == 20 and offset != offsets[0]:
                break
    assert ledger.may_begin(offsets[0])
    return begun


def test_the_lowest_may_always_begin() -> None:
    """Else a partition whose metadata is full would stand still for ever."""
    ledger = Ledger(0, "")
    offsets = range(0, 5_000, 2)
    for offset in offsets:
        ledger.deliver(offset)
    for offset in offsets[1:]:
        if not ledger.may_begin(offset):
            break
        ledger.begin(offset)
    else:
        pytest.fail("there is room for all of them")
    for _ in range(3):  # and whoever takes over from a dead one may, too
        assert ledger.may_begin(0)
        ledger.begin(0)
        ledger = restored(ledger)
        assert ledger.deliver(0).begun > 0


def test_a_long_job_does_not_hold_up_those_behind_it() -> None:
    """One at the head of the partition, and 200,000 short ones behind it that all finish."""
    ledger = Ledger(0, "")
    ledger.deliver(0)
    ledger.begin(0)
    for offset in range(1, 200_000):
        ledger.deliver(offset)
        assert ledger.may_begin(offset)
        ledger.begin(offset)
        ledger.finish([offset])
    point = point_of(ledger)
    assert point.offset == 0
    assert len(point.metadata) < 20
    after = Ledger(0, point.metadata)
    assert after.deliver(0) == Delivered(is_done=False, begun=1)
    assert all(after.deliver(offset).is_done for offset in range(1, 200_000))
    assert after.deliver(200_000) == Delivered(is_done=False, begun=0)


def test_thousands_of_unfinished_records_fit() -> None:
    """Of neighbours, two characters each."""
    ledger = Ledger(10**9, "")
    offsets = range(10**9, 10**9 + 2_000)
    for offset in offsets:
        ledger.deliver(offset)
    assert ledger.may_begin(offsets[-1])
    for offset in offsets:
        ledger.begin(offset)
    assert len(point_of(ledger).metadata) < 4_020


def test_a_full_ledger_says_so_rather_than_forget() -> None:
    """Whoever does not ask `may_begin` hears of it before the transaction, not after a loss."""
    ledger = Ledger(0, "")
    for offset in range(5_000):
        ledger.deliver(offset)
        ledger.begin(offset)
    with pytest.raises(ValueError, match="more has begun"):
        ledger.commit_point()


@given(position=st.integers(0, 2**62), metadata=st.text(max_size=5_000), unfinished=st.sets(st.integers(0, 60)))
def test_foreign_metadata_counts_as_none(position: int, metadata: str, unfinished: set[int]) -> None:
    """Any text beside the offset: everything from there on is handed out."""
    ledger = Ledger(position, metadata)
    assert not ledger.is_dirty
    for offset in sorted(unfinished):
        assert ledger.deliver(position + offset) == Delivered(is_done=False, begun=0)
    assert ledger.unfinished == len(unfinished)


def ours() -> CommitPoint:
    ledger = Ledger(100, "")
    for offset in range(100, 140):
        ledger.deliver(offset)
        ledger.begin(offset)
    ledger.finish(range(101, 139, 2))
    return point_of(ledger)


@pytest.mark.parametrize("kept", range(len(ours().metadata)))
def test_truncated_metadata_counts_as_none(kept: int) -> None:
    """A text that was cut off must not make the rest of it look finished."""
    ledger = Ledger(100, ours().metadata[:kept])
    assert all(ledger.deliver(offset) == Delivered(is_done=False, begun=0) for offset in range(100, 140))


@given(place=st.integers(0, len(ours().metadata) - 1), character=st.characters())
def test_changed_metadata_counts_as_none(place: int, character: str) -> None:
    """One wrong character, and none of it is believed."""
    metadata = ours().metadata
    changed = metadata[:place] + character + metadata[place + 1 :]
    ledger = Ledger(100, changed)
    assert ledger.deliver(101).is_done == (changed == metadata)


@pytest.mark.parametrize("position", [99, 101, 0, None])
def test_metadata_belongs_to_its_offset(position: int | None) -> None:
    """A tool that copies a group's offsets elsewhere translates them and keeps the text: it is about other records."""
    ledger = Ledger(position, ours().metadata)
    assert all(ledger.deliver(offset) == Delivered(is_done=False, begun=0) for offset in range(101, 140))


def test_another_version_counts_as_none() -> None:
    """What a later version wrote is not guessed at."""
    ledger = Ledger(100, "2" + ours().metadata[1:])
    assert not ledger.deliver(101).is_done


def test_nothing_is_known_before_the_first_record() -> None:
    """A group without an offset, at a partition that nothing came from, has nothing to commit."""
    ledger = Ledger(None, "")
    assert ledger.commit_point() is None
    assert not ledger.is_dirty
    ledger.deliver(17)
    assert ledger.commit_point() == CommitPoint(17, "")
    assert ledger.is_dirty


def test_an_offset_without_metadata_is_where_it_goes_on() -> None:
    """Committed by another program: what is below is done, what is above is not."""
    ledger = Ledger(50, None)
    assert ledger.commit_point() == CommitPoint(50, "")
    assert ledger.deliver(50) == Delivered(is_done=False, begun=0)
    ledger.finish([50])
    assert ledger.commit_point() == CommitPoint(51, "")


def test_a_topic_that_was_made_anew_starts_over() -> None:
    """Its offsets begin below what is committed: nothing of the old knowledge is about these records."""
    point = ours()
    ledger = Ledger(point.offset, point.metadata)
    for offset in range(110):
        assert ledger.deliver(offset) == Delivered(is_done=False, begun=0)
    assert ledger.commit_point() == CommitPoint(0, "")
    ledger.finish([0, 1])
    assert point_of(ledger).offset == 2


def test_jobs_of_forgotten_records_end_without_a_trace() -> None:
    """Their partition was made anew while they ran."""
    ledger = Ledger(500, "")
    ledger.deliver(500)
    ledger.begin(500)
    ledger.deliver(3)
    ledger.give_back(500)
    ledger.begin(500)
    ledger.finish([500])
    assert ledger.commit_point([500]) == CommitPoint(3, "")


def test_a_record_that_comes_twice_to_one_owner_is_not_new() -> None:
    """Finished or not, it is what it was."""
    ledger = Ledger(0, "")
    for offset in range(3):
        ledger.deliver(offset)
    ledger.finish([1])
    assert ledger.deliver(1) == Delivered(is_done=True, begun=0)
    assert ledger.deliver(2) == Delivered(is_done=False, begun=0)
    assert ledger.unfinished == 2


def test_only_deaths_count() -> None:
    """Begun and given back is as if it had never begun; begun and dead counts, each time."""
    ledger = Ledger(0, "")
    ledger.deliver(0)
    ledger.begin(0)
    ledger.give_back(0)
    ledger = restored(ledger)
    assert ledger.deliver(0).begun == 0
    for deaths in range(1, MAX_BEGUN + 5):
        ledger.begin(0)
        assert ledger.is_dirty == (deaths <= MAX_BEGUN)
        ledger = restored(ledger)
        assert ledger.deliver(0).begun == min(deaths, MAX_BEGUN)
        ledger.begin(0)
        ledger.give_back(0)


def test_a_record_that_was_compacted_away_takes_nothing_with_it() -> None:
    """What was told of those behind it is still believed."""
    ledger = Ledger(0, "")
    for offset in range(5):
        ledger.deliver(offset)
        ledger.begin(offset)
    ledger.finish([4])
    ledger = restored(ledger)
    assert ledger.deliver(2) == Delivered(is_done=False, begun=1)
    assert ledger.deliver(4) == Delivered(is_done=True, begun=0)
    assert point_of(ledger).offset == 2
