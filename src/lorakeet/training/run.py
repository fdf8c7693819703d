"""A whole training run, from a configuration to an adapter in a run directory.

data in: RunConfig → out: RUN, with its log, metrics, checkpoints and adapter. The order of things, from top to bottom:
claim the directory, load the model, prepare the rows, put adapters in, resume if asked, train and save, write the adapter.
The steps themselves are in loop.py.
"""

import json
import logging
import os
import platform
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import date
from functools import partial
from pathlib import Path

import torch

from lorakeet import dist, progress
from lorakeet.adapters.adapter_file import find_adapter
from lorakeet.adapters.run_card import write_run_card
from lorakeet.adapters.starting import adapter_hash, started_from
from lorakeet.chat_model import ChatModel, load_base
from lorakeet.checking.bad_rows import stop_naming_check
from lorakeet.checking.data_record import FILE as DATA_FILE
from lorakeet.checking.data_record import DataRecord
from lorakeet.config import RunConfig, to_values
from lorakeet.data.prepare import PreparedData, prepare_data, require_sources
from lorakeet.files import durable
from lorakeet.files.hashing import file_sha256
from lorakeet.lora.adapter import WEIGHTS_FILE, load_adapter, save_adapter
from lorakeet.lora.fused import in_fused_names
from lorakeet.lora.inject import inject
from lorakeet.lora.targets import find_targets
from lorakeet.machine.memory import keep_freed_memory
from lorakeet.models import registry, weights
from lorakeet.models.recompute import recompute_activations
from lorakeet.models.tokenizer_files import copy_tokenizer
from lorakeet.rundir import checkpoint
from lorakeet.rundir.directory import check_directory, choose_directory, move_aside
from lorakeet.rundir.identity import BASE_MODEL, require_recorded_rows, run_identity
from lorakeet.rundir.log import run_log
from lorakeet.rundir.metrics_file import JsonlReporter, Reporter
from lorakeet.rundir.provenance import DataFile, Provenance, base_model, data_files, logged_steps, write_record
from lorakeet.rundir.record import CONFIG, RunRecord, with_settings, write_config
from lorakeet.rundir.row_ledger import RowLedger
from lorakeet.rundir.rows import SampleRow
from lorakeet.rundir.versions import commit, kernels, versions
from lorakeet.training.adapted_layers import check_adapted_layers
from lorakeet.training.best_evaluation import require_evaluations
from lorakeet.training.describe import describe, doubts
from lorakeet.training.eva import directions_on
from lorakeet.training.forecast import Forecast, compare_forecast, forecast, forecast_run
from lorakeet.training.loop import Saver, Trainer
from lorakeet.training.notebook_curve import NotebookCurve, is_in_notebook
from lorakeet.training.parallel import require_same, shard_base, state_from_main
from lorakeet.training.reporting import ConsoleReporter, Reporters
from lorakeet.training.rng import seed_all
from lorakeet.training.samples import Sampler, questions_for
from lorakeet.training.services import open_reporters, services
from lorakeet.training.stopping import StopRequest
from lorakeet.version import __version__

logger = logging.getLogger(__name__)


def train_run(config: RunConfig, *, resume: bool, restart: bool, recorded: Mapping[str, str] | None = None) -> Path:
    """Train as `config` says and return the run directory. Every process of a distributed run calls it.

    `recorded` is the identity of a run that this one repeats: other rows than its own are refused before any step.

    Raises: LorakeetError if the user can mend something; KeyboardInterrupt, after saving, if the user stops the run.
    """
    # What is missing is said before anything is loaded.
    services(config.training_config.report_to)
    require_sources(config)
    directory = Path(dist.from_main(str(choose_directory(config))))
    config = with_settings(config, output_dir=str(directory))
    with durable.writing(directory):
        is_new = dist.from_main(dist.is_main() and check_directory(directory, resume=resume, restart=restart))
    with StopRequest() as stop, _claimed(directory) as start_log:
        for note in config.notes:
            logger.info("Note: %s.", note)
        _train(directory, config, stop, is_resumed=resume and not is_new, start_log=start_log, recorded=recorded)
    return directory


