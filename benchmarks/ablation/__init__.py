"""The tables of both papers: their rows as data, and what trains, compares and reports them (``ablate.py``)."""
