"""Every argument of LLaMA-Factory and transformers: honoured by stage `sft-classifier`, refused, or without effect.

A test compares the three tables with the installed argument classes, so that a new version's argument is decided on
before it can be ignored.
"""

from typing import Any

_HONOURED = """
model_name_or_path adapter_name_or_path cache_dir use_fast_tokenizer model_revision low_cpu_mem_usage rope_scaling
flash_attn use_unsloth_gc enable_liger_kernel disable_gradient_checkpointing use_reentrant_gc upcast_layernorm
upcast_lmhead_output offload_folder use_v1_kernels infer_dtype hf_hub_token ms_hub_token om_hub_token
print_param_status trust_remote_code quantization_method quantization_bit quantization_type double_quantization
quantization_device_map image_max_pixels image_min_pixels crop_to_patches

template dataset eval_dataset dataset_dir media_dir cutoff_len mix_strategy interleave_probs overwrite_cache
preprocessing_batch_size preprocessing_num_workers max_samples val_size eval_on_each_dataset default_system
tokenized_path data_shared_file_system

output_dir overwrite_output_dir do_train do_eval do_predict per_device_train_batch_size per_device_eval_batch_size
num_train_epochs max_steps learning_rate lr_scheduler_type lr_scheduler_kwargs warmup_steps warmup_ratio optim
optim_args weight_decay adam_beta1 adam_beta2 adam_epsilon gradient_accumulation_steps max_grad_norm bf16 fp16
bf16_full_eval fp16_full_eval tf32 gradient_checkpointing gradient_checkpointing_kwargs neftune_noise_alpha
torch_empty_cache_steps torch_compile torch_compile_backend torch_compile_mode auto_find_batch_size
logging_strategy logging_steps logging_first_step log_on_each_node logging_nan_inf_filter
include_num_input_tokens_seen log_level log_level_replica disable_tqdm report_to run_name project trackio_space_id
eval_strategy eval_steps eval_delay eval_on_start eval_accumulation_steps save_only_model save_strategy save_steps
save_on_each_node save_total_limit enable_jit_checkpoint push_to_hub hub_token hub_private_repo hub_model_id
hub_strategy hub_always_push hub_revision load_best_model_at_end metric_for_best_model greater_is_better
ignore_data_skip restore_callback_states_from_checkpoint full_determinism seed data_seed use_cpu
accelerator_config dataloader_drop_last dataloader_num_workers dataloader_pin_memory
dataloader_persistent_workers dataloader_prefetch_factor train_sampling_strategy length_column_name
ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers ddp_backend ddp_timeout deepspeed debug
skip_memory_metrics resume_from_checkpoint ray_num_workers ray_init_kwargs master_addr master_port
enable_torch_profiler profiler_output_dir profiler_wait_steps profiler_warmup_steps profiler_active_steps
profiler_repeat profiler_record_shapes profiler_profile_memory profiler_with_stack profile_modules

stage finetuning_type freeze_trainable_layers freeze_trainable_modules freeze_extra_modules additional_target
lora_alpha lora_dropout lora_rank lora_target use_rslora use_dora create_new_adapter module_dropout oft_rank
oft_block_size use_llama_pro freeze_vision_tower freeze_multi_modal_projector freeze_language_model pure_bf16
disable_shuffling early_stopping_steps plot_loss include_effective_tokens_per_second use_swanlab swanlab_project
swanlab_workspace swanlab_run_name swanlab_mode swanlab_api_key swanlab_logdir swanlab_lark_webhook_url
swanlab_lark_secret
"""
HONOURED = frozenset(_HONOURED.split())

_ONE_SEQUENCE = "it joins several memes in one sequence, and each needs a label of its own"
_OPTIMIZER = "it builds an optimizer of its own, and the head would train at the adapter's learning rate"
_LOSS = "it replaces the loss of this stage"
_ENGINE = "it replaces the forward pass that the head reads from"
_VOCABULARY = "extraction and inference load the model's own vocabulary; add the tokens to the model before training"
_LISTED = "the metrics of the two heads need the named predictions of the whole set"
_REWRITES = (
    "PiSSA rewrites the base model's weights, by a random decomposition that no later process repeats; take the "
    "default initialisation, or train on a model and an adapter that the host's scripts/pissa_init.py wrote"
)

