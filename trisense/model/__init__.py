"""The heavy wing's model, registered with the Auto classes of transformers on import."""

from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoModelForMultimodalLM, AutoProcessor

from trisense.model.configuration import SenseOptions, TrisenseConfig
from trisense.model.modeling import TrisenseForConditionalGeneration
from trisense.model.processing import TrisenseProcessor

AutoConfig.register(TrisenseConfig.model_type, TrisenseConfig, exist_ok=True)
for auto in (AutoModel, AutoModelForImageTextToText, AutoModelForMultimodalLM):
    auto.register(TrisenseConfig, TrisenseForConditionalGeneration, exist_ok=True)
AutoProcessor.register(TrisenseConfig, TrisenseProcessor, exist_ok=True)

__all__ = ["SenseOptions", "TrisenseConfig", "TrisenseForConditionalGeneration", "TrisenseProcessor"]
