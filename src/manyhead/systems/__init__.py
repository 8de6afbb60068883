"""One file per paper: builders under the paper's names, and one `SYSTEM`."""