REFUSED_ARGUMENTS = {
    # The loss and what it is computed from.
    "label_smoothing_factor": "both losses are cross-entropies of hard labels; `classification_loss: focal` softens",
    "use_dft_loss": _LOSS,
    "use_asft_loss": _LOSS,
    "use_eaft_loss": _LOSS,
    "moe_aux_loss_coef": "this stage's loss has no term of the router",
    "compute_accuracy": "evaluation has accuracies already (`eval_lrc_accuracy`, `eval_lmh_accuracy`)",
    "ignore_pad_token_for_loss": "padding never takes part in the loss of this stage",
    "predict_with_generate": "prediction is one forward pass, and nothing is generated",
    # Records.
    "packing": _ONE_SEQUENCE,
    "neat_packing": _ONE_SEQUENCE,
    "train_on_prompt": "the head finds the prompt by its masked labels",
    "mask_history": "records have a single turn",
    "streaming": "every record is checked before training",
    "image_do_pan_and_scan": "the host reads the number of crops in a form that transformers no longer gives",
    # Evaluation.
    "prediction_loss_only": _LISTED,
    "batch_eval_metrics": _LISTED,
    "eval_do_concat_batches": _LISTED,
    "eval_use_gather_object": _LISTED,
    # Optimizers.
    "use_galore": _OPTIMIZER,
    "use_apollo": _OPTIMIZER,
    "use_badam": _OPTIMIZER,
    "use_muon": _OPTIMIZER,
    "use_adam_mini": _OPTIMIZER,
    "loraplus_lr_ratio": _OPTIMIZER,
    "optim_target_modules": _OPTIMIZER,
    # Engines.
    "use_unsloth": _ENGINE,
    "use_kt": _ENGINE,
    "mixture_of_depths": _ENGINE,
    "use_liger_kernel": _ENGINE + "; `enable_liger_kernel: true` is the host's, which leaves it alone",
    "shift_attn": "training would attend in another way than extraction and inference do",
    "use_mca": "Megatron trains without our stage",
    "use_hyper_parallel": "it trains by a workflow of its own",
    "fp8": "it replaces linear layers, the head's too",
    "fp8_enable_fsdp_float8_all_gather": "FSDP is not supported: it would shard the head",
    "fsdp": "its shards of adapter and head are not put together for saving; use DeepSpeed ZeRO-3 "
    "(configs/deepspeed), which shards as well, or DDP",
    "parallelism_config": "it would split a meme's tokens, or the head, over devices",
    # What extraction and inference could not do again.
    "pissa_init": _REWRITES,
    "pissa_convert": _REWRITES,
    "resize_vocab": _VOCABULARY,
    "add_tokens": _VOCABULARY,
    "add_special_tokens": _VOCABULARY,
    "new_special_tokens_config": _VOCABULARY,
    "split_special_tokens": "the template's own markers would be split, and the head would read another token",
    "adapter_folder": "give the adapter's whole path in `adapter_name_or_path`",
    "train_from_scratch": "an adapter is saved without the random weights below it; `finetuning_type: full` saves all",
    "enable_thinking": "extraction and inference ask without it; take a template without thinking",
    "preserve_thinking": "a record has no earlier turns",
    # Read by nobody.
    "oft_target": "the host reads `lora_target` for OFT too; set that",
}
"""Name → why. Refused is what differs from the argument's harmless values (`_HARMLESS`, else anything that is true)."""

_HARMLESS: dict[str, tuple[Any, ...]] = {
    "ignore_pad_token_for_loss": (True,),
    "eval_do_concat_batches": (True,),
    "enable_thinking": (True, None),
    "oft_target": ("all", ["all"]),
}
_FOREIGN_OPTIMIZERS = ("galore", "apollo", "lomo", "adalomo")  # prefixes of `optim`

