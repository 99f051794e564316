"""Networks that can be exported: what each maps to the score, and their blocks."""
