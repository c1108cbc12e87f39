"""The app: one file per tab, each building its tab and wiring its events. No maths, no torch, no plotly calls."""
