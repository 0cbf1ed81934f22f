"""The blocks of the spec, grouped by what they describe; document.py puts them together."""