@contextmanager
def _claimed(directory: Path) -> Iterator[Callable[[Path], None]]:
    """Hold a run directory and its log, in the process that writes; the others write nothing."""
    if not dist.is_main():
        yield lambda path: None
        return
    with checkpoint.lock(directory), run_log() as start_log:
        yield start_log


def _train(
    directory: Path,
    config: RunConfig,
    stop: StopRequest,
    *,
    is_resumed: bool,
    start_log: Callable[[Path], None],
    recorded: Mapping[str, str] | None,
) -> None:
    """Load, prepare, train and save in a directory that is ours alone."""
    with stop.droppable(), progress.shown():
        chat_model = load_base(config, bf16=_recorded_bf16(directory) if is_resumed else None)
        config = dated(in_model_names(chat_model, config), chat_model, directory if is_resumed else None)
        record = DataRecord()
        data = _prepare(config, chat_model, record)
        config = as_decided(chat_model, config)
        questions = questions_for(config, data, chat_model)
        sampler = Sampler(chat_model, questions, max_new_tokens=config.training_config.sample_max_new_tokens)
        with dist.one_of_each_machine_first():
            base_hash = weights.fingerprint(chat_model.directory)
            files = data_files(config)
            begun_from = None if config.adapter is None else adapter_hash(config.adapter)
        trainer = build_trainer(config, chat_model, data, stop)
        dtype = str(chat_model.model.lm_head.weight.dtype)
        identity = run_identity(config, data, base_hash, dtype, begun_from).to_dict()
        require_same(identity)
        require_recorded_rows(identity, recorded or identity)
        resumed_from = _load_checkpoint(directory, identity, trainer) if is_resumed else None
    if dist.is_main():
        durable.require_space(directory, trainer.checkpoint_bytes * checkpoint.num_to_come(directory))
        if not is_resumed:
            with durable.writing(directory):
                move_aside(directory)
                write_config(directory, config, data.system)
                record.write(directory, data, chat_model.tokenizer)
    with durable.writing(directory):
        start_log(directory / "train.log")
    _log_setting(config, trainer)
    if resumed_from is not None:
        logger.info("Resuming from %s.", resumed_from)
    if trainer.is_done:
        logger.info("The run is finished: step %d of %d.", trainer.step, trainer.total_steps)
    logger.info(describe(config, trainer, data))
    for doubt in doubts(config.training_config, trainer.total_steps, data):
        logger.warning(doubt)
    with stop.droppable(), progress.shown():
        predicted = forecast_run(directory, trainer)
    _run_loop(directory, config, trainer, sampler, identity)
    compare_forecast(directory, trainer, predicted)
    if dist.is_main():
        _choose_step(directory, trainer)
        _save_adapter(directory, config, trainer, chat_model.directory, identity, files)
    dist.barrier()


def _prepare(config: RunConfig, chat_model: ChatModel, record: DataRecord) -> PreparedData:
    """Read, encode and prove the rows, note them in the record, and log what was noticed."""
    with dist.one_of_each_machine_first():
        data = prepare_data(
            config,
            chat_model.tokenizer,
            chat_model.template,
            chat_model.context,
            progress.encoding,
            record.add,
            stop_naming_check(config),
        )
    for line in data.findings.lines():
        logger.info("Rows: %s.", line)
    require_evaluations(config.training_config, data)
    return data


def _recorded_bf16(directory: Path) -> bool | None:
    """Return the precision that was measured when the run began, so that a busy machine does not choose another one now."""
    dtype = checkpoint.recorded_identity(directory).get("dtype")
    return None if dtype is None else dtype == "torch.bfloat16"


