"""`scenes`: a data set that is drawn, not downloaded, and two small frozen models for it.

`world` says what a scene is, `draw`, `grammar` and `words` turn it into a picture and captions,
`write` puts a data set on disk; none of them needs more than NumPy. `recipes`, `corpus`,
`towers`, `learner`, `pretrain` and `figures` made the weights that lie in `weights/`.
"""

from hada.extract.scenes.write import SceneSummary, captions_of, write_scenes

__all__ = ["SceneSummary", "captions_of", "write_scenes"]
