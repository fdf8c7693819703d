"""A run's log has everything with time and level, leaves others' listening as it was, and keeps no secret."""

import logging
import re

import pytest

from lorakeet.errors import DataError, LorakeetError, redact
from lorakeet.rundir.log import run_log

logger = logging.getLogger("lorakeet.some.module")


def test_the_file_has_what_came_before_it_and_every_level(tmp_path, caplog):
    path = tmp_path / "train.log"
    with caplog.at_level(logging.WARNING), run_log() as begin:
        logger.info("Early.")
        begin(path)
        logger.debug("Detail.")
        logger.warning("Late.")
    logger.warning("After.")
    lines = path.read_text().splitlines()
    assert [line.split(" - ")[1:] for line in lines] == [
        ["INFO", "lorakeet.some.module", "Early."],
        ["DEBUG", "lorakeet.some.module", "Detail."],
        ["WARNING", "lorakeet.some.module", "Late."],
    ]
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d - ", line) for line in lines)
    assert caplog.messages == ["Late.", "After."]  # who listens for warnings hears warnings, as without the log


def test_a_program_that_listens_to_lorakeet_still_does(tmp_path, caplog):
    with caplog.at_level(logging.DEBUG, logger="lorakeet"), run_log():
        logger.debug("Detail.")
    assert caplog.messages == ["Detail."]


def logged_run(path, error, *message):
    """A run that logs a message and ends with an error."""
    with run_log() as begin:
        begin(path)
        logger.info(*message)
        raise error


def test_a_run_that_is_refused_leaves_no_file(tmp_path):
    with pytest.raises(DataError), run_log():
        raise DataError("E-DATA-4", "0 conversations")
    assert list(tmp_path.iterdir()) == []


def test_the_ending_is_in_the_log_and_a_later_run_goes_on_after_it(tmp_path):
    path = tmp_path / "train.log"
    for error in (DataError("E-DATA-4", "0 conversations"), RuntimeError("cogs")):
        with pytest.raises(type(error)):
            logged_run(path, error, "Beginning.")
    text = path.read_text()
    assert "The run ended with E-DATA-4 0 conversations." in text
    assert text.index("Traceback") > text.index("E-DATA-4")
    assert "RuntimeError: cogs" in text


def test_secrets_are_taken_out_of_logs_tracebacks_and_errors(tmp_path, monkeypatch):
    path = tmp_path / "train.log"
    monkeypatch.setenv("WANDB_API_KEY", "canary-0123456789")
    monkeypatch.setenv("SHORT_KEY", "the")
    hub = "hf_" + "A1b2" * 8
    message = "key canary-0123456789, token %s, https://me:pass@host/x, the end"
    with pytest.raises(RuntimeError):
        logged_run(path, RuntimeError("canary-0123456789"), message, hub)
    text = path.read_text()
    assert "canary" not in text
    assert hub not in text
    assert "key [WANDB_API_KEY], token [secret], https://[secret]@host/x, the end" in text
    assert str(LorakeetError("E-CFG-1", "is canary-0123456789")) == "E-CFG-1 is [WANDB_API_KEY]."
    assert redact("plain https://host/a:b@c") == "plain https://host/a:b@c"
