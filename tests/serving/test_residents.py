"""What is in memory, against a plain model of it, for any sequence of operations."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from serving.errors import NotResident, PinsTooLarge
from serving.resident import ResidentAdapter
from serving.residents import Resident, Residents, Unloaded

BUDGET = 20
SIZES = {f"a{size}": size for size in range(1, 9)}
names = st.sampled_from(sorted(SIZES))


def adapter(name: str) -> ResidentAdapter:
    return ResidentAdapter(name, {}, SIZES[name])


class ResidentsAgainstAModel(RuleBasedStateMachine):
    """The model: the order of use, the pins, and every lease that was given and not ended."""

    def __init__(self) -> None:
        super().__init__()
        self.held = Residents(BUDGET)
        self.order: list[str] = []
        self.pins: set[str] = set()
        self.leases: list[tuple[Resident, ...]] = []

    def leased(self, name: str) -> bool:
        return any(one.adapter.digest == name and not one.draining for lease in self.leases for one in lease)

    @rule(name=names)
    def load(self, name: str) -> None:
        if name in self.held:
            return
        spare = [one for one in self.order if one not in self.pins and not self.leased(one)]
        free = BUDGET - self.held.used_bytes
        fits = free + sum(SIZES[one] for one in spare) >= SIZES[name]
        assert self.held.make_room(SIZES[name]) == fits
        if fits:
            while free < SIZES[name]:
                free += SIZES[spare[0]]
                self.order.remove(spare.pop(0))
            self.held.add(adapter(name))
            self.order.append(name)

    @precondition(lambda self: self.order)
    @rule(data=st.data())
    def lease(self, data: st.DataObject) -> None:
        wanted = data.draw(st.lists(st.sampled_from(self.order), min_size=1, unique=True))
        self.leases.append(self.held.lease(wanted))
        self.order = [one for one in self.order if one not in wanted] + wanted

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        lease = self.leases.pop(data.draw(st.integers(0, len(self.leases) - 1)))
        self.held.end(lease)

    @rule(name=names)
    def pin(self, name: str) -> None:
        if sum(SIZES[one] for one in self.pins | {name}) > BUDGET:
            with pytest.raises(PinsTooLarge):
                self.held.pin(name, SIZES[name])
        else:
            self.held.pin(name, SIZES[name])
            self.pins.add(name)

    @rule(name=names)
    def unpin(self, name: str) -> None:
        self.held.unpin(name)
        self.pins.discard(name)

    @rule(name=names)
    def unload(self, name: str) -> None:
        self.pins.discard(name)
        if name not in self.order:
            with pytest.raises(NotResident):
                self.held.unload(name)
            return
        expected = Unloaded.DRAINING if self.leased(name) else Unloaded.FREED
        assert self.held.unload(name) is expected
        self.order.remove(name)

    @invariant()
    def agree(self) -> None:
        draining = {one for lease in self.leases for one in lease if one.draining}
        sizes = sum(SIZES[name] for name in self.order) + sum(one.adapter.size_bytes for one in draining)
        assert self.held.used_bytes == sizes <= BUDGET
        infos = self.held.infos()
        assert [info.digest for info in infos if not info.draining] == self.order
        assert len([info for info in infos if info.draining]) == len(draining)
        assert self.held.pinned_bytes == sum(SIZES[name] for name in self.pins)
        assert {info.digest for info in infos if info.pinned} == self.pins & set(self.order)
        for info in infos:
            given = [one for lease in self.leases for one in lease if one.adapter.digest == info.digest]
            assert info.leases == sum(one.draining == info.draining for one in given) or info.draining


TestResidents = ResidentsAgainstAModel.TestCase
TestResidents.settings = settings(max_examples=60, stateful_step_count=40)
