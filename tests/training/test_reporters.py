"""Reporters: each service's own files read back, and none that fails stops anything."""

import json
import logging
import os
import sqlite3
import struct
import subprocess
import sys

import pytest

from lorakeet.config import RunConfig
from lorakeet.errors import ConfigError, MissingExtraError
from lorakeet.rundir.metrics_file import JsonlReporter
from lorakeet.rundir.rows import EvaluationRow, StepRow
from lorakeet.training import services as reporters
from lorakeet.training.reporting import Reporters
from lorakeet.training.services import metrics_of, open_reporters, services, without_secrets

REST = {"num_tokens": 9, "num_supervised_tokens": 4, "tokens_per_second": 8.0, "elapsed_s": 1.0, "peak_memory_bytes": 7}
ROWS = [
    EvaluationRow(step=2, epoch=0.5, eval_loss=2.5, num_supervised_tokens=11),
    StepRow(step=2, epoch=0.5, loss=1.5, grad_norm=0.25, learning_rate=1e-3, seconds_left=3.0, **REST),
    StepRow(step=3, epoch=0.75, loss=1.25, grad_norm=0.5, learning_rate=5e-4, seconds_left=1.0, **REST),
    StepRow(step=4, epoch=1.0, loss=1.125, grad_norm=0.5, learning_rate=0.0, seconds_left=0.0, **REST),
]
TRAIN_LOSSES = {2: 1.5, 3: 1.25, 4: 1.125}
CANARY = "canary-0123456789"