def in_model_names(chat_model: ChatModel, config: RunConfig) -> RunConfig:
    """Put the model's own layer names into the configuration, and refuse those it does not have, before any row is read."""
    model = chat_model.model
    peft_config, notes = in_fused_names(config.peft_config, model, model.packed_modules_mapping)
    for note in notes:
        logger.info("Note: %s.", note)
    if config.adapter is not None:
        peft_config = started_from(model, config.adapter, peft_config)
    find_targets(model, peft_config)
    return config.model_copy(update={"peft_config": peft_config})


def dated(config: RunConfig, chat_model: ChatModel, resumed: Path | None) -> RunConfig:
    """Put the day on which the run began into the configuration if the template writes one: then its rows stay the same."""
    if config.data.date is not None or not chat_model.template.writes_day:
        return config
    began = RunRecord(resumed).config.data.date if resumed and (resumed / CONFIG).is_file() else None
    day = dist.from_main(began or date.today().isoformat())
    return config.model_copy(update={"data": config.data.model_copy(update={"date": day})})


def as_decided(chat_model: ChatModel, config: RunConfig) -> RunConfig:
    """Put what the model and the machine have decided into the configuration, so that it repeats the run anywhere."""
    data = config.data.model_copy(update={"template": chat_model.template.name})
    return with_settings(
        config.model_copy(update={"data": data}),
        bf16=chat_model.model.lm_head.weight.dtype == torch.bfloat16,
        max_length=config.training_config.max_length or chat_model.context,
    )


def build_trainer(config: RunConfig, chat_model: ChatModel, data: PreparedData, stop: StopRequest | None = None) -> Trainer:
    """Put adapters into the model, fresh or those to start from, and make it ready to train as `config` says."""
    model, settings = chat_model.model, config.training_config
    seed_all(settings.seed)
    inject(
        model,
        config.peft_config,
        original_weight=partial(weights.read_weight, chat_model.directory),
        input_directions=directions_on(model, config, data.train.examples),
    )
    if config.adapter is not None:
        load_adapter(model, find_adapter(config.adapter), base_hash=weights.fingerprint(chat_model.directory))
    check_adapted_layers(model, config.peft_config)
    if settings.fsdp and dist.is_shared():
        shard_base(model)
    if dist.device() == "cpu":
        keep_freed_memory()
    recompute_activations(model, settings.recompute)
    model.compile_layers()
    return Trainer(model, settings, data.train.examples, data.held_out, stop)


def forecast_config(config: RunConfig, data: PreparedData | None = None) -> Forecast:
    """Forecast time and memory of a run without training it: a few passes on the real model, forward and backward."""
    chat_model = load_base(config)
    config = in_model_names(chat_model, config)
    if config.peft_config.init_lora_weights == "eva":  # where A begins takes no part in a step's time
        config = config.model_copy(update={"peft_config": config.peft_config.model_copy(update={"init_lora_weights": True})})
    data = data or prepare_data(config, chat_model.tokenizer, chat_model.template, chat_model.context, progress.encoding)
    return forecast(build_trainer(config, chat_model, data))


def _load_checkpoint(directory: Path, identity: dict[str, str], trainer: Trainer) -> Path | None:
    """Put the newest valid checkpoint, which the main process reads, into the trainer of every process."""
    found = checkpoint.load_newest(directory, identity, note=logger.warning) if dist.is_main() else None
    state = state_from_main(found and found[1])
    if state is not None:
        trainer.load_state(state)
    return found and found[0]


def _run_loop(directory: Path, config: RunConfig, trainer: Trainer, sampler: Sampler, identity: dict[str, str]) -> None:
    """Train to the end with everything that reports open; the main process alone reports."""
    metrics: JsonlReporter | None = None
    opened: list[Reporter] = []
    if dist.is_main():
        metrics = JsonlReporter(directory / "metrics.jsonl", trainer.step)
        opened = [metrics, NotebookCurve(trainer.total_steps) if is_in_notebook() else _console(config, trainer)]
        if sampler.questions:
            opened.append(JsonlReporter(directory / "samples.jsonl", trainer.step, kinds=(SampleRow,)))
        opened += open_reporters(config, directory, trainer.step)
    trainer.ledger = RowLedger(directory, trainer.step)
    saver = Saver(directory, identity, metrics, trainer.config.save_total_limit)
    with Reporters(*opened) as reporters:
        trainer.run(reporters, sampler=sampler, saver=saver)


