"""The curves of runs as TensorBoard scalars, one folder a run: `tensorboard --logdir FOLDER/tensorboard`."""

import math
from pathlib import Path

from benchmarks.engine.table import Table, setting_text


def check() -> None:
    """Raises a `ValueError` that says how to install the writer where it is missing."""
    try:
        import tensorboardX  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ValueError(
            "TensorBoard scalars need tensorboardX: pip install tensorboardX, or "
            'pip install "optax_igr[tensorboard]".'
        ) from error


def write(runs: Table, folder: Path) -> Path:
    """Writes every curve of every run; returns the folder to point TensorBoard at.

    Args:
      runs: the table.
      folder: the scalars go to `tensorboard/<problem>/<technique>_<setting>_<seed>` in it, and replace those that an
        earlier call left there.
    """
    check()
    import tensorboardX  # pyright: ignore[reportMissingImports]

    folder = folder / "tensorboard"
    for run in runs.to_dict("records"):
        setting = setting_text(run, ".6g").replace(" ", "_")
        place = folder / run["problem"] / f"{run['technique']}_{setting}_{run['seed']}"
        for earlier in place.glob("events.out.tfevents.*"):
            earlier.unlink()
        with tensorboardX.SummaryWriter(str(place)) as writer:
            for name, values in run["curve"].items():
                if name == "step":
                    continue
                for step, value in zip(run["curve"]["step"], values, strict=True):
                    # The line of a run that diverges ends: the writer warns at each value that is not finite.
                    if math.isfinite(value):
                        writer.add_scalar(name, value, int(step))
    return folder
