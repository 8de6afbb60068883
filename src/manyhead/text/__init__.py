"""A small text generator: learn a tokeniser and a transformer from text in minutes, then write on."""

from manyhead.text.model import TextModel, Writer
from manyhead.text.tokenizer import Tokenizer
from manyhead.text.train import train_text

__all__ = ["TextModel", "Tokenizer", "Writer", "train_text"]
