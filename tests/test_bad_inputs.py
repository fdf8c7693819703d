"""Where each bad input is tested: the catalogue's rows about data, a run's place, what is loaded, and the server.

The table is held against the tests themselves, so that none can go without being missed here.
"""

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
CHECKPOINT, RUN, ADAPTER = "rundir/test_checkpoint.py", "cli/test_run_directory.py", "lora/test_adapter.py"
WEIGHTS, TENSORS, CONFIG = "models/test_weights.py", "files/test_safetensors_file.py", "models/test_config.py"
DAMAGE = f"{CHECKPOINT}::test_damage_is_named_and_the_one_before_is_used"
SERVER = "serve/test_safety.py"
DATA, HAVE = "data/test_bad_inputs.py", "data/test_people_have.py"
BY_ROW = f"{DATA}::test_bad_rows_name_code_line_and_fix"
COVERED = {
    1: [f"{DATA}::test_1_absent_path"],
    2: [f"{DATA}::test_2_directory_without_data"],
    3: [f"{DATA}::test_3_no_regular_file"],
    5: [f"{DATA}::test_5_truncated_gzip"],
    7: [f"{DATA}::test_7_byte_order_mark_is_accepted_and_noted"],
    10: [f"{DATA}::test_10_array_in_jsonl_is_accepted_and_noted"],
    22: [BY_ROW, f"{HAVE}::test_text_parts_are_joined", f"{HAVE}::test_other_parts_are_refused_by_their_type"],
    26: [f"{DATA}::test_26_control_tokens_in_content_are_counted"],
    27: [f"{DATA}::test_27_answer_beyond_the_limit"],
    28: [f"{DATA}::test_28_all_dropped"],
    29: [f"{DATA}::test_29_split_overlap"],
    **{row: [BY_ROW] for row in (4, 6, 8, 9, *range(11, 22), 23, 24, 25)},
    30: [f"{RUN}::test_30_changed_data_is_refused_with_both_hashes"],
    47: [
        f"{RUN}::test_47_a_full_disk_is_seen_before_anything_is_written",
        "faults/test_campaign.py::test_a_full_disk_costs_one_line_and_no_checkpoint",
    ],
    48: [f"{RUN}::test_48_a_run_is_not_begun_again_without_being_asked"],
    50: [
        f"{RUN}::test_50_a_second_process_is_told_who_has_the_run",
        f"{CHECKPOINT}::test_a_second_process_is_told_who_holds_the_run",
    ],
    53: [f"{CHECKPOINT}::test_a_checkpoint_without_manifest_is_skipped"],
    54: [f"{RUN}::test_54_where_no_checkpoint_is_valid_only_restart_begins_again"],
    55: [DAMAGE, f"{TENSORS}::test_broken_file_is_refused", f"{ADAPTER}::test_damaged_weight_files_are_refused"],
    56: [DAMAGE, f"{ADAPTER}::test_every_truncation_is_refused", f"{TENSORS}::test_broken_file_is_refused"],
    57: [DAMAGE, "faults/test_campaign.py::test_damage_is_found_and_named"],
    58: [f"{TENSORS}::test_broken_file_is_refused", f"{ADAPTER}::test_damaged_weight_files_are_refused"],
    59: [f"{TENSORS}::test_broken_file_is_refused", f"{ADAPTER}::test_damaged_weight_files_are_refused"],
    60: [DAMAGE, "faults/test_seeded_bugs_checkpoint.py::test_28_every_part_is_mandatory"],
    61: [f"{CHECKPOINT}::test_a_newer_format_asks_for_an_upgrade_instead_of_going_back"],
    62: [f"{RUN}::test_62_a_changed_run_is_refused_listing_the_fields"],
    63: [f"{ADAPTER}::test_pickle_is_refused_and_never_run", f"{WEIGHTS}::test_pickle_checkpoint_is_refused_unopened"],
    64: [f"{RUN}::test_64_another_base_is_refused_with_both_hashes", f"{ADAPTER}::test_another_base_is_refused"],
    65: [f"{ADAPTER}::test_shapes_must_agree_exactly"],
    66: [f"{ADAPTER}::test_keys_must_agree_exactly"],
    67: [f"{ADAPTER}::test_config_fields_are_checked"],
    68: [f"{ADAPTER}::test_nothing_that_is_not_finite_is_saved_or_loaded"],
    69: ["lora/test_inject.py::test_merge_and_unload_keeps_the_outputs"],
    70: ["exports/test_merge.py::test_70_a_quantised_base_is_refused"],
    71: [f"{CONFIG}::test_config_rejects"],
    72: [f"{CONFIG}::test_config_rejects", f"{CONFIG}::test_another_family_from_transformers_is_refused"],
    73: [f"{WEIGHTS}::test_missing_shard_is_refused", f"{WEIGHTS}::test_shard_outside_the_directory_is_refused"],
    74: ["data/test_encode_all.py::test_tokenizer_from_a_directory"],
    75: ["data/test_template.py::test_hostile_or_unprovable_templates_stop"],
    76: [f"{SERVER}::test_bodies_that_are_none"],
    77: [f"{SERVER}::test_bodies_that_are_none"],
    78: [f"{SERVER}::test_other_kinds_of_body_and_unknown_paths"],
    **{row: [f"{SERVER}::test_requests_out_of_range"] for row in (*range(79, 86), 87, 88)},
    86: [f"{SERVER}::test_control_tokens_in_a_message_are_text"],
    89: [f"{SERVER}::test_key_and_named_origin"],
    90: [f"{SERVER}::test_foreign_hosts_and_origins"],
    91: [f"{SERVER}::test_a_slow_client_is_told_so_and_a_full_queue_too"],
    92: [f"{SERVER}::test_a_slow_client_is_told_so_and_a_full_queue_too"],
    93: [f"{SERVER}::test_a_client_that_leaves_stops_its_generation"],
}


@pytest.mark.parametrize("row", [*range(1, 31), 47, 48, 50, *range(53, 94)])
def test_every_row_has_its_tests(row):
    for place in COVERED[row]:
        file, _, name = place.partition("::")
        source = (TESTS / file).read_text(encoding="utf-8")
        assert re.search(rf"^def {name}\(", source, re.M), place
        if place == BY_ROW:
            assert f"\n    ({row}, [" in source, row
