"""Layers that encoder and decoder are made of; they work on one layout, ``[B, T, H, W, C]``."""
