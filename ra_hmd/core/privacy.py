"""Settings that switch off the telemetry of libraries.

`import ra_hmd` applies them before any of these libraries is imported, because most read their environment once. The
module uses the standard library only.
"""

import os
import sys

_SETTINGS = {
    "ORT_DISABLE_TELEMETRY": "1",  # onnxruntime: sends a device id that it keeps under ~/.cache/Microsoft
    "GRADIO_ANALYTICS_ENABLED": "False",  # Gradio, LLaMA-Factory's web page: reports pages
    "HF_UPDATE_DOWNLOAD_COUNTS": "0",  # datasets: counts every load of a file, also of a local one
    "HF_HUB_DISABLE_TELEMETRY": "1",  # Hugging Face libraries: usage data with every download
    "WANDB_ERROR_REPORTING": "False",  # Weights & Biases: reports errors
    "VLLM_NO_USAGE_STATS": "1",  # vLLM: reports model and GPUs
    "RAY_USAGE_STATS_ENABLED": "0",  # Ray, which vLLM and LLaMA-Factory may start
    "DO_NOT_TRACK": "1",  # libraries that follow the convention
}

_IMPORTED = {
    "datasets.config": ("HF_UPDATE_DOWNLOAD_COUNTS", False),
    "huggingface_hub.constants": ("HF_HUB_DISABLE_TELEMETRY", True),
}
"""Modules that LLaMA-Factory imports before our stage starts: module to the attribute that holds the variable, and its
value.
"""


def keep_private() -> None:
    """Switch off telemetry in this process and its children. Variables that are set already are kept. Models and data
    sets can still be downloaded by name, and `report_to` still reports.
    """
    missing = [name for name in _SETTINGS if name not in os.environ]
    os.environ.update({name: _SETTINGS[name] for name in missing})
    for module, (name, value) in _IMPORTED.items():
        if module in sys.modules and name in missing:
            setattr(sys.modules[module], name, value)
