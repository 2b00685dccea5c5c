"""After code has moved: `python benchmarks/mutate_follow.py` finds each mutation's new file.

A mutation whose text now stands exactly once in another file of the same room is listed there.
While there are others, they are named, to be written anew by hand, and the list stays as it is.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import yaml
from mutate import LIST, PACKAGES, ROOT


class _Dumper(yaml.SafeDumper):
    """Texts of several lines are quoted, so that each stays on one."""


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    return dumper.represent_scalar(
        "tag:yaml.org,2002:str", value, style='"' if "\n" in value else None
    )


_Dumper.add_representer(str, _text)


def follow(raw: dict[str, Any], texts: dict[str, str]) -> list[str]:
    """Move mutations to the files that hold their text; returns what is nowhere to be found."""
    names = {path: name for name, path in raw["code"].items()}
    groups, lost = [], []
    for group in raw["groups"]:
        home = raw["code"][group["code"]]
        by_file: dict[str, list[dict[str, str]]] = {}
        for one in group["mutations"]:
            near = [
                path
                for path, text in texts.items()
                if path.split("/")[0] == home.split("/")[0] and text.count(one["old"]) == 1
            ]
            if home not in near and len(near) != 1:
                lost.append(f"{home}: {one['breaks']}: {one['old']!r}")
            else:
                by_file.setdefault(home if home in near else near[0], []).append(one)
        for path, mutations in by_file.items():
            stem = Path(path).stem
            free = raw["code"].get(stem, path) == path
            names.setdefault(path, stem if free else f"{Path(path).parent.name}_{stem}")
            raw["code"][names[path]] = path
            groups.append({**group, "code": names[path], "mutations": mutations})
    raw["groups"] = groups
    used = {group["code"] for group in groups}
    raw["code"] = {name: path for name, path in sorted(raw["code"].items()) if name in used}
    return lost


def main() -> None:
    """See the first lines of this file."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    before = LIST.read_text()
    head = before[: before.index("code:\n")]
    raw = yaml.safe_load(before)
    texts = {
        str(path.relative_to(ROOT)): path.read_text()
        for folder in PACKAGES.values()
        for path in (ROOT / folder).rglob("*.py")
    }
    lost = follow(raw, texts)
    if lost:
        sys.exit("\n".join([*(f"lost: {one}" for one in lost), f"{len(lost)} lost"]))
    body = yaml.dump(raw, Dumper=_Dumper, width=160, sort_keys=False, allow_unicode=True)
    LIST.write_text(head + body)


if __name__ == "__main__":
    main()