WITHOUT_EFFECT = {
    name: why
    for why, names in {
        "nothing is generated": (
            "use_kv_cache eval_num_beams generation_max_length generation_num_beams generation_config do_sample "
            "temperature top_p top_k num_beams max_length max_new_tokens repetition_penalty length_penalty "
            "skip_special_tokens use_cache"
        ),
        "a meme is a picture and a caption, without video, audio or tools": (
            "video_max_pixels video_min_pixels video_fps video_maxlen use_audio_in_video audio_sampling_rate "
            "tool_format"
        ),
        "it is of `llamafactory-cli export`, `api` or `chat`": (
            "export_dir export_size export_device export_quantization_bit export_quantization_dataset "
            "export_quantization_nsamples export_quantization_maxlen export_legacy_format export_hub_model_id "
            "infer_backend vllm_maxlen vllm_gpu_util vllm_enforce_eager vllm_max_lora_rank vllm_config "
            "sglang_maxlen sglang_mem_fraction sglang_tp_size sglang_config sglang_lora_backend"
        ),
        "it is of another stage": (
            "pref_beta pref_ftx pref_bco_weight pref_loss dpo_label_smoothing kto_chosen_weight kto_rejected_weight "
            "simpo_gamma ppo_buffer_size ppo_epochs ppo_score_norm ppo_target ppo_whiten_rewards ref_model "
            "ref_model_adapters ref_model_quantization_bit reward_model reward_model_adapters "
            "reward_model_quantization_bit reward_model_type ld_alpha"
        ),
        "the switch that would read it is refused": (
            "init_special_tokens buffer_size galore_target galore_rank galore_update_interval galore_scale "
            "galore_proj_type galore_layerwise apollo_target apollo_rank apollo_update_interval apollo_scale "
            "apollo_proj apollo_proj_type apollo_scale_type apollo_layerwise apollo_scale_front badam_mode "
            "badam_start_block badam_switch_mode badam_switch_interval badam_update_ratio badam_mask_mode "
            "badam_verbose asft_alpha eaft_alpha hyper_parallel_args loraplus_lr_embedding pissa_iter kt_weight_path "
            "kt_expert_checkpoint_path kt_use_lora_experts kt_lora_expert_num kt_lora_expert_intermediate_size "
            "fp8_backend fsdp_config liger_kernel_config"
        ),
        "each loss is a mean over its micro-batch": "average_tokens_across_devices",
        "our collator names the labels, and the host keeps all columns": "label_names remove_unused_columns",
        "our metrics need neither inputs nor losses": "include_for_metrics",
        "transformers 5 does not read it": "sortish_sampler logging_dir local_rank",
    }.items()
    for name in names.split()
}
"""Name → why nothing depends on it."""


def refusals(*arguments: Any) -> list[str]:
    """One sentence for each argument of these parsed argument classes that this stage cannot honour."""
    values = {name: value for group in arguments for name, value in vars(group).items()}
    problems = [
        f"`{name}: {_yaml(value)}`: {why}. Remove it."
        for name, why in REFUSED_ARGUMENTS.items()
        if (value := values.get(name)) not in _HARMLESS.get(name, (None,)) and (value or name in _HARMLESS)
        if name in values and not _fits(name, values)
    ]
    optimizer = str(getattr(values.get("optim"), "value", values.get("optim", "")))
    if optimizer.startswith(_FOREIGN_OPTIMIZERS):
        problems.append(f"`optim: {optimizer}`: {_OPTIMIZER}. Take another.")
    return problems


def _yaml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _fits(name: str, values: dict[str, Any]) -> bool:
    """Whether other arguments make a refused one harmless."""
    if name == "train_from_scratch":
        return values.get("finetuning_type") in ("full", "freeze")
    if name in ("enable_thinking", "preserve_thinking"):
        from llamafactory.data.template import TEMPLATES, ReasoningTemplate

        return not isinstance(TEMPLATES.get(values.get("template")), ReasoningTemplate)
    return False
