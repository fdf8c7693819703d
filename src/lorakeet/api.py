"""The commands as Python, one short function each: `lorakeet.train(...)` returns a `Run`, which evaluates, chats and merges.

data in: names and dictionaries, as the command line has them → out: a run directory, answers, figures. Each function puts
stages of other rooms together; none of them computes anything itself.
"""

import dataclasses
import importlib.util
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorakeet import chat_model as chat_models
from lorakeet import dist, notebook, progress
from lorakeet.adapters.adapter_file import find_adapter
from lorakeet.adapters.run_card import run_card
from lorakeet.chat_model import ChatModel, load_base
from lorakeet.checking.check import CheckResult, check_rows
from lorakeet.config import RunConfig, resolve_config
from lorakeet.data.prepare import PreparedData, read_held_out, read_rows, trained_on
from lorakeet.data.templates.template import template_for
from lorakeet.data.tokenizer import load_tokenizer
from lorakeet.demo_task.outcome import DemoOutcome, score_demo
from lorakeet.demo_task.recipe import MODEL, PEFT_RECIPE, RECIPE
from lorakeet.errors import MissingExtraError, ModelError
from lorakeet.evaluation.compare import Comparison, Evaluation, Progress
from lorakeet.evaluation.metrics import DEFAULT as DEFAULT_METRICS
from lorakeet.evaluation.metrics import corpus_metrics, text_metrics
from lorakeet.evaluation.tables import answers_to_dicts, to_dict
from lorakeet.exports.artefact import Options, Source
from lorakeet.exports.export import Exported
from lorakeet.exports.export import export as export_artefact
from lorakeet.exports.formats import find_format
from lorakeet.exports.hub import Pushed
from lorakeet.exports.hub import push as push_to_hub
from lorakeet.infer.chat_session import ChatSession
from lorakeet.infer.load import load_one_base
from lorakeet.infer.prefixes import usual_bytes
from lorakeet.infer.sampling import GREEDY, Sampling
from lorakeet.lora.adapter import adapter_extra
from lorakeet.lora.disable import disabled_adapters
from lorakeet.models import registry
from lorakeet.models.config_file import load_config
from lorakeet.models.listing import Listing, list_models
from lorakeet.proofs.subject import opened
from lorakeet.proofs.verify import Verification, prove
from lorakeet.reports.check_page import write_check_page
from lorakeet.reports.difference import Difference, compare_runs
from lorakeet.reports.reported_run import read_run
from lorakeet.reports.reproduction import Reproduction, Trained, compare, measured, read_trained, refuse_own_run
from lorakeet.reports.run_report import write_comparison, write_report_of_run
from lorakeet.rundir.held_out import held_out_rows
from lorakeet.rundir.record import EVALUATION, PROOFS, RunRecord, find_run, keep_found, with_settings
from lorakeet.training.describe import doubts
from lorakeet.training.forecast import Forecast
from lorakeet.training.repeat import repeated_config, rounded_otherwise, threads
from lorakeet.training.run import forecast_config, train_run

