"""Keys of TrainingArguments, SFTConfig and peft.LoraConfig that are no settings here, and what stands in their place.

One rule decides where a key of theirs goes:

- What we honour is a field of TrainingConfig or LoraConfig, and not in these tables.
- What has no meaning here, or no influence on what is learned, is accepted with a note: `noted`.
- What would change what is learned, and cannot be honoured, stops the run unless it is at a value that asks for
  nothing beyond what happens anyway: `refused`.

data in: one key and its value → out: a note, silence, or a ConfigError. docs/training.md lists the same keys; a test
holds both tables complete for the installed transformers, trl and peft.
"""

from dataclasses import dataclass
from typing import Any

from lorakeet.errors import ConfigError


@dataclass(frozen=True)
class ForeignKey:
    """A key of theirs that is no field here."""

    instead: str
    """What stands in its place, as the end of a note or the fix of an error."""
    harmless: tuple[Any, ...] | None = None
    """Values that ask for nothing beyond what happens anyway; every other value stops. None: no value stops."""

    def accept(self, place: str, value: Any) -> str | None:
        """Return the note about a value of this key, or None where there is nothing to say.

        Raises: ConfigError E-CFG-108 if the value would change what is learned.
        """
        if self.harmless is None:
            return f"{place} is not used: {self.instead}"
        # By type too: 0 and False, or 1 and True, are not the same request.
        if any(type(value) is type(known) and value == known for known in self.harmless):
            return None
        raise ConfigError("E-CFG-108", f"cannot be honoured as {_shown(value)}", place=place, fix=self.instead)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def noted(instead: str, *keys: str) -> dict[str, ForeignKey]:
    """Describe keys that are accepted with a note."""
    return {key: ForeignKey(instead) for key in keys}


def refused(instead: str, *keys: str, harmless: tuple[Any, ...] = (None, False)) -> dict[str, ForeignKey]:
    """Describe keys that stop the run unless they are at one of the `harmless` values."""
    return {key: ForeignKey(instead, harmless) for key in keys}


NOTHING: tuple[Any, ...] = (None, False, "", [], {})
"""Ways in which the field writes "nothing"."""

_LOGGING = (
    noted(
        "-v shows more on stderr, and RUN/train.log has all of it",
        "log_level",
        "log_level_replica",
        "log_on_each_node",
        "disable_tqdm",
    )
    | noted("every logging_steps steps a row is logged, and the last one", "logging_strategy", "logging_first_step")
    | noted("a loss that is not finite stops the run", "logging_nan_inf_filter")
    | noted("every logged row counts tokens", "include_num_input_tokens_seen", "include_tokens_per_second")
    | noted("every logged row has the peak memory", "skip_memory_metrics")
    | noted(
        "for a Space set TRACKIO_SPACE_ID in the environment",
        "trackio_space_id",
        "trackio_bucket_id",
        "trackio_static_space_id",
    )
)

_EVALUATION = (
    noted("eval_strategy says when held-out rows are evaluated", "do_eval")
    | noted("held-out rows are evaluated before the first step, unless eval_strategy is no", "eval_on_start")
    | noted("evaluation begins before the first step", "eval_delay")
    | noted(
        "evaluation gives the mean loss of the supervised tokens and keeps no outputs",
        "prediction_loss_only",
        "eval_do_concat_batches",
        "eval_use_gather_object",
        "eval_accumulation_steps",
        "include_for_metrics",
        "include_inputs_for_metrics",
        "batch_eval_metrics",
        "label_names",
        "past_index",
    )
    | noted("evaluation computes as training does", "bf16_full_eval", "fp16_full_eval")
    | noted("evaluation never packs rows; the loss is the same", "eval_packing")
    | noted("call Run.evaluate, or lorakeet evaluate", "do_predict")
)

