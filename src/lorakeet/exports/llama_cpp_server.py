"""llama.cpp's own server in a process of its own: what crashes there, or stays in memory, does not harm the caller.

data in: on the command line a GGUF file, the context of one conversation, threads, and perhaps a LoRA file → out: the
server's address on stdout; it serves on loopback until stdin is closed. Run as a program, by `llama_cpp.py`.
"""

import sys

NUM_SLOTS = 4
"""Prompts that are answered at once."""


def main(model: str, num_context: str, num_threads: str, lora: str = "") -> None:
    """Serve one model."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = model
    # The rotary factors of LongRoPE go by the context that is allocated, so it is no larger than it need be.
    params.n_ctx, params.n_parallel, params.kv_unified = int(num_context) * NUM_SLOTS, NUM_SLOTS, False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = int(num_threads)
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    # Flash attention and a cache in 16 bits move log-probabilities by hundredths, in float32 too: that is llama.cpp's
    # choice of speed, and nothing that an artefact could mend.
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.n_gpu_layers, params.warmup, params.port, params.fit_params = 0, False, 0, False
    if lora:
        params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(lora, 1.0)]
    server = xllamacpp.Server(params)
    print(f"listening on {server.listening_address}", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main(*sys.argv[1:])
