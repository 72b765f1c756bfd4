"""What keeps libraries from telling others about a run, or about the machine. `import ra_hmd` sets it, before any of
them is imported: most read their environment once. Standard library only.
"""

import os
import sys

_SETTINGS = {
    "ORT_DISABLE_TELEMETRY": "1",  # onnxruntime: a device id under ~/.cache/Microsoft, and a host that is told of it
    "GRADIO_ANALYTICS_ENABLED": "False",  # Gradio: its makers are told of pages, and asked for the newest version
    "HF_UPDATE_DOWNLOAD_COUNTS": "0",  # datasets: a host is asked whenever a file is loaded, of this machine too
    "HF_HUB_DISABLE_TELEMETRY": "1",  # Hugging Face's libraries: downloads say no more than what is downloaded
    "WANDB_ERROR_REPORTING": "False",  # Weights & Biases: its makers are told of errors
    "VLLM_NO_USAGE_STATS": "1",  # vLLM: its makers are told of the model and the GPUs
    "RAY_USAGE_STATS_ENABLED": "0",  # Ray, which vLLM and LLaMA-Factory may start
    "DO_NOT_TRACK": "1",  # others that heed it
}

_IMPORTED = {
    "datasets.config": ("HF_UPDATE_DOWNLOAD_COUNTS", False),
    "huggingface_hub.constants": ("HF_HUB_DISABLE_TELEMETRY", True),
}
"""What LLaMA-Factory has imported before our stage is asked for: module → attribute that keeps the variable, value."""


def keep_private() -> None:
    """Switch off what libraries tell by themselves, here and in child processes. What is set already stays: a user may
    want it. Models and data sets that a user names can still be downloaded, and `report_to` still reports.
    """
    missing = [name for name in _SETTINGS if name not in os.environ]
    os.environ.update({name: _SETTINGS[name] for name in missing})
    for module, (name, value) in _IMPORTED.items():
        if module in sys.modules and name in missing:
            setattr(sys.modules[module], name, value)
