"""Versions, plans and merge reports as pages for people."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from app.cli_output import moment, share, sheet, size, spread, table

Json = Mapping[str, Any]

# A matrix of pairs wider than this does not fit on a line.
MOST_IN_MATRIX = 8
MOST_IN_PATTERN = 6


def setting(value: Any, key: str = "value") -> str:
    """A weight or rank in words: "0.5"; "0.2 → 0.8", first block to last; "mlp: 0.5; else: 1"."""
    match value:
        case float():
            return f"{value:g}"
        case {"budget": budget}:
            enough = f", none beyond {share(value['share'])} of a module's energy" if "share" in value else ""
            return f"{budget:g} on average, where the energy is{enough}"
        case [Mapping(), *_]:
            return "; ".join(f"{rule.get('filter') or 'else'}: {setting(rule[key])}" for rule in value)
        case [*points]:
            return " → ".join(setting(point) for point in points)
        case _:
            return str(value)


def version_page(version: Json) -> RenderableType:
    """The sheet of one version: what it is, where it came from, what it can be used for."""
    base = version["base_model"]
    known = f"known here, matched by {base['matched_by']}" if base["known"] else "not known here"
    recipe = version.get("recipe") or {}
    made_by = "upload" if version["origin"] == "upload" else f"{version['origin']} by {recipe.get('method', '?')}"
    head = version.get("head")
    patterns = [
        f"{name} {_pattern(version[name]['pattern'])}" for name in ("rank", "alpha") if version[name]["pattern"]
    ]
    rows = {
        "digest": version["digest"],
        "made": f"{moment(version['created_at'])} by {made_by}",
        "base model": f"{base['name'] or 'not named'} ({known})",
        "family": version["family"],
        "rank": spread(version["rank"]),
        "alpha": spread(version["alpha"]),
        "scale": f"{spread(version['scale'])} ({'alpha/sqrt(r), rsLoRA' if version['use_rslora'] else 'alpha/r'})",
        "patterns": "; ".join(patterns),
        "targets": f"{', '.join(version['target_modules'])} ({version['modules']} modules)",
        "parameters": f"{version['parameters']:,} in {version['dtype']}",
        "files": ", ".join(f"{file['name']} ({size(file['size_bytes'])})" for file in version["files"]),
        "licence": _licence(version),
        "tags": ", ".join(version["tags"]),
        "aliases": ", ".join(version["aliases"]),
        "merge": "yes" if version["mergeable"] else "no",
        "serve": "yes" if version["servable"] else "no",
        "predict": "yes" if version.get("predictable") else None,
        "head": head and f"{head['classes']} classes{': ' + ', '.join(head['names']) if head['names'] else ''}",
    }
    parts: list[RenderableType] = [Text(version["ref"], style="bold"), sheet(rows)]
    if version["sources"]:
        sources = table("Sources", "adapter", ">weight")
        asked = {source["ref"]: source["weight"] for source in recipe.get("sources", ()) if "weight" in source}
        for source in version["sources"]:
            sources.add_row(source["ref"], setting(asked.get(source["ref"], source["weight"])))
        parts.append(sources)
    for mark in version["revoked"]:
        whose = "" if mark["ancestor"] == version["ref"] else f" for the sake of {mark['ancestor']}"
        parts.append(Text(f"! revoked{whose}: {mark['reason']}", style="red"))
    notes = [*version["licensing"]["notes"], *version["notes"]]
    parts += [Text(f"! {note}", style="yellow") for note in notes]
    return Group(*parts)


def _licence(holder: Json) -> str:
    """A licence with its kind."""
    licensing = holder["licensing"]
    return f"{holder.get('license') or licensing['license'] or 'not stated'} ({licensing['kind']})"


def _pattern(pattern: Json) -> str:
    """A pattern as it is, or how long it is where it would fill the page."""
    return str(dict(pattern)) if len(pattern) <= MOST_IN_PATTERN else f"of {len(pattern)} modules"


def plan_page(plan: Json) -> RenderableType:
    """What a merge would do."""
    ranks = [module["target_rank"] for module in plan["modules"]]
    rows = {
        "method": f"{plan['method']} {plan['params'] or ''}".strip(),
        "space": plan["space"],
        "rank": f"{setting(plan['rank'], 'rank')} (modules: {plan['ranks_are']} {min(ranks)}–{max(ranks)})",
        "dtype": plan["dtype"],
        "modules": f"{plan['total_modules']}" + (f", {len(plan['left_out'])} left out" if plan["left_out"] else ""),
        "size": size(plan["size_bytes"]),
        "peak memory": f"{size(plan['peak_memory_bytes'])} a worker",
        "licence": _licence(plan),
    }
    sources = table(None, "source", ">weight", ">modules", ">ranks")
    for source in plan["sources"]:
        mine = {module["source_ranks"].get(source["ref"]) for module in plan["modules"]} - {None}
        shown = f"{min(mine)}–{max(mine)}" if len(mine) > 1 else f"{min(mine, default=0)}"
        sources.add_row(source["ref"], setting(source["weight"]), str(source["modules"]), shown)
    warnings = [Text(f"! {one}", style="yellow") for one in (*plan["warnings"], *plan["licensing"]["notes"])]
    varying = [_by_kind(plan)] if _varies(plan) else []
    return Group(sheet(rows), sources, *varying, *warnings)


def _varies(plan: Json) -> bool:
    """Whether there is more to say about the modules than the sheet says."""
    weights = [source["weight"] for source in plan["sources"]]
    return not all(isinstance(asked, int | float | str | None) for asked in [*weights, plan["rank"]])


def _by_kind(plan: Json) -> Table:
    """Ranks and weights by the last part of the modules' names; all modules are in the plan's JSON."""
    refs = list(dict.fromkeys(source["ref"] for source in plan["sources"]))[:MOST_IN_MATRIX]
    kinds: dict[str, list[Json]] = {}
    for module in plan["modules"]:
        kinds.setdefault(module["name"].rpartition(".")[2], []).append(module)
    made = table("Weights, by module", "module", ">count", ">rank", *(f">{ref.rpartition('/')[2]}" for ref in refs))
    for kind, modules in sorted(kinds.items()):
        weights = ([m["source_weights"].get(ref) for m in modules] for ref in refs)
        made.add_row(kind, str(len(modules)), _range([m["target_rank"] for m in modules]), *map(_range, weights))
    return made


def _range(numbers: Sequence[float | None]) -> str:
    """The least and the largest of those that are there."""
    found = [number for number in numbers if number is not None]
    ends = dict.fromkeys(f"{number:g}" for number in (min(found), max(found))) if found else ["–"]
    return " … ".join(ends)


def comparison_page(found: Json) -> RenderableType:
    """How adapters relate, before they are merged."""
    made = table("Adapters", "adapter", ">modules", ">norm")
    for adapter in found["adapters"]:
        made.add_row(adapter["ref"], str(adapter["modules"]), f"{adapter['norm']:.3f}")
    parts: list[RenderableType] = [made, _interference(found), _subspaces(found)]
    for pair in found["duplicates"]:
        parts.append(Text(f"! {' and '.join(pair['refs'])} are one update, times {pair['factor']:.3g}", style="yellow"))
    return Group(*parts)


def _subspaces(found: Json) -> Table:
    names = [ref.rpartition("/")[2] for ref in found["refs"]]
    made = table("Shared subspace: mean squared cosine of principal angles", "", *(f">{name}" for name in names))
    for i, name in enumerate(names):
        row = found["subspace"][i]
        made.add_row(name, *("·" if i == j else "–" if row[j] is None else share(row[j]) for j in range(len(names))))
    return made


def report_page(report: Json, *, worst: int = 5) -> RenderableType:
    """The truth meter of a merge: totals, what each source kept, interference, the worst modules, LEGO's clusters."""
    totals, modules = report["totals"], report["modules"]
    rows = {
        "method": f"{report['method']} in {report['space']} space",
        "rank": f"{spread(totals['rank'])} (asked: {setting(report['rank_asked'], 'rank')})",
        "error": f"{share(totals['relative_error'])} of the exact weighted sum",
        "best possible": f"{share(totals['energy_at_rank'])} of its energy fits this rank",
        "95 % / 99 %": f"of the energy need rank {spread(totals['rank_95'])} / {spread(totals['rank_99'])}",
        "norm": f"{totals['norm']:.3f} (exact sum: {totals['target_norm']:.3f})",
        "checked": f"{len(modules)} modules, all finite, in {report['seconds']:.1f} s",
    }
    parts: list[RenderableType] = [sheet(rows), _sources(totals["sources"], report["weights"])]
    if 1 < len(totals["sources"]) <= MOST_IN_MATRIX:
        parts.append(_interference(totals["interference"]))
    if clustered := [module for module in modules if module.get("clusters")]:
        parts.append(_clusters(clustered))
    if worst:
        parts.append(_worst(modules, worst))
    parts += [Text(f"! {warning}", style="yellow") for warning in report["warnings"]]
    return Group(*parts)


