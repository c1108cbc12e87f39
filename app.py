"""The Gradio entry point: build, queue, launch."""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path

with contextlib.suppress(ImportError):
    import spaces  # noqa: F401  (ZeroGPU needs it before torch)

from ui.page import build
from ui.theme import CSS, FAVICON, THEME


def main() -> None:
    parser = argparse.ArgumentParser(description="Prune a language model in the browser.")
    parser.add_argument("--host", default=None, help="address to listen on (default: this machine only)")
    parser.add_argument("--port", type=int, default=None, help="port (default: the first free one from 7860)")
    parser.add_argument("--runs", type=Path, default=None, help="where runs are kept (default: a temporary folder)")
    arguments = parser.parse_args()
    page = build(arguments.runs)
    page.queue(max_size=20)
    page.launch(
        server_name=arguments.host,
        server_port=arguments.port,
        theme=THEME,
        css_paths=CSS,
        favicon_path=FAVICON,
        run_history=False,
        show_error=True,
        footer_links=["api"],
        ssr_mode=False,
    )


if __name__ == "__main__":
    main()
