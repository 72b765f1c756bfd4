"""vLLM's pooling runner in a process of its own, driven by JSON lines; run by the Python of the environment that holds
vLLM.

That may be another environment than this package's, which is why nothing of `ra_hmd` is imported here. Lines in:
`{"engine": arguments of LLM, "adapter": folder or null}`, answered by `{"ready": true}`, then any number of
`{"prompts": [{"ids", "image": PNG in base64}], "tuned"}`, each answered by `{"ids", "states": float32 in base64}`.
"""

import base64
import io
import json
import os
import sys
from typing import Any


def main() -> None:
    """Answer until standard input ends."""
    lines = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # vLLM and its children log to standard output
    import numpy as np
    import vllm
    from PIL import Image
    from vllm.config import PoolerConfig
    from vllm.lora.request import LoRARequest

    def say(value: dict[str, Any]) -> None:
        print(json.dumps(value), file=lines, flush=True)

    def prompt_of(asked: dict[str, Any]) -> dict[str, Any]:
        picture = Image.open(io.BytesIO(base64.b64decode(asked["image"]))).convert("RGB")
        return {"prompt_token_ids": asked["ids"], "multi_modal_data": {"image": [picture]}}

    def encoded(state: Any) -> str:
        return base64.b64encode(np.asarray(state, dtype="<f4").tobytes()).decode()

    first = json.loads(sys.stdin.readline())
    pooler = PoolerConfig(pooling_type="LAST", use_activation=False)
    model = vllm.LLM(**first["engine"], pooler_config=pooler)
    adapter = None if first["adapter"] is None else LoRARequest("run", 1, first["adapter"])
    say({"ready": True})
    for line in iter(sys.stdin.readline, ""):
        asked = json.loads(line)
        prompts = [prompt_of(one) for one in asked["prompts"]]
        found = model.embed(prompts, use_tqdm=False, lora_request=adapter if asked["tuned"] else None)
        states = [encoded(one.outputs.embedding) for one in found]
        say({"ids": [list(one.prompt_token_ids) for one in found], "states": states})


if __name__ == "__main__":  # vLLM's children import this file
    main()
