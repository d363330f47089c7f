import os
import tempfile
from pathlib import Path

from crystalline_ray.config import Config
from crystalline_ray.training.run import train
from tests.helpers.other_user import as_another_user, as_root, assert_out_of_reach


def small(corpus_file: Path, folder: Path) -> Config:
    return Config(
        text=(corpus_file,), cache_dir=folder / "cache", runs_dir=folder / "runs", name="mine", engine="local",
        tokenizer="char", seq_len=16, embed_dim=8, num_layers=1, num_heads=2, batch_size=2, global_batch_size=2,
        threads=1, steps=2, warmup_steps=1, eval_batches=1, checkpoint_every=1, sample_tokens=0,
    )  # fmt: skip


def test_a_run_and_its_tokens_are_their_owners_alone_whatever_the_umask(corpus_file: Path, tmp_path: Path) -> None:
    config = small(corpus_file, tmp_path)
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


@as_root
def test_no_other_user_reaches_a_run_or_its_tokens(corpus_file: Path) -> None:
    with tempfile.TemporaryDirectory() as entered:  # pytest's own folder would let nobody in
        folder = Path(entered)
        folder.chmod(0o755)
        train(small(corpus_file, folder))
        assert as_another_user(f"ls {folder}").stdout.split() == ["cache", "runs"]
        files = [path for path in folder.rglob("*") if path.is_file()]
        assert {"config.yaml", "metrics.jsonl", "report.json", "model.safetensors"} <= {path.name for path in files}
        for file in files:
            assert_out_of_reach(folder / file.relative_to(folder).parts[0], file)
