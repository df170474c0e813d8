"""A page on this machine to try a model."""

import importlib.util
import os

from helpers.inference import SentimentClassifier
from helpers.start import command


def demo(model: str, port: int | None = None) -> None:
    """Serves a page to this machine alone, with Gradio: type a text, see the probability of each class."""
    if importlib.util.find_spec("gradio") is None:
        raise ImportError("The page needs Gradio, which is not installed: pip install gradio")
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    import gradio

    classifier = SentimentClassifier.from_pretrained(model)

    def answer(*texts: str) -> dict[str, float] | float | None:
        if not all(map(str.strip, texts)):
            return None
        row = classifier.probabilities(*texts)[0].tolist()
        return row[0] if classifier.task == "regression" else dict(zip(classifier.labels, row, strict=True))

    label = gradio.Label(num_top_classes=10, label="Probability")
    boxes = [gradio.Textbox(lines=4, label=name) for name in ("Text", "Second text")[: 1 + bool(classifier.pairs)]]
    page = gradio.Interface(answer, boxes, label, flagging_mode="never")
    page.launch(server_port=port)


main = command(demo)
