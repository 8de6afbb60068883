"""Named data sets: from a folder, from a dependency that ships them, or fetched.

    >>> from manyhead import data
    >>> data.load("digits")["feature"].shape
    (1797, 64)

`load(name)` looks, in this order, into the folder that the environment variable MANYHEAD_DATA names, into
a dependency that carries the set, into the cache of earlier fetches, and then asks the set's own client
(scikit-learn's OpenML, PyTorch Geometric, Hugging Face datasets) to fetch it, if it has one. Nothing
is read, imported or fetched before `load` is called.
"""

from manyhead.data.catalogue import DATASETS
from manyhead.data.dataset import DataSet
from manyhead.data.locate import describe, folder, load, path, present

__all__ = ["DATASETS", "DataSet", "describe", "folder", "load", "path", "present"]
