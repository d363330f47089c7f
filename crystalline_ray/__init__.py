"""A distributed trainer for GPT-style language models on CPUs, hosted by a tree of Ray actors."""

__version__ = "0.1.0"
