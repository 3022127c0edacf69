from outpost_runtime.update.holding import groups, held_back
from outpost_runtime.update.release import Base, Release
from outpost_runtime.update.slots import Slot

_BASE, _BASE2, _ADAPTER, _ADAPTER2 = (letter * 64 for letter in "1234")


def _release(name, bundle, base=None):
    return Release(
        name=name,
        version="1",
        target="cpu-int8",
        bundle=bundle,
        base=None if base is None else Base(name="base", bundle=base),
        key="0" * 64,
        memory_bytes=1,
        files=(),
        deltas=(),
    )


def _held(*releases, slots=None, bases=None):
    return held_back({r.name: r for r in releases}, slots or {}, bases or {})


_HERE = {"base": Slot(active=_BASE), "adapter": Slot(active=_ADAPTER)}
_HANGING = {"adapter": _BASE}


def test_a_base_and_its_adapter_go_together():
    releases = _release("base", _BASE2), _release("adapter", _ADAPTER2, base=_BASE2)
    assert _held(*releases) == {}
    assert _held(*releases, slots=_HERE, bases=_HANGING) == {}


def test_an_adapter_waits_for_its_base():
    adapter = _release("adapter", _ADAPTER2, base=_BASE2)
    assert _held(adapter, slots=_HERE, bases=_HANGING) == {"adapter": "its base 'base' is not here"}
    assert _held(_release("adapter", _ADAPTER2, base=_BASE), slots=_HERE) == {}


def test_a_base_waits_for_every_adapter_that_hangs_on_it():
    assert _held(_release("base", _BASE2), slots=_HERE, bases=_HANGING) == {
        "base": "adapter hang on what is here"
    }


def test_what_waits_makes_others_wait():
    slots = {**_HERE, "second": Slot(active="5" * 64)}
    bases = {"adapter": _BASE, "second": _BASE}
    releases = _release("base", _BASE2), _release("adapter", _ADAPTER2, base=_BASE2)
    assert set(_held(*releases, slots=slots, bases=bases)) == {"base", "adapter"}


def test_an_adapter_of_the_old_base_waits_while_the_base_moves():
    releases = _release("base", _BASE2), _release("adapter", _ADAPTER2, base=_BASE)
    assert "base" in _held(*releases, slots=_HERE, bases=_HANGING)


def test_a_base_comes_with_its_adapters_and_everything_else_alone():
    adapter, other = (_release(name, _ADAPTER, base=_BASE) for name in ("adapter", "other"))
    alone = _release("alone", _ADAPTER2, base=_BASE2)
    releases = {r.name: r for r in (adapter, _release("base", _BASE), alone, other)}
    assert groups(releases) == [("adapter", "base", "other"), ("alone",)]
