"""From the events of a run to pandas frames and plotly figures. Never imports gradio, never runs a model."""
