"""A whole adapter as forms beside linear layers: its modules', and those of its extras that are weights or biases of
such layers. What does not fit that is refused in a sentence, never left out."""

from collections.abc import Collection

from deltas.adapter import Adapter
from deltas.extras import Extra
from deltas.forms import Forms, Layout


def refusals(adapter: Adapter, linears: Collection[str]) -> tuple[str, ...]:
    """Why the adapter cannot be served exactly beside a base model whose linear layers are `linears`; a sentence each,
    none where it can."""
    found = list(adapter.unread)
    if adapter.needs_base and adapter.config.raw.get("fan_in_fan_out"):
        found.append("fan_in_fan_out says that its base model keeps weights as [in, out], which linear layers do not")
    for kind, what in (("embedding", "an embedding"), ("expert", "an expert of a mixture")):
        first = next((info.name for info in adapter.modules.values() if info.kind == kind), None)
        if first is not None:
            found.append(f"'{first}' is {what}; only linear layers are served")
    reasons: dict[str, list[str]] = {}
    for extra in adapter.extras.values():
        if (reason := _why_beyond(adapter, extra, linears)) is not None:
            reasons.setdefault(reason, []).append(extra.name)
    found.extend(
        f"it changes '{names[0]}' ({len(names)} such tensor{'s' * (len(names) > 1)}), {why}"
        for why, names in reasons.items()
    )
    return tuple(found)


def layouts(adapter: Adapter) -> dict[str, Layout]:
    """Every layer that an adapter without refusals changes, sorted by name, with the forms that its change takes."""
    found = {name: adapter.layout(name) for name in adapter.modules}
    for extra in adapter.extras.values():
        known = found.get(extra.module, Layout(extra.shape[0], 0))
        if _is_weight(extra):
            found[extra.module] = known._replace(ins=extra.shape[-1], dense=True)
        else:
            found[extra.module] = known._replace(bias=True)
    return dict(sorted(found.items()))


def applied(adapter: Adapter, name: str) -> Forms:
    """The change of linear layer `name`, one of `layouts`.

    Raises:
        NotLowRank: if the adapter's `unread` says why it cannot be had.
        MissingBaseTensor: if the base model lacks the layer.
    """
    forms = adapter.forms(name) if name in adapter.modules else Forms()
    if (tensor := f"{name}.weight") in adapter.extras:
        change = adapter.extra(tensor)
        forms = forms._replace(dense=change if forms.dense is None else change + forms.dense)
    if (tensor := f"{name}.bias") in adapter.extras:
        change = adapter.extra(tensor)
        forms = forms._replace(bias=change if forms.bias is None else change + forms.bias)
    return forms


def _is_weight(extra: Extra) -> bool:
    return extra.name.endswith(".weight")


def _why_beyond(adapter: Adapter, extra: Extra, linears: Collection[str]) -> str | None:
    """Why an extra is no form of a linear layer's change; None where it is one."""
    if extra.kind == "lora_bias":
        return None  # its module has factors, and so is among the modules
    if extra.kind == "rows":
        return "rows of an embedding, which is more than a change of linear layers"
    if extra.module not in linears:
        return "which is more than a change of linear layers"
    there = adapter.base.shape(extra.name) if adapter.base is not None else extra.shape
    if there != extra.shape:
        return "which has rows of added tokens; the served model's vocabulary stays what it is"
    return None
