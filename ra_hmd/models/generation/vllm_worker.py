"""vLLM in a process of its own, driven by JSON lines; run by the Python of the environment that holds vLLM.

That may be another environment than this package's, which is why nothing of `ra_hmd` is imported here. Lines in:
`{"engine": arguments of LLM, "adapter": folder or null}`, answered by `{"ready": true}`, then any number of
`{"prompts": [{"ids", "images": PNG in base64}], "max_tokens", "stop"}`, each answered by `{"ids", "texts"}`.
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
    from PIL import Image
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    def say(value: dict[str, Any]) -> None:
        print(json.dumps(value), file=lines, flush=True)

    def open_images(encoded: list[str]) -> list[Any]:
        return [Image.open(io.BytesIO(base64.b64decode(image))).convert("RGB") for image in encoded]

    first = json.loads(sys.stdin.readline())
    model = LLM(**first["engine"])
    adapter = None if first["adapter"] is None else LoRARequest("run", 1, first["adapter"])
    say({"ready": True})
    for line in iter(sys.stdin.readline, ""):
        request = json.loads(line)
        prompts = [
            {"prompt_token_ids": prompt["ids"]}
            | ({"multi_modal_data": {"image": open_images(prompt["images"])}} if prompt["images"] else {})
            for prompt in request["prompts"]
        ]
        greedy = SamplingParams(temperature=0.0, max_tokens=request["max_tokens"], stop_token_ids=request["stop"])
        found = model.generate(prompts, greedy, use_tqdm=False, lora_request=adapter)
        say({"ids": [list(one.prompt_token_ids) for one in found], "texts": [one.outputs[0].text for one in found]})


if __name__ == "__main__":  # vLLM's children import this file
    main()
