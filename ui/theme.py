"""Colours, type and style sheet: three hues with fixed meanings, as in the figures."""

from __future__ import annotations

from pathlib import Path

import gradio as gr

ASSETS = Path(__file__).resolve().parent.parent / "assets"
CSS, FAVICON = ASSETS / "style.css", ASSETS / "favicon.svg"

BLUE = gr.themes.Color(
    c50="#f1f6fb", c100="#e0ecf7", c200="#c3daf0", c300="#99c0e5", c400="#6aa1d8", c500="#3b82c9",
    c600="#2d6cae", c700="#27588d", c800="#244b75", c900="#213f61", c950="#162840",
)  # fmt: skip
SLATE = gr.themes.Color(
    c50="#f8f9fa", c100="#f1f2f4", c200="#e3e6ea", c300="#ccd1d8", c400="#979fac", c500="#6b7482",
    c600="#4f5865", c700="#3b424d", c800="#23282f", c900="#191d23", c950="#111419",
)  # fmt: skip

THEME = gr.themes.Base(
    primary_hue=BLUE,
    secondary_hue=BLUE,
    neutral_hue=SLATE,
    radius_size=gr.themes.sizes.radius_md,
    font=("ui-sans-serif", "system-ui", "-apple-system", "Segoe UI", "Liberation Sans", "sans-serif"),
    font_mono=("ui-monospace", "SF Mono", "Consolas", "Liberation Mono", "monospace"),
).set(
    body_background_fill="*neutral_50",
    body_background_fill_dark="*neutral_950",
    block_background_fill="white",
    block_background_fill_dark="*neutral_900",
    block_border_width="1px",
    block_shadow="none",
    body_text_color_subdued="*neutral_600",
    body_text_color_subdued_dark="*neutral_400",
    block_info_text_color="*neutral_600",
    block_info_text_color_dark="*neutral_400",
    block_title_text_color="*neutral_800",
    block_title_text_color_dark="*neutral_200",
    block_title_text_weight="600",
    input_border_width="1px",
    input_border_color="*neutral_200",
    input_border_color_dark="*neutral_700",
    checkbox_label_background_fill="transparent",
    checkbox_label_background_fill_dark="transparent",
    button_primary_background_fill="*primary_600",
    button_primary_background_fill_hover="*primary_700",
    button_primary_background_fill_dark="*primary_600",
    button_primary_background_fill_hover_dark="*primary_500",
    button_primary_text_color="white",
    input_background_fill="white",
    input_background_fill_dark="*neutral_950",
)
