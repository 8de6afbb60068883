"""Readers of daily prices: each turns one kind of source into rows of date, symbol and fields."""
