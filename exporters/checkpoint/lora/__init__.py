"""Adapters of peft, merged into the weights of their base while these are read."""
