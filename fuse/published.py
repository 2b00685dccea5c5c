"""The numbers of the published configurations, as changes of a `Recipe`'s defaults.

Where they come from: the `Config/*.yml` and `Controller.py` of m2man/HADA (7f70fce), of
m2man/HADA-LAVIS (49498ca) and of m2man/Comparing-models-in-Lifelog-Retrieval-Task (HADA-2).
`tests/fuse/test_published.py` pins every one of them.
"""

from __future__ import annotations

from typing import Any

# HADA_m, Config/C5.yml: the paper's first step.
HADA: dict[str, Any] = {
    "node_width": 512,
    "head_width": 512,
    "graph_width": 512,
    "out_width": 512,
    "norm": "batch",
    "inputs": "published",
    "skip": True,
    "dropout_nodes": 0.3,
    "dropout_graph": 0.3,
    "dropout_head": 0.25,
    "dropout_match": 0.3,
    "weight_itm": 1.0,
    "hinge_repeats": True,
    "image_share": 0.25,
    "momentum": 0.995,
    "momentum_dropout": True,
    "queue": 64000,
    "queue_noise": True,
    "distill": 0.4,
    "order": "pairs",
    "batch_size": 20,
    "epochs": 100,
    "learning_rate": 1e-4,
    "learning_rate_low": 5e-6,
    "schedule": "restarts",
    "restart_epochs": 50,
    "decay_all": True,
    "patience": 20,
}

# HADA_m_extend, Config/C5.yml: its second step, in another order, weighted with the first model.
HADA_EXTEND: dict[str, Any] = HADA | {
    "norm": "none",
    "dropout_nodes": 0.0,
    "dropout_graph": 0.7,
    "dropout_head": 0.7,
    "dropout_match": 0.7,
    "image_share": 0.3,
    "temperature_low": 0.001,
    "distill": 0.0,
    "scores": "first",
    "learn_scores": True,
    "learning_rate": 5e-5,
    "restart_epochs": 30,
    "patience": 5,
}

# HADA-LAVIS, Config/flickr30k/C1.yml, features as the models give them; no standardising.
HADA_LAVIS: dict[str, Any] = HADA_EXTEND | {
    "inputs": "as-is",
    "raw_embeddings": True,
    "dropout_graph": 0.4,
    "dropout_head": 0.4,
    "dropout_match": 0.4,
    "image_share": 0.5,
    "scores": "fused",
    "learn_scores": False,
    "first_tokens_only": True,
    "edge_loop_token": 1.0,
    "edge_loop_global": 1.0,
    "batch_size": 40,
    "learning_rate": 1e-4,
    "learning_rate_low": 1e-5,
}

# C1_cont.yml: begins with the weights of C1.
HADA_LAVIS_WEIGHTED: dict[str, Any] = HADA_LAVIS | {"scores": "first", "learn_scores": True}

# Its Controller_Both, which no configuration of that repository uses.
HADA_LAVIS_BOTH: dict[str, Any] = HADA_LAVIS | {
    "scores": "all",
    "score_weights": (1.0, 1.0, 0.5),
    "learn_scores": True,
    "image_share": 0.3,
}

# HADA-2 as fine-tuned on lifelogs, Config/Pretrain_Flickr_5_cont_Both.yml. There the epoch is
# chosen by the loss on the validation split, not by recall.
HADA_2: dict[str, Any] = HADA_LAVIS_BOTH | {
    "dropout_graph": 0.2,
    "dropout_head": 0.2,
    "dropout_match": 0.2,
    "queue": 10152,
    "batch_size": 24,
    "choose": "likelihood",
}

# Baseline_m, Config/C5_norm.yml: embeddings of unit length and nothing more, because its loader
# looks for a key that the shipped file of means has not.
CONCAT: dict[str, Any] = HADA | {
    "convolution": "none",
    "norm": "layer",
    "inputs": "l2",
    "skip": False,
    "dropout_head": 0.3,
    "image_share": 0.3,
    "batch_size": 50,
    "restart_epochs": 40,
}

# Baseline_m_extend, Config/C5_norm.yml: begins with Baseline_m's weights. Its controller
# overwrites the configured dropout with 0.
CONCAT_EXTEND: dict[str, Any] = CONCAT | {
    "dropout_nodes": 0.0,
    "dropout_graph": 0.0,
    "dropout_head": 0.0,
    "dropout_match": 0.0,
    "temperature_low": 0.001,
    "scores": "first",
    "learn_scores": True,
}

PUBLISHED: dict[str, dict[str, Any]] = {
    "hada": HADA,
    "hada-extend": HADA_EXTEND,
    "hada-lavis": HADA_LAVIS,
    "hada-lavis-weighted": HADA_LAVIS_WEIGHTED,
    "hada-lavis-both": HADA_LAVIS_BOTH,
    "hada-2": HADA_2,
    "concat": CONCAT,
    "concat-extend": CONCAT_EXTEND,
}
