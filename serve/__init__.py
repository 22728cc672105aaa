"""Visual tokens pruned inside vLLM: a plug-in that the engine finds by itself (`vllm.general_plugins`).

`plugin` is what the engine calls; nothing else here is imported before an engine asks for compression. `served` knows
what a spec means for a model, `processor` counts in the front end, `model` selects behind the tower, `positions` keeps
M-RoPE right, `watch` sees the tower's attention. `versions` tells which engines that was tested with.
"""

#: The key of `--hf-overrides` that holds the spec, and that of a request's `mm_processor_kwargs` that holds its budget.
SPEC, KEEP = "vtc", "vtc_keep"
