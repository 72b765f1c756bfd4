"""The number formats that a model may be loaded in, by name; apart from the models, which take long to import."""

from typing import Literal

DType = Literal["auto", "float32", "bfloat16", "float16"]
