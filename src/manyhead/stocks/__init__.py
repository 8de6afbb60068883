"""The flagship: daily prices in, an honest walk-forward stock-selection result out."""
