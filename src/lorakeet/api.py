"""The commands as Python: `lorakeet.train(...)` returns a `Run`, which evaluates, chats and merges.

data in: names and dictionaries, as the command line has them → out: a run directory and answers. Each function here
puts the stages together in the order of the data's way; none of them computes anything itself.
"""

import dataclasses
import importlib.util
import json
import logging
import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from lorakeet import __version__, dist
from lorakeet.checking.check import CheckResult, check_rows
from lorakeet.config import QuantizationConfig, RunConfig, dump_yaml, load_yaml, resolve_config
from lorakeet.data.prepare import PreparedData, demo_rows, prepare_data, read_held_out, read_rows
from lorakeet.data.templates.template import Template, template_for
from lorakeet.data.tokenizer import Tokenizer, load_tokenizer
from lorakeet.demo_task import recipe
from lorakeet.demo_task.scoring import score
from lorakeet.errors import CheckpointError, ConfigError, MissingExtraError, ModelError
from lorakeet.evaluation.compare import Comparison, Evaluation, Progress
from lorakeet.evaluation.generation import Answer, generate_answers, mean_scores
from lorakeet.evaluation.metrics import NAMES as METRICS
from lorakeet.evaluation.metrics import text_metrics
from lorakeet.exports.artefact import Options, Source
from lorakeet.exports.drift import measure_drift, reference_logits
from lorakeet.exports.export import Exported, export
from lorakeet.exports.formats import find_format
from lorakeet.exports.merge import Merged, check_output, merge
from lorakeet.files import durable
from lorakeet.infer.chat_session import ChatSession
from lorakeet.infer.sampling import GREEDY, Sampling
from lorakeet.lora.adapter import adapter_extra, load_adapter, save_adapter
from lorakeet.lora.fused import in_fused_names
from lorakeet.lora.inject import inject
from lorakeet.lora.targets import find_targets
from lorakeet.machine.hardware import choose_dtype
from lorakeet.machine.memory import keep_few_products, keep_freed_memory
from lorakeet.models import registry, weights
from lorakeet.models.decoder import CausalLM
from lorakeet.models.recompute import recompute_activations
from lorakeet.models.tokenizer_files import copy_tokenizer
from lorakeet.quant.loading import load_quantized_model
from lorakeet.rundir import checkpoint
from lorakeet.rundir.directory import check_directory, choose_directory, move_aside
from lorakeet.rundir.identity import run_identity
from lorakeet.rundir.log import run_log
from lorakeet.training import prediction
from lorakeet.training.adapted_layers import check_coverage
from lorakeet.training.best_evaluation import require_evaluations
from lorakeet.training.loop import Trainer
from lorakeet.training.outlook import Outlook
from lorakeet.training.parallel import require_same, shard_base, state_from_main
from lorakeet.training.prediction import Prediction
from lorakeet.training.reporting import encoding_progress
from lorakeet.training.rng import seed_all
from lorakeet.training.samples import build_sampler
from lorakeet.training.saving import choose_adapter, train_and_save
from lorakeet.training.services import services
from lorakeet.training.stopping import StopRequest
from lorakeet.training.summary import describe

logger = logging.getLogger(__name__)
FULL_PRECISION = QuantizationConfig()


@dataclass(frozen=True)
class Loaded:
    """A model ready for use, with what it takes to talk to it."""

    model: CausalLM
    tokenizer: Tokenizer
    template: Template
    directory: Path
    """Where the base model lies."""
    run: "Run | None" = None
    """The run whose adapter is in the model, if any."""

    def chat(self, *, system: str | None = None, max_new_tokens: int = 512, sampling: Sampling = GREEDY) -> ChatSession:
        """Begin a conversation; without `system`, with the system prompt that the run was trained with, if any."""
        if system is None and self.run is not None:
            system = self.run.config.data.system
        return ChatSession(self.model, self.tokenizer, self.template, system, max_new_tokens, sampling)