_SAVING = (
    noted("an existing run is never overwritten; go on with resume, or begin again with restart", "overwrite_output_dir")
    | noted("a checkpoint is written every save_steps steps and after the last one", "save_strategy")
    | noted("a checkpoint always holds the whole state", "save_only_model")
    | noted("everything on disk is safetensors, JSON or YAML", "save_safetensors")
    | noted("one process writes the run directory", "save_on_each_node")
    | noted("Ctrl-C and SIGTERM save a checkpoint", "enable_jit_checkpoint")
    | noted("there are no callbacks; a checkpoint restores everything", "restore_callback_states_from_checkpoint")
    | noted(
        "nothing is uploaded; RUN/adapter is ready for it",
        "push_to_hub",
        "hub_model_id",
        "hub_strategy",
        "hub_private_repo",
        "hub_always_push",
        "hub_revision",
        "push_to_hub_model_id",
        "push_to_hub_organization",
    )
    | noted("nothing is uploaded; for downloads set HF_TOKEN in the environment", "hub_token", "push_to_hub_token")
    | refused("Say resume: --resume, or lorakeet.train(resume=True)", "resume_from_checkpoint")
    | refused("A resumed run never repeats or skips rows; leave it out", "ignore_data_skip")
)

_SPEED = (
    noted(
        "gradient_checkpointing says what is recomputed; the gradient is the same",
        "gradient_checkpointing_kwargs",
        "activation_checkpointing",
        "activation_checkpointing_kwargs",
        "activation_offloading",
    )
    | noted(
        "layers are compiled where a C++ compiler is found; LORAKEET_COMPILE=0 turns it off",
        "torch_compile",
        "torch_compile_backend",
        "torch_compile_mode",
        "torchdynamo",
        "jit_mode_eval",
        "use_ipex",
    )
    | noted(
        "the loss never keeps logits, which is what these kernels are for",
        "use_liger_kernel",
        "liger_kernel_config",
        "use_liger",
    )
    | noted("training uses no cache of keys and values", "use_cache")
    | noted("freed memory is kept for the next step", "torch_empty_cache_steps")
    | noted("batches are as large as you say; lorakeet check predicts their memory", "auto_find_batch_size")
    | noted("PyTorch's own setting for float32 products stays", "tf32")
    | noted(
        "rows are encoded once, before the first step, and read from memory",
        "dataloader_num_workers",
        "dataloader_pin_memory",
        "dataloader_persistent_workers",
        "dataloader_prefetch_factor",
        "dataloader_multiprocessing_context",
        "dataloader_in_order",
        "dataset_num_proc",
        "dataset_batch_size",
    )
    | noted("rows of every known format are read; no column need be removed", "remove_unused_columns")
    | noted("documents lie end to end without padding", "padding_free", "pad_to_multiple_of", "pad_token", "length_column_name")
    | noted("nothing is profiled", "debug", "ray_scope", "tpu_num_cores", "tpu_metrics_debug", "mp_parameters")
)

_DEVICES = (
    noted(
        "a GPU is used where there is one; CUDA_VISIBLE_DEVICES= hides it",
        "use_cpu",
        "no_cuda",
        "use_mps_device",
        "xpu_backend",
    )
    | noted("torchrun says which process this is", "local_rank")
    | noted(
        "torchrun and PyTorch's own defaults say how processes meet",
        "ddp_backend",
        "ddp_timeout",
        "ddp_find_unused_parameters",
        "ddp_bucket_cap_mb",
        "ddp_broadcast_buffers",
        "ddp_static_graph",
    )
    | refused(
        "Leave it out; several processes start with torchrun",
        "fsdp_config",
        "deepspeed",
        "accelerator_config",
        "parallelism_config",
        "sharded_ddp",
        "fsdp_transformer_layer_cls_to_wrap",
        "dispatch_batches",
        harmless=NOTHING,
    )
    | refused("Leave it out; several processes start with torchrun", "fsdp_min_num_params", harmless=(0, None))
    | refused("A step's batch is per_device_train_batch_size × gradient_accumulation_steps × processes", "split_batches")
)

