"""How much label noise a network averaged away, tile by tile, and whether that is true."""
