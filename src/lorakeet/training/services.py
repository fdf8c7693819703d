"""TensorBoard, Weights & Biases, MLflow and trackio, for those who name them in `report_to`.

data in: the configuration at the start, rows of metrics as a run goes on → out: files under RUN/logs, or a service's
own server if the user has set one up. A package is imported only when it is named. Nothing is sent to a network
unless the user has configured the service for it, and what the packages report about themselves is switched off.
Metrics are named as transformers' Trainer names them (train/loss, eval/loss), so that curves can be laid over each
other. A service that fails never stops training; `Reporters` in reporting.py sees to the later calls.
"""

import importlib.util
import io
import logging
import netrc
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lorakeet.config import RunConfig, dump_yaml
from lorakeet.errors import MissingExtraError, redact
from lorakeet.rundir.metrics_file import Reporter
from lorakeet.rundir.rows import EvaluationRow, Row, SampleRow
from lorakeet.training.reporting import warn_of_failure

logger = logging.getLogger(__name__)

_SECRET_KEY = re.compile(r"(^|_)(token|secret|password|(api|access)_?key)$", re.IGNORECASE)


@dataclass(frozen=True)
class Context:
    """What a reporter is opened with."""

    run_name: str
    project: str
    directory: Path
    """The run's folder for logs."""
    config: RunConfig
    first_step: int
    """Steps already taken; above 0 in a resumed run."""

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """Every value of the configuration by its dotted name, secrets left out."""
        return without_secrets(self.config.model_dump(mode="json"))


def services(report_to: str | list[str]) -> list[str]:
    """Resolve `report_to` to services of ours: "all" is every one that is installed, "none" is none.

    Raises: MissingExtraError if the package of a named one is not installed.
    """
    asked = [report_to] if isinstance(report_to, str) else report_to
    if "all" in asked:
        return [name for name in _SERVICES if not _missing_package(name)]
    chosen = [name for name in _SERVICES if name in asked]
    for name in chosen:
        if package := _missing_package(name):
            raise MissingExtraError.of(package, "loggers", f'report_to "{name}"')
    return chosen


def open_reporters(config: RunConfig, run_directory: Path, first_step: int = 0) -> list[Reporter]:
    """Open a reporter for every service that `report_to` names; one that cannot begin is left out with a warning."""
    settings = config.training_config
    context = Context(
        run_name=settings.run_name or run_directory.resolve().name,
        project=settings.project,
        directory=Path(settings.logging_dir or run_directory / "logs"),
        config=config,
        first_step=first_step,
    )
    opened: list[Reporter] = []
    for name in services(settings.report_to):
        try:
            context.directory.mkdir(parents=True, exist_ok=True)
            with _quiet():
                reporter = _SERVICES[name](context)
        except (Exception, SystemExit) as error:
            warn_of_failure(name, error)
        else:
            opened.append(reporter)
    return opened


class TensorBoardReporter(Reporter):
    """Writes event files that `tensorboard --logdir` shows."""

    def __init__(self, context: Context) -> None:
        from torch.utils.tensorboard import SummaryWriter

        directory = context.directory / "tensorboard"
        # Points beyond a checkpoint that the run goes on from come again.
        purge = context.first_step + 1 if context.first_step else None
        self._writer = SummaryWriter(str(directory), purge_step=purge)
        if not context.first_step:
            self._writer.add_text("config", _code_block(redact(dump_yaml(context.config))), 0)
        logger.info("Look at it with: tensorboard --logdir %s", directory)

    def log(self, row: Row) -> None:
        """Write one point of each curve."""
        for name, value in metrics_of(row).items():
            self._writer.add_scalar(name, value, row.step)
        self._writer.flush()

    def close(self) -> None:
        """Close the event file."""
        self._writer.close()


class WandbReporter(Reporter):
    """Writes a Weights & Biases run: to its server if the user has logged in, else into an offline folder."""

    def __init__(self, context: Context) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        is_set_up = "WANDB_MODE" in os.environ or _has_wandb_login()
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", context.project),
            name=context.run_name,
            id=_lasting_id(context.directory / "wandb-id", is_new=not context.first_step),
            resume="allow",
            dir=str(context.directory),
            mode=None if is_set_up else "offline",
            config=context.hyperparameters,
            # Metrics alone: no command line, console, host name, or difference to the last commit.
            settings=wandb.Settings(silent=True, console="off", disable_git=True, save_code=False, x_disable_meta=True),
        )
        if self._run.url:
            logger.info("Look at it at %s", self._run.url)
        else:
            logger.info("Send it to wandb, if you like, with: wandb sync %s", Path(self._run.dir).parent)

    def log(self, row: Row) -> None:
        """Log the numbers at their step."""
        if points := metrics_of(row):
            self._run.log(points, step=row.step)

    def close(self) -> None:
        """Finish the run."""
        with _quiet():
            self._run.finish()