def _sources(sources: Sequence[Json], weights: Sequence[Any]) -> Table:
    made = table(
        "What each source kept", "source", ">weight", ">modules", ">cosine", ">own direction", ">inside result"
    )
    for source, weight in zip(sources, weights, strict=True):
        figures = (f"{source['cosine']:.3f}", f"{source['projection']:.3f}", share(source["subspace"]))
        made.add_row(source["ref"], setting(weight), str(source["modules"]), *figures)
    return made


def _interference(pairs: Json) -> Table:
    """One row a source: cosine and, after the stroke, how far the signs agree (50 % is chance)."""
    names = [ref.rpartition("/")[2] for ref in pairs["refs"]]
    made = table("Interference: cosine / sign agreement", "", *(f">{name}" for name in names))
    for i, name in enumerate(names):
        cells: list[str] = []
        for j in range(len(names)):
            agree = pairs["sign_agreement"][i][j]
            signs = "–" if agree is None else f"{100 * agree:.0f} %"
            cosine = pairs["cosine"][i][j]
            cells.append("·" if i == j else f"{'–' if cosine is None else f'{cosine:+.3f}'} / {signs}")
        made.add_row(name, *cells)
    return made


def _clusters(modules: Sequence[Json]) -> RenderableType:
    """What LEGO made of the sources' ranks, over all modules."""
    sizes = [size for module in modules for size in module["cluster_sizes"]]
    members = [counts for module in modules for counts in module["members_by_source"]]
    mixed = sum(sum(count > 0 for count in counts) > 1 for counts in members)
    factors = [factor for module in modules for factor in module["reweighting_factors"]]
    rows = {
        "ranks pooled into clusters": f"{sum(sizes)} into {len(sizes)}",
        "clusters of one, two, more": " / ".join(_size_shares(sizes)),
        "clusters of several sources": share(mixed / len(members)),
        "largest cluster": max(sizes),
        "reweighting factor": f"median {median(factors):.2f}, largest {max(factors):.2f}",
        "output scale": f"median {median(module['output_scale'] for module in modules):.3f}",
        "spread inside clusters": f"median {share(median(m['inertia_share'] for m in modules))} (inertia)",
    }
    return Group(Text("LEGO's clusters", style="bold"), sheet(rows), Text())


def _size_shares(sizes: Sequence[int]) -> list[str]:
    ones, twos = (sum(size == wanted for size in sizes) for wanted in (1, 2))
    return [share(count / len(sizes)) for count in (ones, twos, len(sizes) - ones - twos)]


def _worst(modules: Sequence[Json], count: int) -> Table:
    ordered = sorted(modules, key=lambda module: -(module["relative_error"] or 0.0))
    made = table(
        "Modules furthest from the exact sum", "module", ">rank", ">error", ">energy at rank", ">rank for 95 %"
    )
    for module in ordered[:count]:
        figures = (share(module["relative_error"]), share(module["energy_at_rank"]), str(module["rank_95"]))
        made.add_row(module["name"], str(module["rank"]), *figures)
    return made
