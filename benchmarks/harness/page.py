"""Results as the tables of docs/benchmarks.md: ``python -m benchmarks.harness.page RESULT.json ...`` prints them."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.harness.result import BARS


def page(results: Sequence[dict[str, Any]]) -> Iterator[str]:
    """The lines: the machine once, then a table of all figures."""
    machine, versions = results[0]["machine"], {key: text for each in results for key, text in each["versions"].items()}
    yield (
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB, {machine['filesystem']}, "
        f"kernel {machine['kernel']}; " + ", ".join(f"{key} {text}" for key, text in sorted(versions.items())) + "."
    )
    yield from ("", "| bench | figure | value | min - max | n | peer | ratio | bar | aim | |", "| --- " * 10 + "|")
    for each in results:
        for key, figure in each["figures"].items():
            bar = BARS.get(key)
            asked = (f"{bar.bar:g}", f"{bar.aim:g}", bar.verdict(figure["value"])) if bar else ("", "", "")
            cells = (
                each["name"],
                f"`{key}`",
                f"{figure['value']:g} {figure['unit']}",
                f"{figure['min']:g} - {figure['max']:g}",
                str(figure["n"]),
                *("" if figure[name] is None else f"{figure[name]:g}" for name in ("peer", "ratio")),
                *asked,
            )
            yield "| " + " | ".join(cells) + " |"


def _read(path: str) -> dict[str, Any]:
    with open(path, encoding="utf-8") as file:
        made: dict[str, Any] = json.load(file)
        return made


if __name__ == "__main__":
    print("\n".join(page([_read(path) for path in sys.argv[1:]])))
