"""A tiny model on a tiny collection, for the tests of the trainer."""

from pathlib import Path

import yaml

from training.config import Config, as_dict


def tiny(data_dir: Path, out: Path, **changes) -> Config:
    """Settings that train in a second."""
    settings = {
        "sample_rate": 4000,
        "seq_len": 4,
        "n_filters": 4,
        "gru_units": 8,
        "dense_units": [8, 8],
        "epochs": 2,
        "epoch_windows": 12,
        "batch_size": 4,
        "learning_rate": 1e-3,
        "accelerator": "cpu",
        "threads": 1,
        "report": False,
    }
    return Config(data_dir=data_dir, out=out, **(settings | changes))


def as_options(config: Config) -> list[str]:
    """Command line of a configuration."""
    path = config.out.with_suffix(".yaml") if config.out.parent.is_dir() else config.out.parents[1] / "config.yaml"
    path.write_text(yaml.safe_dump(as_dict(config)))
    return ["--config", str(path)]
