r"""What smaller stores cost in recall: the same fusion trained on each of them.

    python benchmarks/store_cost.py --stores stores --dataset scenes --seeds 0 1 \
        --variants float16 bfloat16 int8 pool:5 pool:2 pool:1 none --work cost

Derives each variant from the float16 stores of all tokens (`hada-store convert`), trains the
default recipe on its train split and measures RSum of each model's own embeddings and of HADA on
the test split. A variant is a dtype, a `--tokens`, or both: `pool:5+int8`. What is finished is
kept in --work, so the same command continues, and more seeds or variants may follow.

HADA's score is a weighted mean of the fused cosine and the models' own, and those hardly change
with a store; so the network is shown alone too (`fused`). Of several seeds the mean is shown, and
in brackets the lowest and the highest: how far those lie apart is the noise that the other lines
have to be judged by.
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

from hada.evaluate.methods import build
from hada.evaluate.methods.request import Request
from hada.evaluate.results.measure import measure as measure_methods
from hada.extract.common import atomic
from hada.extract.common.host import reuse_freed_memory
from hada.extract.manifest import Manifest, load_manifest
from hada.extract.spec import STORE_DTYPES
from hada.extract.store import open_store
from hada.extract.store.maintain import convert, describe
from hada.fuse.embedding import embed_split
from hada.fuse.job import train_run
from hada.fuse.plan import plan_training
from hada.fuse.ranking.ranks import rank_positives, recalls
from hada.fuse.recipes import DEFAULT_RECIPE, recipe


def derive(
    source: Manifest, work: Path, variant: str, splits: list[str], models: list[str]
) -> Manifest:
    """The manifest of a variant's stores, made where they are not there."""
    parts = variant.split("+")
    dtype = next((part for part in parts if part in STORE_DTYPES), None)
    tokens = next((part for part in parts if part not in STORE_DTYPES), "all")
    target = replace(
        source, stores=str(work / variant / "stores"), runs=str(work / variant / "runs")
    )
    dataset = source.defaults.dataset
    for split in dict.fromkeys(splits):
        for model in models:
            places = [Path(m.store_path(dataset, split, model)) for m in (source, target)]
            for _ in convert(*places, dtype=dtype, tokens=tokens):
                pass
    return target


def measure(
    manifest: Manifest, models: list[str], splits: list[str], seed: int, settings: list[str]
) -> dict[str, Any]:
    """Train one fusion and measure it and its models; kept beside the run."""
    train, val, test = splits
    dataset = manifest.defaults.dataset
    target = Path(manifest.runs) / f"seed{seed}.json"
    if target.exists():
        found: dict[str, Any] = json.loads(target.read_text())
        return found
    plan = plan_training(
        manifest,
        dataset,
        models,
        recipe(DEFAULT_RECIPE).with_settings(dict(pair.split("=", 1) for pair in settings)),
        seed=seed,
        train_split=train,
        val_split=val,
        folder=Path(manifest.runs) / f"seed{seed}",
    )
    run = train_run(plan)
    request = Request(
        dataset=dataset,
        split=test,
        runs=(run.path,),
        models=tuple(models),
        train_split=train,
        val_split=val,
        quick=True,
    )
    result = measure_methods(*build.build(manifest, request))
    rsums = {
        method["name"]: method["metrics"]["rsum"]
        for method in result["methods"]
        if method["kind"] == "model"
    }
    fused = next(method for method in result["methods"] if method["kind"] == "hada")
    facts = [describe(Path(manifest.store_path(dataset, train, model))) for model in models]
    stores = [open_store(manifest.store_path(dataset, test, model)) for model in models]
    embedded = embed_split(run, stores)
    pair = embedded.fused_image, embedded.fused_caption
    alone = recalls(rank_positives(*pair, embedded.caption_to_image))
    row = {
        "models": rsums,
        "fused": alone["rsum"],
        "hada": fused["metrics"]["rsum"],
        "half_width": fused["rsum_interval"]["half_width"],
        "bytes": sum(fact["bytes"] for fact in facts),
        "items": len(open_store(manifest.store_path(dataset, train, models[0])).image.ids),
    }
    atomic.write_json(target, row)
    return row


def table(rows: dict[str, list[dict[str, Any]]], models: list[str]) -> str:
    """Markdown; the first variant is what the others are compared with."""
    head = ["stored", "kB an image", *models, "fused", "HADA", "cost"]
    lines = [head, ["---"] + ["---:"] * (len(head) - 1)]
    base = None
    for variant, results in rows.items():
        rsums = [row["hada"] for row in results]
        mean = statistics.mean(rsums)
        base = mean if base is None else base
        kilobytes = results[0]["bytes"] / results[0]["items"] / 1e3
        own = [f"{next(v for k, v in results[0]['models'].items() if m in k):.1f}" for m in models]
        both = [spread([row[key] for row in results]) for key in ("fused", "hada")]
        lines.append([f"`{variant}`", f"{kilobytes:.1f}", *own, *both, f"{mean - base:+.1f}"])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def spread(values: list[float]) -> str:
    """The mean, and the ends where there are several."""
    ends = f" ({min(values):.1f} to {max(values):.1f})" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{ends}"


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--stores", required=True, help="Root of the float16 stores.")
    parser.add_argument("--dataset", default="scenes")
    parser.add_argument("--models", nargs="+", default=["blip", "clip"])
    parser.add_argument("--splits", nargs=3, default=["train", "val", "test"])
    parser.add_argument("--variants", nargs="+", default=["float16", "int8", "pool:1", "none"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--set", nargs="*", default=[], help="KEY=VALUE of the recipe.")
    parser.add_argument("--work", type=Path, required=True, help="Where derived stores go.")
    options = parser.parse_args()
    reuse_freed_memory()
    source = load_manifest(roots={"stores": options.stores})
    source = replace(source, defaults=replace(source.defaults, dataset=options.dataset))
    rows: dict[str, list[dict[str, Any]]] = {}
    for variant in options.variants:
        derived = derive(source, options.work, variant, options.splits, options.models)
        for seed in options.seeds:
            row = measure(derived, options.models, options.splits, seed, options.set)
            rows.setdefault(variant, []).append(row)
    print(table(rows, options.models))


if __name__ == "__main__":
    main()