_LEARNING = (
    noted("lorakeet train trains", "do_train")
    | refused(
        "Every supervised token of a step weighs the same, over all processes; leave it out",
        "average_tokens_across_devices",
        harmless=(True, None),
    )
    | refused("Set bf16: true, or leave both out: then this machine's better one is measured", "fp16")
    | noted("there is no float16 to configure", "fp16_opt_level", "fp16_backend", "half_precision_backend")
    | refused("optim says everything about the optimizer; leave it out", "optim_args", "optim_target_modules", harmless=NOTHING)
    | refused("Say optim: adafactor", "adafactor")
    | refused("Leave it out; seed orders the rows too", "data_seed", harmless=(None,))
    | noted("one seed decides every random number; on a CPU two runs are equal to the bit", "full_determinism")
    | refused("The last batch of an epoch is learned too; leave it out", "dataloader_drop_last")
    | refused("Rows are shuffled anew every epoch; leave it out", "train_sampling_strategy", harmless=("random", None))
    | refused("Leave it out; without padding nothing is gained by it", "group_by_length")
)

_ROWS = (
    refused("Name the model itself; its dtype is bf16's, its attention our own", "model_init_kwargs", harmless=NOTHING)
    | refused("Code from a model's directory is never run; leave it out", "trust_remote_code")
    | noted("Phi-3 has no experts and no router", "router_aux_loss_coef")
    | refused("Name a template with data.template", "chat_template_path", harmless=(None,))
    | refused("Name your columns with data.columns", "dataset_text_field", harmless=("text", None))
    | refused("Rows are encoded by the model's own template; leave it out", "dataset_kwargs", harmless=NOTHING)
    | refused("Turns end as the model's template ends them; leave it out", "eos_token", harmless=(None,))
    | noted("data.truncation says what happens to rows longer than max_length; by default they stop the run", "truncation_mode")
    | noted("rows are shuffled anew every epoch", "shuffle_dataset")
    | refused("Packing keeps conversations whole (bfd)", "packing_strategy", harmless=("bfd", None))
    | refused("Answers are learned; say learn: text for whole texts", "completion_only_loss", harmless=(True, None))
    | noted("data.learn says what is learned; by default the assistant's turns", "assistant_only_loss")
    | refused(
        "The loss is the mean negative log-likelihood of the supervised tokens",
        "loss_type",
        harmless=("nll", "chunked_nll", None),
    )
    | noted("packing fills rows best-fit and needs no estimate", "num_of_sequences", "chars_per_token")
)

TRAINING_KEYS = _LOGGING | _EVALUATION | _SAVING | _SPEED | _DEVICES | _LEARNING | _ROWS
"""Keys of transformers.TrainingArguments and trl.SFTConfig, of this version and earlier ones."""

TRAINING_RENAMED = {
    "evaluation_strategy": "eval_strategy",
    "max_seq_length": "max_length",
    "per_gpu_train_batch_size": "per_device_train_batch_size",
    "per_gpu_eval_batch_size": "per_device_eval_batch_size",
}
"""Earlier names of TrainingConfig's fields."""

LORA_KEYS = (
    refused("Only LoRA is trained here", "peft_type", harmless=("LORA", None))
    | noted(
        "it is written when the adapter is saved",
        "auto_mapping",
        "peft_version",
        "base_model_name_or_path",
        "revision",
        "inference_mode",
    )
    | noted("it belongs to an option that is off", "megatron_core", "qalora_group_size", "runtime_config")
    | refused(
        "Leave it out; adapters are plain LoRA", "use_dora", "lora_bias", "use_qalora", "use_bdlora", "ensure_weight_tying"
    )
    | refused(
        "Leave it out; adapters are plain LoRA",
        "megatron_config",
        "velora_config",
        "monteclora_config",
        "arrow_config",
        "kasa_config",
        "alora_invocation_tokens",
        "layer_replication",
        "target_parameters",
        "trainable_token_indices",
        harmless=NOTHING,
    )
    | refused(
        "Leave it out; adapters start with A random and B zero",
        "loftq_config",
        "eva_config",
        "corda_config",
        "lora_ga_config",
        harmless=NOTHING,
    )
)
"""Keys of peft.LoraConfig."""