@dataclass(frozen=True)
class Run:
    """A finished or unfinished training run on disk."""

    directory: Path

    @property
    def config(self) -> RunConfig:
        """The run's whole configuration; where it is written is where it lies now."""
        return _with_settings(RunConfig(**load_yaml(self.directory / "config.yaml")), output_dir=str(self.directory))

    @property
    def adapter_directory(self) -> Path:
        """Where the adapter lies, in PEFT's format."""
        return self.directory / "adapter"

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl."""
        with (self.directory / "metrics.jsonl").open(encoding="utf-8") as lines:
            return [json.loads(line) for line in lines]

    @property
    def summary(self) -> dict[str, Any]:
        """What came of the run, in a few numbers."""
        rows = self.metrics
        last = [row for row in rows if "loss" in row][-1]
        held_out = {row["step"]: row["eval_loss"] for row in rows if "eval_loss" in row}
        extra = adapter_extra(self.adapter_directory) if self.adapter_directory.is_dir() else {}
        kept = extra.get("step", last["step"])
        return {
            "run_dir": str(self.directory),
            "adapter": str(self.adapter_directory),
            "steps": last["step"],
            "loss": last["loss"],
            "adapter_step": kept,
            "eval_loss_before": held_out.get(0),
            "eval_loss_after": held_out.get(kept),
            "train_seconds": last["elapsed_s"],
            "tokens_per_second": round(last["num_tokens"] / last["elapsed_s"], 1),
            "peak_memory_bytes": last["peak_memory_bytes"],
        }

    def load(self) -> Loaded:
        """Load the base model with this run's adapter in it."""
        config = self.config
        loaded = load_base(config)
        load_adapter(loaded.model, self.adapter_directory, base_hash=weights.fingerprint(loaded.directory))
        loaded.model.eval()
        return dataclasses.replace(loaded, run=self)

    def chat(self, *, system: str | None = None, max_new_tokens: int = 512, sampling: Sampling = GREEDY) -> ChatSession:
        """Load the run and begin a conversation with it."""
        return self.load().chat(system=system, max_new_tokens=max_new_tokens, sampling=sampling)

    def evaluate(
        self,
        data: str | Sequence[str] | None = None,
        *,
        metrics: Sequence[str] = METRICS,
        base: bool = True,
        max_rows: int | None = None,
        max_new_tokens: int = 256,
        on_progress: Progress | None = None,
    ) -> Comparison:
        """Measure the run on held-out rows, its own where no `data` is named, and the base model beside it."""
        config, scores = self.config, text_metrics(metrics)
        sources = [data] if isinstance(data, str) else data
        rows = read_held_out(list(sources), config) if sources else read_rows(config)[1]
        loaded = self.load()
        evaluation = Evaluation(
            loaded.tokenizer,
            loaded.template,
            rows[:max_rows],
            scores,
            with_loss="loss" in metrics,
            learn=config.data.learn,
            max_new_tokens=max_new_tokens,
            batch_size=config.training_config.per_device_eval_batch_size,
            on_progress=on_progress,
        )
        return evaluation.compare(loaded.model, with_base=base)

    def merge(self, output: str | Path, *, dtype: str | None = None) -> Merged:
        """Write base model and adapter as one plain Hugging Face directory, in the base's dtype unless one is named.

        A run over a quantised base is merged into the 16-bit one; the result then says how much that changes.
        """
        known = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
        if dtype is not None and dtype not in known:
            raise ConfigError("E-CFG-166", f'dtype is "{dtype}"', place="merge", fix=f"Choose one of {', '.join(known)}")
        base, output = registry.resolve(self.config.model), Path(output)
        check_output(output)
        # The trained model's logits first: one model in memory at a time.
        before = self._reference_logits() if self.config.quantization_config.is_on else None
        merged = merge(base, self.adapter_directory, output, dtype=known[dtype] if dtype is not None else None)
        if before is None:
            return merged
        model, template = load_model(str(output), bf16=self.config.bf16).model, self.config.data.template
        tokenizer = load_tokenizer(base)
        after = reference_logits(model, tokenizer, template_for(tokenizer, name=template))
        return dataclasses.replace(merged, drift=measure_drift(before, after))

    def export(
        self, form: str, output: str | Path, *, dtype: str | None = None, with_adapter: bool = False, force: bool = False
    ) -> Exported:
        """Write the run in a format that another program loads, and prove with it that it answers as the run does.

        A run over a quantised base is exported over the 16-bit one. `with_adapter` keeps the adapter apart from the base in
        a folder for Ollama; `force` keeps what fails its proof.

        Raises: ExportError, ConfigError and AdapterError, as `exports.export.export`.
        """
        found = find_format(form)
        return export(self.source(), found, Path(output), Options(dtype, with_adapter), force=force)

    def source(self) -> Source:
        """Return what an export of this run is made of."""
        config = self.config
        base = registry.resolve(config.model)
        tokenizer = load_tokenizer(base)
        return Source(
            base=base,
            adapter=self.adapter_directory,
            tokenizer=tokenizer,
            template=template_for(tokenizer, name=config.data.template),
            system=config.data.system,
            base_name=registry.public_name(config.model, base),
            name=self.directory.resolve().name,
            rows=lambda: read_rows(config)[1],
        )

    def _reference_logits(self) -> torch.Tensor:
        loaded = self.load()
        return reference_logits(loaded.model, loaded.tokenizer, loaded.template)


