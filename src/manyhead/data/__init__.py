"""Named data sets: from a folder, from a dependency that ships them, or fetched."""
