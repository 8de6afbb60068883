"""Self-contained HTML pages: plotly embedded, nothing fetched."""
