"""Entry point of lmms-eval: tells it of the model `ra_hmd`. lmms-eval loads this at every start, so it is light."""

from lmms_eval.models.registry_v2 import ModelManifest

MANIFEST = ModelManifest("ra_hmd", chat_class_path="ra_hmd.models.generation.lmms_eval_model.RunModel")
