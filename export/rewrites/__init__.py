"""Rewrites of the network or its graph that leave the function as it is: one idea a file."""
