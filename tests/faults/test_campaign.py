"""A small campaign in the ordinary tests; `make faults` runs it at its full size."""

import pytest

from tests.faults import damage, each_call, exports, full_disk, kills, power_loss, repeats, reports, server, signals
from tests.faults.runs import SHORT, build_world


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return build_world(tmp_path_factory.mktemp("faults") / "long")


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    return build_world(tmp_path_factory.mktemp("faults") / "short", SHORT)


def check(outcome):
    assert not outcome.misses, "\n".join(outcome.misses)
    if outcome.note.startswith("skipped"):
        pytest.skip(outcome.note)
    assert outcome.num_cases > 0


def test_killed_runs_end_bit_equal(world):
    check(kills.campaign(world, 4))


def test_a_run_killed_at_a_call_to_the_disk_ends_bit_equal(short):
    check(each_call.kill_campaign(short, stride=31))


def test_a_call_that_fails_costs_one_line_and_no_checkpoint(short):
    check(each_call.error_campaign(short, stride=47))


def test_a_full_disk_costs_one_line_and_no_checkpoint(short):
    check(full_disk.campaign(short, 2))


def test_damage_is_found_and_named(world):
    check(damage.campaign(world, 50))


def test_no_loss_of_power_is_taken_for_a_checkpoint(world):
    check(power_loss.campaign(world, 40))


def test_a_signal_stops_a_run_in_every_phase(world):
    check(signals.phase_campaign(world))


def test_a_killed_export_leaves_the_whole_or_nothing(short):
    pytest.importorskip("gguf")
    check(exports.campaign(short, stride=41, num_random=0))


def test_a_killed_server_leaves_no_client_waiting_and_serves_again(short):
    pytest.importorskip("fastapi")
    check(server.campaign(short, 1))


def test_the_report_of_a_killed_run_says_so(world):
    check(reports.campaign(world, 2))


def test_reproduce_goes_on_where_it_was_stopped(short):
    check(repeats.campaign(short, 2))
