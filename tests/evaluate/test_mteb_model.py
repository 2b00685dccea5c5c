"""A fusion in MTEB's own evaluation, on a tiny task of MTEB's own class made of local images."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from served_runs import make_served

from hada.evaluate.mteb_model import FusionModel

pytest.importorskip("mteb", reason="needs mteb: pip install 'hada[mteb]'")
pytestmark = pytest.mark.slow

# A process of its own: MTEB and `datasets` patch what they import.
PROGRAM = """
import json, os, sys
os.environ["HF_HUB_OFFLINE"] = "1"
import warnings; warnings.simplefilter("ignore")
import mteb, numpy as np
from datasets import Dataset
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.abstasks.retrieval_dataset_loaders import RetrievalSplitData
from mteb.abstasks.task_metadata import TaskMetadata
from PIL import Image
from hada.evaluate.mteb_model import FusionModel
from hada.extract.datasets.read import read_dataset
from hada.extract.manifest import load_manifest
from hada.extract.store import open_store
from hada.fuse.embedding import embed_split

data = read_dataset(load_manifest().dataset("tiny"), "train")
images = Dataset.from_dict({"id": data.image_ids,
    "image": [Image.open(path) for path in data.image_paths]})
texts = Dataset.from_dict({"id": data.caption_ids, "text": list(data.captions)})
owner = [data.image_ids[i] for i in data.caption_to_image]

def task(name, category, queries, corpus, pairs):
    class Tiny(AbsTaskRetrieval):
        metadata = TaskMetadata(
            name=name, description="", reference=None, type="Any2AnyRetrieval", category=category,
            modalities=["image", "text"], eval_splits=["train"], eval_langs=["eng-Latn"],
            main_score="ndcg_at_10", date=None, domains=None, task_subtypes=None, license=None,
            annotations_creators=None, dialect=None, sample_creation=None, bibtex_citation="",
            dataset={"path": "local/tiny", "revision": "1"})
        def load_data(self, **_):
            relevant = {}
            for query, item in pairs:
                relevant.setdefault(query, {})[item] = 1
            self.dataset = {"default": {"train": RetrievalSplitData(
                queries=queries, corpus=corpus, relevant_docs=relevant, top_ranked=None)}}
            self.data_loaded = True
    return Tiny()

model = FusionModel(sys.argv[1], device="cpu")
pairs = list(zip(data.caption_ids, owner))
tasks = [task("TinyT2IRetrieval", "t2i", texts, images, pairs),
         task("TinyI2TRetrieval", "i2t", images, texts, [(b, a) for a, b in pairs])]
result = mteb.evaluate(model, tasks, cache=None, encode_kwargs={"batch_size": 7})
got = {one.task_name: one.scores["train"][0] for one in result.task_results}

embedded = embed_split(sys.argv[2], [open_store(f"stores/tiny/train/{m}") for m in ("one", "two")],
    device="cpu")
scores_IT = np.concatenate([block for _, block in embedded.scores()], axis=1)
# Images that look alike score alike: the best and the worst place over the orders of ties.
loop, own = {}, np.asarray(data.caption_to_image)
def places(score, others):
    return int((others > score + 1e-4).sum()), int((others > score - 1e-4).sum()) - 1
t2i = [places(scores_IT[own[j], j], scores_IT[:, j]) for j in range(len(own))]
i2t = []
for i in range(len(scores_IT)):
    wrong = scores_IT[i, own != i]
    best = scores_IT[i, own == i].max()
    i2t.append((int((wrong > best + 1e-4).sum()), int((wrong > best - 1e-4).sum())))
for name, ranks in (("TinyT2IRetrieval", t2i), ("TinyI2TRetrieval", i2t)):
    loop[name] = {f"hit_rate_at_{k}": [float(np.mean(np.array(ranks)[:, end] < k))
        for end in (1, 0)] for k in (1, 3, 5, 10)}
first = model.search(images, task_metadata=tasks[1].metadata, top_k=100, encode_kwargs={})
difference = max(
    np.ptp([first[data.image_ids[i]][c] - scores_IT[i, j] for j, c in enumerate(data.caption_ids)])
    for i in range(len(scores_IT)))
some = {name: list(data.caption_ids[:4]) for name in data.image_ids}
few = model.search(images, task_metadata=tasks[1].metadata, top_k=2, encode_kwargs={},
    top_ranked=some)
def vectors(kind, data, category):
    class Meta: modalities = ["image", "text"]
    Meta.category = category
    return model.encode([{kind: list(data[kind])}], task_metadata=Meta)
cross = vectors("image", images, "i2t") @ vectors("text", texts, "i2t").T
pair = embedded.image_IE @ embedded.caption_TE.T
alike = vectors("image", images, "i2i")
print(json.dumps({"got": got, "loop": loop, "difference": float(difference), "few": few,
    "cross": float(np.abs(cross - pair).max()), "spread": float(pair.std()),
    "lengths": np.linalg.norm(alike, axis=1).tolist(),
    "name": result.model_name, "revision": result.model_revision}, default=float))
"""


@pytest.mark.parametrize("run", ["runs/tiny/mine", "out"])
def test_mteb_finds_the_recall_that_the_run_has(tmp_path: Path, run: str) -> None:
    make_served(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, run, "runs/tiny/mine"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    for task, figures in found["loop"].items():
        for name, (low, high) in figures.items():
            assert low - 1e-4 <= found["got"][task][name] <= high + 1e-4, (task, name)
        assert figures["hit_rate_at_1"][1] > 0.1, "nothing would be compared"
        assert figures["hit_rate_at_1"][0] < 0.95
    # What a query pays is the same for all that it finds.
    assert found["difference"] < 1e-3
    assert found["cross"] < 1e-2 * max(1.0, found["spread"])
    assert found["lengths"] == pytest.approx([1.0] * 12, abs=1e-5)
    assert all(len(hits) == 2 for hits in found["few"].values())
    assert found["name"] in ("hada/mine", "hada/out")
    assert len(found["revision"]) >= 16


def test_it_has_the_methods_of_mtebs_protocols() -> None:
    from mteb.models.models_protocols import EncoderProtocol, SearchProtocol

    for protocol in (EncoderProtocol, SearchProtocol):
        names = {name for name in vars(protocol) if not name.startswith("_")}
        assert names <= set(dir(FusionModel)), protocol