if TYPE_CHECKING:
    from lorakeet.evaluation.harness import Scores
    from lorakeet.serve.limits import Access, Limits

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Run(RunRecord):
    """A finished or unfinished training run on disk, and what can be done with it."""

    def _repr_html_(self) -> str:
        return notebook.table(["run", self.directory.name], self.summary.items())

    def load(self) -> ChatModel:
        """Load the base model with this run's adapter in it.

        Raises: AdapterError E-ADPT-105 if the run is not finished.
        """
        self.require_finished()
        return load_base(self.config).with_adapter(self.adapter_directory)

    def chat(self, *, system: str | None = None, max_new_tokens: int = 512, sampling: Sampling = GREEDY) -> ChatSession:
        """Load the run and start a conversation; see `chat`."""
        return chat(self.directory, system=system, max_new_tokens=max_new_tokens, sampling=sampling)

    def evaluate(self, data: str | Sequence[str] | None = None, **options: Any) -> Comparison:
        """Measure the run on held-out rows; see `evaluate`."""
        return evaluate(self.directory, data, **options)

    def merge(self, output: str | Path, *, dtype: str | None = None, force: bool = False) -> Exported:
        """Write base model and adapter as one plain Hugging Face directory: `export` in the format "hf"."""
        return self.export("hf", output, dtype=dtype, force=force)

    def export(
        self, form: str, output: str | Path, *, dtype: str | None = None, with_adapter: bool = False, force: bool = False
    ) -> Exported:
        """Write the run in a format that another program loads, and prove with it that it answers as the run does.

        A run over a quantised base is exported over the 16-bit one. `with_adapter` keeps the adapter apart from the base in
        a folder for Ollama; `force` keeps what fails its proof.

        Raises: ExportError, ConfigError and AdapterError, as `exports.export.export`.
        """
        return export_artefact(self.source(), find_format(form), Path(output), Options(dtype, with_adapter), force=force)

    def push(self, repo_id: str, *, base_model: str | None = None, **options: Any) -> Pushed:
        """Push the run to the hub with a model card; `options` are those of `exports.hub.push`.

        `base_model` is the hub id of a base that was a directory of this machine while training.

        Raises: ExportError, ConfigError and AdapterError, as `exports.hub.push`.
        """
        self.require_finished()
        step = adapter_extra(self.adapter_directory).get("step")
        source = self.source()
        source = dataclasses.replace(source, base_name=base_model or source.base_name)
        card = run_card(self.config, self.metrics, base_name=source.base_name, step=step)
        return push_to_hub(source, card, repo_id, **options)

    def source(self) -> Source:
        """Return what an export of this run is made of."""
        self.require_finished()
        config = self.config
        base = registry.resolve(config.model)
        tokenizer = load_tokenizer(base)
        template = template_for(tokenizer, name=config.data.template)
        longest = load_config(base).max_position_embeddings
        return Source(
            base=base,
            adapter=self.adapter_directory,
            tokenizer=tokenizer,
            template=template,
            system=config.data.system,
            base_name=registry.public_name(config.model, base),
            name=self.directory.resolve().name,
            rows=lambda: held_out_rows(self.directory, config, tokenizer, template, longest),
            trained=self.load if config.quantization_config.is_on else None,
        )


def open_run(path: str | Path | None = None, *, finished: bool = False) -> Run:
    """Open a run directory; the newest one under runs/ if none is named, the newest finished one if `finished`."""
    return Run(find_run(path, finished=finished))


def run_of(run_or_model: str | Path | None) -> Run | None:
    """Open what is named if it is a run, or the newest run if nothing is named; None for a model."""
    is_run = run_or_model is None or (Path(run_or_model) / "config.yaml").is_file()
    return open_run(run_or_model, finished=True) if is_run else None


def load(run_or_model: str | Path | None = None) -> ChatModel:
    """Load a run with its adapter, or a plain model; the newest run if nothing is named."""
    run = run_of(run_or_model)
    return run.load() if run is not None else chat_models.load(str(run_or_model))


