"""Comparing decoding strategies on problems whose answers can be checked."""
