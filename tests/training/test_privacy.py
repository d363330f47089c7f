import os
from pathlib import Path

from crystalline_ray.config import Config
from crystalline_ray.training.run import train


def test_a_run_and_its_tokens_are_their_owners_alone_whatever_the_umask(corpus_file: Path, tmp_path: Path) -> None:
    config = Config(
        text=(corpus_file,), cache_dir=tmp_path / "cache", runs_dir=tmp_path / "runs", name="mine", engine="local",
        tokenizer="char", seq_len=16, embed_dim=8, num_layers=1, num_heads=2, batch_size=2, global_batch_size=2,
        threads=1, steps=2, warmup_steps=1, eval_batches=1, checkpoint_every=1, sample_tokens=0,
    )  # fmt: skip
    before = os.umask(0)
    try:
        train(config)
    finally:
        os.umask(before)
    made = [path for name in ("cache", "runs") for path in ((tmp_path / name), *(tmp_path / name).rglob("*"))]
    assert {"config.yaml", "metrics.jsonl", "report.json", "model.safetensors"} <= {path.name for path in made}
    assert any(path.suffix == ".arrow" for path in made)
    modes = {str(path.relative_to(tmp_path)): oct(path.stat().st_mode & 0o777) for path in made}
    assert modes == {str(p.relative_to(tmp_path)): "0o700" if p.is_dir() else "0o600" for p in made}
