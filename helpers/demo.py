"""A page on this machine to try a model: `python -m helpers.demo MODEL`. Type a text, see each class's probability.

MODEL is an adapter's folder or a plain model's. The page is Gradio's: `pip install gradio`.
"""

import argparse
import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from helpers.inference import SentimentClassifier
from helpers.start import exit_status, prepare_process

SHOWN = 10  # classes, the most probable


def main(arguments: Sequence[str] | None = None) -> int:
    """Serves the page until Ctrl-C; returns the exit status, with bad input as one line on stderr."""
    prepare_process()
    parser = argparse.ArgumentParser(prog="python -m helpers.demo", description=__doc__)
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--port", type=int, help="default: the first that is free from 7860")
    options = parser.parse_args(arguments)
    return exit_status(lambda: run(options.model, options.port), "Stopped.")


def run(model: str, port: int | None) -> None:
    """Serves the page, to this machine alone. Raises ImportError where Gradio is missing."""
    if importlib.util.find_spec("gradio") is None:
        raise ImportError("The page needs Gradio, which is not installed: pip install gradio")
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    import gradio

    classifier = SentimentClassifier.from_pretrained(model)

    def answer(text: str) -> dict[str, float] | float | None:
        if not text.strip():
            return None
        row = classifier.probabilities(text)[0].tolist()
        return row[0] if classifier.task == "regression" else dict(zip(classifier.labels, row, strict=True))

    page = gradio.Interface(
        answer,
        gradio.Textbox(lines=4, label="Text"),
        gradio.Label(num_top_classes=SHOWN, label="Probability"),
        title=Path(model).name,
        description=f"Texts are cut to {classifier.max_length} tokens ({classifier.truncation}).",
        flagging_mode="never",
    )
    page.launch(server_name="127.0.0.1", server_port=port)


if __name__ == "__main__":
    sys.exit(main())