def open_run(path: str | Path | None = None) -> Run:
    """Open a run directory; the newest one under runs/ where none is named."""
    if path is not None:
        run = Run(Path(path))
        if not (run.directory / "config.yaml").is_file():
            raise CheckpointError("E-CKPT-100", "is no run directory: it has no config.yaml", place=str(path))
        return run
    found = sorted(Path("runs").glob("*/config.yaml"), key=lambda file: file.stat().st_mtime)
    if not found:
        raise CheckpointError("E-CKPT-101", "no run under runs/", fix="Train first: lorakeet train MODEL DATA")
    return Run(found[-1].parent)


def load(run_or_model: str | Path | None = None) -> Loaded:
    """Load a run with its adapter, or a plain model; the newest run where nothing is named."""
    if run_or_model is None or (Path(run_or_model) / "config.yaml").is_file():
        return open_run(run_or_model).load()
    return load_model(str(run_or_model))


def load_base(config: RunConfig, *, bf16: bool | None = None) -> Loaded:
    """Load the base model of a run in as many bits as its configuration says; `bf16` where that is known already."""
    bf16 = config.bf16 if bf16 is None else bf16
    return load_model(config.model, bf16=bf16, template=config.data.template, quantization=config.quantization_config)


def load_model(
    name: str, *, bf16: bool | None = None, template: str | None = None, quantization: QuantizationConfig = FULL_PRECISION
) -> Loaded:
    """Load a base model by alias, directory or hub id, on the best device and in the best dtype of this machine.

    Raises: MissingExtraError if it is to be quantised and bitsandbytes is not installed.
    """
    if quantization.is_on and importlib.util.find_spec("bitsandbytes") is None:
        raise MissingExtraError.of("bitsandbytes", "qlora", "a base model in 4 or 8 bits")
    keep_few_products()
    device = dist.device()
    with dist.one_of_each_machine_first():
        directory = registry.resolve(name)
    tokenizer = load_tokenizer(directory)
    dtype = getattr(torch, dist.from_main(str(choose_dtype(bf16, device)).removeprefix("torch.")))
    if quantization.is_on:
        with dist.one_of_each_machine_first():  # it fills the cache of quantised weights
            model = load_quantized_model(directory, quantization, dtype=dtype, device=device)
    else:
        model = weights.load_model(directory, dtype=dtype, device=device)
    return Loaded(model.eval(), tokenizer, template_for(tokenizer, name=template), directory)


