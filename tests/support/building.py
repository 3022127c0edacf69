"""Builds as the command makes them, without its bars."""

from pathlib import Path

from outpost_export.adapter_build import AdapterOrder, build_adapter
from outpost_export.build import Order, build
from outpost_export.progress import SilentReporter
from outpost_export.recipe import Recipe
from outpost_runtime.bundle import Bundle


def build_bundle(source: Path, out: Path, target: str = "cpu-fp32", **changes) -> Bundle:
    """Build a bundle; ``changes`` go to the order or to the recipe."""
    fields = {name: changes.pop(name) for name in list(changes) if name in _ORDER}
    defaults = {"adapter": None, "evaluation": None, "accept_worse": None}
    recipe = Recipe(**({"target": target, "name": out.name} | changes))
    order = Order(**(defaults | {"source": source, "recipe": recipe, "out": out} | fields))
    return build(order, SilentReporter()).bundle


def build_adapter_bundle(adapter: Path, base: Bundle, source: Path, out: Path, **changes) -> Bundle:
    """Build an adapter's bundle; ``changes`` go to the order or to the recipe."""
    fields = {name: changes.pop(name) for name in list(changes) if name in _ORDER}
    defaults = {"evaluation": None, "accept_worse": None}
    recipe = Recipe(**({"target": base.manifest.target, "name": out.name} | changes))
    named = {"adapter": adapter, "base": base.folder, "source": source, "out": out}
    order = AdapterOrder(**(defaults | named | {"recipe": recipe} | fields))
    return build_adapter(order, SilentReporter()).bundle


_ORDER = ("adapter", "evaluation", "accept_worse", "golden", "on_grid_of")
