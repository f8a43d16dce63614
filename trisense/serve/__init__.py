"""The door for programs and browsers: an OpenAI-compatible HTTP API and a chat page, in one server.

Needs the `serve` extra. Importing this package says so in one line when it is not installed.
"""

import os
from importlib.util import find_spec

from trisense.errors import BadInput

if missing := [name for name in ("fastapi", "uvicorn", "gradio") if find_spec(name) is None]:
    raise BadInput(f"the server needs {', '.join(missing)}: pip install trisense[serve]")

# Read by gradio while it is imported: without it, starting the page tells gradio's makers about it over the net.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