@dist.processes()
def train(
    model: str | None = None,
    data: str | Sequence[str] | None = None,
    *,
    training_config: Mapping[str, Any] | None = None,
    peft_config: Mapping[str, Any] | None = None,
    data_config: Mapping[str, Any] | None = None,
    quantization_config: Mapping[str, Any] | None = None,
    config: RunConfig | None = None,
    resume: bool = False,
    restart: bool = False,
) -> Run:
    """Train adapters and save them: everything `lorakeet train` does. Under torchrun, all its processes do it together.

    Args:
        model: alias, directory or hub id.
        data: files, directories, hub ids, or "demo".
        training_config: keys of TrainingConfig, under transformers.TrainingArguments' names.
        peft_config: keys of LoraConfig, under peft.LoraConfig's names.
        data_config: keys of DataConfig.
        quantization_config: keys of QuantizationConfig, under transformers.BitsAndBytesConfig's names.
        config: a whole configuration, in place of all the above.
        resume: go on from the newest valid checkpoint in output_dir; begin where there is none.
        restart: begin again in an output_dir that holds a run, whose files are moved into its folder old-1.
    Raises: LorakeetError if the user can mend something.
    """
    config = config or run_config(model, data, training_config, peft_config, data_config, quantization_config)
    services(config.training_config.report_to)  # what is missing is said before anything is read
    directory = Path(dist.from_main(str(choose_directory(config))))
    run = Run(directory)
    config = _with_settings(config, output_dir=str(directory))
    with durable.writing(directory):
        is_new = dist.from_main(dist.is_main() and check_directory(directory, resume=resume, restart=restart))
    with StopRequest() as stop, _writing_to(directory) as begin_log:
        for note in config.notes:
            logger.info("Note: %s.", note)
        _train_in(run, config, stop, resume=resume and not is_new, begin_log=begin_log)
    return run


def run_config(
    model: str | None,
    data: str | Sequence[str] | None,
    training_config: Mapping[str, Any] | None = None,
    peft_config: Mapping[str, Any] | None = None,
    data_config: Mapping[str, Any] | None = None,
    quantization_config: Mapping[str, Any] | None = None,
) -> RunConfig:
    """Build the configuration of a run from what `train` and `check` take."""
    sources = [data] if isinstance(data, str) else list(data or [])
    sections = {
        "data": {**({"train": sources} if sources else {}), **(data_config or {})},
        "training_config": dict(training_config or {}),
        "peft_config": dict(peft_config or {}),
        "quantization_config": dict(quantization_config or {}),
    }
    return resolve_config(model=model, sections={name: keys for name, keys in sections.items() if keys})


@contextmanager
def _writing_to(directory: Path) -> Iterator[Callable[[Path], None]]:
    """Hold a run directory and its log, in the process that writes; the others write nothing."""
    if not dist.is_main():
        yield lambda path: None
        return
    with checkpoint.lock(directory), run_log() as begin_log:
        yield begin_log


def _train_in(run: Run, config: RunConfig, stop: StopRequest, *, resume: bool, begin_log: Callable[[Path], None]) -> None:
    """Do the work of `train` in a run directory that is ours alone."""
    with stop.droppable():
        bf16 = config.bf16
        if resume and bf16 is None:  # measured when the run began, and not to be measured otherwise now
            dtype = checkpoint.recorded_identity(run.directory).get("dtype")
            bf16 = None if dtype is None else dtype == "torch.bfloat16"
        loaded = load_base(config, bf16=bf16)
        model = loaded.model
        config = _in_names_of(model, config)
        longest = model.config.max_position_embeddings
        with dist.one_of_each_machine_first(), encoding_progress() as on_progress:
            data = prepare_data(config, loaded.tokenizer, loaded.template, longest, on_progress)
        for line in data.findings.lines():
            logger.info("Rows: %s.", line)
        require_evaluations(config.training_config, data)
        sampler = build_sampler(config, data, loaded.tokenizer, loaded.template, longest)
        with dist.one_of_each_machine_first():
            base_hash = weights.fingerprint(loaded.directory)
        trainer = _build_trainer(config, loaded, data, stop)
        identity = run_identity(config, data, base_hash, str(model.lm_head.weight.dtype))
        require_same(identity)
        is_read = resume and dist.is_main()
        found = checkpoint.load_newest(run.directory, identity, note=logger.warning) if is_read else None
        state = state_from_main(found and found[1])
        if state is not None:
            trainer.load_state(state)
    if dist.is_main():
        durable.require_space(run.directory, trainer.checkpoint_bytes * checkpoint.num_to_come(run.directory))
        if not resume:
            with durable.writing(run.directory):
                move_aside(run.directory)
                _write_config(run.directory, config, data)
    with durable.writing(run.directory):
        begin_log(run.directory / "train.log")
    _log_setting(config, model)
    if found is not None:
        logger.info("Resuming from %s.", found[0])
    logger.info(describe(config, trainer, data))
    with stop.droppable():
        outlook = Outlook.of(run.directory, trainer)
    train_and_save(run.directory, config, trainer, sampler, identity)
    outlook.compare()
    if dist.is_main():
        choose_adapter(run.directory, trainer)
        _save_adapter(run, trainer, config, loaded.directory, base_hash)
    dist.barrier()