class MlflowReporter(Reporter):
    """Writes an MLflow run: to the tracking server the user has named, else into a database in the run's folder."""

    def __init__(self, context: Context) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow import MlflowClient
        from mlflow.entities import Param

        logging.getLogger("mlflow").setLevel(logging.WARNING)
        local = f"sqlite:///{(context.directory / 'mlflow.db').resolve().as_posix()}"
        uri = os.environ.get("MLFLOW_TRACKING_URI", local)
        self._client = MlflowClient(tracking_uri=uri)
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", context.project)
        found = self._client.get_experiment_by_name(experiment)
        artifacts = (context.directory / "mlflow-artifacts").resolve().as_uri() if uri == local else None
        experiment_id = found.experiment_id if found else self._client.create_experiment(experiment, artifacts)
        self._run_id = self._run_of(context, experiment_id)
        params = [Param(name, str(value)[:6000]) for name, value in context.hyperparameters.items()]
        for start in range(0, len(params), 100):  # the most that MLflow takes at once
            self._client.log_batch(self._run_id, params=params[start : start + 100])
        if uri == local:
            logger.info("Look at it with: mlflow ui --backend-store-uri %s", uri)

    def _run_of(self, context: Context, experiment_id: str) -> str:
        """Find the run that a resumed one goes on with, or create one."""
        lasting = context.directory / "mlflow-run"
        if context.first_step and lasting.is_file():
            run_id = lasting.read_text(encoding="utf-8")
            self._client.update_run(run_id, status="RUNNING")
            return run_id
        run_id = str(self._client.create_run(experiment_id, run_name=context.run_name).info.run_id)
        lasting.write_text(run_id, encoding="utf-8")
        return run_id

    def log(self, row: Row) -> None:
        """Log the numbers at their step."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        points = [Metric(name, value, now, row.step) for name, value in metrics_of(row).items()]
        if points:
            self._client.log_batch(self._run_id, metrics=points)

    def close(self) -> None:
        """End the run."""
        self._client.set_terminated(self._run_id)


class TrackioReporter(Reporter):
    """Writes a trackio run into a local database that `trackio show` reads."""

    def __init__(self, context: Context) -> None:
        # Read by trackio when it is first imported in a process.
        os.environ.setdefault("TRACKIO_DIR", str((context.directory / "trackio").resolve()))
        import trackio
        from trackio.utils import TRACKIO_DIR

        self._run = trackio.init(
            project=context.project,
            name=context.run_name,
            config=context.hyperparameters,
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
        logger.info("Look at it with: TRACKIO_DIR=%s trackio show --project %s", TRACKIO_DIR, context.project)

    def log(self, row: Row) -> None:
        """Log the numbers at their step."""
        if points := metrics_of(row):
            self._run.log(points, step=row.step)

    def close(self) -> None:
        """Write what is waiting."""
        import trackio

        with _quiet():
            trackio.finish()


_SERVICES: dict[str, Callable[[Context], Reporter]] = {
    "tensorboard": TensorBoardReporter,
    "wandb": WandbReporter,
    "mlflow": MlflowReporter,
    "trackio": TrackioReporter,
}


def _missing_package(name: str) -> str | None:
    """Name a package that a service needs and that is not installed, if there is one."""
    needed = [name]
    if name == "mlflow" and "MLFLOW_TRACKING_URI" not in os.environ:
        needed += ["sqlalchemy", "alembic"]  # for a database of its own; a server needs neither
    return next((package for package in needed if importlib.util.find_spec(package) is None), None)


def metrics_of(row: Row) -> dict[str, float]:
    """Name the numbers of a row as transformers' Trainer does: eval/loss, train/loss; a sample has none."""
    if isinstance(row, SampleRow):
        return {}
    kind = "eval" if isinstance(row, EvaluationRow) else "train"
    numbers = {name: value for name, value in row.to_dict().items() if name not in ("step", "seconds_left")}
    return {f"{kind}/{name.removeprefix('eval_')}": float(value) for name, value in numbers.items()}


def without_secrets(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return every value by its dotted name; what is named like a secret is left out, what looks like one is masked."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if _SECRET_KEY.search(str(key)):
            continue
        if isinstance(value, Mapping):
            flat |= without_secrets(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = _redacted(value)
    return flat


def _redacted(value: Any) -> Any:
    if isinstance(value, list):
        return [_redacted(item) for item in value]
    return redact(value) if isinstance(value, str) else value


def _has_wandb_login() -> bool:
    """Return whether the user has given Weights & Biases a key, in the environment or by an earlier `wandb login`."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).netloc
    places = [os.environ["NETRC"]] if "NETRC" in os.environ else ["~/.netrc", "~/_netrc"]
    for place in places:
        try:
            if netrc.netrc(Path(place).expanduser()).authenticators(host):
                return True
        except (OSError, netrc.NetrcParseError):
            continue
    return False


def _lasting_id(file: Path, *, is_new: bool) -> str:
    """Return the id under which a resumed run goes on; a new run gets a new one."""
    if not is_new and file.is_file():
        return file.read_text(encoding="utf-8")
    chosen = os.urandom(6).hex()
    file.write_text(chosen, encoding="utf-8")
    return chosen


def _code_block(text: str) -> str:
    return "".join(f"    {line}\n" for line in text.splitlines())


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what packages print away from stdout, which holds results alone."""
    with redirect_stdout(io.StringIO()):
        yield