def _console(config: RunConfig, trainer: Trainer) -> ConsoleReporter:
    """Open what a terminal or a pipe is shown."""
    title, every = f"training {config.model}", trainer.evaluation_every
    return ConsoleReporter(trainer.total_steps, trainer.step, title=title, evaluation_every=every)


def _choose_step(directory: Path, trainer: Trainer) -> None:
    """Put the best evaluation's state back if that is asked for, and log what was decided."""
    if trainer.best.is_patience_over:
        logger.info("Stopped early after step %d: %s.", trainer.step, trainer.best)
    if trainer.config.load_best_model_at_end:
        logger.info("The adapter is that of the best evaluation: %s.", trainer.best)
        path = checkpoint.checkpoint_path(directory, trainer.best.step)
        trainer.load_state(checkpoint.load_checkpoint(path))


def _save_adapter(
    directory: Path, config: RunConfig, trainer: Trainer, base: Path, identity: dict[str, str], files: tuple[DataFile, ...]
) -> None:
    """Write the adapter with its tokenizer, ready for PEFT, and what it was made of."""
    target, base_name = RunRecord(directory).adapter_directory, registry.public_name(config.model, base)
    base_hash = identity[BASE_MODEL]
    with durable.writing(target), durable.new_directory(target, replace=True) as draft:
        with trainer.inference_weights():
            save_adapter(
                trainer.model,
                draft,
                config=config.peft_config,
                base_model_name_or_path=base_name,
                extra={"base_hash": base_hash, "step": trainer.step},
            )
        copy_tokenizer(base, draft)
        write_run_card(draft, directory, config, base_name=base_name, step=trainer.step, base_hash=base_hash)
        steps = logged_steps(directory / "metrics.jsonl")
        training = Provenance(
            config=to_values(with_settings(config, output_dir=None)),
            base=base_model(base, base_name, base_hash),
            data=files,
            identity={name: value for name, value in identity.items() if "." not in name},
            versions=versions() | kernels(trainer.model),
            commit=commit(),
            began_with=_other_beginning(directory),
            steps=steps,
            step=trainer.step,
            loss=steps[-1]["loss"],
            sha256=file_sha256(draft / WEIGHTS_FILE),
        )
        write_record(
            draft,
            format="adapter",
            dtype="float32",
            base={"name": base_name, "sha256": base_hash},
            adapter={"name": directory.resolve().name, "sha256": training.sha256},
            template=config.data.template or "",
            training=training,
        )


def _other_beginning(directory: Path) -> dict[str, str]:
    """Return the versions and the machine that the run began with, if they are not those of now; {} if they are."""
    began: dict[str, str] = {}
    with suppress(OSError, ValueError):  # a run of an early version has no such file
        began = json.loads((directory / DATA_FILE).read_text(encoding="utf-8"))["versions"]
    return {} if began == versions() else began


def _log_setting(config: RunConfig, trainer: Trainer) -> None:
    """Log both dictionaries, as the model card's script does, and device, processes and precision."""
    logger.debug("lorakeet %s, torch %s, Python %s", __version__, torch.__version__, platform.python_version())
    logger.debug("model: %s, data: %s", config.model, config.data.model_dump(mode="json"))
    logger.debug("training_config: %s", config.training_config.model_dump(mode="json"))
    logger.debug("peft_config: %s", config.peft_config.model_dump(mode="json"))
    weight = trainer.model.lm_head.weight
    logger.debug(
        "Process rank: %s of %s, device: %s, n_gpu: %d, CPU threads: %d, 16-bits training: %s",
        os.environ.get("RANK", "0"),
        os.environ.get("WORLD_SIZE", "1"),
        weight.device,
        torch.cuda.device_count(),
        torch.get_num_threads(),
        weight.dtype.itemsize == 2,
    )
