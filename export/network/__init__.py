"""The score network of Song et al. 2021."""