def _save_adapter(run: Run, trainer: Trainer, config: RunConfig, base: Path, base_hash: str) -> None:
    """Write the adapter with its tokenizer, ready for PEFT."""
    with durable.writing(run.adapter_directory), durable.new_directory(run.adapter_directory, replace=True) as draft:
        with trainer.inference_weights():
            save_adapter(
                trainer.model,
                draft,
                config=config.peft_config,
                base_model_name_or_path=registry.public_name(config.model, base),
                extra={"base_hash": base_hash, "step": trainer.step},
            )
        copy_tokenizer(base, draft)


def _build_trainer(config: RunConfig, loaded: Loaded, data: PreparedData, stop: StopRequest | None = None) -> Trainer:
    """Put fresh adapters into the model and make it ready to train as `config` says."""
    model, settings = loaded.model, config.training_config
    seed_all(settings.seed)
    inject(model, config.peft_config, original_weight=partial(weights.read_weight, loaded.directory))
    check_coverage(model, config.peft_config)
    if settings.fsdp and dist.is_shared():
        shard_base(model)
    if dist.device() == "cpu":
        keep_freed_memory()
    recompute_activations(model, settings.recompute)
    model.compile_layers()
    return Trainer(model, settings, data.train.examples, data.held_out, stop)


def check(
    model: str | None = None,
    data: str | Sequence[str] | None = None,
    *,
    training_config: Mapping[str, Any] | None = None,
    peft_config: Mapping[str, Any] | None = None,
    data_config: Mapping[str, Any] | None = None,
    quantization_config: Mapping[str, Any] | None = None,
    config: RunConfig | None = None,
    num_examples: int = 3,
    row: str | None = None,
    calibrate: bool = True,
) -> CheckResult:
    """Read every row as `train` does, prove what the model would be trained on, and predict time and memory.

    Args:
        num_examples: how many rows to show.
        row: the row to show instead, as "17" or "file:17".
        calibrate: load the model and predict training from two steps.
    The other arguments are those of `train`. Raises: LorakeetError at the first thing that is wrong.
    """
    config = config or run_config(model, data, training_config, peft_config, data_config, quantization_config)
    with encoding_progress() as on_progress:
        result, prepared = check_rows(config, num_examples=num_examples, row=row, on_progress=on_progress)
    if calibrate:
        try:
            result.report.cost = predict(config, prepared).to_dict()
        except ModelError as error:  # without weights there is no prediction, and the rest of the check still counts
            logger.warning("Time and memory are not predicted: %s", error)
    return result


def predict(config: RunConfig, data: PreparedData | None = None) -> Prediction:
    """Predict time and memory of a run without training it: two passes on the real model, forward and backward."""
    loaded = load_base(config)
    config = _in_names_of(loaded.model, config)
    longest = loaded.model.config.max_position_embeddings
    data = data or prepare_data(config, loaded.tokenizer, loaded.template, longest)
    return prediction.predict(_build_trainer(config, loaded, data))


def _in_names_of(model: CausalLM, config: RunConfig) -> RunConfig:
    """Put the model's own layer names into the configuration, and refuse those it does not have, before any row."""
    peft_config, notes = in_fused_names(config.peft_config, model, model.packed_modules_mapping)
    for note in notes:
        logger.info("Note: %s.", note)
    find_targets(model, peft_config)
    return config.model_copy(update={"peft_config": peft_config})


