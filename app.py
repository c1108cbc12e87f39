"""The Gradio entry point: build, queue, launch."""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
from pathlib import Path

with contextlib.suppress(ImportError):
    import spaces  # noqa: F401  (ZeroGPU needs it before torch)

from ui import visitors
from ui.guard import guarded
from ui.page import build
from ui.theme import CSS, FAVICON, THEME


def main() -> None:
    parser = argparse.ArgumentParser(description="Prune a language model in the browser.", allow_abbrev=False)
    parser.add_argument("--host", default=visitors.default_host(), help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=None, help="port (default: the first free one from 7860)")
    parser.add_argument(
        "--runs",
        type=Path,
        default=None,
        help="where runs are kept (default: the folder runs here; where others can reach the app, a temporary one)",
    )
    visitors.add_flags(parser)
    arguments = parser.parse_args()
    policy = visitors.settle(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # so that temporary folders are removed
    try:
        page = build(policy.runs, policy.turn, policy.alone)
        page.queue(max_size=20)
        page.launch(
            server_name=arguments.host,
            server_port=arguments.port,
            share=False,  # a tunnel would let others reach a server meant for this machine
            theme=THEME,
            css_paths=CSS,
            favicon_path=FAVICON,
            run_history=False,
            footer_links=["api"],
            ssr_mode=False,
            app_kwargs=guarded(policy.names),
        )
    except (OSError, OverflowError) as error:  # a port in use or out of range, a folder that cannot be made
        parser.exit(2, f"error: {str(error).rstrip('.')}: give another --host, --port or --runs.\n")


if __name__ == "__main__":
    main()
