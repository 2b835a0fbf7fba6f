"""Controlled comparisons of training methods: the same base, data and budget for all, several seeds, intervals (`harness experiment`)."""