def _write_config(directory: Path, config: RunConfig, data: PreparedData) -> None:
    """Write the whole configuration, with the system prompt of the rows where they share one: a chat needs it too.

    It says nothing of where it lies: repeated, it is a new run, in a new directory.
    """
    if config.data.system is None:
        config = config.model_copy(update={"data": config.data.model_copy(update={"system": data.system})})
    config = _with_settings(config, output_dir=None)
    durable.write_file(directory / "config.yaml", dump_yaml(config).encode())


def _with_settings(config: RunConfig, **changes: Any) -> RunConfig:
    return config.model_copy(update={"training_config": config.training_config.model_copy(update=changes)})


def _log_setting(config: RunConfig, model: CausalLM) -> None:
    """Log what the seed's script logs: both dictionaries, and a summary of device, processes and precision."""
    logger.debug("lorakeet %s, torch %s, Python %s", __version__, torch.__version__, platform.python_version())
    logger.debug("model: %s, data: %s", config.model, config.data.model_dump(mode="json"))
    logger.debug("training_config: %s", config.training_config.model_dump(mode="json"))
    logger.debug("peft_config: %s", config.peft_config.model_dump(mode="json"))
    weight = model.lm_head.weight
    logger.debug(
        "Process rank: %s of %s, device: %s, n_gpu: %d, CPU threads: %d, 16-bits training: %s",
        os.environ.get("RANK", "0"),
        os.environ.get("WORLD_SIZE", "1"),
        weight.device,
        torch.cuda.device_count(),
        torch.get_num_threads(),
        weight.dtype.itemsize == 2,
    )


@dataclass(frozen=True)
class DemoOutcome:
    """What the demo's model answered before and after training."""

    run: Run
    before: list[Answer]
    after: list[Answer]

    @property
    def score_before(self) -> float:
        """Share of held-out requests that the base model turned into the right call."""
        return mean_scores(self.before)[DEMO_METRIC]

    @property
    def score_after(self) -> float:
        """The same after training."""
        return mean_scores(self.after)[DEMO_METRIC]

    def to_dict(self) -> dict[str, Any]:
        """Return what `lorakeet demo --json` prints."""
        summary = self.run.summary
        kept = {key: summary[key] for key in ("train_seconds", "tokens_per_second", "peak_memory_bytes", "run_dir")}
        return {"score_before": self.score_before, "score_after": self.score_after, **kept}


DEMO_METRIC = "exact_json"
"""Name of the demo's score."""


def telling_pairs(outcome: DemoOutcome, count: int) -> list[tuple[Answer, Answer]]:
    """Pick answers before and after to show: in the order of what changed, at equal distances, misses included."""
    pairs = sorted(
        zip(outcome.before, outcome.after, strict=True),
        key=lambda pair: pair[0].scores[DEMO_METRIC] - pair[1].scores[DEMO_METRIC],
    )
    last = max(1, count - 1)
    return [pairs[i * (len(pairs) - 1) // last] for i in range(min(count, len(pairs)))]


def demo(output_dir: str | Path | None = None, say: Callable[[str], None] = logger.info) -> DemoOutcome:
    """Teach the embedded model the embedded task, scoring held-out requests before and after."""
    rows = demo_rows("held_out")

    def answers(loaded: Loaded) -> list[Answer]:
        return generate_answers(
            loaded.model,
            loaded.tokenizer,
            loaded.template,
            rows,
            max_new_tokens=recipe.MAX_NEW_TOKENS,
            metrics={DEMO_METRIC: lambda reference, text: float(score(reference, text))},
        )

    say(f"Task: turn a spoken request into one JSON tool call. Scoring the base model on {len(rows)} held-out requests.")
    before = answers(load_model("demo"))
    say(f"Score before training: {mean_scores(before)[DEMO_METRIC]:.1%} exact. Now it learns.")
    settings = recipe.RECIPE | ({"output_dir": str(output_dir)} if output_dir else {})
    run = train("demo", "demo", training_config=settings, peft_config=recipe.PEFT_RECIPE)
    say("Scoring the trained model on the same requests.")
    return DemoOutcome(run, before, answers(run.load()))
