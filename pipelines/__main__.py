"""`python -m hada.pipelines` is `hada-pipeline`, whatever PATH says: for batch scripts."""

from hada.pipelines.cli import pipeline

if __name__ == "__main__":
    pipeline(prog_name="hada-pipeline")
