"""The data sets that the demonstrations and tests name."""

from functools import partial

from manyhead.data import fetchers, readers
from manyhead.data.dataset import DataSet

_IMAGES = "dict of arrays: uint8 images 0..255 and uint8 labels 0..9"
_GRAPH = (
    "dict of arrays: feature float32 (nodes, features) binary, label (nodes,) with -1 unknown,"
    " edge (edges, 2) each undirected edge once, smaller node first; train, val, test of the public split"
)
_LINES = "list of sentences, tokens divided by spaces"
_TABLE = "dict: feature float64 (rows, columns), target, feature_names, target_names"

_SETS = [
    DataSet(
        name="sp500",
        kind="prices",
        description="Daily adjusted open, high, low, close and volume of 501 S&P 500 members, 2010 to 2023;"
        " the members are those of the end, so that survivors only are in it.",
        license="prices of exchanges and Yahoo: for one's own research, not to be passed on",
        size="27 MB",
        form="polars table: date, symbol, open, high, low, close (float32), volume (float64), a row a day and"
        " symbol; read_prices('sp500') gives the panel",
        how="make it from read_prices('yfinance:...') with the members' tickers, or bring any file of prices",
        files=("sp500.parquet",),
        read=readers.table,
    ),
    DataSet(
        name="sp500_sectors",
        kind="table",
        description="GICS sector and sub-industry, headquarters and date added of the S&P 500 members.",
        license="CC BY-SA 4.0 (Wikipedia, 'List of S&P 500 companies')",
        size="54 kB",
        form="polars table: Symbol, Security, GICS Sector, GICS Sub-Industry, ...",
        how="save the first table of Wikipedia's 'List of S&P 500 companies' as sp500_sectors.csv",
        files=("sp500_sectors.csv",),
        read=readers.table,
    ),
    DataSet(
        name="skfolio_sp500",
        kind="prices",
        description="Daily adjusted closing prices of 20 S&P 500 members, 1990 to 2022; survivors only.",
        license="shipped with skfolio, BSD-3-Clause",
        size="1 MB, in the package",
        form="polars table: date, symbol, close; read_prices('skfolio') gives the panel",
        how="pip install 'manyhead[stocks]'",
        shipped=("skfolio", "stocks"),
        bundled=readers.skfolio_prices,
    ),
    DataSet(
        name="cifar10_12k",
        kind="images",
        description="12,000 training and 3,000 test images of CIFAR-10, 32 x 32 in colour, ten classes.",
        license="none stated; Krizhevsky 2009 asks to be cited",
        size="43 MB",
        form=f"{_IMAGES}: train_image (12000, 32, 32, 3), train_label, test_image (3000, ...), test_label",
        how="take a balanced part of CIFAR-10 and save the four arrays as cifar10_12k.npz",
        files=("cifar10_12k.npz",),
        read=readers.arrays,
    ),
    DataSet(
        name="mnist_10k",
        kind="images",
        description="10,000 handwritten digits, 28 x 28: the test half of MNIST.",
        license="CC BY-SA 3.0 (LeCun, Cortes, Burges)",
        size="2 MB",
        form=f"{_IMAGES}: image (10000, 28, 28), label (10000,)",
        how="fetch 'mnist_784' from OpenML and save its last 10,000 digits as mnist_10k.npz",
        files=("mnist_10k.npz",),
        read=readers.arrays,
        client="scikit-learn",
        fetch=fetchers.mnist,
    ),
    *(
        DataSet(
            name=name,
            kind="graph",
            description=f"Citation graph of {nodes} papers in {classes} classes, Planetoid's public split.",
            license="none stated; Sen et al. 2008 and Yang et al. 2016 ask to be cited",
            size=size,
            form=_GRAPH,
            how=f"torch_geometric.datasets.Planetoid(folder, {name!r}): pip install 'manyhead[graphs]'",
            files=(f"{name}.npz",),
            read=readers.graph,
            client="torch_geometric",
            fetch=partial(fetchers.planetoid, name=name),
        )
        for name, nodes, classes, size in (
            ("cora", "2,708", "seven", "0.1 MB"),
            ("citeseer", "3,327", "six", "0.2 MB"),
        )
    ),
    DataSet(
        name="ml-100k",
        kind="ratings",
        description="MovieLens 100K: 100,000 ratings of 1,682 films by 943 people, with their features.",
        license="GroupLens: research, no redistribution without permission",
        size="2 MB",
        form="dict of polars tables: inter (user_id, item_id, rating, timestamp), item (item_id, movie_title,"
        " release_year, class), user (user_id, age, gender, occupation, zip_code); tokens are text",
        how="take ml-100k from GroupLens in RecBole's atomic format: ml-100k.inter, .item and .user",
        files=("ml-100k.inter", "ml-100k.item", "ml-100k.user"),
        read=readers.atomic_tables,
    ),
    *(
        DataSet(
            name=f"wikitext2_{part}",
            kind="text",
            description=f"WikiText-2, the {long} part: Wikipedia articles with rare words replaced by <unk>.",
            license="CC BY-SA 3.0 (Merity et al. 2016)",
            size=size,
            form="one str, tokens divided by spaces, a paragraph a line",
            how=f"datasets.load_dataset('Salesforce/wikitext', 'wikitext-2-v1') has it; save the {long} part"
            f" as wikitext2_{part}.txt",
            files=(f"wikitext2_{part}.txt",),
            read=readers.text,
            client="datasets",
            fetch=partial(fetchers.wikitext2, part=part),
        )
        for part, long, size in (("valid", "validation", "1.1 MB"), ("test", "test", "1.3 MB"))
    ),
    *(
        DataSet(
            name=f"rt_polarity_{sign}",
            kind="text",
            description=f"5,331 sentences of film reviews that are {mood}.",
            license="none stated; Pang and Lee 2005 ask to be cited",
            size="0.6 MB",
            form=_LINES,
            how=f"nltk.download('sentence_polarity'); save rt-polarity.{sign} as rt_polarity_{sign}.txt",
            files=(f"rt_polarity_{sign}.txt",),
            read=readers.lines,
            client="nltk",
            fetch=partial(fetchers.rt_polarity, sign=sign),
        )
        for sign, mood in (("pos", "in favour"), ("neg", "against"))
    ),
    DataSet(
        name="spoken_digits_8khz",
        kind="sound",
        description="3,000 recordings of the ten digits by six speakers, 8 kHz.",
        license="CC BY-SA 4.0 (Jackson et al., Free Spoken Digit Dataset)",
        size="15 MB",
        form="dict: samples (list of int16 arrays), rate (8000), digit uint8, speaker text, take int16",
        how="git clone the Free Spoken Digit Dataset and save samples (recordings joined), offset (3001,),"
        " digit, speaker and take as spoken_digits_8khz.npz",
        files=("spoken_digits_8khz.npz",),
        read=readers.sound,
    ),
    DataSet(
        name="python_source",
        kind="text",
        description="The standard library of the Python that runs, source of its top-level modules;"
        " differs between versions of Python.",
        license="Python Software Foundation License",
        size="about 5 MB, in Python",
        form="one str",
        how="install Python with its standard library's sources",
        shipped=("sysconfig", ""),
        bundled=readers.python_source,
    ),
    *(
        DataSet(
            name=name,
            kind="table",
            description=description,
            license="shipped with scikit-learn, BSD-3-Clause",
            size="under 0.1 MB, in the package",
            form=_TABLE,
            how="pip install 'manyhead[stocks]'",
            shipped=("sklearn", "stocks"),
            bundled=partial(readers.sklearn_table, f"load_{name}"),
        )
        for name, description in (
            ("digits", "1,797 handwritten digits, 8 x 8, ten classes."),
            ("iris", "150 flowers of three species, 4 measures."),
            ("wine", "178 wines of three growers, 13 measures."),
            ("breast_cancer", "569 tumours, benign or malignant, 30 measures."),
            ("diabetes", "442 patients, 10 measures, progression after a year."),
            ("linnerud", "20 men, three exercises and three bodily measures as targets."),
        )
    ),
]

DATASETS: dict[str, DataSet] = {entry.name: entry for entry in _SETS}