@dist.processes()
def train(
    model: str | None = None,
    data: str | Sequence[str] | None = None,
    *,
    training_config: Mapping[str, Any] | None = None,
    peft_config: Mapping[str, Any] | None = None,
    data_config: Mapping[str, Any] | None = None,
    quantization_config: Mapping[str, Any] | None = None,
    adapter: str | Path | None = None,
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
        adapter: a run or an adapter directory to start from.
        config: a whole configuration, in place of all the above.
        resume: go on from the newest valid checkpoint in output_dir; start if there is none.
        restart: start again in an output_dir that holds a run, whose files are moved into its folder old-1.
    Raises: LorakeetError if the user can mend something.
    """
    config = config or run_config(model, data, training_config, peft_config, data_config, quantization_config, adapter)
    run = Run(train_run(config, resume=resume, restart=restart))
    write_report_of_run(run.directory)
    return run


def run_config(
    model: str | None,
    data: str | Sequence[str] | None,
    training_config: Mapping[str, Any] | None = None,
    peft_config: Mapping[str, Any] | None = None,
    data_config: Mapping[str, Any] | None = None,
    quantization_config: Mapping[str, Any] | None = None,
    adapter: str | Path | None = None,
) -> RunConfig:
    """Build the configuration of a run from what `train` and `check` take."""
    sources = [data] if isinstance(data, str) else list(data or [])
    sections = {
        "data": {**({"train": sources} if sources else {}), **(data_config or {})},
        "training_config": dict(training_config or {}),
        "peft_config": dict(peft_config or {}),
        "quantization_config": dict(quantization_config or {}),
    }
    return resolve_config(
        model=model, adapter=str(adapter) if adapter else None, sections={name: keys for name, keys in sections.items() if keys}
    )


def models() -> Listing:
    """List the models with a short name: size, licence, memory to train them here, and whether they are downloaded."""
    return list_models()


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
    html: str | Path | None = None,
) -> CheckResult:
    """Read every row as `train` does, prove what the model would be trained on, and predict time and memory.

    Args:
        num_examples: how many rows to show.
        row: the row to show instead, as "17" or "file:17".
        calibrate: load the model and predict training from two steps.
        html: also write the report as one page.
    The other arguments are those of `train`. Raises: BadRowsError, which lists the rows that cannot be trained on;
    LorakeetError at the first other thing that is wrong.
    """
    config = config or run_config(model, data, training_config, peft_config, data_config, quantization_config)
    with progress.shown():
        result, prepared = check_rows(config, num_examples=num_examples, row=row, on_progress=progress.encoding)
    if calibrate:
        try:
            with progress.shown():
                forecast = predict(config, prepared)
            result.report.cost = forecast.to_dict()
            result.report.warnings = doubts(config.training_config, forecast.steps, prepared)
        except ModelError as error:
            if error.code != "E-MODEL-108":  # a model that cannot train; one without weights yet may still be checked
                raise
            logger.warning("Time and memory are not predicted: %s", error)
    if html is not None:
        write_check_page(Path(html), result)
    return result


def predict(config: RunConfig, data: PreparedData | None = None) -> Forecast:
    """Predict time and memory of a run without training it: a few passes on the real model, forward and backward."""
    return forecast_config(config, data)


def chat(
    runs: str | Path | Sequence[str | Path] | None = None,
    *,
    system: str | None = None,
    max_new_tokens: int = 512,
    sampling: Sampling = GREEDY,
    load_in_4bit: bool = False,
    load_in_8bit: bool = False,
) -> ChatSession:
    """Load a run, several over one base, or a model, and start a conversation; the newest run if nothing is named.

    The first run answers until `ChatSession.use` names another. Without `system` the conversation has the system prompt of the
    first run, if it has one.
    """
    names = [runs] if isinstance(runs, (str, Path)) else runs or ()
    base = load_one_base(names, load_in_4bit=load_in_4bit, load_in_8bit=load_in_8bit, may_lie_in_model=True)
    opening = base.chat_model.system if system is None else system
    adapters, prefix_bytes = base.adapters, usual_bytes()
    return ChatSession(base.chat_model, opening, max_new_tokens, sampling, adapters=adapters, prefix_bytes=prefix_bytes)


def serve(
    runs: Sequence[str] = (),
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    access: "Access | None" = None,
    limits: "Limits | None" = None,
    load_in_4bit: bool = False,
    load_in_8bit: bool = False,
) -> None:
    """Answer OpenAI's clients until a signal stops it: runs over one base, or a model; the newest run if nothing is named.

    Raises: MissingExtraError without FastAPI and uvicorn; ServerError if the address needs a key or is taken, or bases differ.
    """
    if importlib.util.find_spec("fastapi") is None or importlib.util.find_spec("uvicorn") is None:
        raise MissingExtraError.of("fastapi", "serve", "the server")
    from lorakeet.serve.app import create_app
    from lorakeet.serve.limits import Access
    from lorakeet.serve.run import bound_socket, check_access, run_app
    from lorakeet.serve.served import Served

    access = access or Access()
    check_access(host, access)
    with bound_socket(host, port) as taken:  # a port that is taken is found before the model is loaded
        served = Served.of(load_one_base(runs, load_in_4bit=load_in_4bit, load_in_8bit=load_in_8bit))
        example = [*served.adapters, served.name][0]
        run_app(create_app(served, access=access, limits=limits), taken, example)


def evaluate(
    run: str | Path | None = None,
    data: str | Sequence[str] | None = None,
    *,
    metrics: Sequence[str] = DEFAULT_METRICS,
    base: bool = True,
    others: Sequence[str | Path] = (),
    max_rows: int | None = None,
    max_new_tokens: int = 256,
    on_progress: Progress | None = None,
) -> Comparison:
    """Measure a run on held-out rows, its own if no `data` is named; beside it the base model if `base`, and `others`.

    Args:
        metrics: of `evaluation.metrics.NAMES`.
        others: further runs, measured on the same rows.
    """
    opened, beside = open_run(run, finished=True), [open_run(other) for other in others]
    for one in (opened, *beside):
        one.require_finished()
    config, scores, together = opened.config, text_metrics(metrics), corpus_metrics(metrics)
    sources = [data] if isinstance(data, str) else data
    rows = (read_held_out(list(sources), config) if sources else read_rows(config)[1])[:max_rows]
    evaluation = Evaluation(
        rows,
        scores,
        together,
        with_loss="loss" in metrics,
        learn=config.data.learn,
        max_new_tokens=max_new_tokens,
        batch_size=config.training_config.per_device_eval_batch_size,
        on_progress=on_progress,
    )
    comparison = dataclasses.replace(
        evaluation.compare(opened.load(), with_base=base),
        others={name: evaluation.measure(one.load(), name) for name, one in column_names(beside).items()},
        trained_on=trained_on(rows, config) if sources else None,
    )
    keep_found(opened.directory, EVALUATION, {**to_dict(comparison), "answers": answers_to_dicts(comparison)})
    return comparison


def evaluate_tasks(
    run: str | Path | None,
    tasks: Sequence[str],
    *,
    base: bool = True,
    max_rows: int | None = None,
    num_fewshot: int | None = None,
    with_template: bool = False,
    folder: str | Path | None = None,
) -> "dict[str, Scores]":
    """Run tasks of lm-evaluation-harness on a run, and on its base model if `base`; return the numbers by column and task.

    The other arguments are those of `evaluation.harness.run_tasks`. Raises: MissingExtraError without lm_eval.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise MissingExtraError.of("lm-eval", "tasks", "--task")
    from lorakeet.evaluation.harness import run_tasks

    return run_tasks(
        open_run(run, finished=True).load(),
        tasks,
        base=base,
        max_rows=max_rows,
        num_fewshot=num_fewshot,
        with_template=with_template,
        folder=None if folder is None else Path(folder),
    )


def column_names(runs: Sequence[Run]) -> dict[str, Run]:
    """Name runs by their directories, and by whole paths where that would not tell two columns apart."""
    short = [run.directory.name for run in runs]
    taken = {"base", "tuned", *(name for name in short if short.count(name) > 1)}
    return {str(run.directory.resolve()) if name in taken else name: run for name, run in zip(short, runs, strict=True)}


def verify(
    run_or_model: str | Path | None = None, data: str | Sequence[str] | None = None, *, quick: bool = False
) -> Verification:
    """Prove on this machine that every fast way computes what the plain one does, with a run or a model; the demo's if none.

    A run is proven as it was trained: its adapter, precision, quantisation and template, on its own rows. The result is
    written into it for its report.

    Args:
        data: rows to prove it on, in place of the run's own or, for a model, the demo's.
        quick: make the proofs that take seconds only.
    Raises: LorakeetError as `train`; a proof that fails raises nothing.
    """
    begin, sources = time.perf_counter(), [data] if isinstance(data, str) else list(data or [])
    run = None if run_or_model is None else run_of(run_or_model)
    if run is None:
        config = run_config(str(run_or_model or "demo"), sources or "demo")
    else:
        run.require_finished()
        config = run.config
        if sources:
            config = config.model_copy(update={"data": config.data.model_copy(update={"train": sources, "eval": None})})
    with opened(load_base(config), config, run.adapter_directory if run else None, quick=quick) as subject:
        results = prove(subject, quick=quick)
    found = Verification(subject.about, results, quick, time.perf_counter() - begin)
    if run is not None:
        keep_found(run.directory, PROOFS, found.to_dict())
    return found


def merge(run: str | Path | None, output: str | Path, *, dtype: str | None = None, force: bool = False) -> Exported:
    """Write base model and adapter as one plain Hugging Face directory, in the base's dtype unless one is named.

    It is `Run.export` in the format "hf". A run over a quantised base is merged into the 16-bit one; the result then says
    how much that changes.
    """
    return open_run(run, finished=True).merge(output, dtype=dtype, force=force)


def report(runs: Sequence[str | Path] = (), output: str | Path | None = None) -> Path:
    """Write one page about a run, the newest if none is named, or about several side by side; return its path."""
    directories = [Path(run) for run in runs] or [open_run().directory]
    return write_comparison(directories, None if output is None else Path(output))


def diff(run: str | Path, other: str | Path) -> Difference:
    """Compare two runs: configuration, data, base model, versions, and the step at which their numbers part."""
    return compare_runs(read_run(Path(run)), read_run(Path(other)))


@dist.processes()
def reproduce(
    adapter: str | Path,
    output: str | Path | None = None,
    *,
    data: str | Sequence[str] = (),
    model: str | None = None,
    resume: bool = False,
) -> Reproduction:
    """Train a recorded adapter again in a new run, and compare: to the bit, or with how far rounding takes two runs here.

    Args:
        adapter: a run or an adapter directory, whose lorakeet.json says how it was trained.
        output: directory of the new run. A second one, for the yardstick, lies beside it if one is needed.
        data, model: where to look for the data files and the base model if they are not where they were.
        resume: go on with a repetition that was stopped.
    Raises: DataError E-DATA-197 and 198, ModelError E-MODEL-122 if data or base changed, AdapterError E-ADPT-240 to 242.
    """
    first = read_trained(find_adapter(adapter))
    refuse_own_run(first.directory, output)
    config = repeated_config(first.record, data=[data] if isinstance(data, str) else data, model=model)

    def again(config: RunConfig, directory: str | Path | None) -> tuple[Path, Trained]:
        config = with_settings(config, output_dir=None if directory is None else str(directory))
        with threads(int(first.record.versions["threads"])):
            run = train_run(config, resume=resume, restart=False, recorded=first.record.identity)
        write_report_of_run(run)
        return run, read_trained(run / "adapter")

    run, second = again(config, output)
    found = compare(first, second, run)
    if found.is_equal or not found.may_round_otherwise:
        return found
    logger.info("Not equal to the bit. Now the same once more with other roundings, to see what they do here.")
    other, what = rounded_otherwise(config)
    beside, third = again(other, run.with_name(f"{run.name}-yardstick"))
    return measured(found, first, second, third, beside, what)


def demo(output_dir: str | Path | None = None, say: Callable[[str], None] = logger.info) -> DemoOutcome:
    """Train the demo's model on the demo's task; held-out requests are answered without the adapter, as before, and with it."""
    say(f"{MODEL} Task: turn a spoken request into one JSON tool call. How long it takes is said once two steps are measured.")
    settings = RECIPE | ({"output_dir": str(output_dir)} if output_dir else {})
    run = train(config=run_config("demo", "demo", settings, PEFT_RECIPE))
    say("Scoring the trained model on held-out requests, and then the model as it was before.")
    with progress.shown():
        tuned = run.load()
        after = score_demo(tuned)
        with disabled_adapters(tuned.model):
            before = score_demo(tuned)
    say("Proving it.")
    with progress.shown():
        return DemoOutcome(run, before, after, verify(run.directory, quick=True))
