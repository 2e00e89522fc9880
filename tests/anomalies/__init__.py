"""How good the rules are: a generated population, replayed through them. See `measure`."""
