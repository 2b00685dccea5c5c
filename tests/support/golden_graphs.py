"""The authors' edges and branches: what several tests and the table of errors compare with."""

from __future__ import annotations

import torch
from fuse_fakes import paper_branch
from fuse_golden import features, load_npz, load_safetensors, our_keys

from hada.fuse.batch import Features, Layout, ModelShape
from hada.fuse.network.fuser import Branch

CASES = [
    "hada_m.directed.tiny",
    "hada_m.directed.min2",
    "hada_m.directed.real",
    "lavis.directed.tiny",
    "lavis.directed.min2",
    "lavis.directed.real577",
    "lavis.directed.tiny.wfsl_wcsl_2_3",
    "hada_m.undirected.tiny",
    "hada_m.directed.wffx0.5.tiny",
    "lavis.undirected.tiny",
]
# The self loops that the authors draw, which only GCN and Transformer layers look at.
LOOPS = {"hada_m": (0.9, 1.1), "lavis": (1.0, 1.0), "lavis.directed.tiny.wfsl": (2.0, 3.0)}


def as_map(index, attr):
    pairs = list(zip(*index.tolist(), strict=True))
    assert len(set(pairs)) == len(pairs)
    return dict(zip(pairs, attr.tolist(), strict=True))


PAPER = paper_branch(
    models=(
        ModelShape(node_width=768, embedding_width=256),
        ModelShape(node_width=768, embedding_width=768),
    )
)


WEIGHTS = "hada_m_C5_mh_weights_f16.safetensors"


def golden_branch():
    branch = Branch(PAPER)
    branch.load_state_dict(our_keys(load_safetensors(WEIGHTS)))
    return branch


def golden_input(side):
    golden = load_npz(f"hada_m_C5_forward_{side}.npz")
    return golden, features({k[3:]: v for k, v in golden.items() if k.startswith("in.")})


def golden_two_layers(kind, skip):
    """mode -> (our output, the published one) of two GATv2 layers."""
    tensors = load_safetensors("multilayer_2xGATv2.safetensors")
    x = {k.removeprefix(f"{kind}.in."): v for k, v in tensors.items() if f"{kind}.in." in k}
    if kind == "lavis":
        counts = [x["n_node_1"].numpy(), x["n_node_2"].numpy()]
        layouts = tuple(Layout.build(n, global_last=False) for n in counts)
        batch = Features((x["ft_1"], x["ft_2"]), layouts, (x["ft_proj_1"], x["ft_proj_2"]))
    else:
        batch = features(x)
    config = paper_branch(
        models=tuple(
            ModelShape(
                node_width=h.shape[1], embedding_width=p.shape[1], has_tokens=len(h) > len(p)
            )
            for h, p in zip(batch.nodes, batch.embeddings, strict=True)
        ),
        node_width=32,
        head_width=32,
        graph_width=32,
        out_width=24,
        node_hidden=(40,),
        graph_hidden=(32,),
        head_hidden=(40,),
        norm="batch" if kind == "hada_m" else "none",
        skip=bool(skip),
        second_from_first=kind == "lavis",
    )
    branch = Branch(config)
    branch.load_state_dict(our_keys(tensors, f"{kind}.skip{skip}.weights."))
    with torch.no_grad():
        return {
            mode: (branch.train(mode == "train")(batch), tensors[f"{kind}.skip{skip}.{mode}.out"])
            for mode in ("eval", "train")
        }
