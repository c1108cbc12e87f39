"""The numbers of a figure as a table, closed until it is opened."""

from __future__ import annotations

from html import escape

MOST_ROWS = 300


def table(frame, name: str) -> str:
    """A pandas frame as an HTML table in a closed <details>, named for screen readers; the first rows of a long one."""
    rows = frame.head(MOST_ROWS)
    first, *others = (escape(str(column)) for column in frame.columns)
    head = f"<th scope='col'>{first}</th>" + "".join(f"<th scope='col'>{title}</th>" for title in others)
    body = "".join(
        f"<tr><th scope='row'>{cell(row[0])}</th>{''.join(f'<td>{cell(value)}</td>' for value in row[1:])}</tr>"
        for row in rows.itertuples(index=False, name=None)
    )
    more = f"<p>The first {MOST_ROWS} of {len(frame):,} rows.</p>" if len(frame) > MOST_ROWS else ""
    return (
        '<details class="bb-blocks bb-numbers"><summary>Numbers as a table</summary>'
        f'<div tabindex="0" role="region" aria-label="{escape(name)}: numbers"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table>{more}</div></details>"
    )


def cell(value: object) -> str:
    """A value as the text of a cell: whole numbers with separators, others with four digits."""
    if isinstance(value, float):
        return "" if value != value else f"{value:.4g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return escape(str(value))