def config(**settings):
    return RunConfig(model="demo", data={"train": ["demo"], "system": f"say {CANARY}"}, training_config=settings)


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """A user who has configured nothing, and a secret that must not get out."""
    for name in [name for name in os.environ if name.startswith(("WANDB_", "MLFLOW_", "TRACKIO_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    monkeypatch.setenv("SOME_API_KEY", CANARY)
    return tmp_path


SCRIPT = """
import json, sys
from pathlib import Path
from lorakeet.config import RunConfig
from lorakeet.training.reporting import Reporters
from lorakeet.rundir.rows import metrics_row
from lorakeet.training.services import open_reporters
import logging
logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
config, run, rows, first = json.loads(sys.argv[1])
opened = open_reporters(RunConfig(**config), Path(run), first)
with Reporters(*opened) as together:
    for row in rows:
        together.log(metrics_row(row))
"""


def report(run, names, rows, first=0):
    """Report from a process of its own, as a run does, with the network cut off where the system lets us."""
    arguments = json.dumps([config(report_to=names).model_dump(mode="json"), str(run), [row.to_dict() for row in rows], first])
    cut = ["unshare", "-rn"] if _can_unshare() else []
    done = subprocess.run(
        [*cut, sys.executable, "-c", SCRIPT, arguments], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "reports no more" not in done.stderr, done.stderr
    assert done.stdout == ""
    return done.stderr


def _can_unshare():
    try:
        return subprocess.run(["unshare", "-rn", "true"], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def no_secret_in(folder):
    for file in folder.rglob("*"):
        if file.is_file() and not file.is_symlink():
            assert CANARY.encode() not in file.read_bytes(), file


@pytest.fixture
def written(offline):
    """A run and its continuation, reported to every service at once."""
    for name in ("tensorboard", "wandb", "mlflow", "trackio"):
        pytest.importorskip(name)
    run = offline / "my-run"
    # The run is killed after step 3 and goes on from its checkpoint of step 2; the row of step 3 comes again.
    told = report(run, "all", ROWS[:3])
    report(run, "all", ROWS[2:], first=2)
    assert "tensorboard --logdir" in told
    assert "wandb sync" in told
    assert "mlflow ui" in told
    assert "trackio show" in told
    no_secret_in(run)
    return run / "logs"


def test_every_service_holds_what_was_reported(written):
    assert_tensorboard(written / "tensorboard")
    assert_wandb(written / "wandb")
    assert_mlflow(written / "mlflow.db")
    assert_trackio(written / "trackio")


def assert_tensorboard(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == list(TRAIN_LOSSES.items())
    assert [(event.step, event.value) for event in events.Scalars("eval/loss")] == [(2, 2.5)]
    assert "config/text_summary" in events.Tags()["tensors"]


def wandb_records(file):
    """Read wandb's own file: a header of 7 bytes, then blocks of 32 KiB with LevelDB's log records."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, at, part = file.read_bytes(), 7, b""
    assert content.startswith(b":W&B")
    while at + 7 <= len(content):
        if at % 32768 > 32768 - 7:  # no room for a record's head
            at += -at % 32768
            continue
        length, kind = struct.unpack_from("<HB", content, at + 4)
        part += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = Record()
            record.ParseFromString(part)
            part = b""
            yield record


def assert_wandb(folder):
    ids, configured, found = set(), {}, []
    for file in sorted(folder.glob("offline-run-*/run-*.wandb")):
        for record in wandb_records(file):
            if record.WhichOneof("record_type") == "run":
                ids.add(record.run.run_id)
                assert (record.run.display_name, record.run.project) == ("my-run", "lorakeet")
                configured |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
            if record.WhichOneof("record_type") == "history":
                items = record.history.item
                found.append({item.key or item.nested_key[0]: json.loads(item.value_json) for item in items})
    assert len(ids) == 1
    assert configured["training_config.learning_rate"] == 2e-4
    assert {row["_step"]: row["train/loss"] for row in found if "train/loss" in row} == TRAIN_LOSSES
    assert [row["eval/loss"] for row in found if "eval/loss" in row] == [2.5]


def assert_mlflow(file):
    with sqlite3.connect(file) as database:
        points = set(database.execute("select step, value from metrics where key = 'train/loss'"))
        runs = list(database.execute("select name, status from runs"))
        params = dict(database.execute("select key, value from params"))
    database.close()
    assert points == set(TRAIN_LOSSES.items())
    assert runs == [("my-run", "FINISHED")]
    assert params["training_config.learning_rate"] == "0.0002"
    assert params["data.system"] == "say [SOME_API_KEY]"


def assert_trackio(folder):
    (file,) = folder.glob("*.db")
    with sqlite3.connect(file) as database:
        rows = [(step, json.loads(metrics)) for step, metrics in database.execute("select step, metrics from metrics")]
    database.close()
    assert {(step, row["train/loss"]) for step, row in rows if "train/loss" in row} == set(TRAIN_LOSSES.items())
    assert [(step, row["eval/loss"]) for step, row in rows if "eval/loss" in row] == [(2, 2.5)]


def test_nothing_is_imported_that_is_not_named(offline):
    code = (
        "import sys; from pathlib import Path; from lorakeet.config import RunConfig\n"
        "from lorakeet.training.services import open_reporters\n"
        "open_reporters(RunConfig(model='demo', data='demo'), Path(sys.argv[1]))\n"
        "print([name for name in ('tensorboard', 'wandb', 'mlflow', 'trackio') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(offline)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert list(offline.iterdir()) == []


def installed(monkeypatch, without):
    monkeypatch.setattr(reporters.importlib.util, "find_spec", lambda name: None if name == without else object())


def test_all_and_none_and_names(monkeypatch):
    installed(monkeypatch, without="wandb")
    assert services("none") == services(["none"]) == services([]) == []
    assert services("all") == services(["all", "wandb"]) == ["tensorboard", "mlflow", "trackio"]
    assert services(["trackio", "tensorboard", "trackio"]) == ["tensorboard", "trackio"]


def test_a_package_that_is_missing_is_named_with_its_extra(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    installed(monkeypatch, without="alembic")
    expected = r'E-EXTRA-41 report_to "mlflow" needs the package alembic.*lorakeet\[loggers\]'
    with pytest.raises(MissingExtraError, match=expected):
        services(["tensorboard", "mlflow"])
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://localhost:5000")
    assert services("mlflow") == ["mlflow"]


def test_an_unknown_service_stops_and_one_of_others_is_passed_over_with_a_note():
    with pytest.raises(ConfigError, match=r'E-CFG-150 .*names "tensorbord"\. Did you mean tensorboard\?'):
        config(report_to="tensorbord")
    both = config(report_to=["azure_ml", "wandb"])
    assert both.training_config.report_to == ["wandb"]
    assert "report_to passes over azure_ml" in " ".join(both.notes)
    assert config(report_to="azure_ml").training_config.report_to == []
    assert config(report_to=None).training_config.report_to == "none"


class Failing:
    """Fails at one of the calls, and counts all."""

    def __init__(self, call, error):
        self.call, self.error, self.calls = call, error, []

    def _hear(self, call):
        self.calls.append(call)
        if call == self.call:
            raise self.error

    def step(self, row):
        self._hear("step")

    def log(self, row):
        self._hear("log")

    def close(self):
        self._hear("close")


@pytest.mark.parametrize("call", ["step", "log", "close"])
@pytest.mark.parametrize("error", [RuntimeError("no\nconnection"), SystemExit(3), MemoryError()], ids=repr)
def test_a_reporter_that_fails_is_dropped_with_one_line(call, error, tmp_path, caplog):
    failing, file = Failing(call, error), tmp_path / "metrics.jsonl"
    with Reporters(failing, JsonlReporter(file)) as together:
        for row in ROWS:
            together.step(row)
            together.log(row)
    assert failing.calls.count(call) == 1
    assert failing.calls[-1] == call
    assert len(file.read_text().splitlines()) == len(ROWS)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    message = record.getMessage()
    assert message.startswith(f"Failing reports no more, training goes on: {type(error).__name__}")
    assert "\n" not in message


def test_the_users_interrupt_is_no_failure_of_a_reporter():
    with pytest.raises(KeyboardInterrupt):
        Reporters(Failing("log", KeyboardInterrupt())).log(ROWS[0])


def test_an_error_of_the_runs_own_files_stops_and_all_are_closed():
    full, other = Failing("close", ConfigError("E-CFG-47", "disk full")), Failing("", None)
    with pytest.raises(ConfigError, match="E-CFG-47"), Reporters(full, other):
        pass
    assert other.calls == ["close"]


def test_one_that_cannot_begin_is_left_out(offline, caplog):
    (offline / "logs").mkdir()
    (offline / "logs" / "tensorboard").write_text("a file where the folder should be")
    assert open_reporters(config(report_to="tensorboard"), offline) == []
    (record,) = caplog.records
    assert record.getMessage().startswith("tensorboard reports no more, training goes on: ")


def test_a_reason_that_quotes_a_secret_is_masked(offline, caplog):
    together = Reporters(Failing("log", ConnectionError(f"https://me:{CANARY}@host/ said {CANARY} hf_{'a' * 30}")))
    together.log(ROWS[0])
    assert caplog.records[0].getMessage().endswith("ConnectionError: https://[secret]@host/ said [SOME_API_KEY] [secret]")


def test_hyperparameters_hold_no_secret(offline):
    values = {"a": {"hub_token": "x", "max_new_tokens": 3, "b": [CANARY, 1]}, "api_key": "y", "c": "hf_" + "b" * 30}
    assert without_secrets(values) == {"a.max_new_tokens": 3, "a.b": ["[SOME_API_KEY]", 1], "c": "[secret]"}


def test_wandb_goes_online_only_with_a_login(offline, monkeypatch):
    assert not reporters._has_wandb_login()
    netrc = offline / "netrc"
    netrc.write_text("machine api.wandb.ai login user password key\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    assert reporters._has_wandb_login()
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.com")
    assert not reporters._has_wandb_login()
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    assert reporters._has_wandb_login()


def test_metrics_are_named_as_transformers_names_them():
    assert metrics_of(ROWS[0]) == {"eval/epoch": 0.5, "eval/loss": 2.5, "eval/num_supervised_tokens": 11.0}
    assert list(metrics_of(ROWS[1]))[:4] == ["train/epoch", "train/loss", "train/grad_norm", "train/learning_rate"]
    assert "train/seconds_left" not in metrics_of(ROWS[1])
